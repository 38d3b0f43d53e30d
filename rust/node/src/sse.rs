//! A stream's events as the bytes of its connection.
//!
//! Owns the two things that have to be done for each token: JSON's escapes, and the frames of HTTP/1.1's
//! chunked coding. Knows no API family's words, and not even those of server-sent events: what stands
//! around the text is the family's, made once per stream, and only filled in here.

use std::io::Write as _;

use llm_node_core::event::Piece;

use crate::pattern::{Items, Pattern, Place};

/// An event that is always the same but for one text, and the log-probabilities of its tokens: bytes, a JSON
/// string, bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template {
    head: Vec<u8>,
    tail: Vec<u8>,
    chunked: bool,
    logprobs: Option<Logprobs>,
}

/// What stands behind the text instead, where there are log-probabilities.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Logprobs {
    middle: Vec<u8>,
    pattern: Pattern,
    tail: Vec<u8>,
}

/// What one event is to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    text: String,
    items: Items,
}

impl Content {
    /// What follows it, told with it.
    pub fn append(&mut self, more: Self) {
        self.text += &more.text;
        self.items.append(more.items);
    }

    /// Bytes of it, but for JSON's escapes.
    pub fn len(&self) -> usize {
        self.text.len() + self.items.len()
    }

    /// Is there nothing to tell?
    pub fn is_empty(&self) -> bool {
        self.text.is_empty() && self.items.is_empty()
    }
}

impl Template {
    /// `head` and `tail` stand around the JSON string, its quotes not included. `chunked`: does the
    /// connection take HTTP/1.1's chunked coding?
    pub fn new(head: Vec<u8>, tail: Vec<u8>, chunked: bool) -> Self {
        Self { head, tail, chunked, logprobs: None }
    }

    /// With log-probabilities `middle`, what the pattern makes of them, and `tail` stand behind the text.
    #[must_use]
    pub fn with_logprobs(self, middle: Vec<u8>, pattern: Pattern, tail: Vec<u8>) -> Self {
        Self { logprobs: Some(Logprobs { middle, pattern, tail }), ..self }
    }

    /// What a piece is to tell in this template. `place`: see [`Pattern::items`].
    pub fn content(&self, piece: Piece, place: &mut Place) -> Content {
        let items = |logprobs: &Logprobs| logprobs.pattern.items(&piece.tokens, place);
        Content { items: self.logprobs.as_ref().map(items).unwrap_or_default(), text: piece.text }
    }

    /// Room for events of this template.
    pub fn bytes(&self) -> Bytes {
        let mut buffer = Vec::with_capacity(FRAME + self.head.len() + self.tail.len() + 32);
        buffer.extend_from_slice(&[0; FRAME]);
        Bytes { buffer, chunked: self.chunked }
    }

    /// Appends the event with this content. Equal, byte for byte, to what Python's `json.dumps` writes
    /// with `ensure_ascii=False`.
    pub fn fill(&self, content: &Content, into: &mut Bytes) {
        into.buffer.extend_from_slice(&self.head);
        // Writing to memory does not fail, and neither does a text.
        let _ = serde_json::to_writer(&mut into.buffer, &content.text);
        match &self.logprobs {
            Some(logprobs) if !content.items.is_empty() => {
                into.buffer.extend_from_slice(&logprobs.middle);
                logprobs.pattern.write(&content.items, &mut into.buffer);
                into.buffer.extend_from_slice(&logprobs.tail);
            }
            _ => into.buffer.extend_from_slice(&self.tail),
        }
    }
}

/// Before the body: at most eight hexadecimal digits and a line feed with its carriage return.
const FRAME: usize = 10;

/// Whole events on their way to one connection, written at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bytes {
    /// `FRAME` bytes of room, then the body.
    buffer: Vec<u8>,
    chunked: bool,
}

impl Bytes {
    /// Bytes that are as the connection wants them.
    pub(crate) fn raw(bytes: &[u8]) -> Self {
        Self { buffer: [&[0; FRAME], bytes].concat(), chunked: false }
    }

    /// Bytes of the body so far.
    pub fn len(&self) -> usize {
        self.buffer.len() - FRAME
    }

    /// Is there no event yet?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to write to the connection: one chunk where it takes chunks. An empty one would end the
    /// answer, so there is nothing to write where there is no event.
    pub fn frame(&mut self) -> &[u8] {
        if !self.chunked || self.is_empty() {
            return self.buffer.get(FRAME..).unwrap_or_default();
        }
        let mut size = [0; FRAME];
        let mut room = &mut size[..];
        // Eight digits hold all that can wait: see the caps of `supervise::outlets`.
        let _ = write!(room, "{:x}\r\n", self.len());
        let unused = room.len();
        let size = &size[..FRAME - unused];
        self.buffer[unused..FRAME].copy_from_slice(size);
        self.buffer.extend_from_slice(b"\r\n");
        &self.buffer[unused..]
    }
}

