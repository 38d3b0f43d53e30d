//! What a worker does to itself as a process: it gives up, before foreign code is loaded, what no engine has
//! a use for, and it knows how to end without running any of that code again.
//!
//! On Linux a seccomp filter, which needs no privileges and holds for every thread and child, present and to
//! come, refuses with `EACCES`: sockets that lead anywhere, local ones and netlink too, `io_uring` (its
//! requests pass by every filter), a look or a signal into another process, and what changes the kernel or the
//! machine. The worker's way to its
//! node is there by then, and of what sockets it inherited [`close_inherited_sockets`] leaves none. Also lost
//! are the privileges of a root that would lead around this, and the process's readability by others: neither
//! may another worker look into it. Elsewhere [`apply`] does nothing, and says so.
//!
//! Nothing here keeps an engine from files, devices, memory, threads or children of its own. Lost, of what an
//! honest one may want: libraries that coordinate several GPUs over sockets (NCCL) or reach a daemon by one
//! (CUDA's MPS), core dumps, unless it asks for them by `prctl(PR_SET_DUMPABLE, 1)`, and signals to its own
//! children, which a filter cannot tell from anybody else's; they end with their pipe.

/// What became of [`apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sandbox {
    /// From now on it holds.
    Applied,
    /// Nothing happened: there is no such thing here.
    Unsupported,
}

/// Why the sandbox, which this system should have, was refused.
#[derive(Debug, thiserror::Error)]
#[error("the engine could not be shut in: {0}")]
pub struct SandboxError(String);

/// Closes the sockets that were open when the process began. For a process that has made none of its own.
#[cfg(target_os = "linux")]
pub fn close_inherited_sockets() {
    use std::os::unix::fs::FileTypeExt;

    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return };
    let sockets: Vec<i32> = entries
        .filter_map(Result::ok)
        .filter(|entry| std::fs::metadata(entry.path()).is_ok_and(|it| it.file_type().is_socket()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|number| *number > libc::STDERR_FILENO)
        .collect();
    for socket in sockets {
        // SAFETY: the number was a socket's a moment ago. Nothing in this process has made one, which is what
        // callers vouch for, so that no part of it owns this descriptor and expects it to stay open.
        unsafe { libc::close(socket) };
    }
}

/// Closes the sockets that were open when the process began: not here.
#[cfg(not(target_os = "linux"))]
pub fn close_inherited_sockets() {}

/// Shuts all of this process in, for good. Before it has other threads: privileges are each thread's own.
#[cfg(target_os = "linux")]
pub fn apply() -> Result<Sandbox, SandboxError> {
    let failed = |error: &dyn std::fmt::Display| SandboxError(error.to_string());
    linux::lose_privileges().map_err(|error| failed(&error))?;
    let Some(filter) = linux::filter().map_err(|error| failed(&error))? else {
        return Ok(Sandbox::Unsupported);
    };
    seccompiler::apply_filter_all_threads(&filter).map_err(|error| failed(&error))?;
    Ok(Sandbox::Applied)
}

