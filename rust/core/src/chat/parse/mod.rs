//! Answers as models write them, to text, reasoning and calls.
//!
//! It stands between the decoder and the stop strings of an answer, and looks for what a [`Watch`] names.
//! What turns out to be no call is text, all of it. It knows neither templates nor grammars, and no model
//! by its name.
//!
//! Promise: what comes out depends on the bytes and the control tokens alone, not on how they are cut.

mod cursor;
mod head;
mod input;
mod marks;
mod passing;
mod source;

use std::{collections::HashSet, sync::Arc};

use serde::Deserialize;
use serde_json::Value;

use self::marks::State;
pub(crate) use self::{
    marks::Marks,
    source::{Source, overlap, spelled},
};
use super::{
    conversation::{Tool, ToolInput},
    families::messages::Reader,
    syntax::{CLOSE, Frame, OPEN, ReasoningSyntax, SaidSyntax, ToolSyntax},
    values::{ITEM, inside},
};

/// What is looked for in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// How calls are written; `None`: they are not looked for.
    pub tools: Option<Arc<ToolSyntax>>,
    /// How reasoning is marked; `None`: it is not looked for.
    pub reasoning: Option<Arc<ReasoningSyntax>>,
    /// How text is marked; `None`: it is not.
    pub said: Option<Arc<SaidSyntax>>,
    /// What may be called.
    pub known: Vec<Known>,
    /// Does the answer begin inside reasoning?
    pub thinks: bool,
    /// Does it begin inside marked text?
    pub says: bool,
    /// May one answer hold several calls?
    pub parallel: bool,
}

impl Watch {
    /// Is anything looked for?
    pub fn looks(&self) -> bool {
        self.tools.is_some() || self.reasoning.is_some() || self.said.is_some()
    }
}

/// A tool, as far as reading its calls needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Is its input plain text?
    pub text: bool,
    /// Must its input be valid by its schema in every case?
    pub strict: bool,
    /// Arguments that its schema says are text; of what stands inside of others the [paths](inside).
    texts: HashSet<String>,
}

impl Known {
    /// Of a tool that a client offers.
    pub fn of(tool: &Tool) -> Self {
        let (text, texts) = match &tool.input {
            ToolInput::Text(_) => (true, HashSet::from(["input".to_owned()])),
            ToolInput::Object(schema) => (false, texts_of(schema.as_str())),
        };
        Self { name: tool.name.clone(), text, strict: tool.strict, texts }
    }

    /// The text that an object stands for, where the tool takes plain text: the object has it as `input` and
    /// nothing else.
    fn plain(&self, object: &str) -> Option<String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wrapped {
            input: String,
        }
        if !self.text {
            return None;
        }
        serde_json::from_str::<Wrapped>(object).ok().map(|it| it.input)
    }

    /// An input that came as an object, as it is told.
    fn shown(&self, object: String) -> String {
        self.plain(&object).unwrap_or(object)
    }
}

/// The properties of a schema that are text whatever they look like.
fn texts_of(schema: &str) -> HashSet<String> {
    let mut texts = HashSet::new();
    collect_texts(&serde_json::from_str(schema).unwrap_or_default(), "", &mut texts);
    texts
}

fn collect_texts(schema: &Value, path: &str, texts: &mut HashSet<String>) {
    let properties = schema["properties"].as_object().into_iter().flatten();
    let items = schema.get("items").filter(|_| !path.is_empty());
    for (name, of) in properties.map(|it| (it.0.as_str(), it.1)).chain(items.map(|it| (ITEM, it))) {
        let path = inside(path, name);
        collect_texts(of, &path, texts);
        if is_text(of) {
            texts.insert(path);
        }
    }
}

/// Is a value by this schema text whatever it looks like?
pub(crate) fn is_text(schema: &Value) -> bool {
    let all = schema["enum"].as_array().filter(|it| !it.is_empty());
    schema["type"] == "string"
        || schema["const"].is_string()
        || all.is_some_and(|it| it.iter().all(Value::is_string))
}

/// A part of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// What the model says.
    Text(String),
    /// A control token in what it says: not shown, but a stop string may name it.
    Control(Vec<u8>),
    /// What it thinks.
    Reasoning(String),
    /// A call of the tool of that name.
    CallBegan(String),
    /// More of that call's input: JSON, or the plain text of a tool that takes such.
    Input(String),
    /// The input is complete.
    CallEnded,
}