#[cfg(test)]
mod tests {
    use llm_node_core::event::{PickedToken, TokenLogprobs};
    use proptest::prelude::*;

    use super::*;

    impl From<&str> for Content {
        fn from(text: &str) -> Self {
            Self { text: text.to_owned(), ..Self::default() }
        }
    }

    fn template(chunked: bool) -> Template {
        Template::new(b"data: {\"text\":".to_vec(), b"}\n\n".to_vec(), chunked)
    }

    #[test]
    fn a_chunk_has_its_size_before_it() {
        let template = template(true);
        let mut bytes = template.bytes();
        template.fill(&"a".into(), &mut bytes);
        assert_eq!(bytes.frame(), b"14\r\ndata: {\"text\":\"a\"}\n\n\r\n");
    }

    #[test]
    fn nothing_is_no_chunk() {
        assert_eq!(template(true).bytes().frame(), b"");
        assert_eq!(template(false).bytes().frame(), b"");
    }

    #[test]
    fn only_what_json_forbids_is_escaped() {
        let template = Template::new(Vec::new(), Vec::new(), false);
        let mut bytes = template.bytes();
        template.fill(&"\"\\/\u{8}\u{c}\n\r\t\0\u{1f}\u{7f}\u{2028}é語🦙".into(), &mut bytes);
        let wanted = "\"\\\"\\\\/\\b\\f\\n\\r\\t\\u0000\\u001f\u{7f}\u{2028}é語🦙\"";
        assert_eq!(bytes.frame(), wanted.as_bytes());
    }

    #[test]
    fn log_probabilities_stand_behind_the_text_where_there_are_any() {
        let pattern = Pattern::parse("[<each><token></each>]").unwrap();
        let template = Template::new(b"<".to_vec(), b",null>".to_vec(), false).with_logprobs(
            b",".to_vec(),
            pattern,
            b">".to_vec(),
        );
        let piece = |text: &str, tokens: &[&str]| {
            let logprobs = |token: &&str| TokenLogprobs {
                bytes: token.as_bytes().to_vec(),
                is_text: true,
                logprob: -1.0,
                top: Vec::new(),
            };
            let token = |token| PickedToken { id: 0, logprobs: Some(logprobs(token)) };
            Piece { text: text.to_owned(), tokens: tokens.iter().map(token).collect() }
        };
        let mut bytes = template.bytes();
        let mut merged = Content::default();
        for (text, tokens) in [("", &["a"][..]), ("a", &[]), ("bc", &["b", "c"])] {
            let content = template.content(piece(text, tokens), &mut Place::default());
            assert!(!content.is_empty());
            template.fill(&content, &mut bytes);
            merged.append(content);
        }
        assert_eq!(bytes.frame(), br#"<"",["a"]><"a",null><"bc",["b","c"]>"#);
        let mut bytes = template.bytes();
        template.fill(&merged, &mut bytes);
        assert_eq!(bytes.frame(), br#"<"abc",["a","b","c"]>"#);
        assert!(template.content(piece("", &[]), &mut Place::default()).is_empty());
    }

    proptest! {
        #[test]
        fn any_texts_come_back(texts in prop::collection::vec(any::<String>(), 1..8), chunked: bool) {
            let template = template(chunked);
            let mut bytes = template.bytes();
            for text in &texts {
                template.fill(&text.as_str().into(), &mut bytes);
            }
            let mut framed = std::str::from_utf8(bytes.frame()).unwrap();
            if chunked {
                let (size, rest) = framed.split_once("\r\n").unwrap();
                framed = rest.strip_suffix("\r\n").unwrap();
                prop_assert_eq!(usize::from_str_radix(size, 16).unwrap(), framed.len());
            }
            // No line feed inside: one line is one event.
            let events: Vec<&str> = framed.split_terminator("\n\n").collect();
            prop_assert_eq!(events.len(), texts.len());
            for (event, text) in events.iter().zip(&texts) {
                prop_assert!(!event.contains('\n'));
                let value: serde_json::Value = serde_json::from_str(event.strip_prefix("data: ").unwrap()).unwrap();
                prop_assert_eq!(value["text"].as_str(), Some(text.as_str()));
            }
        }
    }
}
