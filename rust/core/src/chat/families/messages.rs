//! Answers that are divided into messages: Harmony, the format of gpt-oss, and ATEM, that of Muse Glimmer.
//!
//! `<|channel|>analysis<|message|>…<|end|><|start|>assistant<|channel|>commentary to=functions.NAME
//! <|constrain|>json<|message|>{…}<|call|>`, by OpenAI's description of the format. ` to=self<|message|>…<|eom|>
//! <|start|>assistant to=NAME<|message|><atem:function_calls>…`, by the chat template. What stands in a header stands
//! there in any order, as models do not keep to one.

use crate::chat::{
    parse::{Calling, Found, Marks, Parsed, Source, Watch, overlap, spelled},
    syntax::{CLOSE, Messages, OPEN},
};

/// Bytes of a header, at most. Beyond, it was text.
const HEADER: usize = 512;

pub(crate) static HARMONY: Messages = Messages {
    message: "<|message|>",
    next: "<|start|>assistant",
    ends: &["<|end|>", "<|call|>", "<|return|>"],
    begins: &["<|start|>", "<|channel|>"],
    headers: &["to=", "assistant", "<|constrain|>"],
    thinks: ("<|channel|>", "analysis"),
    says: None,
    thoughts: "<|channel|>analysis",
    text: "<|channel|>final",
    call: ("<|channel|>commentary to=functions.", " <|constrain|>json"),
    prefix: "functions.",
    names_tool: true,
};

pub(crate) static ATEM: Messages = Messages {
    message: "<|message|>",
    next: "<|start|>assistant",
    ends: &["<|eom|>", "<|eot|>"],
    begins: &["<|start|>"],
    headers: &["to=", "assistant"],
    thinks: ("to=", "self"),
    says: Some(("to=", "user")),
    thoughts: " to=self",
    text: " to=user",
    call: (" to=", ""),
    prefix: "",
    names_tool: false,
};

/// Reads one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reader {
    messages: &'static Messages,
    source: Source,
    state: State,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Before a message's text. The prompt ends there.
    Header,
    Text,
    Reasoning,
    /// In a message that is a call's input, or in which calls are looked for.
    Call(Box<Marks>),
    /// Behind a message: whatever stands there is no part of the answer.
    Between,
    Done,
}

impl Reader {
    pub(crate) fn new(messages: &'static Messages) -> Self {
        Self { messages, source: Source::default(), state: State::Header }
    }

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

    /// See [`crate::chat::parse::Parser::deny`].
    pub(crate) fn deny(&mut self, out: &mut Vec<Parsed>) {
        if let State::Call(marks) = &mut self.state
            && !self.messages.names_tool
        {
            marks.deny(out);
        }
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
            State::Text | State::Reasoning | State::Call(_) => self.message(watch, ends, out),
        }
    }

    fn message(&mut self, watch: &Watch, ends: bool, out: &mut Vec<Parsed>) -> bool {
        let held = &self.source.held;
        // What a call is given may hold whatever is no control token.
        let is_input = matches!(self.state, State::Call(_)) && !self.messages.names_tool;
        let begins = if is_input { &[] } else { self.messages.begins };
        let all = || self.messages.ends.iter().chain(begins).copied();
        let (length, mark) = match first(held, all()) {
            Some((at, length, name)) => (at, Some((length, name))),
            None if ends => (held.len(), None),
            None => (held.len() - waits(held, all()), None),
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
                if mark.is_some() && !self.messages.names_tool {
                    // The message is whole, and so are its calls.
                    marks.finish(true, watch, out);
                }
            }
            _ => {}
        }
        let Some((length, name)) = mark else { return false };
        if self.messages.ends.contains(&name) {
            self.source.skip(length);
        }
        self.state = State::Between;
        true
    }

    fn header(&mut self, watch: &Watch, ends: bool, out: &mut Vec<Parsed>) -> bool {
        let (messages, held) = (self.messages, &self.source.held);
        let (at, length) = match first(held, [messages.message]) {
            Some((at, length, _)) if at <= HEADER => (at, length),
            found => {
                let text = spelled(held);
                let inner = text.trim_start();
                let mut begins = messages.begins.iter().chain(messages.headers).chain([&messages.message]);
                let is_header = begins.any(|it| inner.starts_with(it) || it.starts_with(inner));
                if is_header && !ends && found.is_none() && held.len() <= HEADER {
                    return false;
                }
                if is_header && ends {
                    // It was cut in its header, and has said nothing yet.
                    self.source.skip(held.len());
                    return false;
                }
                // Too long for a header: its first mark is nothing, and the rest is text.
                let all = messages.ends.iter().chain(messages.begins).copied();
                if let Some((0, length, _)) = first(held, all) {
                    self.source.skip(length);
                }
                self.state = self.begun(true);
                return true;
            }
        };
        let header = spelled(&held[..at]);
        // One that is begun anew counts from there.
        let header = header.rsplit_once(messages.next).map_or(header.as_str(), |it| it.1);
        let word = |mark: &str| {
            let behind = header.split_once(mark)?.1.trim_start();
            behind.split(|it: char| it.is_whitespace() || it == '<').next()
        };
        let is = |(mark, is): (&str, &str)| word(mark) == Some(is);
        let tool = word("to=").filter(|_| messages.names_tool).and_then(|it| {
            let name = it.strip_prefix(messages.prefix).unwrap_or(it);
            watch.known.iter().position(|it| it.name == name)
        });
        let (thinks, says) = (is(messages.thinks), messages.says.is_some_and(is));
        let length = at + length;
        if let Some(tool) = tool {
            let marks = Marks::in_call(tool, self.source.base() + length as u64);
            let name = watch.known[tool].name.clone();
            self.source.tell(length, Found::CallBegan(name), out);
            self.state = State::Call(Box::new(marks));
        } else {
            self.source.skip(length);
            self.state = if thinks { State::Reasoning } else { self.begun(!says) };
        }
        true
    }

    /// In a message that begins here and is not thought. `calls`: may it be calls?
    fn begun(&self, calls: bool) -> State {
        if calls && !self.messages.names_tool {
            State::Call(Box::new(Marks::at(self.source.base())))
        } else {
            State::Text
        }
    }
}

/// The first of the marks: where it stands, how long it is, and which it is. It may be a control token or be
/// spelled out.
fn first<'a>(held: &[u8], marks: impl IntoIterator<Item = &'a str>) -> Option<(usize, usize, &'a str)> {
    let found = marks.into_iter().filter_map(|name| {
        let at = memchr::memmem::find(held, name.as_bytes())?;
        let is_token = at > 0 && held[at - 1] == OPEN && held.get(at + name.len()) == Some(&CLOSE);
        Some(if is_token { (at - 1, name.len() + 2, name) } else { (at, name.len(), name) })
    });
    found.min_by_key(|it| it.0)
}

/// Bytes at the end that may become one of the marks.
fn waits<'a>(held: &[u8], marks: impl Iterator<Item = &'a str>) -> usize {
    marks.map(|it| overlap(held, it.as_bytes())).max().unwrap_or(0)
}
