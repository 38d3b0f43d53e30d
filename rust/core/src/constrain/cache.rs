//! Compiled formats that are likely to be asked for again: clients send the same one with each request.

use std::{collections::VecDeque, sync::Arc};

use super::Prototype;
use crate::chat::conversation::Format;

/// Most prototypes that are kept.
const MOST: usize = 64;
/// Bytes that they may take together.
const MOST_BYTES: usize = 64 << 20;
/// Bytes of a prototype for each byte of its format, and beside them: measured on the schemas of the tests.
const BYTES_EACH: usize = 100;
const BYTES_BESIDE: usize = 128 << 10;

/// Prototypes by their format; the one that was not asked for longest goes first.
#[derive(Debug, Default)]
pub struct Prototypes {
    /// The one asked for last is the last.
    kept: VecDeque<(Format, Arc<Prototype>)>,
}

impl Prototypes {
    /// The prototype of a format, if it is there.
    pub fn get(&mut self, format: &Format) -> Option<Arc<Prototype>> {
        let at = self.kept.iter().rposition(|it| it.0 == *format)?;
        let found = self.kept.remove(at)?;
        let prototype = Arc::clone(&found.1);
        self.kept.push_back(found);
        Some(prototype)
    }

    /// Keeps the prototype of a format.
    pub fn put(&mut self, format: Format, prototype: Arc<Prototype>) {
        self.kept.retain(|it| it.0 != format);
        self.kept.push_back((format, prototype));
        while self.kept.len() > MOST || (self.bytes() > MOST_BYTES && self.kept.len() > 1) {
            self.kept.pop_front();
        }
    }

    fn bytes(&self) -> usize {
        self.kept.iter().map(|it| BYTES_BESIDE + BYTES_EACH * length(&it.0)).sum()
    }
}

/// Length of its text.
fn length(format: &Format) -> usize {
    match format {
        Format::Text | Format::Object => 0,
        Format::Schema { schema, .. } => schema.as_str().len(),
        Format::Regex(text) | Format::Lark(text) => text.len(),
    }
}
