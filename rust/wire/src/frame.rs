//! Frames: a length, then one message.
//!
//! ```text
//! u32, little endian      length of the body in bytes, at most MAX_FRAME
//! body                    one message of message.rs, in postcard's encoding, and nothing after it
//! ```
//!
//! Owns the border between bytes and messages. Refuses to trust either side of it: a length beyond
//! the cap, a body that ends early, one that is not a message, or one with something behind the
//! message is an error, never a panic, and memory grows with the bytes that arrive, not with the
//! length that they announce.
//!
//! Versions meet in `FromWorker::Hello`, which for that reason never changes its shape: the first
//! variant, the version its first field.

use std::io::{self, BufReader, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// Longest body in bytes. A step's frame has some kilobytes; the largest honest messages are long
/// prompts and batches of embeddings.
pub const MAX_FRAME: usize = 64 * 1024 * 1024;

/// Buffers above this are given back after use, so that one large message is not paid for ever.
const KEEP: usize = 1024 * 1024;

/// What reading at once saves: a frame is mostly one system call, not two.
const READ_AHEAD: usize = 64 * 1024;

const PREFIX: usize = size_of::<u32>();

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The other side has gone, between two frames.
    #[error("the connection is closed")]
    Closed,
    /// The other side has gone in the middle of a frame.
    #[error("the connection ended within a frame")]
    Truncated,
    /// The body is longer than [`MAX_FRAME`]. Nothing was written.
    #[error("a frame of {length} bytes is over the limit of {MAX_FRAME}")]
    TooLarge {
        /// Bytes of the body.
        length: usize,
    },
    /// The body is not a message, or a message cannot be encoded.
    #[error("malformed frame: {0}")]
    Malformed(&'static str),
    /// The socket failed otherwise.
    #[error("the connection failed: {0}")]
    Io(io::Error),
}

impl FrameError {
    /// Has the other side simply gone? Then there is nobody to tell.
    pub fn is_end(&self) -> bool {
        matches!(self, FrameError::Closed | FrameError::Truncated)
    }

    fn io(error: io::Error) -> Self {
        match error.kind() {
            // How a vanished peer shows, depending on the platform and on what was under way.
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::NotConnected => FrameError::Closed,
            _ => FrameError::Io(error),
        }
    }
}

/// Reads messages from a socket's receiving side.
#[derive(Debug)]
pub struct FrameReader<R> {
    inner: BufReader<R>,
    body: Vec<u8>,
}

impl<R: Read> FrameReader<R> {
    /// Reads ahead: whatever else reads from `inner` misses bytes.
    pub fn new(inner: R) -> Self {
        Self { inner: BufReader::with_capacity(READ_AHEAD, inner), body: Vec::new() }
    }

    /// Waits for the next frame. After any error but [`FrameError::Malformed`] the stream cannot be
    /// read any further.
    pub fn read<M: DeserializeOwned>(&mut self) -> Result<M, FrameError> {
        let length = self.length()?;
        self.body.clear();
        self.body.shrink_to(KEEP);
        let got =
            (&mut self.inner).take(length as u64).read_to_end(&mut self.body).map_err(FrameError::io)?;
        if got < length {
            return Err(FrameError::Truncated);
        }
        decode(&self.body)
    }

    /// Is the whole of the next frame here already?
    pub fn has_another(&self) -> bool {
        let ahead = self.inner.buffer();
        let Some((prefix, body)) = ahead.split_first_chunk::<PREFIX>() else { return false };
        body.len() >= u32::from_le_bytes(*prefix) as usize
    }

    fn length(&mut self) -> Result<usize, FrameError> {
        let mut prefix = [0; PREFIX];
        let mut filled = 0;
        while filled < PREFIX {
            match self.inner.read(&mut prefix[filled..]) {
                Ok(0) if filled == 0 => return Err(FrameError::Closed),
                Ok(0) => return Err(FrameError::Truncated),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FrameError::io(error)),
            }
        }
        let length = u32::from_le_bytes(prefix) as usize;
        if length > MAX_FRAME { Err(FrameError::TooLarge { length }) } else { Ok(length) }
    }
}

/// Writes messages to a socket's sending side, one write a message.
#[derive(Debug)]
pub struct FrameWriter<W> {
    inner: W,
    frame: Vec<u8>,
}

impl<W: Write> FrameWriter<W> {
    /// Needs no buffering below it.
    pub fn new(inner: W) -> Self {
        Self { inner, frame: Vec::new() }
    }

    /// Writes one message and flushes. After [`FrameError::TooLarge`] and [`FrameError::Malformed`]
    /// nothing was written, and the stream is as it was.
    pub fn write<M: Serialize + ?Sized>(&mut self, message: &M) -> Result<(), FrameError> {
        let frame = encode(message, std::mem::take(&mut self.frame))?;
        let written = self.inner.write_all(&frame).and_then(|()| self.inner.flush());
        self.frame = frame;
        written.map_err(FrameError::io)
    }

    /// Writes the end of a frame whose beginning went another way.
    pub fn resume(&mut self, rest: &[u8]) -> Result<(), FrameError> {
        self.inner.write_all(rest).and_then(|()| self.inner.flush()).map_err(FrameError::io)
    }
}

/// One message as a whole frame, in the place of what `frame` held.
pub fn encode<M: Serialize + ?Sized>(message: &M, mut frame: Vec<u8>) -> Result<Vec<u8>, FrameError> {
    frame.clear();
    frame.shrink_to(KEEP);
    frame.extend_from_slice(&[0; PREFIX]);
    let mut frame = postcard::to_extend(message, frame).map_err(|error| malformed(&error))?;
    let length = frame.len() - PREFIX;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge { length });
    }
    frame[..PREFIX].copy_from_slice(&(length as u32).to_le_bytes());
    Ok(frame)
}

/// A body to the one message that it is.
pub fn decode<M: DeserializeOwned>(body: &[u8]) -> Result<M, FrameError> {
    let (message, rest) = postcard::take_from_bytes(body).map_err(|error| malformed(&error))?;
    if rest.is_empty() { Ok(message) } else { Err(FrameError::Malformed("bytes after the message")) }
}

fn malformed(error: &postcard::Error) -> FrameError {
    FrameError::Malformed(match error {
        postcard::Error::DeserializeUnexpectedEnd => "it ends early",
        postcard::Error::DeserializeBadVarint => "a number is out of range",
        postcard::Error::DeserializeBadBool => "a truth value is neither 0 nor 1",
        postcard::Error::DeserializeBadUtf8 => "a text is not UTF-8",
        postcard::Error::DeserializeBadOption => "an option is neither 0 nor 1",
        postcard::Error::DeserializeBadEnum => "an unknown variant",
        postcard::Error::SerdeDeCustom => "an unknown variant, or a value out of range",
        postcard::Error::SerdeSerCustom => "a value that cannot be encoded",
        _ => "not in postcard's encoding",
    })
}
