//! The one unsafe module: calls that no node makes, and what a process looks like from within.

pub(crate) mod batch;
pub(crate) mod calls;
pub(crate) mod process;

/// What memory is filled with that nobody is to write to, or that was taken back.
pub(crate) const CANARY: u8 = 0xa5;
/// Elements beside a buffer that are looked at.
pub(crate) const MARGIN: usize = 64;
