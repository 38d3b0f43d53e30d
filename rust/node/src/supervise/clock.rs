//! The node's own second hand: deadlines of questions, and workers of which nothing is heard.
//!
//! It counts the seconds in which this process ran. A machine that sleeps, and a container that is frozen, make
//! none of them, so that nobody is late for having slept along with the node.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use super::{Inner, minding::GivenUp};

const TICK: Duration = Duration::from_secs(1);

/// Ends with the supervisor.
pub(super) fn keep(inner: &Weak<Inner>) {
    loop {
        let began = Instant::now();
        thread::sleep(TICK);
        let Some(inner) = inner.upgrade() else { return };
        tick(&inner, began.elapsed());
    }
}

fn tick(inner: &Arc<Inner>, took: Duration) {
    inner.traffic.tick(took);
    let limit = inner.config.step_timeout_seconds;
    for process in inner.processes.all() {
        // Loads, probes and unloads have deadlines of their own.
        let Some(owed) = inner.traffic.owed_by(process.link.worker) else { continue };
        process.silence.tick(owed > 0);
        if limit > 0 && process.silence.is_too_long(limit) && !process.is_expected_to_die() {
            process.give_up(GivenUp::Silent(process.silence.seconds()));
        }
    }
}
