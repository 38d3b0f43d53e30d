//! Windows. Compiled, not tested: see the README for what is tested where.

use std::{
    fs::Metadata,
    io::{self, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::windows::{io::IntoRawSocket, process::CommandExt},
    process::{Child, Command, ExitStatus},
    thread,
    time::Duration,
};

use parking_lot::Mutex;

use super::Ending;

const CREATE_NEW_PROCESS_GROUP: u32 = 0x0000_0200;
const CREATE_NO_WINDOW: u32 = 0x0800_0000;

/// Keeps Ctrl-C away from the child: the node drains before it ends its workers.
pub fn detach_from_terminal(command: &mut Command) {
    command.creation_flags(CREATE_NEW_PROCESS_GROUP | CREATE_NO_WINDOW);
}

/// Nothing: there is no such thing here.
pub fn keep_memory_private() -> io::Result<()> {
    Ok(())
}

/// An error: there is no such thing here.
pub fn end_with_parent() -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

/// Waits until the child has ended, and tells how.
pub fn await_end(child: &Mutex<Child>) -> Ending {
    loop {
        match child.lock().try_wait() {
            Ok(Some(status)) => return ending(status),
            Ok(None) => {}
            Err(_) => return Ending::Unknown,
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Ends the child. What it has started goes on: that would need a job object.
pub fn kill_group(child: &mut Child) {
    // An error means that it has ended.
    let _ = child.kill();
}

/// A pair of connected sockets: the end to write to, which never blocks, and the other's number, which
/// is the caller's to close.
pub fn wake_pair() -> io::Result<(impl Write + Send, i64)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let writing = TcpStream::connect(listener.local_addr()?)?;
    let (reading, peer) = listener.accept()?;
    if peer != writing.local_addr()? {
        return Err(io::Error::other("somebody else connected"));
    }
    writing.set_nonblocking(true)?;
    writing.set_nodelay(true)?;
    let number = i64::try_from(reading.into_raw_socket()).map_err(io::Error::other)?;
    Ok((writing, number))
}

/// Not here: an event loop's sockets are written to by overlapped operations, which a second writer would
/// get between.
pub fn socket(_number: i64) -> io::Result<impl Write + Send + 'static> {
    Err::<TcpStream, _>(io::ErrorKind::Unsupported.into())
}

/// How the process ended. An uncaught exception's NTSTATUS takes a signal's place.
fn ending(status: ExitStatus) -> Ending {
    let Some(code) = status.code() else { return Ending::Unknown };
    let name = match code as u32 {
        0xC000_0005 => "access violation",
        0xC000_001D => "illegal instruction",
        0xC000_0094 => "integer division by zero",
        0xC000_00FD => "stack overflow",
        0xC000_0135 => "DLL not found",
        0xC000_0409 => "fast fail",
        _ => return Ending::Code(code),
    };
    Ending::Signal { number: i64::from(code as u32), name: Some(name) }
}

/// Access lists are not read: a folder inherits its own from where the user put it.
pub fn writable_by_others(_metadata: &Metadata) -> bool {
    false
}
