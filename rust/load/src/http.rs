//! One HTTP/1.1 response after another out of bytes as they come.

use memchr::memchr;

const HEAD_LIMIT: usize = 64 << 10;
const HEADERS: usize = 96;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum HttpError {
    #[error("the head of the response is not HTTP/1: {0}")]
    Head(httparse::Error),
    #[error("the head of the response is longer than {HEAD_LIMIT} bytes")]
    HeadTooLong,
    #[error("Content-Length is not a number")]
    Length,
    #[error("a chunk's size is not a number")]
    ChunkSize,
    #[error("a chunk is longer than its size says")]
    ChunkEnd,
    #[error("bytes follow the end of the response")]
    Surplus,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    /// Bytes of the body that are still to come.
    Sized(u64),
    ChunkSize {
        size: u64,
        digits: u8,
        /// Behind the number: the rest of the line says nothing that matters here.
        number_ended: bool,
    },
    Chunk(u64),
    /// The line break behind a chunk.
    ChunkEnd,
    Trailers {
        line_is_empty: bool,
    },
    UntilClosed,
    Done,
}

const CHUNK_SIZE: State = State::ChunkSize { size: 0, digits: 0, number_ended: false };

/// A response, fed in pieces of any size.
#[derive(Debug)]
pub(crate) struct Response {
    state: State,
    head: Vec<u8>,
    status: u16,
    keep_alive: bool,
}

impl Response {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, head: Vec::new(), status: 0, keep_alive: true }
    }

    /// Ready for the next response of the same connection.
    pub(crate) fn reset(&mut self) {
        self.state = State::Head;
        self.head.clear();
        self.status = 0;
    }

    /// 0 before the head is complete.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn has_begun(&self) -> bool {
        self.state != State::Head || !self.head.is_empty()
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.state == State::Done
    }

    /// May the connection be used again after this response?
    pub(crate) fn keeps_alive(&self) -> bool {
        self.is_complete() && self.keep_alive
    }

    /// The peer has closed. Was this the regular end of a response without a length?
    pub(crate) fn close(&mut self) -> bool {
        if self.state == State::UntilClosed {
            self.state = State::Done;
        }
        self.is_complete()
    }

    /// Take what was received; `body` gets the bytes of the body with the status they belong to.
    pub(crate) fn feed(
        &mut self,
        mut input: &[u8],
        mut body: impl FnMut(u16, &[u8]),
    ) -> Result<(), HttpError> {
        while let Some(&first) = input.first() {
            match self.state {
                State::Head => input = self.feed_head(input)?,
                State::Sized(left) => {
                    let (now, rest) = split(input, left);
                    body(self.status, now);
                    let left = left - now.len() as u64;
                    self.state = if left == 0 { State::Done } else { State::Sized(left) };
                    input = rest;
                }
                State::ChunkSize { size, digits, number_ended } => {
                    self.state = chunk_size(first, size, digits, number_ended)?;
                    input = &input[1..];
                }
                State::Chunk(left) => {
                    let (now, rest) = split(input, left);
                    body(self.status, now);
                    let left = left - now.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    input = rest;
                }
                State::ChunkEnd => {
                    match first {
                        b'\r' => {}
                        b'\n' => self.state = CHUNK_SIZE,
                        _ => return Err(HttpError::ChunkEnd),
                    }
                    input = &input[1..];
                }
                State::Trailers { line_is_empty } => {
                    self.state = match first {
                        b'\n' if line_is_empty => State::Done,
                        b'\n' => State::Trailers { line_is_empty: true },
                        b'\r' => State::Trailers { line_is_empty },
                        _ => State::Trailers { line_is_empty: false },
                    };
                    input = &input[1..];
                }
                State::UntilClosed => {
                    body(self.status, input);
                    return Ok(());
                }
                State::Done => return Err(HttpError::Surplus),
            }
        }
        Ok(())
    }

    /// Gives what follows the head, or nothing where the head goes on.
    fn feed_head<'a>(&mut self, input: &'a [u8]) -> Result<&'a [u8], HttpError> {
        let held = self.head.len();
        // The head ends at an empty line, so up to each line break is enough to try.
        let taken = memchr(b'\n', input).map_or(input.len(), |at| at + 1);
        self.head.extend_from_slice(&input[..taken]);
        if self.head.len() > HEAD_LIMIT {
            return Err(HttpError::HeadTooLong);
        }
        let line_is_empty = self.head[held..] == *b"\n" || self.head[held..] == *b"\r\n";
        if !line_is_empty {
            return Ok(&input[taken..]);
        }
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        if parsed.parse(&self.head).map_err(HttpError::Head)?.is_partial() {
            return Ok(&input[taken..]);
        }
        let status = parsed.code.unwrap_or_default();
        let mut keep_alive = parsed.version == Some(1);
        let mut length = None;
        let mut chunked = false;
        for header in parsed.headers.iter() {
            if header.name.eq_ignore_ascii_case("content-length") {
                let text = std::str::from_utf8(header.value).map_err(|_| HttpError::Length)?;
                length = Some(text.trim().parse::<u64>().map_err(|_| HttpError::Length)?);
            } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
                chunked = header.value.to_ascii_lowercase().ends_with(b"chunked");
            } else if header.name.eq_ignore_ascii_case("connection") {
                match header.value.to_ascii_lowercase().as_slice() {
                    b"close" => keep_alive = false,
                    b"keep-alive" => keep_alive = true,
                    _ => {}
                }
            }
        }
        self.head.clear();
        if (100..200).contains(&status) {
            return Ok(&input[taken..]);
        }
        self.status = status;
        self.keep_alive = keep_alive;
        self.state = match length {
            _ if status == 204 || status == 304 => State::Done,
            _ if chunked => CHUNK_SIZE,
            Some(0) => State::Done,
            Some(length) => State::Sized(length),
            None => {
                self.keep_alive = false;
                State::UntilClosed
            }
        };
        Ok(&input[taken..])
    }
}

