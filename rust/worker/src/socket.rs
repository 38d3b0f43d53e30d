//! The socket to the node, read and written so that no thread is woken for nothing.
//!
//! A wake-up of a sleeping thread costs more than everything else that is done for a token, so the
//! scheduler sends what it can by itself, without waiting, and the thread that reads is not disturbed by
//! what is written.

use std::io::{self, Read, Write};

use interprocess::local_socket::Stream;

/// Sending without waiting.
pub(crate) trait SendNow {
    /// Sends as many bytes as there is room for; `WouldBlock` where there is none.
    fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// The side to the node.
pub(crate) struct Sending(pub(crate) Stream);

impl Write for Sending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The side from the node.
pub(crate) struct Receiving(pub(crate) Stream);

#[cfg(unix)]
mod unix {
    use std::os::fd::AsFd;

    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::Errno,
        net::{SendFlags, send},
    };

    use super::{Read, Receiving, SendNow, Sending, Stream, io};

    impl SendNow for Sending {
        fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let Stream::UdSocket(socket) = &self.0;
            Ok(send(socket.as_fd(), bytes, SendFlags::DONTWAIT)?)
        }
    }

    impl Read for Receiving {
        /// Waits in `poll`: a thread that waits in `recv` is woken also when the other side has read,
        /// which makes room for writing, once for each frame.
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let Stream::UdSocket(socket) = &self.0;
            match poll(&mut [PollFd::new(&socket.as_fd(), PollFlags::IN)], None) {
                Ok(_) | Err(Errno::INTR) => self.0.read(buffer),
                Err(error) => Err(error.into()),
            }
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    use super::{Read, Receiving, SendNow, Sending, io};

    impl SendNow for Sending {
        /// A pipe's mode holds for both of its directions: everything goes through the writing thread.
        fn send_now(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Read for Receiving {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.0.read(buffer)
        }
    }
}
