//! Ending a step from another thread, while the context lives and after.

use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use llm_node_abi::{EngineBatching, EngineContext};

/// The handle, shared with those who may cancel; `None` once it is destroyed.
#[derive(Debug)]
pub(super) struct Handle(pub(super) Mutex<Option<NonNull<EngineContext>>>);

// SAFETY: the header lets a context be used from any thread; the pointer is used under the lock, or by
// the one owner of the `Context`.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// Asks the step that is running to end. Any thread, at any time, even after the context is gone.
#[derive(Clone, Debug)]
pub struct Canceller {
    pub(super) handle: Arc<Handle>,
    pub(super) table: EngineBatching,
}

impl Canceller {
    /// The step ends with `Cancelled`, or later as if nothing had happened: at best this takes effect
    /// between two kernels, and an engine need not offer it.
    pub fn cancel(&self) {
        let handle = self.handle.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(context), Some(cancel)) = (*handle, self.table.cancel) {
            // SAFETY: [any]; the lock keeps the context from being destroyed meanwhile.
            unsafe { cancel(context.as_ptr()) };
        }
    }
}