fn split(input: &[u8], left: u64) -> (&[u8], &[u8]) {
    input.split_at(usize::try_from(left).unwrap_or(usize::MAX).min(input.len()))
}

fn chunk_size(byte: u8, size: u64, digits: u8, number_ended: bool) -> Result<State, HttpError> {
    if byte == b'\n' {
        return match (digits, size) {
            (0, _) => Err(HttpError::ChunkSize),
            (_, 0) => Ok(State::Trailers { line_is_empty: true }),
            _ => Ok(State::Chunk(size)),
        };
    }
    if number_ended || matches!(byte, b';' | b' ' | b'\t' | b'\r') {
        return Ok(State::ChunkSize { size, digits, number_ended: true });
    }
    let digit = char::from(byte).to_digit(16).ok_or(HttpError::ChunkSize)?;
    if digits == 15 {
        return Err(HttpError::ChunkSize);
    }
    Ok(State::ChunkSize { size: size * 16 + u64::from(digit), digits: digits + 1, number_ended })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Result<(Response, Vec<u8>), HttpError> {
        let mut response = Response::new();
        let mut body = Vec::new();
        for piece in pieces {
            response.feed(piece, |_, bytes| body.extend_from_slice(bytes))?;
        }
        Ok((response, body))
    }

    const CHUNKED: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\
        X-A: b\r\n\r\n5\r\nhello\r\n0000A;name=value\r\n, world\r\n!\r\n0\r\nTrailer: 1\r\n\r\n";

    #[test]
    fn chunks_whole_and_byte_by_byte() {
        for pieces in [vec![CHUNKED], CHUNKED.chunks(1).collect()] {
            let (response, body) = fed(pieces).unwrap();
            assert_eq!(body, b"hello, world\r\n!");
            assert_eq!(response.status(), 200);
            assert!(response.keeps_alive());
        }
    }

    #[test]
    fn a_length() {
        let (response, body) =
            fed([b"HTTP/1.1 429 Too Many\r\ncontent-length: 3\r\nConnection: Close\r\n\r\nno!".as_slice()])
                .unwrap();
        assert_eq!((response.status(), body.as_slice()), (429, b"no!".as_slice()));
        assert!(response.is_complete());
        assert!(!response.keeps_alive());
    }

    #[test]
    fn no_length_lasts_until_the_end() {
        let (mut response, body) = fed([b"HTTP/1.0 200 OK\r\n\r\nab".as_slice(), b"c"]).unwrap();
        assert_eq!(body, b"abc");
        assert!(!response.is_complete());
        assert!(response.close());
        assert!(!response.keeps_alive());
    }

    #[test]
    fn closing_within_chunks_is_no_end() {
        let (mut response, _) = fed([&CHUNKED[..CHUNKED.len() - 20]]).unwrap();
        assert!(!response.close());
    }

    #[test]
    fn nonsense_is_refused() {
        for (bytes, error) in [
            (b"SSH-2.0-OpenSSH\r\n\r\n".as_slice(), HttpError::Head(httparse::Error::Version)),
            (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", HttpError::Length),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", HttpError::ChunkSize),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\r\n", HttpError::ChunkSize),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1111111111111111", HttpError::ChunkSize),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab", HttpError::ChunkEnd),
            (b"HTTP/1.1 204 No Content\r\n\r\nx", HttpError::Surplus),
        ] {
            assert_eq!(fed([bytes]).unwrap_err(), error);
        }
        let endless = vec![b'a'; HEAD_LIMIT + 1];
        assert_eq!(fed([endless.as_slice()]).unwrap_err(), HttpError::HeadTooLong);
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_split_does_not_matter(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..8),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let mut stream = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
            for chunk in &bodies {
                stream.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
                stream.extend_from_slice(chunk);
                stream.extend_from_slice(b"\r\n");
            }
            stream.extend_from_slice(b"0\r\n\r\n");
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let pieces = places.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
            let (response, body) = fed(pieces).unwrap();
            prop_assert_eq!(body, bodies.concat());
            prop_assert!(response.keeps_alive());
        }
    }
}
