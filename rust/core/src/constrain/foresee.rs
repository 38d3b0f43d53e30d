//! What an answer goes on with, as far as that can be told: text that its grammar leaves no choice about, and between
//! the parts of JSON the white space that the answer had in such places before.
//!
//! White space may be left out, so that next to nothing of JSON is forced. A model keeps to one layout, though, and
//! with that the names of properties and all between two values can be told. It is a guess, for a draft.

use std::collections::BTreeMap;

use llguidance::Matcher;
use toktrie::TokTrie;

use super::{Constraint, guarded};

/// Bytes that are foreseen at once, about: more tokens than are drafted in one step.
const MOST: usize = 160;
/// White space of one place that is remembered, and brackets within each other.
const MOST_SPACE: usize = 128;
const MOST_OPEN: usize = 256;
/// By how much models indent where nothing was seen yet.
const USUAL_INDENT: &[u8] = b"  ";
/// What values and names begin with, but for numbers; and those.
const BEGINNINGS: &[u8] = b"\"{[tfn";
const NUMBERS: &[u8] = b"-0123456789";

/// Where white space stands: behind which byte, within which bracket, and before the end of that or not.
type Place = (u8, u8, bool);

/// White space.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Space {
    /// A new line, indented by the brackets that are open.
    Line,
    Text(Vec<u8>),
}

/// How an answer in JSON has been laid out so far.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Brackets.
    open: Vec<u8>,
    in_string: bool,
    is_escaped: bool,
    /// The last byte that is no white space, and white space behind it.
    last: u8,
    space: Vec<u8>,
    /// What stood where, the last time.
    seen: BTreeMap<Place, Space>,
    /// By how much each open bracket indents a line.
    indent: Option<Vec<u8>>,
}

impl Layout {
    /// Goes on by these bytes of the answer.
    pub fn read(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' if self.in_string => self.is_escaped = true,
                b'"' if self.in_string => {
                    self.in_string = false;
                    self.last = byte;
                }
                _ if self.in_string => {}
                b' ' | b'\n' | b'\t' | b'\r' => {
                    if self.space.len() < MOST_SPACE {
                        self.space.push(byte);
                    }
                }
                _ => self.part(byte),
            }
        }
    }

    /// A byte of JSON that is no white space, outside of strings.
    fn part(&mut self, byte: u8) {
        let closes = matches!(byte, b'}' | b']');
        let space = std::mem::take(&mut self.space);
        if let Some(place) = self.place(closes).filter(|_| closes || is_between(self.last)) {
            let space = match space.strip_prefix(b"\n") {
                Some(indent) => self.line(indent, self.open.len() - usize::from(closes)),
                None => Space::Text(space),
            };
            self.seen.insert(place, space);
        }
        match byte {
            b'{' | b'[' if self.open.len() < MOST_OPEN => self.open.push(byte),
            b'}' | b']' => _ = self.open.pop(),
            b'"' => self.in_string = true,
            _ => {}
        }
        self.last = byte;
    }

    /// A new line with that indent within so many brackets.
    fn line(&mut self, indent: &[u8], level: usize) -> Space {
        match (indent.len().checked_rem(level), indent.len().checked_div(level)) {
            (Some(0), Some(each)) => {
                self.indent = Some(indent[..each].to_vec());
                Space::Line
            }
            (None, _) if indent.is_empty() => Space::Line,
            _ => Space::Text([b"\n", indent].concat()),
        }
    }

    fn place(&self, closes: bool) -> Option<Place> {
        let behind = if is_between(self.last) { self.last } else { 0 };
        Some((behind, *self.open.last()?, closes))
    }

    /// White space that is still to come before the next part. `None`: nothing tells.
    fn to_come(&self, closes: bool) -> Option<Vec<u8>> {
        let (behind, inside, _) = self.place(closes)?;
        let like_the_first = |text: &[u8]| match self.seen.get(&(inside, inside, false))? {
            Space::Line => Some(Space::Line),
            Space::Text(_) => Some(Space::Text(text.to_vec())),
        };
        let space = match self.seen.get(&(behind, inside, closes)) {
            Some(space) => space.clone(),
            None if self.space.starts_with(b"\n") => Space::Line,
            None if closes => like_the_first(b"")?,
            None if behind == b':' => Space::Text(b" ".to_vec()),
            None if behind == b',' => like_the_first(b" ")?,
            None => return None,
        };
        let text = match (space, self.open.len() - usize::from(closes)) {
            (Space::Text(text), _) => text,
            (Space::Line, 0) => b"\n".to_vec(),
            (Space::Line, level) => {
                [b"\n", &*self.indent.as_deref().unwrap_or(USUAL_INDENT).repeat(level)].concat()
            }
        };
        text.strip_prefix(&*self.space).map(<[u8]>::to_vec)
    }
}

/// Does something follow behind this byte, rather than a comma or an end?
fn is_between(byte: u8) -> bool {
    matches!(byte, b'{' | b'[' | b',' | b':')
}

/// What comes next in JSON.
enum Next {
    /// These bytes.
    Text(Vec<u8>),
    /// These, and then a number that nobody knows.
    Number(Vec<u8>),
}

