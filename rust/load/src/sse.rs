//! Server-sent events out of a body's bytes as they come: the `data` of each, nothing else.
//!
//! Lines end with `\n` or `\r\n`; the lone `\r` that the standard also allows is not looked for, as no
//! server of this kind sends it and the search would cost a pass over every byte.

use memchr::memchr;

/// Cuts a body into events.
#[derive(Debug, Default)]
pub(crate) struct Events {
    /// A line whose end has not come yet.
    line: Vec<u8>,
    data: Vec<u8>,
    has_data: bool,
}

impl Events {
    /// For the next body.
    pub(crate) fn reset(&mut self) {
        self.line.clear();
        self.data.clear();
        self.has_data = false;
    }

    /// `event` gets the data of each event that is now complete.
    pub(crate) fn feed(&mut self, mut input: &[u8], mut event: impl FnMut(&[u8])) {
        while let Some(end) = memchr(b'\n', input) {
            if self.line.is_empty() {
                self.take_line(&input[..end], &mut event);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(&input[..end]);
                self.take_line(&line, &mut event);
                line.clear();
                self.line = line;
            }
            input = &input[end + 1..];
        }
        self.line.extend_from_slice(input);
    }

    fn take_line(&mut self, line: &[u8], event: &mut impl FnMut(&[u8])) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            if self.has_data {
                event(&self.data);
                self.data.clear();
                self.has_data = false;
            }
        } else if let Some(value) = line.strip_prefix(b"data:") {
            if self.has_data {
                self.data.push(b'\n');
            }
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.has_data = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn fed<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<String> {
        let mut events = Events::default();
        let mut found = Vec::new();
        for piece in pieces {
            events.feed(piece, |data| found.push(String::from_utf8(data.to_vec()).unwrap()));
        }
        found
    }

    const STREAM: &[u8] = b": hello\n\ndata: {\"a\": 1}\n\nid: 7\r\ndata:b\r\ndata: c\r\n\r\nevent: x\n\n\
        data\n\ndata:\n\ndata: [DONE]\n\ndata: cut off";

    #[test]
    fn whole_and_byte_by_byte() {
        for pieces in [vec![STREAM], STREAM.chunks(1).collect()] {
            assert_eq!(fed(pieces), ["{\"a\": 1}", "b\nc", "", "[DONE]"]);
        }
    }

    proptest! {
        #[test]
        fn how_the_bytes_are_split_does_not_matter(
            lines in prop::collection::vec("(data: ?|: |id: )?[a-z{}\":]{0,12}\r?", 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let stream = lines.join("\n") + "\n\n";
            let stream = stream.as_bytes();
            let mut places: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len())).collect();
            places.extend([0, stream.len()]);
            places.sort_unstable();
            let pieces = places.windows(2).map(|ends| &stream[ends[0]..ends[1]]);
            prop_assert_eq!(fed(pieces), fed([stream]));
        }
    }
}
