//! The bytes of an answer that are not settled, and how they are shown.

use super::{Found, Parsed};
use crate::chat::syntax::{CLOSE, OPEN};

/// White space before a mark that belongs to it, at most.
const EDGE: usize = 4;

/// Bytes of an answer that are not settled, and where they stand in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) held: Vec<u8>,
    base: u64,
}

impl Source {
    /// Nothing is there yet; the first byte has that number.
    pub(super) fn at(base: u64) -> Self {
        Self { held: Vec::new(), base }
    }

    /// The number of the first byte that is held.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Forgets the first `count` bytes.
    pub(crate) fn skip(&mut self, count: usize) {
        self.held.drain(..count);
        self.base += count as u64;
    }

    /// Tells of the first `count` bytes, and forgets them.
    pub(crate) fn tell(&mut self, count: usize, found: Found, out: &mut Vec<Parsed>) {
        out.push(Parsed { found, begin: self.base, end: self.base + count as u64 });
        self.skip(count);
    }

    /// The same for text in which control tokens may stand.
    pub(crate) fn tell_text(&mut self, count: usize, out: &mut Vec<Parsed>) {
        self.each(count, out, Found::Text, |name| Some(Found::Control(name)));
    }

    /// The same for reasoning, where control tokens say nothing.
    pub(crate) fn tell_reasoning(&mut self, count: usize, out: &mut Vec<Parsed>) {
        self.each(count, out, Found::Reasoning, |_| None);
    }

    /// Text that came and is not held.
    pub(crate) fn pass(&mut self, text: &str, found: fn(String) -> Found) -> Parsed {
        let begin = self.base;
        self.base += text.len() as u64;
        Parsed { found: found(text.to_owned()), begin, end: self.base }
    }

    fn each(
        &mut self,
        count: usize,
        out: &mut Vec<Parsed>,
        text: impl Fn(String) -> Found,
        control: impl Fn(Vec<u8>) -> Option<Found>,
    ) {
        let mut left = count;
        while left > 0 {
            let length = control_length(&self.held).unwrap_or_else(|| until_control(&self.held[..left]));
            let found = if self.held[0] == OPEN {
                control(self.held[1..length - 1].to_vec())
            } else {
                Some(text(shown(&self.held[..length])))
            };
            match found {
                Some(found) => self.tell(length, found, out),
                None => self.skip(length),
            }
            left -= length;
        }
    }
}

/// Bytes of the control token that stands first, its marks included.
pub(super) fn control_length(bytes: &[u8]) -> Option<usize> {
    (bytes.first() == Some(&OPEN))
        .then(|| bytes.iter().position(|&it| it == CLOSE).map_or(bytes.len(), |it| it + 1))
}

/// Bytes up to the next control token.
pub(super) fn until_control(bytes: &[u8]) -> usize {
    memchr::memchr(OPEN, bytes).unwrap_or(bytes.len())
}

/// Bytes without control tokens as text.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while !rest.is_empty() {
        let length = until_control(rest);
        text.extend_from_slice(&rest[..length]);
        rest = &rest[length..];
        rest = &rest[control_length(rest).unwrap_or(0)..];
    }
    // Only whole characters come in, and marks begin and end with characters.
    String::from_utf8(text).unwrap_or_default()
}

/// Bytes with the names of control tokens spelled out.
pub(crate) fn spelled(bytes: &[u8]) -> String {
    String::from_utf8(bytes.iter().copied().filter(|&it| it != OPEN && it != CLOSE).collect())
        .unwrap_or_default()
}

/// How many of the bytes make so many of the spelled text.
pub(super) fn unspelled(bytes: &[u8], length: usize) -> usize {
    let mut left = length;
    for (at, &byte) in bytes.iter().enumerate() {
        if left == 0 {
            // What closes the name of a token belongs to it.
            return if byte == CLOSE { at + 1 } else { at };
        }
        if byte != OPEN && byte != CLOSE {
            left -= 1;
        }
    }
    bytes.len()
}

pub(super) fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// White space at the end that may belong to a mark behind it.
pub(super) fn edge(bytes: &[u8]) -> usize {
    bytes.iter().rev().take(EDGE).take_while(|&&it| is_blank(it)).count()
}

/// Length of the longest end of `bytes` that is a beginning of `what`, but not all of it.
pub(crate) fn overlap(bytes: &[u8], what: &[u8]) -> usize {
    (1..what.len().min(bytes.len() + 1)).rev().find(|&it| bytes.ends_with(&what[..it])).unwrap_or(0)
}
