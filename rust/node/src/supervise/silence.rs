//! For how long nothing was heard of a worker.
//!
//! Counted in ticks of the node's own clock, about a second each, and not in time: on a machine that sleeps,
//! or in a container that is frozen, node and workers stand still together. The node then counts no ticks,
//! and no healthy worker has been silent when they go on.

use std::sync::atomic::{AtomicU32, Ordering};

/// Before its silence costs it its life, a worker must owe an answer for so many ticks: one that stood still
/// without work, and goes on, is heard of before.
const OWING: u32 = 3;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Silence {
    ticks: AtomicU32,
    owing: AtomicU32,
}

impl Silence {
    /// It has said something.
    pub(super) fn heard(&self) {
        self.ticks.store(0, Ordering::Relaxed);
    }

    /// A second of the node's has passed. `owes`: has it anything to answer?
    pub(super) fn tick(&self, owes: bool) {
        self.ticks.fetch_add(1, Ordering::Relaxed);
        if owes {
            self.owing.fetch_add(1, Ordering::Relaxed);
        } else {
            self.owing.store(0, Ordering::Relaxed);
        }
    }

    /// In whole seconds of the node's.
    pub(super) fn seconds(&self) -> u32 {
        self.ticks.load(Ordering::Relaxed)
    }

    /// Has it been silent for longer than `limit` seconds while somebody waits?
    pub(super) fn is_too_long(&self, limit: u32) -> bool {
        self.seconds() > limit && self.owing.load(Ordering::Relaxed) >= OWING
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_owes_nothing_may_be_silent_and_who_speaks_may_owe() {
        let silence = Silence::default();
        for _ in 0..100 {
            silence.tick(false);
        }
        assert_eq!((silence.seconds(), silence.is_too_long(10)), (100, false));
        silence.tick(true);
        assert!(!silence.is_too_long(10), "it may only now be able to speak again");
        silence.heard();
        for _ in 0..10 {
            silence.tick(true);
        }
        assert!(!silence.is_too_long(10));
        silence.tick(true);
        assert!(silence.is_too_long(10));
        silence.heard();
        assert!(!silence.is_too_long(10));
    }
}
