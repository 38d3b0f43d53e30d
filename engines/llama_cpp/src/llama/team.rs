//! OpenMP's teams of threads.

use super::shim::{shim_processors, shim_team};

/// Processors that the OpenMP runtime counts for this process.
pub(crate) fn processors() -> u32 {
    // SAFETY: a query without preconditions.
    unsafe { shim_processors() }
}

/// Runs an empty parallel region of `threads` threads, and gives the kernel's number of each. It is the
/// team that the next pass on the calling thread uses, if it has as many threads; the team lasts until
/// the calling thread ends, asks for another size, or drops a context.
pub(crate) fn team(threads: u32) -> Vec<i32> {
    let mut ids = vec![0; threads as usize];
    // SAFETY: each thread of the region writes one element, and there are at most `threads`.
    unsafe { shim_team(threads, ids.as_mut_ptr()) };
    // The runtime may give fewer threads than it was asked for.
    ids.retain(|id| *id > 0);
    ids
}
