//! For how long at a time a thread wants the processor.

/// From now on this thread, which sleeps much and has little to do when it wakes, need not wait until another
/// one has used up its turn. It gets no more of the processor than before, only sooner.
///
/// Linux 6.12 and later let a thread that wakes and asks for shorter slices than the running one go first
/// (EEVDF; `sched_setattr(2)`). The usual slice is some milliseconds, and what fills memory, as a load does,
/// uses all of it, while an idle core next to it is not always found. No privilege is needed. Threads that
/// this one starts are like it. Elsewhere, on an older Linux, and where a filter of system calls refuses it,
/// nothing changes.
pub fn ask_for_short_slices() {
    #[cfg(target_os = "linux")]
    let _ = linux::ask();
}

#[cfg(target_os = "linux")]
mod linux {
    use std::io;

    /// The shortest slice that Linux gives.
    const SHORT_NS: u64 = 100_000;
    const THIS_THREAD: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;

    /// See [`super::ask_for_short_slices`].
    pub(super) fn ask() -> io::Result<()> {
        let mut wish = attributes()?;
        // Of another policy the field would be something else: real-time threads have no need of this.
        if wish.sched_policy == libc::SCHED_OTHER as u32 {
            wish.sched_runtime = SHORT_NS;
            set_attributes(&wish)?;
        }
        Ok(())
    }

    fn attributes() -> io::Result<libc::sched_attr> {
        let size = size_of::<libc::sched_attr>() as u32;
        let mut attributes = libc::sched_attr {
            size,
            sched_policy: 0,
            sched_flags: 0,
            sched_nice: 0,
            sched_priority: 0,
            sched_runtime: 0,
            sched_deadline: 0,
            sched_period: 0,
        };
        // SAFETY: the kernel writes at most `size` bytes to a structure that is so large and ours.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_getattr, THIS_THREAD, &raw mut attributes, size, NO_FLAGS)
        };
        if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
    }

    fn set_attributes(attributes: &libc::sched_attr) -> io::Result<()> {
        // SAFETY: the kernel reads `attributes.size` bytes, which `attributes` above made the size of the
        // structure, and keeps no pointer.
        let result =
            unsafe { libc::syscall(libc::SYS_sched_setattr, THIS_THREAD, &raw const *attributes, NO_FLAGS) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn version() -> (u32, u32) {
            let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
            let mut numbers = text.split(['.', '-']).map(|number| number.parse().unwrap());
            (numbers.next().unwrap(), numbers.next().unwrap())
        }

        #[test]
        fn a_thread_asks_for_itself_alone_and_stays_as_nice() {
            std::thread::spawn(|| {
                let before = attributes().unwrap();
                ask().unwrap();
                let after = attributes().unwrap();
                assert_eq!(after.sched_nice, before.sched_nice);
                assert_eq!(after.sched_policy, before.sched_policy);
                let told = if version() >= (6, 12) { SHORT_NS } else { before.sched_runtime };
                assert_eq!(after.sched_runtime, told);
            })
            .join()
            .unwrap();
            assert_ne!(attributes().unwrap().sched_runtime, SHORT_NS);
        }
    }
}
