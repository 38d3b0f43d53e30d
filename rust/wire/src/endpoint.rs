//! Where node and worker meet: one text, which the node gives the worker at its start.
//!
//! On Unix it is the path of a socket file, which the node makes in a folder that only its own user
//! may enter; on Windows the name of a named pipe. The secret in `FromWorker::Hello` keeps out who
//! should find the way in nevertheless.
//!
//! On Unix the worker's messages do not come by the socket: the first thing that the node sends there is
//! the writing end of a pipe for them. Each step of the scheduler is a message, and a pipe takes it for less
//! than a socket, and wakes nobody but the reader; see docs/architecture.md.

use std::io;

use interprocess::local_socket::{GenericFilePath, GenericNamespaced, Name, ToFsName, ToNsName};

pub use platform::{FromWorkerReader, FromWorkerWriter, receive_pipe, send_pipe};

/// The endpoint as `interprocess` names it, to listen on or to connect to.
pub fn name(endpoint: &str) -> io::Result<Name<'_>> {
    if cfg!(windows) {
        endpoint.to_ns_name::<GenericNamespaced>()
    } else {
        endpoint.to_fs_name::<GenericFilePath>()
    }
}

#[cfg(unix)]
mod platform {
    use std::{
        io::{self, IoSlice, IoSliceMut, PipeReader, PipeWriter},
        mem::MaybeUninit,
        os::fd::{AsFd, BorrowedFd},
    };

    use interprocess::local_socket::Stream;
    use rustix::{
        io::retry_on_intr,
        net::{
            RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
            SendFlags, recvmsg, sendmsg,
        },
    };

    /// Where the node reads what the worker says.
    pub type FromWorkerReader = PipeReader;

    /// Where the worker writes what it says.
    pub type FromWorkerWriter = PipeWriter;

    /// Carries the pipe: a socket passes nothing on without data.
    const TOKEN: [u8; 1] = [b'p'];

    /// The node's part, before it sends anything else.
    pub fn send_pipe(socket: &Stream) -> io::Result<FromWorkerReader> {
        let (reading, writing) = io::pipe()?;
        let ends = [writing.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&ends));
        retry_on_intr(|| {
            sendmsg(descriptor(socket), &[IoSlice::new(&TOKEN)], &mut control, SendFlags::empty())
        })?;
        Ok(reading)
    }

    /// The worker's part, before it receives anything else. Waits for the node; an error where that is gone.
    pub fn receive_pipe(socket: &Stream) -> io::Result<FromWorkerWriter> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut token = [0];
        retry_on_intr(|| {
            let mut data = [IoSliceMut::new(&mut token)];
            recvmsg(descriptor(socket), &mut data, &mut control, RecvFlags::empty())
        })?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(mut ends) = message
                && let Some(writing) = ends.next()
            {
                // The copy is one that children do not inherit; not every system can receive such.
                return Ok(writing.try_clone()?.into());
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    fn descriptor(socket: &Stream) -> BorrowedFd<'_> {
        let Stream::UdSocket(socket) = socket;
        socket.as_fd()
    }
}

#[cfg(not(unix))]
mod platform {
    use std::io;

    use interprocess::{TryClone, local_socket::Stream};

    /// Where the node reads what the worker says.
    pub type FromWorkerReader = Stream;

    /// Where the worker writes what it says.
    pub type FromWorkerWriter = Stream;

    /// The node's part, before it sends anything else.
    pub fn send_pipe(socket: &Stream) -> io::Result<FromWorkerReader> {
        socket.try_clone()
    }

    /// The worker's part, before it receives anything else. Waits for the node; an error where that is gone.
    pub fn receive_pipe(socket: &Stream) -> io::Result<FromWorkerWriter> {
        socket.try_clone()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        thread,
    };

    use interprocess::local_socket::{
        ListenerOptions, Stream,
        traits::{Listener as _, Stream as _},
    };

    use super::*;

    /// The node's side and the worker's.
    fn connected() -> (Stream, Stream) {
        let folder = tempfile::tempdir().unwrap();
        let endpoint = if cfg!(windows) {
            format!("llm-node-test-{}", std::process::id())
        } else {
            folder.path().join("socket").to_str().unwrap().to_owned()
        };
        let listener = ListenerOptions::new().name(name(&endpoint).unwrap()).create_sync().unwrap();
        let worker = thread::spawn(move || Stream::connect(name(&endpoint).unwrap()).unwrap());
        (listener.accept().unwrap(), worker.join().unwrap())
    }

    #[test]
    fn each_reads_what_the_other_writes() {
        let (mut node, mut worker) = connected();
        let mut reader = send_pipe(&node).unwrap();
        let mut writer = receive_pipe(&worker).unwrap();
        writer.write_all(b"to the node").unwrap();
        node.write_all(b"to the worker").unwrap();
        let mut bytes = [0; 11];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to the node");
        let mut bytes = [0; 13];
        worker.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"to the worker");
        // The end of the worker is the end of the pipe: nobody else holds its writing end.
        drop((worker, writer));
        assert_eq!(reader.read(&mut bytes).unwrap_or(0), 0);
    }

    #[cfg(unix)]
    #[test]
    fn a_worker_sees_that_the_node_is_gone_or_sends_no_pipe() {
        let (node, worker) = connected();
        drop(node);
        assert_eq!(receive_pipe(&worker).unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let (mut node, worker) = connected();
        node.write_all(b"p").unwrap();
        assert_eq!(receive_pipe(&worker).unwrap_err().kind(), ErrorKind::UnexpectedEof);
    }
}
