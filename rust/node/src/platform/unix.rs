//! Linux, macOS and their kin.

use std::{
    fs::Metadata,
    io::{self, Write},
    net::TcpStream,
    os::{
        fd::{BorrowedFd, IntoRawFd},
        unix::{fs::PermissionsExt, net::UnixStream, process::CommandExt},
    },
    process::{Child, Command},
};

use parking_lot::Mutex;
use rustix::{
    io::Errno,
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};

use super::Ending;

/// Makes the child the first of a group of its own. So Ctrl-C, which a terminal sends to its whole foreground
/// group, does not reach it: the node drains before it ends its workers. And what the child starts can be
/// ended with it.
pub fn detach_from_terminal(command: &mut Command) {
    command.process_group(0);
}

/// No process of the same user may read this one's memory, environment or descriptors from now on, or trace
/// it; nor is it dumped. Root may, and who has its privileges.
#[cfg(target_os = "linux")]
pub fn keep_memory_private() -> io::Result<()> {
    use rustix::process::{DumpableBehavior, set_dumpable_behavior};

    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

/// Nothing: there is no such thing here.
#[cfg(not(target_os = "linux"))]
pub fn keep_memory_private() -> io::Result<()> {
    Ok(())
}

/// This process gets SIGTERM when the thread that started it ends, or now where that has happened meanwhile.
#[cfg(target_os = "linux")]
pub fn end_with_parent() -> io::Result<()> {
    use rustix::process::{Signal, getpid, getppid, kill_process, set_parent_process_death_signal};

    let parent = getppid();
    set_parent_process_death_signal(Some(Signal::TERM))?;
    if getppid() != parent {
        kill_process(getpid(), Signal::TERM)?;
    }
    Ok(())
}

/// An error: there is no such thing here.
#[cfg(not(target_os = "linux"))]
pub fn end_with_parent() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits until the child has ended, and tells how. It is not reaped by that: its number names nobody else
/// until it is.
pub fn await_end(child: &Mutex<Child>) -> Ending {
    let pid = Pid::from_child(&child.lock());
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    loop {
        match waitid(WaitId::Pid(pid), options) {
            Err(Errno::INTR) => {}
            Ok(Some(status)) => return ending(status.terminating_signal(), status.exit_status()),
            Ok(None) | Err(_) => return Ending::Unknown,
        }
    }
}

/// Ends the child, which must not have been reaped, and all that it has started and that stayed in its group.
pub fn kill_group(child: &mut Child) {
    // An error means that nobody is left.
    let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
}

/// A pair of connected sockets: the end to write to, which never blocks, and the other's number, which
/// is the caller's to close.
pub fn wake_pair() -> io::Result<(impl Write + Send, i64)> {
    let (writing, reading) = UnixStream::pair()?;
    writing.set_nonblocking(true)?;
    Ok((writing, reading.into_raw_fd().into()))
}

/// A socket that somebody else owns, by its number: a second way to write to it, which stays good when the
/// other is closed. It blocks where that does.
pub fn socket(number: i64) -> io::Result<impl Write + Send + 'static> {
    let number = i32::try_from(number).ok().filter(|it| *it >= 0).ok_or(io::ErrorKind::InvalidInput)?;
    // SAFETY: the number is borrowed for this one call. That it is open is not relied on: `dup` of a
    // number that is not fails, and what it then is a copy of, a socket or not, is only written to by
    // `send`, which fails where it is none. The number is not -1, the one value that must not be.
    #[allow(unsafe_code, reason = "there is no safe way from a number to a descriptor")]
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    Ok(TcpStream::from(borrowed.try_clone_to_owned()?))
}

fn ending(signal: Option<i32>, code: Option<i32>) -> Ending {
    match (signal, code) {
        (Some(number), _) => Ending::Signal { number: i64::from(number), name: name(number) },
        (None, Some(code)) => Ending::Code(code),
        (None, None) => Ending::Unknown,
    }
}

/// May anybody write it?
pub fn writable_by_others(metadata: &Metadata) -> bool {
    metadata.permissions().mode() & 0o002 != 0
}

/// Numbers that Linux and macOS share; others stay numbers.
fn name(number: i32) -> Option<&'static str> {
    Some(match number {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 if cfg!(target_os = "linux") => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 if cfg!(target_os = "macos") => "SIGBUS",
        11 => "SIGSEGV",
        13 => "SIGPIPE",
        15 => "SIGTERM",
        24 => "SIGXCPU",
        25 => "SIGXFSZ",
        31 if cfg!(target_os = "linux") => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_s_end_is_its_own_and_takes_what_it_started_along() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo $!; exec sleep 600"]).stdout(std::process::Stdio::piped());
        detach_from_terminal(&mut command);
        let mut child = command.spawn().unwrap();
        let mut output = io::BufReader::new(child.stdout.take().unwrap());
        let mut helper = String::new();
        io::BufRead::read_line(&mut output, &mut helper).unwrap();
        let child = Mutex::new(child);
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| await_end(&child));
            child.lock().kill().unwrap();
            assert_eq!(waiting.join().unwrap().to_string(), "signal 9 (SIGKILL)");
        });
        kill_group(&mut child.lock());
        child.lock().wait().unwrap();
        // The helper holds the other end of its output: it is gone when nobody does.
        io::copy(&mut output, &mut io::sink()).unwrap();
    }

    #[test]
    fn a_signal_has_its_name_and_a_code_its_number() {
        let by =
            |script: &str| await_end(&Mutex::new(Command::new("sh").args(["-c", script]).spawn().unwrap()));
        assert_eq!(by("kill -SEGV $$").to_string(), "signal 11 (SIGSEGV)");
        assert_eq!(by("exit 3").to_string(), "exit code 3");
    }
}
