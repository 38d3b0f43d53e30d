//! What was compiled and is likely to be asked for again: clients send the same one with each request.

use std::{collections::VecDeque, sync::Arc};

use super::{Prototype, Wanted};

/// Most prototypes that are kept.
const MOST: usize = 64;
/// Bytes that they may take together.
const MOST_BYTES: usize = 64 << 20;
/// Bytes of a prototype for each byte of what was wanted, and beside them. Small schemas were measured to take 80 KB,
/// and one of 43 KB 5.7 MB.
const BYTES_EACH: usize = 140;
const BYTES_BESIDE: usize = 80 << 10;

/// Prototypes by what was wanted; the one that was not asked for longest goes first.
#[derive(Debug, Default)]
pub struct Prototypes {
    /// The one asked for last is the last.
    kept: VecDeque<(Wanted, Arc<Prototype>)>,
}

impl Prototypes {
    /// The prototype of what is wanted, if it is there.
    pub fn get(&mut self, wanted: &Wanted) -> Option<Arc<Prototype>> {
        let at = self.kept.iter().rposition(|it| it.0 == *wanted)?;
        let found = self.kept.remove(at)?;
        let prototype = Arc::clone(&found.1);
        self.kept.push_back(found);
        Some(prototype)
    }

    /// Keeps a prototype.
    pub fn put(&mut self, wanted: Wanted, prototype: Arc<Prototype>) {
        self.kept.retain(|it| it.0 != wanted);
        self.kept.push_back((wanted, prototype));
        while self.kept.len() > MOST || (self.bytes() > MOST_BYTES && self.kept.len() > 1) {
            self.kept.pop_front();
        }
    }

    fn bytes(&self) -> usize {
        self.kept.iter().map(|it| BYTES_BESIDE + BYTES_EACH * it.0.size()).sum()
    }
}