/// Shuts all of this process in, where that is possible: not here.
#[cfg(not(target_os = "linux"))]
pub fn apply() -> Result<Sandbox, SandboxError> {
    Ok(Sandbox::Unsupported)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::{collections::BTreeMap, io};

    use rustix::{
        process::{DumpableBehavior, getpgid, getpid, set_dumpable_behavior},
        thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities},
    };
    use seccompiler::{
        BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen,
        SeccompCmpOp::{self, Eq, MaskedEq, Ne},
        SeccompCondition, SeccompFilter, SeccompRule, TargetArch, sock_filter,
    };

    /// Refused whatever the arguments are.
    const REFUSED: &[i64] = &[
        // A way to others: the network, services of the machine.
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        // A look into another process, or a hand on it.
        libc::SYS_ptrace,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_process_mrelease,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_kcmp,
        libc::SYS_tkill, // names a thread, and so nobody's process
        // A way out of the worker's group, with which what it starts is ended.
        libc::SYS_setpgid,
        libc::SYS_setsid,
        // What the kernel keeps for others, or lets itself be changed by.
        libc::SYS_add_key,
        libc::SYS_bpf,
        libc::SYS_keyctl,
        libc::SYS_perf_event_open,
        libc::SYS_request_key,
        libc::SYS_userfaultfd,
        // The machine: its kernel, clock, name, disks and how they are seen.
        libc::SYS_acct,
        libc::SYS_adjtimex,
        libc::SYS_chroot,
        libc::SYS_clock_adjtime,
        libc::SYS_clock_settime,
        libc::SYS_delete_module,
        libc::SYS_finit_module,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fsopen,
        libc::SYS_fspick,
        libc::SYS_init_module,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_iopl,
        #[cfg(not(target_arch = "riscv64"))]
        libc::SYS_kexec_file_load,
        libc::SYS_kexec_load,
        libc::SYS_mount,
        libc::SYS_mount_setattr,
        libc::SYS_move_mount,
        libc::SYS_open_by_handle_at,
        libc::SYS_open_tree,
        libc::SYS_pivot_root,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_reboot,
        libc::SYS_setdomainname,
        libc::SYS_sethostname,
        libc::SYS_setns,
        libc::SYS_settimeofday,
        libc::SYS_swapoff,
        libc::SYS_swapon,
        libc::SYS_syslog,
        libc::SYS_umount2,
        libc::SYS_unshare,
        libc::SYS_vhangup,
    ];

    /// What is left to a worker whose node runs as root: any file as before, locked memory, priorities.
    const KEPT: CapabilitySet = CapabilitySet::CHOWN
        .union(CapabilitySet::DAC_OVERRIDE)
        .union(CapabilitySet::DAC_READ_SEARCH)
        .union(CapabilitySet::FOWNER)
        .union(CapabilitySet::FSETID)
        .union(CapabilitySet::IPC_LOCK)
        .union(CapabilitySet::SYS_NICE)
        .union(CapabilitySet::SYS_RESOURCE);

    /// No privilege that looks into other processes or changes the kernel, and nobody who looks into this one
    /// without one. The filter's `no_new_privs` sees to it that they do not come back by a program.
    pub(super) fn lose_privileges() -> io::Result<()> {
        let had = capabilities(None)?;
        set_capabilities(
            None,
            CapabilitySets {
                effective: had.effective & KEPT,
                permitted: had.permitted & KEPT,
                inheritable: had.inheritable & KEPT,
            },
        )?;
        Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
    }

    /// `None`: not for this kind of processor. A call of another kind (32 bit) than the process's
    /// own ends it, which closes that way round.
    pub(super) fn filter() -> Result<Option<BpfProgram>, BackendError> {
        let Ok(target) = TargetArch::try_from(std::env::consts::ARCH) else { return Ok(None) };
        let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
            REFUSED.iter().map(|&call| (call, Vec::new())).collect();
        rules.extend(with_conditions()?);
        let refused = SeccompAction::Errno(libc::EACCES as u32);
        let filter = SeccompFilter::new(rules, SeccompAction::Allow, refused, target)?;
        let mut program: BpfProgram = filter.try_into()?;
        if target == TargetArch::x86_64 {
            program.splice(0..0, no_x32());
        }
        Ok(Some(program))
    }

    /// Refused where one of a call's rules holds, which is where all conditions of that rule do.
    fn with_conditions() -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
        let own = getpid().as_raw_nonzero().get();
        let leads = getpgid(None).is_ok_and(|group| group == getpid());
        // The process itself; and where it leads its group, as a worker of the node does, that group, by both
        // of its names. Signal 0 only asks whether there is somebody.
        let mut elsewhere = vec![when(0, Ne, own)?, when(1, Ne, 0)?];
        if leads {
            elsewhere.extend([when(0, Ne, -own)?, when(0, Ne, 0)?]);
        }
        let of_others = || Ok::<_, BackendError>(vec![rule(vec![when(0, Ne, own)?])?]);
        // A local socket alone leads nowhere without the calls above, and libraries that look for a daemon (CUDA
        // does) take a refusal later in better part; two that are connected to each other are as good as
        // pipes. Datagrams could be sent elsewhere.
        let kind = |kind: i32| rule(vec![when(1, MaskedEq(0xf), kind)?]);
        let sockets = || {
            let local = rule(vec![when(0, Ne, libc::AF_UNIX)?])?;
            Ok::<_, BackendError>(vec![local, kind(libc::SOCK_DGRAM)?, kind(libc::SOCK_RAW)?])
        };
        let command = |command: i64| rule(vec![when(1, Eq, command as i32)?]);
        Ok(BTreeMap::from([
            (libc::SYS_socket, sockets()?),
            (libc::SYS_socketpair, sockets()?),
            (libc::SYS_kill, vec![rule(elsewhere)?]),
            (libc::SYS_tgkill, of_others()?),
            // Of its own memory: that is how the host looks whether an engine's pointer leads anywhere.
            (libc::SYS_process_vm_readv, of_others()?),
            (libc::SYS_rt_sigqueueinfo, of_others()?),
            (libc::SYS_rt_tgsigqueueinfo, of_others()?),
            // Limits of others. 0 is one's own.
            (libc::SYS_prlimit64, vec![rule(vec![when(0, Ne, own)?, when(0, Ne, 0)?])?]),
            // Who gets the signal that a descriptor sends.
            (libc::SYS_fcntl, vec![command(i64::from(libc::F_SETOWN))?, command(F_SETOWN_EX)?]),
            // The same, and keys that a terminal takes for typed ones.
            (
                libc::SYS_ioctl,
                [FIOSETOWN, SIOCSPGRP, libc::TIOCSTI as i64, libc::TIOCLINUX as i64]
                    .into_iter()
                    .map(command)
                    .collect::<Result<_, _>>()?,
            ),
        ]))
    }

    // Not in libc for each of the processors.
    const F_SETOWN_EX: i64 = 15;
    const FIOSETOWN: i64 = 0x8901;
    const SIOCSPGRP: i64 = 0x8902;

    /// The kernel looks at the lower half of these arguments alone.
    fn when(argument: u8, comparison: SeccompCmpOp, value: i32) -> Result<SeccompCondition, BackendError> {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, comparison, u64::from(value as u32))
    }

    fn rule(conditions: Vec<SeccompCondition>) -> Result<SeccompRule, BackendError> {
        SeccompRule::new(conditions)
    }

    /// On x86-64 all calls exist a second time, for programs with short pointers, by numbers of their own.
    /// In front of a program: none of these is there.
    fn no_x32() -> [sock_filter; 3] {
        const LOAD_NUMBER: u16 = 0x20; // of the call, at offset 0
        const JUMP_IF_AT_LEAST: u16 = 0x35;
        const RETURN: u16 = 0x06;
        const X32: u32 = 0x4000_0000;
        let refused = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
        [
            sock_filter { code: LOAD_NUMBER, jt: 0, jf: 0, k: 0 },
            sock_filter { code: JUMP_IF_AT_LEAST, jt: 0, jf: 1, k: X32 },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: refused },
        ]
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

/// Ends the process at once, and what it has started with it: nobody else does once the node is gone.
#[cfg(unix)]
pub(crate) fn leave_with_helpers(code: i32) -> ! {
    use rustix::process::{Signal, getpgrp, getpid, kill_process_group};
    // A worker of the node leads a group of its own. Any other group has strangers in it.
    if getpgrp() == getpid() {
        let _ = kill_process_group(getpid(), Signal::KILL);
    }
    leave(code)
}

/// Ends the process at once. What it has started is the platform's.
#[cfg(not(unix))]
pub(crate) fn leave_with_helpers(code: i32) -> ! {
    leave(code)
}

/// Ends the process at once, as far as the platform's way out of a process lets it.
#[cfg(not(unix))]
pub(crate) fn leave(code: i32) -> ! {
    std::process::exit(code)
}
