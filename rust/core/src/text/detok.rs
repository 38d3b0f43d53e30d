//! Bytes to text, where a character may be spread over several tokens.

/// Decodes UTF-8 that comes in pieces. However the bytes are cut, the text put together is what
/// [`String::from_utf8_lossy`] makes of the whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Utf8Decoder {
    /// The beginning of a character: three bytes at most.
    incomplete: Vec<u8>,
}

impl Utf8Decoder {
    /// Appends the whole characters that `bytes` complete to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut String) {
        if self.incomplete.is_empty() {
            let rest = decode(bytes, out);
            self.incomplete.extend_from_slice(rest);
        } else {
            let mut joined = std::mem::take(&mut self.incomplete);
            joined.extend_from_slice(bytes);
            let rest = decode(&joined, out).len();
            joined.drain(..joined.len() - rest);
            self.incomplete = joined;
        }
    }

    /// The bytes of the character that is not complete yet.
    pub fn incomplete(&self) -> &[u8] {
        &self.incomplete
    }

    /// Ends the text: an incomplete character becomes U+FFFD.
    pub fn finish(&mut self, out: &mut String) {
        if !self.incomplete.is_empty() {
            self.incomplete.clear();
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

/// Appends what can be decoded and gives back the incomplete character at the end.
fn decode<'a>(mut bytes: &'a [u8], out: &mut String) -> &'a [u8] {
    loop {
        match std::str::from_utf8(bytes) {
            Ok(text) => {
                out.push_str(text);
                return &[];
            }
            Err(error) => {
                let (valid, rest) = bytes.split_at(error.valid_up_to());
                out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                let Some(invalid) = error.error_len() else { return rest };
                out.push(char::REPLACEMENT_CHARACTER);
                bytes = &rest[invalid..];
            }
        }
    }
}
