//! Reading along bytes that may end too early.

use super::source::{is_blank, overlap, until_control};
use crate::chat::{
    syntax::Literal,
    values::{JsonScan, Scanned, Unescape},
};

/// Around a block of code, in which small models put a call instead of their own marks.
const FENCE: &[u8] = b"```";

/// Why something cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// More has to come.
    Short,
    /// It is something else.
    Other,
}

pub(super) type Read<T> = Result<T, Stop>;

/// Reads along bytes.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// What it means if they end.
    pub(super) short: Stop,
}

impl<'a> Cursor<'a> {
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    pub(super) fn peek(&self) -> Read<u8> {
        self.rest().first().copied().ok_or(self.short)
    }

    pub(super) fn blank(&mut self) {
        while self.rest().first().is_some_and(|&it| is_blank(it)) {
            self.at += 1;
        }
    }

    /// Exactly these bytes.
    pub(super) fn exact(&mut self, bytes: &[u8]) -> Read<()> {
        if self.rest().starts_with(bytes) {
            self.at += bytes.len();
            return Ok(());
        }
        Err(if bytes.starts_with(self.rest()) { self.short } else { Stop::Other })
    }

    /// These bytes; white space in them may be missing, or other white space.
    pub(super) fn core(&mut self, core: &[u8]) -> Read<()> {
        let mut cursor = *self;
        for (at, &byte) in core.iter().enumerate() {
            if !is_blank(byte) {
                cursor.next(byte)?;
            } else if at > 0 {
                cursor.blank();
            }
        }
        *self = cursor;
        Ok(())
    }

    /// That byte.
    fn next(&mut self, byte: u8) -> Read<()> {
        match self.peek()? {
            found if found == byte => {
                self.at += 1;
                Ok(())
            }
            _ => Err(Stop::Other),
        }
    }

    pub(super) fn literal(&mut self, literal: &Literal) -> Read<()> {
        self.blank();
        self.core(literal.core())
    }

    /// The marks that a literal consists of, as far as they are there: models leave some out.
    pub(super) fn marks(&mut self, literal: &Literal) -> Read<()> {
        for mark in literal.marks() {
            let before = self.at;
            self.blank();
            match self.core(mark) {
                Ok(()) => {}
                Err(Stop::Short) => return Err(Stop::Short),
                Err(Stop::Other) => self.at = before,
            }
        }
        Ok(())
    }

    /// What begins and ends a block of code.
    pub(super) fn fence(&mut self) -> Read<()> {
        self.blank();
        self.core(FENCE)
    }

    pub(super) fn byte(&mut self, byte: u8) -> Read<()> {
        self.blank();
        self.core(&[byte])
    }

    /// A JSON string.
    pub(super) fn string(&mut self) -> Read<String> {
        self.byte(b'"')?;
        let begin = self.at;
        let mut text = String::new();
        let inner =
            std::str::from_utf8(&self.rest()[..until_control(self.rest())]).map_err(|_| Stop::Other)?;
        match Unescape::default().push(inner, &mut text) {
            Some(length) => {
                self.at = begin + length;
                Ok(text)
            }
            None if inner.len() == self.rest().len() => Err(self.short),
            None => Err(Stop::Other),
        }
    }

    /// Any JSON value.
    pub(super) fn value(&mut self) -> Read<&'a [u8]> {
        self.blank();
        let begin = self.at;
        match JsonScan::default().push(self.rest()) {
            Scanned::Ends(length) => {
                self.at += length;
                Ok(&self.bytes[begin..self.at])
            }
            Scanned::More => Err(self.short),
            Scanned::Broken(_) => Err(Stop::Other),
        }
    }

    /// Text up to the first of the `stops`, which is not taken.
    pub(super) fn until(&mut self, stops: &[&[u8]]) -> Read<String> {
        let rest = self.rest();
        let stops = || stops.iter().filter(|it| !it.is_empty());
        let end = stops().filter_map(|it| memchr::memmem::find(rest, it)).min().ok_or(self.short)?;
        // One that begins before may still be incomplete.
        if stops().any(|it| rest.len() - overlap(rest, it) < end) {
            return Err(self.short);
        }
        self.at += end;
        std::str::from_utf8(&rest[..end]).map(|it| it.trim().to_owned()).map_err(|_| Stop::Other)
    }
}

/// The first bytes, in which something must be found.
pub(super) fn window(bytes: &[u8], limit: usize, short: Stop) -> Cursor<'_> {
    match bytes.get(..limit) {
        Some(bytes) => Cursor { bytes, at: 0, short: Stop::Other },
        None => Cursor { bytes, at: 0, short },
    }
}
