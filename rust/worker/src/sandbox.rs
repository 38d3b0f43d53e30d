//! What a worker does to itself as a process: it gives up the network before foreign code is loaded,
//! and it knows how to end without running any of that code again.
//!
//! Refused is the making of sockets, on Linux by a seccomp filter that needs no privileges and holds
//! for every thread, present and to come. Allowed stay local sockets, over which the worker speaks
//! with its node, and netlink, over which device libraries ask the kernel for hardware. `io_uring` is
//! refused because its requests pass by every filter. A worker inherits no socket from its node, so
//! what cannot be made cannot be used. Elsewhere [`apply`] does nothing, and says so.
//!
//! One honest use is lost: a library that coordinates several GPUs over TCP within one machine (NCCL
//! does) cannot start in a worker.

/// What became of [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// From now on the process cannot open network connections.
    Applied,
    /// Nothing happened: there is no such thing here.
    Unsupported,
}

/// Why the sandbox, which this system should have, was refused.
#[derive(Debug, thiserror::Error)]
#[error("the network could not be closed to the engine: {0}")]
pub struct SandboxError(String);

/// Takes the network away from all of this process, for good.
#[cfg(target_os = "linux")]
pub fn apply() -> Result<Sandbox, SandboxError> {
    let Some(filter) = linux::filter().map_err(|error| SandboxError(error.to_string()))? else {
        return Ok(Sandbox::Unsupported);
    };
    seccompiler::apply_filter_all_threads(&filter).map_err(|error| SandboxError(error.to_string()))?;
    Ok(Sandbox::Applied)
}

/// Takes the network away from all of this process, where that is possible: not here.
#[cfg(not(target_os = "linux"))]
pub fn apply() -> Result<Sandbox, SandboxError> {
    Ok(Sandbox::Unsupported)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;

    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition,
        SeccompFilter, SeccompRule, TargetArch,
    };

    /// On x86-64 the same calls exist a second time, for programs with short pointers.
    const X32: i64 = 0x4000_0000;

    /// `None`: not for this kind of processor. A call of another kind (32 bit) than the process's
    /// own ends it, which closes that way round.
    pub(super) fn filter() -> Result<Option<BpfProgram>, BackendError> {
        let Ok(target) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
        let allowed = [libc::AF_UNIX, libc::AF_NETLINK];
        let other_family = allowed
            .iter()
            .map(|&family| SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family as u64))
            .collect::<Result<Vec<_>, _>>()?;
        let socket = vec![SeccompRule::new(other_family)?];
        let mut rules = BTreeMap::from([
            (libc::SYS_socket, socket.clone()),
            // No conditions: always.
            (libc::SYS_io_uring_setup, Vec::new()),
        ]);
        if target == TargetArch::x86_64 {
            rules.insert(X32 | libc::SYS_socket, socket);
            rules.insert(X32 | libc::SYS_io_uring_setup, Vec::new());
        }
        let refused = SeccompAction::Errno(libc::EACCES as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, target)?;
        filter.try_into().map(Some)
    }
}

/// Ends the process at once. No destructor of an engine runs: other threads may be inside it.
#[cfg(unix)]
pub(crate) fn leave(code: i32) -> ! {
    // SAFETY: `_exit` may be called at any time from any thread; it takes a number, touches no memory
    // of ours and does not return. What it skips (destructors, flushing of stdio) is skipped on
    // purpose: frames are not buffered beyond the outbox, which callers flush where it matters.
    unsafe { libc::_exit(code) }
}

/// Ends the process at once, as far as the platform's way out of a process lets it.
#[cfg(not(unix))]
pub(crate) fn leave(code: i32) -> ! {
    std::process::exit(code)
}
