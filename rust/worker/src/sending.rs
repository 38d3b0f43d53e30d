//! The way to the node, written so that nobody is woken for nothing.
//!
//! A wake-up of a sleeping thread costs more than everything else that is done for a token, so the
//! scheduler sends what it can by itself, without waiting.

use std::io::{self, Write};

use llm_node_wire::endpoint::FromWorkerWriter;

/// Sending without waiting.
pub(crate) trait SendNow {
    /// Sends as many bytes as there is room for; `WouldBlock` where there is none.
    fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize>;
}

/// The side to the node. Writing waits for room.
pub(crate) struct Sending(FromWorkerWriter);

#[cfg(unix)]
mod unix {
    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::{Errno, ioctl_fionbio},
    };

    use super::{FromWorkerWriter, SendNow, Sending, Write, io};

    impl Sending {
        /// Two handles of one way: one that waits and one that does not.
        pub(crate) fn pair(writer: FromWorkerWriter) -> io::Result<(Self, Self)> {
            ioctl_fionbio(&writer, true)?;
            Ok((Self(writer.try_clone()?), Self(writer)))
        }
    }

    impl SendNow for Sending {
        fn send_now(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }
    }

    impl Write for Sending {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            loop {
                match self.0.write(bytes) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    result => return result,
                }
                match poll(&mut [PollFd::new(&self.0, PollFlags::OUT)], None) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}

#[cfg(not(unix))]
mod elsewhere {
    use interprocess::TryClone;

    use super::{FromWorkerWriter, SendNow, Sending, Write, io};

    impl Sending {
        /// Two handles of one way: one that waits and one that does not.
        pub(crate) fn pair(writer: FromWorkerWriter) -> io::Result<(Self, Self)> {
            Ok((Self(writer.try_clone()?), Self(writer)))
        }
    }

    impl SendNow for Sending {
        /// A named pipe's mode holds for both of its directions: everything goes through the writing thread.
        fn send_now(&mut self, _bytes: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::WouldBlock.into())
        }
    }

    impl Write for Sending {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            self.0.flush()
        }
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::{io::Read, thread};

    use super::*;

    #[test]
    fn one_handle_waits_for_room_and_the_other_does_not() {
        let (mut reader, writer) = io::pipe().unwrap();
        let (mut waiting, mut direct) = Sending::pair(writer).unwrap();
        let block = [1; 4096];
        let mut sent = 0;
        let full = loop {
            match direct.send_now(&block) {
                Ok(length) => sent += length,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let writing = thread::spawn(move || waiting.write_all(&block).map(|()| waiting));
        let mut received = vec![0; sent + block.len()];
        reader.read_exact(&mut received).unwrap();
        let mut waiting = writing.join().unwrap().unwrap();
        drop(reader);
        assert_eq!(direct.send_now(&block).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(waiting.write(&block).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