/// A part of an answer and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parsed {
    /// What it is.
    pub found: Found,
    /// The first of the answer's bytes that it came from. Control tokens count as [`weight`] says.
    pub begin: u64,
    /// The byte behind the last one.
    pub end: u64,
}

/// A call under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Calling {
    /// The tool, by its number among those that are known.
    pub tool: usize,
    /// Does it have the marks and the shape that its syntax asks for?
    pub marked: bool,
    /// The byte of the answer with which its input begins. In a section that of the first call.
    pub begin: u64,
}

/// What a control token of that name counts among the bytes of an answer.
pub const fn weight(name: &[u8]) -> usize {
    name.len() + 2
}

/// Reads one answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parser {
    watch: Arc<Watch>,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    Marks(Box<Marks>),
    Messages(Box<Reader>),
}

impl Parser {
    /// An answer of which nothing is there yet.
    pub fn new(watch: Arc<Watch>) -> Self {
        let kind = match watch.tools.as_ref().map(|it| &it.frame) {
            Some(Frame::Messages(messages)) => Kind::Messages(Box::new(Reader::new(messages))),
            _ => Kind::Marks(Box::new(Marks::new(&watch))),
        };
        Self { watch, kind }
    }

    /// Takes text: whole characters.
    pub fn push(&mut self, text: &str, out: &mut Vec<Parsed>) {
        if let Some(parsed) = self.pass(text) {
            return out.push(parsed);
        }
        match &mut self.kind {
            Kind::Marks(marks) => marks.push(text.as_bytes(), &self.watch, out),
            Kind::Messages(messages) => messages.push(text.as_bytes(), &self.watch, out),
        }
    }

    /// Takes text that is text or thought, all of it and whatever follows. `None`: it is to be [read](Self::push).
    pub fn pass(&mut self, text: &str) -> Option<Parsed> {
        match &mut self.kind {
            _ if text.is_empty() => None,
            Kind::Marks(marks) => marks.pass(text, &self.watch),
            Kind::Messages(messages) => messages.pass(text),
        }
    }

    /// Takes a control token.
    pub fn push_control(&mut self, name: &[u8], out: &mut Vec<Parsed>) {
        let mut bytes = Vec::with_capacity(weight(name));
        bytes.push(OPEN);
        bytes.extend_from_slice(name);
        bytes.push(CLOSE);
        match &mut self.kind {
            Kind::Marks(marks) => marks.push(&bytes, &self.watch, out),
            Kind::Messages(messages) => messages.push(&bytes, &self.watch, out),
        }
    }

    /// The end of the answer. `by_itself`: the model ended it, and a call that lacks nothing but its last
    /// marks is complete.
    pub fn finish(&mut self, by_itself: bool, out: &mut Vec<Parsed>) {
        match &mut self.kind {
            Kind::Marks(marks) => marks.finish(by_itself, &self.watch, out),
            Kind::Messages(messages) => messages.finish(by_itself, &self.watch, out),
        }
    }

    /// Is the answer at its end, since one call was asked for and is there?
    pub fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Marks(marks) => marks.is_done(),
            Kind::Messages(messages) => messages.is_done(),
        }
    }

    /// Is what comes next reasoning?
    pub fn thinks(&self) -> bool {
        match &self.kind {
            Kind::Marks(marks) => matches!(marks.state, State::Reasoning),
            Kind::Messages(messages) => messages.thinks(),
        }
    }

    /// The call under way, up to the end of what the syntax has behind it. `None` as well where nothing can be said of
    /// how it has to go on.
    pub fn calling(&self) -> Option<Calling> {
        match &self.kind {
            Kind::Marks(marks) => marks.calling(&self.watch),
            Kind::Messages(messages) => messages.calling(&self.watch),
        }
    }

    /// What waits, since it may become a mark, is none.
    pub fn deny(&mut self, out: &mut Vec<Parsed>) {
        match &mut self.kind {
            Kind::Marks(marks) => marks.deny(out),
            Kind::Messages(messages) => messages.deny(out),
        }
    }

    /// Bytes that wait, since they may become a mark.
    pub fn held(&self) -> usize {
        match &self.kind {
            Kind::Marks(marks) => marks.held(),
            Kind::Messages(messages) => messages.held(),
        }
    }
}

#[cfg(test)]
mod tests;
