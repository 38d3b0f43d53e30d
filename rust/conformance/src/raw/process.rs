//! What a process looks like from within, and how it is begun and ended.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// So many times as many turns decide whether memory grows.
const MANY_MORE: usize = 4;

/// The signals that have a handler, by POSIX.
#[cfg(unix)]
const SIGNALS: std::ops::RangeInclusive<i32> = 1..=31;

/// Gives the process a group of its own, so that it can be ended with all that it starts.
pub(crate) fn lead_group(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

/// Ends what is left of a group.
pub(crate) fn kill_group(leader: u32) {
    #[cfg(unix)]
    if let Ok(leader) = i32::try_from(leader) {
        // SAFETY: takes numbers alone. The group is of a process that was started here, and is not yet waited
        // for or has just been: its number is not given out anew while a member lives.
        unsafe { libc::kill(-leader, libc::SIGKILL) };
    }
    #[cfg(not(unix))]
    let _ = leader;
}

/// How long the threads of a process have been ready to run without running, all together. Zero where the system
/// does not say.
pub(crate) fn waited(process: u32) -> Duration {
    let of = |entry: fs::DirEntry| {
        let text = fs::read_to_string(entry.path().join("schedstat")).ok()?;
        text.split_whitespace().nth(1)?.parse::<u64>().ok()
    };
    let tasks = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten();
    Duration::from_nanos(tasks.filter_map(|entry| of(entry.ok()?)).sum())
}

/// What the process died of.
pub(crate) fn signal_of(status: ExitStatus) -> Option<i32> {
    #[cfg(unix)]
    return std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    {
        let _ = status;
        None
    }
}

/// Ends the process at once: no static destructor runs, no handler of `atexit`.
pub(crate) fn end(code: i32) -> ! {
    #[cfg(unix)]
    // SAFETY: takes a number, and does not return.
    unsafe {
        libc::_exit(code)
    }
    #[cfg(not(unix))]
    std::process::exit(code)
}

/// Writes out what C holds back of its outputs.
pub(crate) fn flush() {
    #[cfg(unix)]
    // SAFETY: NULL means all streams.
    unsafe {
        libc::fflush(std::ptr::null_mut());
    }
}

/// What an engine must leave as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    descriptors: BTreeMap<OsString, PathBuf>,
    handlers: Vec<usize>,
    environment: BTreeMap<OsString, OsString>,
    directory: Option<PathBuf>,
    locale: Option<String>,
    float_mode: u64,
    umask: u32,
}

impl State {
    pub(crate) fn now() -> Self {
        Self {
            descriptors: descriptors(),
            handlers: handlers(),
            environment: std::env::vars_os().collect(),
            directory: std::env::current_dir().ok(),
            locale: locale(),
            float_mode: float_mode(),
            umask: umask(),
        }
    }

    /// What is not as it was.
    pub(crate) fn changes(&self, now: &Self) -> Vec<String> {
        let mut changes = Vec::new();
        let more: Vec<_> =
            now.descriptors.iter().filter(|(name, _)| !self.descriptors.contains_key(*name)).collect();
        if let Some((_, target)) = more.first() {
            changes.push(format!(
                "{} file descriptors are left open, one of {}",
                more.len(),
                target.display()
            ));
        }
        let handlers = self.handlers.iter().zip(&now.handlers).enumerate();
        changes.extend(
            handlers
                .filter(|(_, (old, new))| old != new)
                .map(|(index, _)| format!("signal {} has another handler", index + 1)),
        );
        let names = |one: &Self, other: &Self| -> Vec<String> {
            let differs =
                |(name, value): &(&OsString, &OsString)| other.environment.get(*name) != Some(*value);
            one.environment
                .iter()
                .filter(differs)
                .map(|(name, _)| name.to_string_lossy().into_owned())
                .collect()
        };
        let mut variables = names(now, self);
        variables.extend(names(self, now));
        variables.sort();
        variables.dedup();
        if !variables.is_empty() {
            changes.push(format!("the environment has another {}", variables.join(", ")));
        }
        let mut note = |what: &str, changed: bool| {
            if changed {
                changes.push(format!("{what} is another one"));
            }
        };
        note("the current directory", self.directory != now.directory);
        note("the locale", self.locale != now.locale);
        note("the mode of floating-point numbers", self.float_mode != now.float_mode);
        note("the umask", self.umask != now.umask);
        changes
    }
}

fn descriptors() -> BTreeMap<OsString, PathBuf> {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return BTreeMap::new() };
    entries
        .filter_map(Result::ok)
        // That of the folder which is being read is gone again.
        .filter_map(|entry| Some((entry.file_name(), fs::read_link(entry.path()).ok()?)))
        .filter(|(_, target)| !target.ends_with("fd"))
        .collect()
}

/// How many there are, as the system counts.
pub(crate) fn open_descriptors() -> usize {
    descriptors().len()
}

#[cfg(unix)]
fn handlers() -> Vec<usize> {
    SIGNALS
        .map(|signal| {
            let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
            // SAFETY: asks alone; `action` is a local of that type, which any bytes are a value of.
            unsafe {
                libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
                action.assume_init().sa_sigaction
            }
        })
        .collect()
}

#[cfg(not(unix))]
fn handlers() -> Vec<usize> {
    Vec::new()
}

