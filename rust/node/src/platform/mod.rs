//! What differs between operating systems: how a process ends, who may write a file, what wakes an event
//! loop, and how to write to a socket that it owns.

#[cfg(unix)]
mod unix;
#[cfg(unix)]
pub use unix::{
    await_end, detach_from_terminal, end_with_parent, keep_memory_private, kill_group, socket, wake_pair,
    writable_by_others,
};

#[cfg(not(unix))]
mod windows;
#[cfg(not(unix))]
pub use windows::{
    await_end, detach_from_terminal, end_with_parent, keep_memory_private, kill_group, socket, wake_pair,
    writable_by_others,
};

use std::fmt;

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By a signal, or by what takes a signal's place.
    Signal {
        /// Its number.
        number: i64,
        /// Its name, where it has one.
        name: Option<&'static str>,
    },
    /// By itself.
    Code(i32),
    /// Nobody knows.
    Unknown,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ending::Signal { number, name: Some(name) } => write!(f, "signal {number} ({name})"),
            Ending::Signal { number, name: None } => write!(f, "signal {number}"),
            Ending::Code(code) => write!(f, "exit code {code}"),
            Ending::Unknown => f.write_str("an unknown ending"),
        }
    }
}
