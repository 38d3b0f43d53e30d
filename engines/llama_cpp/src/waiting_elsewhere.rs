//! Where the system does not tell how long threads wait for processors, passes run as they are.

use crate::llama::Context;
use crate::options::WaitPolicy;

/// How the threads of a context wait for each other: as the OpenMP runtime does.
pub(crate) struct Waiting;

impl Waiting {
    /// Nothing can be chosen here.
    pub(crate) fn new(_: WaitPolicy, _: u32) -> Self {
        Self
    }

    /// Runs a pass.
    #[expect(clippy::unused_self, reason = "as on Linux")]
    pub(crate) fn pass<T>(
        &mut self,
        context: &mut Context,
        _: usize,
        pass: impl FnOnce(&mut Context) -> T,
    ) -> T {
        pass(context)
    }
}
