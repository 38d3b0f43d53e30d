//! All that is waited for, and for how long.

use std::time::Duration;

/// How long each stage of a worker may take. Only one that serves has no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// Finding model and engine, which may mean to look at all engines anew.
    pub find: Duration,
    /// From the start of a process until it has introduced itself.
    pub start: Duration,
    /// From then on until the model answers, without what it waits for room.
    pub load: Duration,
    /// For so long a load waits until others have made room; 0: nobody makes room.
    pub room: Duration,
    /// From the order to stop until the process has ended.
    pub stop: Duration,
    /// The same while the node is going down.
    pub farewell: Duration,
    /// From a kill until the process has ended: a crash may write a core dump, and what it said is still read.
    pub kill: Duration,
    /// From a load's end until a GPU says what it came to.
    pub measure: Duration,
    /// From a process's end until its memory of GPUs shows as free. What does not by then is somebody else's.
    pub settle: Duration,
    /// From the beginning of a look at the devices until its end.
    pub read: Duration,
}

impl Deadlines {
    /// With what the configuration names, and the rest as it is everywhere.
    pub fn new(start: Duration, load: Duration, room: Duration) -> Self {
        Self {
            find: Duration::from_mins(10),
            start,
            load,
            room,
            stop: Duration::from_secs(5),
            farewell: Duration::from_secs(2),
            kill: Duration::from_secs(8),
            measure: Duration::from_secs(1),
            settle: Duration::from_secs(5),
            read: Duration::from_secs(5),
        }
    }

    /// From a drain's end until the process has ended, at the latest.
    pub(crate) fn end(&self) -> Duration {
        self.stop.saturating_add(self.kill)
    }
}
