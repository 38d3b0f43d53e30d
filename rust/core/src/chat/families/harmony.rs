//! Harmony, the format of gpt-oss: messages with a header that says for whom they are.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.NAME
//! <|constrain|>json<|message|>{…}<|call|>`. By OpenAI's description of the format; what stands in the
//! header stands there in any order, as the model does not keep to one.

use crate::chat::{
    parse::{Calling, Found, Marks, Parsed, Source, Watch, overlap, spelled},
    syntax::{CLOSE, OPEN},
};

const CHANNEL: &str = "<|channel|>";
const MESSAGE: &str = "<|message|>";
const START: &str = "<|start|>";
/// What ends a message.
const ENDS: [&str; 5] = ["<|end|>", "<|call|>", "<|return|>", START, CHANNEL];
/// Bytes of a header, at most. Beyond, it was text.
const HEADER: usize = 512;
/// Before the names of a client's tools.
const FUNCTIONS: &str = "functions.";

/// How a message of thoughts begins, what stands before its text, and how the message behind it begins.
pub(crate) const THOUGHTS: [&str; 3] = ["<|channel|>analysis", MESSAGE, "<|start|>assistant"];
/// What stands before the text of an answer.
pub(crate) const FINAL: &str = "<|channel|>final<|message|>";

/// What stands before the input of a call.
pub(crate) fn before_input(tool: &str) -> String {
    format!("<|channel|>commentary to={FUNCTIONS}{tool} <|constrain|>json<|message|>")
}

/// Reads one answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Harmony {
    source: Source,
    state: State,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a message's text. The prompt ends there.
    #[default]
    Header,
    Text,
    Reasoning,
    Call(Box<Marks>),
    /// Behind a message: whatever stands there is no part of the answer.
    Between,
    Done,
}

impl Harmony {
    pub(crate) fn push(&mut self, bytes: &[u8], watch: &Watch, out: &mut Vec<Parsed>) {
        self.source.held.extend_from_slice(bytes);
        while self.step(watch, false, out) {}
    }

    /// See [`crate::chat::parse::Parser::pass`].
    pub(crate) fn pass(&mut self, text: &str) -> Option<Parsed> {
        // All marks begin so.
        if !self.source.held.is_empty() || text.contains('<') {
            return None;
        }
        match self.state {
            State::Text => Some(self.source.pass(text, Found::Text)),
            State::Reasoning => Some(self.source.pass(text, Found::Reasoning)),
            _ => None,
        }
    }

    pub(crate) fn finish(&mut self, by_itself: bool, watch: &Watch, out: &mut Vec<Parsed>) {
        while self.step(watch, true, out) {}
        if let State::Call(marks) = &mut self.state {
            marks.finish(by_itself, watch, out);
        }
        self.state = State::Done;
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(crate) fn thinks(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    pub(crate) fn calling(&self, watch: &Watch) -> Option<Calling> {
        if let State::Call(marks) = &self.state { marks.calling(watch) } else { None }
    }

    pub(crate) fn held(&self) -> usize {
        match &self.state {
            State::Call(marks) => self.source.held.len() + marks.held(),
            _ => self.source.held.len(),
        }
    }

    fn step(&mut self, watch: &Watch, ends: bool, out: &mut Vec<Parsed>) -> bool {
        let held = &self.source.held;
        if held.is_empty() {
            return false;
        }
        match &mut self.state {
            State::Done => {
                self.source.skip(held.len());
                false
            }
            State::Header => self.header(watch, ends, out),
            State::Between => {
                // A message that is not begun in form: its header begins here.
                let blank = held.iter().take_while(|it| it.is_ascii_whitespace()).count();
                self.source.skip(blank);
                if self.source.held.is_empty() {
                    return false;
                }
                self.state = State::Header;
                true
            }
            State::Text | State::Reasoning | State::Call(_) => {
                let (length, mark) = match first(held, &ENDS) {
                    Some((at, length, name)) => (at, Some((length, name))),
                    None if ends => (held.len(), None),
                    None => (held.len() - waits(held, &ENDS), None),
                };
                match &mut self.state {
                    State::Text => self.source.tell_text(length, out),
                    State::Reasoning => self.source.tell_reasoning(length, out),
                    State::Call(marks) => {
                        marks.push(&held[..length], watch, out);
                        self.source.skip(length);
                        if marks.is_done() {
                            self.state = State::Done;
                            return true;
                        }
                    }
                    _ => {}
                }
                let Some((length, name)) = mark else { return false };
                if name != CHANNEL && name != START {
                    self.source.skip(length);
                }
                self.state = State::Between;
                true
            }
        }
    }

    fn header(&mut self, watch: &Watch, ends: bool, out: &mut Vec<Parsed>) -> bool {
        let held = &self.source.held;
        let (at, length) = match first(held, &[MESSAGE]) {
            Some((at, length, _)) if at <= HEADER => (at, length),
            found => {
                let text = spelled(held);
                let inner = text.trim_start();
                let begins = [CHANNEL, START, "to=", "assistant", "<|constrain|>", MESSAGE];
                let is_header = begins.iter().any(|it| inner.starts_with(it) || it.starts_with(inner));
                if is_header && !ends && found.is_none() && held.len() <= HEADER {
                    return false;
                }
                if is_header && ends {
                    // It was cut in its header, and has said nothing yet.
                    self.source.skip(held.len());
                    return false;
                }
                // Too long for a header: its first mark is nothing, and the rest is text.
                if let Some((0, length, _)) = first(held, &ENDS) {
                    self.source.skip(length);
                }
                self.state = State::Text;
                return true;
            }
        };
        let header = spelled(&held[..at]);
        let after = |word: &str| header.split_once(word).map(|it| it.1.trim_start());
        let word = |text: &str| {
            text.split(|it: char| it.is_whitespace() || it == '<').next().unwrap_or_default().to_owned()
        };
        let to = after("to=").map(word);
        let channel = after(CHANNEL).map(word).unwrap_or_default();
        let tool = to.and_then(|it| {
            let name = it.strip_prefix(FUNCTIONS).unwrap_or(&it);
            watch.known.iter().position(|it| it.name == name)
        });
        let length = at + length;
        if let Some(tool) = tool {
            let marks = Marks::in_call(tool, self.source.base() + length as u64);
            let name = watch.known[tool].name.clone();
            self.source.tell(length, Found::CallBegan(name), out);
            self.state = State::Call(Box::new(marks));
        } else {
            self.source.skip(length);
            self.state = if channel == "analysis" { State::Reasoning } else { State::Text };
        }
        true
    }
}

/// The first of the marks: where it stands, how long it is, and which it is. It may be a control token or be
/// spelled out.
fn first<'a>(held: &[u8], marks: &[&'a str]) -> Option<(usize, usize, &'a str)> {
    let found = marks.iter().filter_map(|&name| {
        let at = memchr::memmem::find(held, name.as_bytes())?;
        let is_token = at > 0 && held[at - 1] == OPEN && held.get(at + name.len()) == Some(&CLOSE);
        Some(if is_token { (at - 1, name.len() + 2, name) } else { (at, name.len(), name) })
    });
    found.min_by_key(|it| it.0)
}

/// Bytes at the end that may become one of the marks.
fn waits(held: &[u8], marks: &[&str]) -> usize {
    marks.iter().map(|it| overlap(held, it.as_bytes())).max().unwrap_or(0)
}