impl Constraint {
    /// Text that most likely comes next: what has to, and white space as the answer so far was laid out.
    pub fn foreseen(&self, layout: &Layout) -> Vec<u8> {
        // What it is forced to would be in the way of a step back. What its lexer finds out is of use to both.
        let mut ahead = Matcher::clone(&self.matcher);
        guarded(|| foresee(&mut ahead, layout.clone())).unwrap_or_default()
    }
}

fn foresee(matcher: &mut Matcher, mut layout: Layout) -> Vec<u8> {
    let Ok(environment) = matcher.tok_env() else { return Vec::new() };
    let trie = environment.tok_trie();
    let mut text = Vec::new();
    while text.len() < MOST {
        let bytes = matcher.compute_ff_bytes();
        // Behind such a mark there is a control token.
        let forced = bytes.split(|&it| it == TokTrie::SPECIAL_TOKEN_MARKER).next().unwrap_or_default();
        text.extend(forced);
        layout.read(forced);
        if forced.len() < bytes.len() || !goes_on(matcher, trie, forced) {
            break;
        }
        match next(matcher, trie, &layout) {
            Some(Next::Text(next)) if goes_on(matcher, trie, &next) => {
                text.extend(&next);
                layout.read(&next);
            }
            Some(Next::Number(space)) => {
                text.extend(space);
                break;
            }
            _ => break,
        }
    }
    text
}

/// Goes on by these bytes. False: they are not admitted.
fn goes_on(matcher: &mut Matcher, trie: &TokTrie, bytes: &[u8]) -> bool {
    let tokens = trie.greedy_tokenize(bytes);
    trie.decode_raw(&tokens) == bytes
        && matcher.try_consume_tokens(&tokens).is_ok_and(|it| it == tokens.len())
}

/// The next part of JSON with the white space before it, where there is but one.
fn next(matcher: &mut Matcher, trie: &TokTrie, layout: &Layout) -> Option<Next> {
    let end = match layout.open.last()? {
        b'{' => b'}',
        _ => b']',
    };
    if layout.in_string {
        return None;
    }
    let mut admits = |bytes: &[u8]| -> Vec<u8> {
        let admitted = |&byte: &u8| {
            let token = trie.token_id(&[byte]);
            token.is_some_and(|it| matcher.validate_tokens(&[it]).is_ok_and(|count| count > 0))
        };
        bytes.iter().copied().filter(admitted).collect()
    };
    if !is_between(layout.last) {
        // A number may go on, unless there is white space behind it.
        let is_over = !layout.last.is_ascii_digit() || !layout.space.is_empty();
        return match *admits(&[b',', b':', end]) {
            [only @ (b',' | b':')] if is_over && layout.space.is_empty() => Some(Next::Text(vec![only])),
            [only] if is_over && only == end => {
                let mut text = layout.to_come(true)?;
                text.push(end);
                Some(Next::Text(text))
            }
            _ => None,
        };
    }
    let mut text = layout.to_come(false)?;
    let parts = admits(&[BEGINNINGS, &[end]].concat());
    match (&*parts, admits(NUMBERS).is_empty()) {
        (&[only], true) if only != end => {
            text.push(only);
            Some(Next::Text(text))
        }
        ([], false) => Some(Next::Number(text)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str) -> Layout {
        let mut layout = Layout::default();
        layout.read(text.as_bytes());
        layout
    }

    fn to_come(text: &str, closes: bool) -> Option<String> {
        after(text).to_come(closes).map(|it| String::from_utf8(it).unwrap())
    }

    #[test]
    fn lines_are_indented_by_the_brackets_that_are_open() {
        let text = "{\n  \"a\": [\n    1,\n    2\n  ],";
        assert_eq!(to_come(text, false).as_deref(), Some("\n  "));
        assert_eq!(to_come(&format!("{text}\n"), false).as_deref(), Some("  "));
        assert_eq!(to_come(&format!("{text}\n \t"), false), None, "it is laid out otherwise");
        assert_eq!(to_come(&format!("{text}\n  \"b\": {{\n    \"c\": true"), true).as_deref(), Some("\n  "));
        assert_eq!(to_come("{\n\t\"a\": {\n\t\t\"b\": 1,", false).as_deref(), Some("\n\t\t"));
        assert_eq!(to_come("{\n\"a\":1,", false).as_deref(), Some("\n"), "not indented at all");
    }

    #[test]
    fn one_line_stays_one_line() {
        assert_eq!(to_come("{\"a\":1,\"b\":", false).as_deref(), Some(""));
        assert_eq!(to_come("{\"a\": 1, \"b\": \"x\"", true).as_deref(), Some(""));
        assert_eq!(to_come("{\"a\": \"x, \\\" {\",", false).as_deref(), Some(" "), "strings do not count");
        assert_eq!(to_come("{ \"a\": [1, 2], \"b\": 2 }", true), None, "all is closed");
    }

    #[test]
    fn nothing_is_said_of_what_was_not_seen() {
        assert_eq!(to_come("{", false), None);
        assert_eq!(to_come("{\n", false).as_deref(), Some("  "), "that is usual");
        assert_eq!(to_come("{\n  \"a\": [", false), None);
        assert_eq!(to_come("", false), None);
    }
}