#[cfg(unix)]
fn locale() -> Option<String> {
    // SAFETY: asks alone. The text stays until the next call, and no other thread of this process makes one.
    let name = unsafe { libc::setlocale(libc::LC_ALL, std::ptr::null()) };
    // SAFETY: NULL, or zero-terminated.
    (!name.is_null()).then(|| unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

#[cfg(not(unix))]
fn locale() -> Option<String> {
    None
}

#[cfg(unix)]
#[allow(clippy::useless_conversion, reason = "it is not as wide everywhere")]
fn umask() -> u32 {
    // SAFETY: takes a number; it can only be asked for by setting it.
    unsafe {
        let mask = libc::umask(0o077);
        libc::umask(mask);
        u32::from(mask)
    }
}

#[cfg(not(unix))]
fn umask() -> u32 {
    0
}

/// The bits that say how numbers are rounded and whether small ones count: not those that say what happened.
fn float_mode() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        let mut control = 0_u32;
        // SAFETY: writes the four bytes of the local.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &raw mut control, options(nostack)) };
        u64::from(control & !0x3f)
    }
    #[cfg(target_arch = "aarch64")]
    {
        let control: u64;
        // SAFETY: reads a register.
        unsafe { std::arch::asm!("mrs {}, fpcr", out(reg) control, options(nomem, nostack)) };
        control
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    0
}

/// Threads of this process; `None`: the system does not say.
pub(crate) fn threads() -> Option<usize> {
    Some(fs::read_dir("/proc/self/task").ok()?.count())
}

/// Waits until there are no more than `threads`, since a thread that was joined may still be counted.
pub(crate) fn threads_fall_to(threads: usize) -> Option<usize> {
    let end = Instant::now() + Duration::from_secs(5);
    loop {
        let now = self::threads()?;
        if now <= threads || Instant::now() > end {
            return Some(now);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Processes that this one has started, and that still are.
pub(crate) fn children() -> Vec<u32> {
    let own = std::process::id();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|process: &u32| {
            let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
            // The name before it may hold spaces and brackets.
            let fields = stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace());
            fields.and_then(|mut fields| fields.nth(1)).is_some_and(|parent| parent == own.to_string())
        })
        .collect()
}

/// Is the allocator one that keeps what is freed, to see who still uses it?
fn is_sanitized() -> bool {
    static IS: OnceLock<bool> = OnceLock::new();
    *IS.get_or_init(|| {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        maps.contains("/libasan.so") || maps.contains("/libclang_rt.asan")
    })
}

/// Memory that the process has in use, in bytes: its own, and what it maps of files. `None`: unknown, or no word
/// on what an engine has freed.
pub(crate) fn resident() -> Option<u64> {
    if is_sanitized() {
        return None;
    }
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    #[cfg(unix)]
    // SAFETY: takes a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    #[cfg(not(unix))]
    let page = 4096;
    Some(pages * u64::try_from(page).ok()?)
}

/// By how many bytes each turn of `work` lets the process grow, the second half of the turns no less than the
/// first: what grows once is no leak. Where it is `limit` or more, many more turns decide: some pages come and go
/// by chance, and a leak grows with the turns. `None`: the system does not say.
pub(crate) fn growth<E>(
    times: usize,
    limit: u64,
    mut work: impl FnMut(usize) -> Result<(), E>,
) -> Result<Option<u64>, E> {
    let mut measured = |half: usize| -> Result<Option<u64>, E> {
        let before = resident();
        work(half)?;
        give_back();
        Ok(before.and_then(|before| Some(resident()?.saturating_sub(before) / half as u64)))
    };
    let mut both = |half: usize| -> Result<Option<u64>, E> {
        Ok(measured(half)?.zip(measured(half)?).map(|(first, second)| first.min(second)))
    };
    let half = (times / 2).max(1);
    match both(half)? {
        Some(each) if each >= limit => both(MANY_MORE * half),
        other => Ok(other),
    }
}

/// Memory of its own pages. Once it is dropped whoever touches it dies of it.
pub(crate) struct Pages {
    pub(crate) begin: *mut u8,
    length: usize,
}

impl Pages {
    /// So many bytes, all zero.
    pub(crate) fn of(length: usize) -> Self {
        let begin = Self::mapped(length);
        Self { begin, length }
    }

    #[cfg(unix)]
    fn mapped(length: usize) -> *mut u8 {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: memory that nobody has.
        let begin = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, -1, 0) };
        assert_ne!(begin, libc::MAP_FAILED, "no memory");
        begin.cast()
    }

    #[cfg(not(unix))]
    fn mapped(length: usize) -> *mut u8 {
        Box::leak(vec![0_u8; length].into_boxed_slice()).as_mut_ptr()
    }

    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: it was mapped so long, and is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.length) }
    }
}

#[cfg(unix)]
impl Drop for Pages {
    fn drop(&mut self) {
        // The addresses stay taken, so that nothing else comes there; their memory does not.
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
        // SAFETY: it was mapped so, and nobody borrows it.
        unsafe {
            libc::mmap(self.begin.cast(), self.length, libc::PROT_NONE, kind, -1, 0);
        }
    }
}

/// Asks the allocator to give back what is free, so that [`resident`] says what is in use.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: takes a number.
    unsafe {
        libc::malloc_trim(0);
    }
}
