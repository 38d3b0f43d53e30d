//! Answers as models write them, to text, reasoning and calls.
//!
//! It stands between the decoder and the stop strings of an answer, and looks for what a [`Watch`] names.
//! What turns out to be no call is text, all of it. It knows neither templates nor grammars, and no model
//! by its name.
//!
//! Promise: what comes out depends on the bytes and the control tokens alone, not on how they are cut.

use std::{collections::HashSet, sync::Arc};

use super::{
    conversation::{Tool, ToolInput},
    families::harmony::Harmony,
    syntax::{
        Body, CLOSE, Hole, InputSyntax, Literal, OPEN, Object, ReasoningSyntax, Shape, Tags, ToolSyntax,
    },
    values::{JsonScan, NoValue, Python, Scanned, Unescape, escape, loose, nested, quoted},
};

/// Bytes from a mark to the end of the tool's name, at most. Beyond, the mark was text.
const HEAD: usize = 1024;
/// The same for an answer that begins like a call without a mark.
const BARE_HEAD: usize = 256;
/// White space before a mark that belongs to it, at most.
const EDGE: usize = 4;

/// What is looked for in an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watch {
    /// How calls are written; `None`: they are not looked for.
    pub tools: Option<Arc<ToolSyntax>>,
    /// How reasoning is marked; `None`: it is not looked for.
    pub reasoning: Option<Arc<ReasoningSyntax>>,
    /// What may be called.
    pub known: Vec<Known>,
    /// Does the answer begin inside reasoning?
    pub thinks: bool,
    /// May one answer hold several calls?
    pub parallel: bool,
}

/// A tool, as far as reading its calls needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Is its input plain text?
    pub text: bool,
    /// Arguments that its schema says are text.
    texts: HashSet<String>,
}

impl Known {
    /// Of a tool that a client offers.
    pub fn of(tool: &Tool) -> Self {
        let (text, texts) = match &tool.input {
            ToolInput::Text(_) => (true, HashSet::from(["input".to_owned()])),
            ToolInput::Object(schema) => (false, texts_of(schema.as_str())),
        };
        Self { name: tool.name.clone(), text, texts }
    }
}

/// The properties of a schema that are text whatever they look like.
fn texts_of(schema: &str) -> HashSet<String> {
    let schema: serde_json::Value = serde_json::from_str(schema).unwrap_or_default();
    let is_text = |it: &serde_json::Value| {
        it["type"] == "string"
            || it["enum"]
                .as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(serde_json::Value::is_string))
    };
    let properties = schema["properties"].as_object().into_iter().flatten();
    properties.filter(|(_, it)| is_text(it)).map(|(key, _)| key.clone()).collect()
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
    Harmony(Box<Harmony>),
}

impl Parser {
    /// An answer of which nothing is there yet.
    pub fn new(watch: Arc<Watch>) -> Self {
        let is_harmony = watch.tools.as_ref().is_some_and(|it| it.body == Body::Harmony);
        let kind = if is_harmony {
            Kind::Harmony(Box::default())
        } else {
            Kind::Marks(Box::new(Marks::new(watch.thinks)))
        };
        Self { watch, kind }
    }

    /// Takes text: whole characters.
    pub fn push(&mut self, text: &str, out: &mut Vec<Parsed>) {
        match &mut self.kind {
            Kind::Marks(marks) => marks.push(text.as_bytes(), &self.watch, out),
            Kind::Harmony(harmony) => harmony.push(text.as_bytes(), &self.watch, out),
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
            Kind::Harmony(harmony) => harmony.push(&bytes, &self.watch, out),
        }
    }

    /// The end of the answer. `by_itself`: the model ended it, and a call that lacks nothing but its last
    /// marks is complete.
    pub fn finish(&mut self, by_itself: bool, out: &mut Vec<Parsed>) {
        match &mut self.kind {
            Kind::Marks(marks) => marks.finish(by_itself, &self.watch, out),
            Kind::Harmony(harmony) => harmony.finish(by_itself, &self.watch, out),
        }
    }

    /// Is the answer at its end, since one call was asked for and is there?
    pub fn is_done(&self) -> bool {
        match &self.kind {
            Kind::Marks(marks) => marks.is_done(),
            Kind::Harmony(harmony) => harmony.is_done(),
        }
    }

    /// Is what comes next reasoning?
    pub fn thinks(&self) -> bool {
        match &self.kind {
            Kind::Marks(marks) => marks.state == State::Reasoning,
            Kind::Harmony(harmony) => harmony.thinks(),
        }
    }

    /// Bytes that wait, since they may become a mark.
    pub fn held(&self) -> usize {
        match &self.kind {
            Kind::Marks(marks) => marks.held(),
            Kind::Harmony(harmony) => harmony.held(),
        }
    }
}

/// Bytes of an answer that are not settled, and where they stand in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Source {
    pub(crate) held: Vec<u8>,
    base: u64,
}

impl Source {
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
fn control_length(bytes: &[u8]) -> Option<usize> {
    (bytes.first() == Some(&OPEN))
        .then(|| bytes.iter().position(|&it| it == CLOSE).map_or(bytes.len(), |it| it + 1))
}

/// Bytes up to the next control token.
fn until_control(bytes: &[u8]) -> usize {
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
fn unspelled(bytes: &[u8], length: usize) -> usize {
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

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// White space at the end that may belong to a mark behind it.
fn edge(bytes: &[u8]) -> usize {
    bytes.iter().rev().take(EDGE).take_while(|&&it| is_blank(it)).count()
}

/// Length of the longest end of `bytes` that is a beginning of `what`, but not all of it.
pub(crate) fn overlap(bytes: &[u8], what: &[u8]) -> usize {
    (1..what.len().min(bytes.len() + 1)).rev().find(|&it| bytes.ends_with(&what[..it])).unwrap_or(0)
}

/// Why something cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// More has to come.
    Short,
    /// It is something else.
    Other,
}

type Read<T> = Result<T, Stop>;

/// Reads along bytes.
struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// What it means if they end.
    short: Stop,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a [u8] {
        &self.bytes[self.at..]
    }

    fn peek(&self) -> Read<u8> {
        self.rest().first().copied().ok_or(self.short)
    }

    fn blank(&mut self) {
        while self.rest().first().is_some_and(|&it| is_blank(it)) {
            self.at += 1;
        }
    }

    /// Exactly these bytes.
    fn core(&mut self, core: &[u8]) -> Read<()> {
        if self.rest().starts_with(core) {
            self.at += core.len();
            return Ok(());
        }
        Err(if core.starts_with(self.rest()) { self.short } else { Stop::Other })
    }

    fn literal(&mut self, literal: &Literal) -> Read<()> {
        self.blank();
        self.core(literal.core())
    }

    /// What begins and ends a block of code.
    fn fence(&mut self) -> Read<()> {
        self.blank();
        self.core(FENCE)
    }

    fn byte(&mut self, byte: u8) -> Read<()> {
        self.blank();
        self.core(&[byte])
    }

    /// A JSON string.
    fn string(&mut self) -> Read<String> {
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
    fn value(&mut self) -> Read<&'a [u8]> {
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
    fn until(&mut self, stops: &[&[u8]]) -> Read<String> {
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

/// The beginning of a call, up to its input.
struct Head {
    /// Bytes that it takes.
    length: usize,
    /// Which tool.
    tool: usize,
    input: Input,
    /// Braces of the call's object that are open around the input.
    depth: usize,
    /// Does it stand in a block of code?
    fenced: bool,
}

/// Around a block of code, in which small models put a call instead of their own marks.
const FENCE: &[u8] = b"```";

/// Where an answer stands that is read by its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// In text.
    Free,
    Reasoning,
    /// In a call's input. The number is the tool's.
    Input(usize, Input),
    /// Behind a call's input: the rest of its object, then its last mark.
    Tail(Option<JsonScan>),
    /// Between the calls of a section.
    Section,
    /// Nothing more counts.
    Done,
}

/// In a call's input.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Input {
    /// Before a JSON value.
    Json,
    /// In an object, which is passed on as it is.
    Object(JsonScan),
    /// In a string that holds the input.
    Encoded(Unescape),
    /// In the text of `{"input": "…"}`, and behind it.
    Wrapped(Unescape),
    /// In a value that is no input.
    Skipped(JsonScan),
    /// It is known already.
    Given(String),
    /// Between tagged arguments; how many there were.
    Tags(u32),
    /// In a tagged argument.
    Tag(Argument),
    /// Between arguments in Python's spelling; how many there were.
    Keywords(u32),
    /// Before an object in Gemma's spelling.
    Quoted,
    /// Before elements that are nested.
    Nested,
}

/// A tagged argument under way.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Argument {
    /// Arguments before it.
    before: u32,
    /// Is it known to be text?
    text: Option<bool>,
    /// Does the input consist of this text alone?
    whole: bool,
    /// Has its text begun?
    begun: bool,
    /// Does it stand in a section of XML that is taken as it is?
    raw: bool,
}

/// Around text that is taken as it is.
const RAW: (&str, &str) = ("<![CDATA[", "]]>");

/// Reads an answer by its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    source: Source,
    state: State,
    /// Only white space came since the answer or the last section: reasoning may begin, and calls.
    fresh: bool,
    /// Only white space came since the line began.
    line: bool,
    /// It has thought since then: reasoning does not begin again.
    thought: bool,
    /// White space that follows is dropped.
    skips: bool,
    /// Braces that close the object of the call under way, behind its input.
    depth: usize,
    /// Does that call stand in a block of code?
    fenced: bool,
}

impl Marks {
    fn new(thinks: bool) -> Self {
        let state = if thinks { State::Reasoning } else { State::Free };
        Self {
            source: Source::default(),
            state,
            fresh: true,
            line: true,
            thought: false,
            skips: thinks,
            depth: 0,
            fenced: false,
        }
    }

    /// Inside a call whose input begins with the byte of that number.
    pub(crate) fn in_call(tool: usize, base: u64) -> Self {
        let source = Source { base, ..Source::default() };
        Self { source, state: State::Input(tool, Input::Json), ..Self::new(false) }
    }

    pub(crate) fn is_done(&self) -> bool {
        self.state == State::Done
    }

    pub(crate) fn held(&self) -> usize {
        self.source.held.len()
    }

    pub(crate) fn push(&mut self, bytes: &[u8], watch: &Watch, out: &mut Vec<Parsed>) {
        self.source.held.extend_from_slice(bytes);
        while self.step(watch, Stop::Short, out) {}
    }

    pub(crate) fn finish(&mut self, by_itself: bool, watch: &Watch, out: &mut Vec<Parsed>) {
        // What waits behind a call is the beginning of its last marks.
        let is_mark = match (&self.state, &watch.tools) {
            (State::Tail(_), _) => true,
            (State::Section, Some(tools)) => tools.section.as_ref().is_some_and(|(_, close)| {
                let mut cursor = Cursor { bytes: &self.source.held, at: 0, short: Stop::Short };
                cursor.literal(close) != Err(Stop::Other)
            }),
            _ => false,
        };
        if is_mark {
            self.source.skip(self.source.held.len());
        }
        while self.step(watch, Stop::Other, out) {}
        let rest = self.source.held.len();
        match std::mem::replace(&mut self.state, State::Done) {
            State::Free => self.source.tell_text(rest, out),
            State::Reasoning => self.source.tell_reasoning(rest, out),
            State::Input(_, Input::Tags(count)) if by_itself => {
                self.source.tell(0, Found::Input(if count == 0 { "{}" } else { "}" }.to_owned()), out);
                self.source.tell(0, Found::CallEnded, out);
            }
            State::Input(_, Input::Skipped(scan)) if by_itself && scan.may_end() => {
                self.source.tell(0, Found::CallEnded, out);
            }
            _ => {}
        }
    }

    /// Takes something out of what is held, or goes to another state. False: more has to come.
    fn step(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        if self.skips {
            let blank = self.source.held.iter().take_while(|&&it| is_blank(it)).count();
            self.line |= self.source.held[..blank].contains(&b'\n');
            self.source.skip(blank);
            self.skips = self.source.held.is_empty();
        }
        if self.source.held.is_empty() && !matches!(self.state, State::Input(_, Input::Given(_))) {
            return false;
        }
        match self.state {
            State::Free => self.free(watch, short, out),
            State::Reasoning => self.reasoning(watch, short, out),
            State::Input(..) => self.input(watch, short, out),
            State::Tail(_) => self.tail(watch, short),
            State::Section => self.section(watch, short, out),
            State::Done => {
                self.source.skip(self.source.held.len());
                false
            }
        }
    }

    fn free(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        let reasoning = watch.reasoning.as_ref().filter(|_| !self.thought);
        if watch.tools.is_none() && !(self.fresh && reasoning.is_some()) {
            self.source.tell_text(self.source.held.len(), out);
            return false;
        }
        let held = &self.source.held;
        let (mut fresh, mut line) = (self.fresh, self.line);
        let mut at = 0;
        let (mut found, mut dropped) = (None, None);
        while at < held.len() {
            let mut waits = false;
            if let Some(reasoning) = reasoning.filter(|_| fresh) {
                let mut cursor = Cursor { bytes: held, at, short };
                match cursor.core(reasoning.open.core()) {
                    Ok(()) => {
                        found = Some((at, Err(cursor.at)));
                        break;
                    }
                    Err(stop) => waits |= stop == Stop::Short,
                }
            }
            if let Some(tools) = &watch.tools {
                if let Some(says) = tools.says.as_ref().filter(|_| tools.anywhere || line) {
                    let mut cursor = Cursor { bytes: held, at, short };
                    match cursor.core(says.core()) {
                        Ok(()) => {
                            dropped =
                                Some((at, cursor.at + usize::from(held.get(cursor.at) == Some(&b'\n'))));
                            waits = held.len() == cursor.at && short == Stop::Short;
                            if !waits {
                                break;
                            }
                            dropped = None;
                        }
                        Err(stop) => waits |= stop == Stop::Short,
                    }
                }
                match head_at(watch, tools, &held[at..], fresh, line, short) {
                    Ok(head) => {
                        found = Some((at, Ok(head)));
                        break;
                    }
                    Err(stop) => waits |= stop == Stop::Short,
                }
            }
            if waits {
                break;
            }
            if let Some(length) = control_length(&held[at..]) {
                at += length;
                continue;
            }
            line = held[at] == b'\n' || line && is_blank(held[at]);
            fresh &= is_blank(held[at]);
            at += 1;
        }
        // White space before a mark belongs to it.
        let is_mark = found.is_some() || dropped.is_some();
        let keep = if short == Stop::Short || is_mark { edge(&held[..at]) } else { 0 };
        let said = at - keep;
        // The white space that is kept is looked at again.
        let line_before = held[..said].iter().rposition(|&it| it == b'\n').map_or(self.line, |_| true);
        let last_line = held[..said].rsplit(|&it| it == b'\n').next().unwrap_or(&[]);
        self.line = line_before && shown(last_line).trim().is_empty();
        self.fresh &= shown(&held[..said]).trim().is_empty();
        self.source.tell_text(said, out);
        if let Some((begin, end)) = dropped {
            self.source.skip(keep + end - begin);
            return true;
        }
        match found {
            None => false,
            Some((_, Ok(head))) => {
                self.source.skip(keep);
                self.begin(head, watch, out);
                true
            }
            Some((begin, Err(end))) => {
                self.source.skip(keep + end - begin);
                self.state = State::Reasoning;
                self.skips = true;
                true
            }
        }
    }

    fn begin(&mut self, head: Head, watch: &Watch, out: &mut Vec<Parsed>) {
        self.source.tell(head.length, Found::CallBegan(watch.known[head.tool].name.clone()), out);
        self.state = State::Input(head.tool, head.input);
        (self.depth, self.fenced) = (head.depth, head.fenced);
    }

    fn reasoning(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        let Some(reasoning) = &watch.reasoning else {
            self.state = State::Free;
            return true;
        };
        let held = &self.source.held;
        let (open, close) = (reasoning.open.core(), reasoning.close.core());
        if !self.thought {
            // A model may begin with the mark that the prompt has given already.
            let mut cursor = Cursor { bytes: held, at: 0, short };
            match cursor.core(open) {
                Ok(()) if !open.is_empty() => {
                    self.source.skip(open.len());
                    self.skips = true;
                }
                Err(Stop::Short) => return false,
                _ => {}
            }
            self.thought = true;
            return true;
        }
        let ends = memchr::memmem::find(held, close).map(|it| (it, close.len()));
        let opener =
            watch.tools.as_ref().map(|it| opener(it)).filter(|it| it.is_special()).map(Literal::core);
        let calls = opener.and_then(|it| memchr::memmem::find(held, it)).map(|it| (it, 0));
        let Some((at, length)) = ends.into_iter().chain(calls).min() else {
            let waits = match short {
                Stop::Short => overlap(held, close).max(opener.map_or(0, |it| overlap(held, it))),
                Stop::Other => 0,
            };
            let said = held.len() - waits;
            let said = said - edge(&held[..said]);
            self.source.tell_reasoning(said, out);
            if short == Stop::Other {
                self.source.skip(self.source.held.len());
            }
            return false;
        };
        let blank = edge(&held[..at]);
        self.source.tell_reasoning(at - blank, out);
        self.source.skip(blank + length);
        (self.state, self.line, self.fresh, self.skips) = (State::Free, true, true, true);
        true
    }

    fn input(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        let State::Input(tool, input) = &mut self.state else { return false };
        let (Some(known), Some(tools)) = (watch.known.get(*tool), &watch.tools) else { return false };
        let source = &mut self.source;
        let plain = until_control(&source.held);
        match input {
            Input::Json => {
                source.skip(source.held.iter().take_while(|&&it| is_blank(it)).count());
                *input = match source.held.first() {
                    None => return false,
                    Some(b'{') if known.text => match wrapped(window(&source.held, BARE_HEAD, short)) {
                        Ok(length) => {
                            source.skip(length);
                            Input::Wrapped(Unescape::default())
                        }
                        Err(Stop::Short) => return false,
                        Err(Stop::Other) => Input::Object(JsonScan::default()),
                    },
                    Some(b'{') => Input::Object(JsonScan::default()),
                    Some(b'"') => {
                        source.skip(1);
                        Input::Encoded(Unescape::default())
                    }
                    Some(_) => Input::Skipped(JsonScan::default()),
                };
                true
            }
            Input::Object(scan) => {
                if plain == 0 {
                    // Inside a string a control token is nothing; elsewhere the object is broken.
                    if scan.in_string() {
                        source.skip(control_length(&source.held).unwrap_or(0));
                        return true;
                    }
                    return self.broken();
                }
                let mut ahead = scan.clone();
                match ahead.push(&source.held[..plain]) {
                    Scanned::Ends(length) => {
                        let text = shown(&source.held[..length]);
                        source.tell(length, Found::Input(text), out);
                        self.ended(watch, out)
                    }
                    Scanned::Broken(length) => {
                        if length > 0 {
                            let text = shown(&source.held[..length]);
                            source.tell(length, Found::Input(text), out);
                        }
                        self.broken()
                    }
                    Scanned::More => {
                        // An escape is never split.
                        let whole = plain < source.held.len() || short == Stop::Other;
                        let length = if whole { plain } else { plain - ahead.unfinished().min(plain) };
                        if length == 0 {
                            return false;
                        }
                        if length < plain {
                            scan.push(&source.held[..length]);
                        } else {
                            *scan = ahead;
                        }
                        let text = shown(&source.held[..length]);
                        source.tell(length, Found::Input(text), out);
                        true
                    }
                }
            }
            Input::Encoded(unescape) | Input::Wrapped(unescape) => {
                if plain == 0 {
                    source.skip(control_length(&source.held).unwrap_or(0));
                    return true;
                }
                let mut text = String::new();
                let end = unescape.push(&shown(&source.held[..plain]), &mut text);
                let length = end.unwrap_or(plain);
                if text.is_empty() {
                    source.skip(length);
                } else {
                    source.tell(length, Found::Input(text), out);
                }
                if end.is_none() {
                    return true;
                }
                if matches!(input, Input::Wrapped(_)) {
                    self.depth += 1;
                }
                self.ended(watch, out)
            }
            Input::Skipped(scan) => {
                let length = match scan.push(&source.held[..plain]) {
                    Scanned::More if plain == source.held.len() => {
                        source.skip(plain);
                        return false;
                    }
                    Scanned::More => plain,
                    Scanned::Ends(length) | Scanned::Broken(length) => length,
                };
                source.tell(length, Found::Input("{}".to_owned()), out);
                self.ended(watch, out)
            }
            Input::Given(text) => {
                let text = std::mem::take(text);
                source.tell(0, Found::Input(text), out);
                self.ended(watch, out)
            }
            Input::Tags(count) => {
                let InputSyntax::Tagged(tags) = input_syntax(tools) else { return self.broken() };
                let count = *count;
                let begun = tag(tags, known, count, window(&source.held, HEAD, short));
                let close = Cursor { bytes: &source.held, at: 0, short }.literal(&tools.call.1);
                match (begun, close) {
                    (Ok((length, key, argument)), _) => {
                        *input = Input::Tag(argument.clone());
                        if argument.whole {
                            source.skip(length);
                        } else {
                            let before = if count == 0 { "{" } else { ", " };
                            source.tell(length, Found::Input(format!("{before}{}: ", quoted(&key))), out);
                        }
                        true
                    }
                    (Err(Stop::Short), _) | (_, Err(Stop::Short)) => false,
                    _ => self.arguments_end(count, known.text, watch, out),
                }
            }
            Input::Tag(argument) => {
                let InputSyntax::Tagged(tags) = input_syntax(tools) else { return self.broken() };
                let lead = if argument.raw { "" } else { tags.after_value.lead() };
                let mut core = if argument.raw { RAW.1.as_bytes().to_vec() } else { Vec::new() };
                core.extend_from_slice(tags.after_value.core());
                let core = &core[..];
                let quote = if argument.begun || argument.whole { "" } else { "\"" };
                let put = |text: &str, argument: &Argument| {
                    let mut out = quote.to_owned();
                    if argument.whole {
                        out.push_str(text);
                    } else {
                        escape(text, &mut out);
                    }
                    out
                };
                if let Some(at) = memchr::memmem::find(&source.held, core) {
                    let text = shown(&source.held[..at]);
                    let text = text.strip_suffix(lead).unwrap_or(&text);
                    let value = match argument.text {
                        Some(true) if argument.whole => put(text, argument),
                        Some(true) => put(text, argument) + "\"",
                        _ => loose(text),
                    };
                    let before = argument.before;
                    *input = Input::Tags(before + 1);
                    let length = at + core.len();
                    if value.is_empty() {
                        source.skip(length);
                    } else {
                        source.tell(length, Found::Input(value), out);
                    }
                    return true;
                }
                if argument.text != Some(true) {
                    return false;
                }
                let mut all = lead.as_bytes().to_vec();
                all.extend_from_slice(core);
                let waits = match short {
                    Stop::Short => overlap(&source.held, &all).max(overlap(&source.held, core)),
                    Stop::Other => 0,
                };
                let said = source.held.len() - waits;
                if said == 0 {
                    return false;
                }
                let text = put(&shown(&source.held[..said]), argument);
                argument.begun = true;
                if text.is_empty() {
                    source.skip(said);
                } else {
                    source.tell(said, Found::Input(text), out);
                }
                false
            }
            Input::Keywords(count) => {
                let count = *count;
                match keyword(&source.held[..plain], short) {
                    Ok(Some((length, key, value))) => {
                        *input = Input::Keywords(count + 1);
                        let before = if count == 0 { "{" } else { ", " };
                        let text = format!("{before}{}: {value}", quoted(&key));
                        source.tell(length, Found::Input(text), out);
                        true
                    }
                    Ok(None) => {
                        let blank = source.held.iter().position(|&it| it == b')').map_or(0, |it| it + 1);
                        source.skip(blank);
                        self.arguments_end(count, false, watch, out)
                    }
                    Err(Stop::Short) if plain == source.held.len() => false,
                    Err(_) => self.broken(),
                }
            }
            Input::Quoted => {
                let InputSyntax::Quoted(mark) = input_syntax(tools) else { return self.broken() };
                match Python::new(&spelled(&source.held), mark.text()).first() {
                    Ok((value, length)) if value.starts_with('{') => {
                        let length = unspelled(&source.held, length);
                        source.tell(length, Found::Input(value), out);
                        self.ended(watch, out)
                    }
                    Err(NoValue::Short) if short == Stop::Short => false,
                    _ => self.broken(),
                }
            }
            Input::Nested => {
                let InputSyntax::Nested(mark) = input_syntax(tools) else { return self.broken() };
                let Some(at) = memchr::memmem::find(&source.held, tools.call.1.core()) else { return false };
                let text = spelled(&source.held[..at]);
                let value = nested(&text, mark.text(), &|it| known.texts.contains(it));
                source.tell(at, Found::Input(value), out);
                self.ended(watch, out)
            }
        }
    }

    fn arguments_end(&mut self, count: u32, text: bool, watch: &Watch, out: &mut Vec<Parsed>) -> bool {
        if !text {
            let end = if count == 0 { "{}" } else { "}" };
            self.source.tell(0, Found::Input(end.to_owned()), out);
        }
        self.ended(watch, out)
    }

    fn ended(&mut self, watch: &Watch, out: &mut Vec<Parsed>) -> bool {
        self.source.tell(0, Found::CallEnded, out);
        self.state = match self.depth {
            _ if !watch.parallel => State::Done,
            0 => State::Tail(None),
            depth => State::Tail(Some(JsonScan::inside(depth))),
        };
        true
    }

    /// The input goes on as none can: the call stays open.
    fn broken(&mut self) -> bool {
        (self.state, self.line, self.fresh) = (State::Free, false, false);
        true
    }

    fn tail(&mut self, watch: &Watch, short: Stop) -> bool {
        let (State::Tail(scan), Some(tools)) = (&mut self.state, &watch.tools) else { return false };
        if let Some(inside) = scan {
            let plain = until_control(&self.source.held);
            let length = match inside.push(&self.source.held[..plain]) {
                Scanned::More if plain == self.source.held.len() => {
                    self.source.skip(plain);
                    return false;
                }
                Scanned::More => plain,
                Scanned::Ends(length) | Scanned::Broken(length) => length,
            };
            *scan = None;
            self.source.skip(length);
            return true;
        }
        let mut cursor = Cursor { bytes: &self.source.held, at: 0, short };
        match cursor.literal(&tools.call.1) {
            Ok(()) => {}
            Err(Stop::Short) => return false,
            Err(Stop::Other) => cursor.at = 0,
        }
        if self.fenced {
            let before = cursor.at;
            match cursor.fence() {
                Ok(()) => {}
                Err(Stop::Short) => return false,
                Err(Stop::Other) => cursor.at = before,
            }
        }
        let mut length = cursor.at;
        if is_section(tools) {
            self.state = State::Section;
        } else {
            match cursor.literal(&tools.between) {
                Ok(()) => length = cursor.at,
                Err(Stop::Short) => return false,
                Err(Stop::Other) => {}
            }
            self.begins_anew();
        }
        self.source.skip(length);
        true
    }

    /// Behind all calls of a section: text, reasoning and calls may follow.
    fn begins_anew(&mut self) {
        self.state = State::Free;
        (self.fresh, self.line, self.skips, self.thought) = (true, true, true, false);
    }

    fn section(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        let Some(tools) = &watch.tools else { return false };
        let mut cursor = Cursor { bytes: &self.source.held, at: 0, short };
        let close = tools.section.as_ref().map(|it| &it.1).filter(|it| !it.is_blank());
        let mut waits = false;
        if is_list(tools) {
            if cursor.byte(b']').is_ok() {
                if let Some(close) = close {
                    let before = cursor.at;
                    match cursor.literal(close) {
                        Ok(()) => {}
                        Err(Stop::Short) => return false,
                        Err(Stop::Other) => cursor.at = before,
                    }
                }
                let length = cursor.at;
                self.source.skip(length);
                self.begins_anew();
                return true;
            }
            if cursor.byte(b',').is_err() {
                cursor.at = 0;
            }
        } else {
            if let Some(close) = close {
                match cursor.literal(close) {
                    Ok(()) => {
                        let length = cursor.at;
                        self.source.skip(length);
                        self.begins_anew();
                        return true;
                    }
                    Err(stop) => waits |= stop == Stop::Short,
                }
                cursor.at = 0;
            }
            match cursor.literal(&tools.between) {
                Ok(()) => {}
                Err(stop) => {
                    waits |= stop == Stop::Short;
                    cursor.at = 0;
                }
            }
        }
        let begin = cursor.at;
        match next_head(watch, tools, window(&self.source.held[begin..], HEAD, short)) {
            Ok(head) => {
                self.source.skip(begin);
                self.begin(head, watch, out);
                true
            }
            Err(stop) if waits || stop == Stop::Short => false,
            Err(_) => {
                self.begins_anew();
                true
            }
        }
    }
}

/// What all calls of a message begin with.
fn opener(tools: &ToolSyntax) -> &Literal {
    match &tools.section {
        Some((open, _)) if !open.is_blank() => open,
        _ => &tools.call.0,
    }
}

fn is_list(tools: &ToolSyntax) -> bool {
    match &tools.body {
        Body::Object(object) => object.list,
        body => *body == Body::Python,
    }
}

fn is_section(tools: &ToolSyntax) -> bool {
    tools.section.is_some() || is_list(tools)
}

fn input_syntax(tools: &ToolSyntax) -> &InputSyntax {
    match &tools.body {
        Body::Pattern { input, .. } => input,
        _ => &InputSyntax::Json,
    }
}

/// The first bytes, in which something must be found.
fn window(bytes: &[u8], limit: usize, short: Stop) -> Cursor<'_> {
    match bytes.get(..limit) {
        Some(bytes) => Cursor { bytes, at: 0, short: Stop::Other },
        None => Cursor { bytes, at: 0, short },
    }
}

/// Does a call begin here?
fn head_at(
    watch: &Watch,
    tools: &ToolSyntax,
    bytes: &[u8],
    fresh: bool,
    line: bool,
    short: Stop,
) -> Read<Head> {
    let opener = opener(tools);
    let mut stop = Stop::Other;
    if !opener.is_blank() && (opener.is_special() || tools.anywhere || line) {
        let mut cursor = window(bytes, HEAD, short);
        let found = cursor.core(opener.core()).and_then(|()| {
            if is_list(tools) {
                cursor.byte(b'[')?;
            }
            if tools.section.as_ref().is_some_and(|it| !it.0.is_blank()) {
                cursor.literal(&tools.call.0)?;
            }
            body(watch, tools, cursor)
        });
        match found {
            Ok(head) => return Ok(head),
            Err(why) => stop = why,
        }
    }
    if tools.bare && fresh && !bytes.first().is_some_and(|&it| is_blank(it)) {
        match bare(watch, tools, window(bytes, BARE_HEAD, short)) {
            Ok(head) => return Ok(head),
            Err(Stop::Short) => stop = Stop::Short,
            Err(Stop::Other) => {}
        }
    }
    Err(stop)
}

/// Does a call begin here that has no mark, or a block of code instead?
fn bare(watch: &Watch, tools: &ToolSyntax, mut cursor: Cursor<'_>) -> Read<Head> {
    let fenced = match cursor.fence() {
        Ok(()) => match cursor.core(b"json") {
            Err(Stop::Short) => return Err(Stop::Short),
            Ok(()) | Err(Stop::Other) => true,
        },
        Err(Stop::Short) => return Err(Stop::Short),
        Err(Stop::Other) => false,
    };
    cursor.byte(if is_list(tools) { b'[' } else { b'{' })?;
    if !is_list(tools) {
        cursor.at -= 1;
    }
    body(watch, tools, cursor).map(|head| Head { fenced, ..head })
}

/// Does another call of a section begin here?
fn next_head(watch: &Watch, tools: &ToolSyntax, mut cursor: Cursor<'_>) -> Read<Head> {
    cursor.literal(&tools.call.0)?;
    body(watch, tools, cursor)
}

fn body(watch: &Watch, tools: &ToolSyntax, mut cursor: Cursor<'_>) -> Read<Head> {
    let tool = |name: &str| watch.known.iter().position(|it| it.name == name).ok_or(Stop::Other);
    match &tools.body {
        Body::Object(syntax) => object(syntax, tool, cursor),
        Body::Python => {
            let name = cursor.until(&[b"("])?;
            cursor.core(b"(")?;
            Ok(Head {
                length: cursor.at,
                tool: tool(&name)?,
                input: Input::Keywords(0),
                depth: 0,
                fenced: false,
            })
        }
        Body::Pattern { pieces, input } => {
            let mut found = None;
            for (at, piece) in pieces.iter().enumerate() {
                match piece {
                    Hole::Lit(literal) => cursor.literal(literal)?,
                    Hole::Id | Hole::Name => {
                        let word = cursor.until(&stops(pieces.get(at + 1), input, tools))?;
                        if *piece == Hole::Name {
                            found = Some(tool(&word)?);
                        }
                    }
                    Hole::Input => break,
                }
            }
            let input = match input {
                InputSyntax::Json => {
                    cursor.blank();
                    if !matches!(cursor.peek()?, b'{' | b'"') {
                        return Err(Stop::Other);
                    }
                    Input::Json
                }
                InputSyntax::Tagged(_) => Input::Tags(0),
                InputSyntax::Quoted(_) => {
                    if cursor.peek()? != b'{' {
                        return Err(Stop::Other);
                    }
                    Input::Quoted
                }
                InputSyntax::Nested(_) => Input::Nested,
            };
            Ok(Head { length: cursor.at, tool: found.ok_or(Stop::Other)?, input, depth: 0, fenced: false })
        }
        Body::Harmony => Err(Stop::Other),
    }
}

/// What a name or an id ends at.
fn stops<'a>(next: Option<&'a Hole>, input: &'a InputSyntax, tools: &'a ToolSyntax) -> Vec<&'a [u8]> {
    let mut all: Vec<&[u8]> = Vec::new();
    if let Some(Hole::Lit(literal)) = next
        && !literal.is_blank()
    {
        all.push(literal.core());
        return all;
    }
    all.extend([&b" "[..], b"\n", b"\t"]);
    match input {
        InputSyntax::Json | InputSyntax::Quoted(_) => all.push(b"{"),
        InputSyntax::Tagged(tags) => all.extend([tags.before_key.core(), tools.call.1.core()]),
        InputSyntax::Nested(mark) => all.push(mark.core()),
    }
    all
}

fn object(syntax: &Object, tool: impl Fn(&str) -> Read<usize>, mut cursor: Cursor<'_>) -> Read<Head> {
    cursor.byte(b'{')?;
    let (mut depth, mut found, mut given) = (1, None, None);
    loop {
        cursor.blank();
        match cursor.peek()? {
            b'}' => {
                cursor.at += 1;
                depth -= 1;
                if depth == 0 {
                    break;
                }
                continue;
            }
            b',' => {
                cursor.at += 1;
                continue;
            }
            _ => {}
        }
        let key = cursor.string()?;
        cursor.byte(b':')?;
        cursor.blank();
        match &syntax.shape {
            Shape::NameIsKey => {
                cursor.peek()?;
                return Ok(Head {
                    length: cursor.at,
                    tool: tool(&key)?,
                    input: Input::Json,
                    depth,
                    fenced: false,
                });
            }
            Shape::Within(outer) if depth == 1 && key == *outer => {
                cursor.byte(b'{')?;
                depth = 2;
                continue;
            }
            _ => {}
        }
        if found.is_none() && (key == syntax.name_key || key == "name") {
            found = Some(tool(&cursor.string()?)?);
        } else if key == syntax.input_key || matches!(key.as_str(), "arguments" | "parameters") {
            cursor.peek()?;
            if let Some(tool) = found {
                return Ok(Head { length: cursor.at, tool, input: Input::Json, depth, fenced: false });
            }
            given = Some(cursor.value()?);
        } else {
            cursor.value()?;
        }
    }
    let given = given.map_or("{}".to_owned(), |it| {
        let text = shown(it);
        // It may be an object inside a string.
        let inner = serde_json::from_str::<String>(&text).unwrap_or(text);
        if inner.trim_start().starts_with('{') { inner } else { "{}".to_owned() }
    });
    Ok(Head {
        length: cursor.at,
        tool: found.ok_or(Stop::Other)?,
        input: Input::Given(given),
        depth: 0,
        fenced: false,
    })
}

/// The beginning of `{"input": "…"}`.
fn wrapped(mut cursor: Cursor<'_>) -> Read<usize> {
    cursor.byte(b'{')?;
    if cursor.string()? != "input" {
        return Err(Stop::Other);
    }
    cursor.byte(b':')?;
    cursor.byte(b'"')?;
    Ok(cursor.at)
}

/// The beginning of a tagged argument: how many bytes it takes, and the argument's name.
fn tag(tags: &Tags, known: &Known, before: u32, mut cursor: Cursor<'_>) -> Read<(usize, String, Argument)> {
    cursor.literal(&tags.before_key)?;
    let key = cursor.until(&[tags.after_key.core()])?;
    cursor.core(tags.after_key.core())?;
    let mut last = &tags.after_key;
    let mut text = known.texts.contains(&key).then_some(true);
    if let Some((word, behind)) = &tags.kind {
        text = Some(cursor.until(&[behind.core()])? == *word);
        cursor.core(behind.core())?;
        last = behind;
    }
    // White space that the syntax writes is not the value's; other white space is.
    let trail = last.trail().as_bytes();
    match cursor.core(trail) {
        Err(Stop::Short) => return Err(Stop::Short),
        Ok(()) | Err(Stop::Other) => {}
    }
    let raw = match cursor.core(RAW.0.as_bytes()) {
        Err(Stop::Short) => return Err(Stop::Short),
        read => read.is_ok(),
    };
    let whole = known.text && key == "input";
    let text = if whole || raw { Some(true) } else { text };
    Ok((cursor.at, key, Argument { before, text, whole, begun: false, raw }))
}

/// An argument in Python's spelling: how many bytes it takes, its name and its value. `None`: the call ends.
fn keyword(bytes: &[u8], short: Stop) -> Read<Option<(usize, String, String)>> {
    let mut cursor = Cursor { bytes, at: 0, short };
    if cursor.byte(b',').is_ok() {
        cursor.blank();
    }
    cursor.blank();
    if cursor.peek()? == b')' {
        return Ok(None);
    }
    let key = cursor.until(&[b"="])?;
    cursor.core(b"=")?;
    let rest = std::str::from_utf8(cursor.rest()).map_err(|_| Stop::Other)?;
    match Python::new(rest, "").first() {
        Ok((value, length)) => Ok(Some((cursor.at + length, key, value))),
        Err(NoValue::Short) => Err(short),
        Err(NoValue::Other) => Err(Stop::Other),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        chat::{
            conversation::Json,
            derive::Tokens,
            families::named,
            syntax::{Family, Object},
        },
        engine::{Vocabulary, attribute},
        text::control::ControlTokens,
    };

    pub(crate) fn vocabulary(control: &[&str]) -> Vocabulary {
        let mut vocabulary = Vocabulary { offsets: vec![0], ..Vocabulary::default() };
        for name in control {
            vocabulary.bytes.extend(name.as_bytes());
            vocabulary.offsets.push(vocabulary.bytes.len() as u32);
            vocabulary.attributes.push(attribute::CONTROL);
        }
        vocabulary
    }

    const CONTROL: [&str; 12] = [
        "<|python_tag|>",
        "<|channel|>",
        "<|message|>",
        "<|start|>",
        "<|end|>",
        "<|constrain|>",
        "<|call|>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<|tool_call_start|>",
        "<|tool_call_end|>",
        "<|other|>",
    ];

    /// Made once: finding control tokens takes an automaton.
    static VOCABULARY: LazyLock<Vocabulary> = LazyLock::new(|| vocabulary(&CONTROL));
    static ALL: LazyLock<Vec<ToolSyntax>> = LazyLock::new(|| {
        let harmony = named("harmony", Tokens::of(&VOCABULARY)).unwrap();
        vec![hermes(), mistral(), coder(), nemo(), lfm2(), llama3(), harmony]
    });

    fn literal(text: &str) -> Literal {
        Literal::new(text, VOCABULARY.control_tokens())
    }

    fn syntax(call: (&str, &str), body: Body) -> ToolSyntax {
        ToolSyntax {
            section: None,
            call: (literal(call.0), literal(call.1)),
            between: literal("\n"),
            body,
            anywhere: false,
            bare: false,
            says: None,
            family: Family::Derived,
            parallel: true,
        }
    }

    fn flat(list: bool) -> Body {
        let (name_key, input_key) = ("name".to_owned(), "arguments".to_owned());
        Body::Object(Object { name_key, input_key, shape: Shape::Flat, list })
    }

    fn hermes() -> ToolSyntax {
        ToolSyntax { bare: true, ..syntax(("<tool_call>\n", "\n</tool_call>"), flat(false)) }
    }

    fn mistral() -> ToolSyntax {
        let pieces = vec![Hole::Name, Hole::Lit(literal("[ARGS]")), Hole::Input];
        syntax(("[TOOL_CALLS]", ""), Body::Pattern { pieces, input: InputSyntax::Json })
    }

    fn coder() -> ToolSyntax {
        let tags = Tags {
            before_key: literal("\n<parameter="),
            after_key: literal(">\n"),
            kind: None,
            after_value: literal("\n</parameter>\n"),
        };
        let pieces = vec![Hole::Name, Hole::Lit(literal(">\n")), Hole::Input];
        syntax(
            ("<tool_call>\n<function=", "</function>\n</tool_call>"),
            Body::Pattern { pieces, input: InputSyntax::Tagged(tags) },
        )
    }

    fn nemo() -> ToolSyntax {
        let section = Some((literal("<tools>"), literal("</tools>")));
        ToolSyntax { section, ..syntax(("", ""), flat(true)) }
    }

    fn lfm2() -> ToolSyntax {
        named("lfm2", Tokens::of(&VOCABULARY)).unwrap()
    }

    fn llama3() -> ToolSyntax {
        named("llama3", Tokens::of(&VOCABULARY)).unwrap()
    }

    fn known() -> Vec<Known> {
        let schema =
            r#"{"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}"#;
        let tool = |name: &str, input| {
            Known::of(&Tool { name: name.into(), description: None, input, strict: false })
        };
        vec![
            tool("get_weather", ToolInput::Object(Json::new(schema).unwrap())),
            tool("now", ToolInput::Object(Json::default())),
            tool("patch", ToolInput::Text(None)),
        ]
    }

    fn watch(tools: Option<ToolSyntax>, thinks: bool) -> Arc<Watch> {
        let reasoning = ReasoningSyntax { open: literal("<think>\n"), close: literal("\n</think>\n\n") };
        Arc::new(Watch {
            tools: tools.map(Arc::new),
            reasoning: Some(Arc::new(reasoning)),
            known: known(),
            thinks,
            parallel: true,
        })
    }

    fn feed(parser: &mut Parser, text: &str, control: &ControlTokens, out: &mut Vec<Parsed>) {
        let mut begin = 0;
        for found in control.find(text) {
            parser.push(&text[begin..found.start], out);
            parser.push_control(text[found.clone()].as_bytes(), out);
            begin = found.end;
        }
        parser.push(&text[begin..], out);
    }

    /// Neighbours of one kind as one.
    fn joined(parsed: Vec<Parsed>) -> Vec<Found> {
        let mut all: Vec<Found> = Vec::new();
        for Parsed { found, .. } in parsed {
            match (all.last_mut(), found) {
                (_, Found::Control(_)) => {}
                (Some(Found::Text(text)), Found::Text(more))
                | (Some(Found::Reasoning(text)), Found::Reasoning(more))
                | (Some(Found::Input(text)), Found::Input(more)) => text.push_str(&more),
                (_, found) => all.push(found),
            }
        }
        all
    }

    fn read(watch: &Arc<Watch>, answer: &str) -> Vec<Found> {
        let (mut parser, mut out) = (Parser::new(Arc::clone(watch)), Vec::new());
        feed(&mut parser, answer, VOCABULARY.control_tokens(), &mut out);
        parser.finish(true, &mut out);
        assert_eq!(parser.held(), 0);
        joined(out)
    }

    fn text(text: &str) -> Found {
        Found::Text(text.into())
    }

    fn call(name: &str, input: &str) -> Vec<Found> {
        vec![Found::CallBegan(name.into()), Found::Input(input.into()), Found::CallEnded]
    }

    #[test]
    fn calls_as_models_write_them() {
        let weather = call("get_weather", r#"{"city": "Köln", "days": 3}"#);
        let both = [weather.clone(), call("now", "{}")].concat();
        for (syntax, answer, expected) in [
            (
                hermes(),
                "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}\n</tool_call>",
                weather.clone(),
            ),
            // Other white space, and keys that the model adds.
            (
                hermes(),
                " <tool_call>{\"id\": 1, \"name\":\"get_weather\", \"arguments\":{\"city\": \"Köln\", \"days\": 3}, \"x\": [\"}\"]} </tool_call>\n",
                weather.clone(),
            ),
            // The object's last brace is forgotten, or the last mark.
            (
                hermes(),
                "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}\n</tool_call>\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}",
                both.clone(),
            ),
            // Arguments first, as a string, missing, or no object.
            (
                hermes(),
                "<tool_call>{\"arguments\": {\"city\": \"Köln\", \"days\": 3}, \"name\": \"get_weather\"}</tool_call>",
                weather.clone(),
            ),
            (
                hermes(),
                r#"<tool_call>{"name": "get_weather", "arguments": "{\"city\": \"K\u00f6ln\", \"days\": 3}"}</tool_call>"#,
                weather.clone(),
            ),
            (hermes(), "<tool_call>{\"name\": \"now\"}</tool_call>", call("now", "{}")),
            (hermes(), "<tool_call>{\"name\": \"now\", \"arguments\": null}</tool_call>", call("now", "{}")),
            (
                mistral(),
                "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Köln\", \"days\": 3}[TOOL_CALLS]now[ARGS]{}",
                both.clone(),
            ),
            (
                coder(),
                "<tool_call>\n<function=get_weather>\n<parameter=city>\nKöln\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
                both.clone(),
            ),
            (
                coder(),
                "<tool_call>\n<function=get_weather><parameter=city>Köln</parameter><parameter=days>3</parameter></function>\n</tool_call>",
                weather.clone(),
            ),
            (
                nemo(),
                "<tools>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Köln\", \"days\": 3}}, {\"name\": \"now\", \"arguments\": {}}]</tools>",
                both.clone(),
            ),
            (
                lfm2(),
                "<|tool_call_start|>[get_weather(city='Köln', days=3), now()]<|tool_call_end|>",
                both.clone(),
            ),
            (
                llama3(),
                "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Köln\", \"days\": 3}}; {\"name\": \"now\", \"parameters\": {}}",
                both.clone(),
            ),
            (
                llama3(),
                "<|python_tag|>{\"type\": \"function\", \"name\": \"now\", \"parameters\": {}}",
                call("now", "{}"),
            ),
        ] {
            assert_eq!(read(&watch(Some(syntax), false), answer), expected, "{answer}");
        }
    }

    #[test]
    fn what_is_no_call_is_text() {
        for (syntax, answer) in [
            (hermes(), "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
            (hermes(), "<tool_call>\nhello"),
            (hermes(), "the mark <tool_call>\n{\"name\": \"now\", \"arguments\": {}}"),
            (hermes(), "<tool_call>{\"name\": \"no"),
            (hermes(), "so: {\"name\": \"now\", \"arguments\": {}}"),
            (hermes(), "```json\n{\"name\": \"unknown\", \"arguments\": {}}\n```"),
            (hermes(), "```python\nnow()\n```"),
            (llama3(), "{\"name\": \"unknown\"}"),
            (llama3(), "so: {\"name\": \"now\", \"parameters\": {}}"),
            (llama3(), "{\"a\": 1}"),
            (coder(), "<tool_call>\n<function=other>\n"),
            (nemo(), "<tools>[]</tools>"),
            (nemo(), "<tools>"),
        ] {
            assert_eq!(read(&watch(Some(syntax), false), answer), [text(answer)], "{answer}");
        }
        let mark = "a <tool_call> b";
        assert_eq!(read(&watch(None, false), mark), [text(mark)]);
    }

    #[test]
    fn text_around_calls() {
        let now = || call("now", "{}");
        let answer =
            "Let me look.\n\n<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>\n\nThere.";
        let expected = [vec![text("Let me look.")], now(), vec![text("There.")]].concat();
        assert_eq!(read(&watch(Some(hermes()), false), answer), expected);
        // A control token is a mark anywhere.
        let answer = "Look: [TOOL_CALLS]now[ARGS]{}";
        let expected = [vec![text("Look:")], now()].concat();
        assert_eq!(read(&watch(Some(mistral()), false), answer), expected);
    }

    #[test]
    fn reasoning_is_told_apart() {
        let think = |it: &str| Found::Reasoning(it.into());
        for (thinks, answer, expected) in [
            (false, "<think>\nhm\n</think>\n\nyes", vec![think("hm"), text("yes")]),
            (false, "\n<think>hm</think>yes", vec![think("hm"), text("yes")]),
            (false, "<think>\n\n</think>\n\nyes", vec![text("yes")]),
            (false, "no <think>hm</think>", vec![text("no <think>hm</think>")]),
            (true, "hm\n</think>\n\nyes <think>", vec![think("hm"), text("yes <think>")]),
            (true, "<think>\nhm\n</think>\nyes", vec![think("hm"), text("yes")]),
            (true, "hm < b", vec![think("hm < b")]),
            (true, "hm </thin", vec![think("hm </thin")]),
            (false, "<thin", vec![text("<thin")]),
        ] {
            for tools in [None, Some(hermes())] {
                assert_eq!(read(&watch(tools, thinks), answer), expected, "{answer}");
            }
        }
        // A mark in reasoning is none, but a control token ends it.
        let answer = "hm <tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call></think>";
        assert_eq!(read(&watch(Some(hermes()), true), answer), [think(&answer[..answer.len() - 8])]);
        let expected = [vec![think("hm")], call("now", "{}")].concat();
        assert_eq!(read(&watch(Some(mistral()), true), "hm [TOOL_CALLS]now[ARGS]{}"), expected);
    }

    #[test]
    fn harmony_transcripts() {
        let watch = watch(ALL.last().cloned(), false);
        let think = |it: &str| Found::Reasoning(it.into());
        let weather = call("get_weather", "{\"city\":\"Köln\"}");
        for (answer, expected) in [
            ("<|channel|>final<|message|>Hi!", vec![text("Hi!")]),
            (
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Hi!",
                vec![think("Hm."), text("Hi!")],
            ),
            (
                "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Köln\"}<|call|>",
                [vec![think("Hm.")], weather.clone()].concat(),
            ),
            (
                " to=functions.get_weather<|channel|>commentary json<|message|>{\"city\":\"Köln\"}<|call|>",
                weather.clone(),
            ),
            // A preamble, then a call.
            (
                "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary<|message|>{\"city\":\"Köln\"}",
                [vec![text("I look.")], weather.clone()].concat(),
            ),
            ("<|channel|>commentary to=functions.unknown<|message|>{}<|call|>", vec![text("{}")]),
            ("<|channel|>analysis<|message|>Hm, cut", vec![think("Hm, cut")]),
            ("Hi without a header", vec![text("Hi without a header")]),
            ("<|channel|>fin", vec![]),
        ] {
            assert_eq!(read(&watch, answer), expected, "{answer}");
        }
    }

    #[test]
    fn tools_that_take_text() {
        let expected = call("patch", "a \"b\"\n<c>");
        for (syntax, answer) in [
            (hermes(), r#"<tool_call>{"name": "patch", "arguments": {"input": "a \"b\"\n<c>"}}</tool_call>"#),
            (
                coder(),
                "<tool_call>\n<function=patch>\n<parameter=input>\na \"b\"\n<c>\n</parameter>\n</function>\n</tool_call>",
            ),
        ] {
            assert_eq!(read(&watch(Some(syntax), false), answer), expected, "{answer}");
        }
    }

    #[test]
    fn one_call_is_enough_where_one_was_asked_for() {
        let mut one = (*watch(Some(hermes()), false)).clone();
        one.parallel = false;
        let mut parser = Parser::new(Arc::new(one));
        let mut out = Vec::new();
        parser.push("<tool_call>{\"name\": \"now\", \"arguments\": {}", &mut out);
        assert!(parser.is_done());
        parser.push("}</tool_call> more <tool_call>", &mut out);
        parser.finish(true, &mut out);
        assert_eq!(joined(out), call("now", "{}"));
    }

    #[test]
    fn a_cut_call_stays_open_at_every_byte() {
        let answer = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"a\\n\\u00e9\"}}\n</tool_call>";
        let input = r#"{"city": "a\n\u00e9"}"#;
        for cut in (0..=answer.len()).filter(|&it| answer.is_char_boundary(it)) {
            let (mut parser, mut out) = (Parser::new(watch(Some(hermes()), false)), Vec::new());
            parser.push(&answer[..cut], &mut out);
            parser.finish(false, &mut out);
            let found = joined(out);
            match found.first() {
                None => assert_eq!(cut, 0),
                Some(Found::Text(text)) => assert!(found.len() == 1 && *text == answer[..cut], "{cut}"),
                Some(_) => {
                    let came = found
                        .iter()
                        .find_map(|it| if let Found::Input(it) = it { Some(it.as_str()) } else { None });
                    assert!(input.starts_with(came.unwrap_or("")), "{found:?}");
                    assert_eq!(
                        found.last() == Some(&Found::CallEnded),
                        came == Some(input),
                        "{cut} {found:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn an_escape_is_never_split() {
        let answer =
            r#"<tool_call>{"name": "now", "arguments": {"a": "\n\u00e9\ud83e\udd99\\"}}</tool_call>"#;
        let (mut parser, mut out) = (Parser::new(watch(Some(hermes()), false)), Vec::new());
        for character in answer.chars() {
            parser.push(&character.to_string(), &mut out);
        }
        for part in out {
            if let Found::Input(piece) = part.found {
                let opened = piece.replace("\\\\", "");
                assert!(
                    !opened.ends_with('\\') && !opened.ends_with("\\u") && !opened.ends_with("\\u0"),
                    "{piece}"
                );
            }
        }
    }

    /// Pieces of marks, values and prose.
    fn noise() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            3 => prop::sample::select(vec![
                "<tool_call>", "</tool_call>", "<tools>", "</tools>", "[", "]", "{", "}", "<function=", "</function>",
                "<parameter=", "</parameter>", ">", "\n", " ", "<think>", "</think>", "\"name\": \"now\"",
                "\"name\": \"get_weather\"", "\"arguments\": {", "\"parameters\": ", "\"city\": \"x\"", ", ", ": ",
                "now", "get_weather", "patch", "city", "input", "(", ")", "='x'", "=3", "to=functions.now", "commentary",
                "analysis", "\\", "\"", "\\u00", "é", "<", "; ", "null",
            ]).prop_map(str::to_owned),
            2 => prop::sample::select(CONTROL.to_vec()).prop_map(str::to_owned),
            1 => "[a-z<>/ \n]{1,4}",
        ];
        prop::collection::vec(piece, 0..24).prop_map(|it| it.concat())
    }

    /// Something like a call, with noise behind and before it.
    fn answers() -> impl Strategy<Value = String> {
        let call = prop::sample::select(vec![
            "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": \"\\\"x\"}}\n</tool_call>",
            "<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</parameter>\n</function>\n</tool_call>",
            "[TOOL_CALLS]now[ARGS]{\"a\": 1}",
            "<tools>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"get_weather\", \"arguments\": {\"city\": \"x\"}}]</tools>",
            "<|tool_call_start|>[now(), get_weather(city='x', days=[1, {'a': None}])]<|tool_call_end|>",
            "{\"name\": \"now\", \"parameters\": {}}; ",
            "<|channel|>commentary to=functions.now<|message|>{\"a\": \"b\"}<|call|>",
            "<think>x</think>",
            "",
        ]);
        (prop::option::of(noise()), call, noise())
            .prop_map(|(before, call, after)| before.unwrap_or_default() + call + &after)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn events_do_not_depend_on_how_bytes_are_cut(
            answer in answers(),
            cuts in prop::collection::vec(1usize..8, 1..12),
            which in 0usize..8,
            thinks: bool,
            by_itself: bool,
        ) {
            let control = VOCABULARY.control_tokens();
            let watch = watch(ALL.get(which).cloned(), thinks);
            let (mut whole, mut expected) = (Parser::new(Arc::clone(&watch)), Vec::new());
            feed(&mut whole, &answer, control, &mut expected);
            whole.finish(by_itself, &mut expected);

            // Control tokens come whole, everything else as it is cut.
            let (mut parser, mut out) = (Parser::new(Arc::clone(&watch)), Vec::new());
            let mut cuts = cuts.iter().cycle();
            let mut begin = 0;
            let mut push = |parser: &mut Parser, out: &mut Vec<Parsed>, text: &str| {
                let characters: Vec<char> = text.chars().collect();
                let mut rest = &characters[..];
                while !rest.is_empty() {
                    let (now, later) = rest.split_at((*cuts.next().unwrap()).min(rest.len()));
                    parser.push(&now.iter().collect::<String>(), out);
                    rest = later;
                }
            };
            for found in control.find(&answer) {
                push(&mut parser, &mut out, &answer[begin..found.start]);
                parser.push_control(answer[found.clone()].as_bytes(), &mut out);
                begin = found.end;
            }
            push(&mut parser, &mut out, &answer[begin..]);
            parser.finish(by_itself, &mut out);

            // Whatever it is, it comes from where it stands, in order.
            let mut place = 0;
            for part in &out {
                prop_assert!(part.begin >= place && part.end >= part.begin, "{:?}", out);
                place = part.end;
            }
            prop_assert_eq!(joined(out), joined(expected));
        }

        #[test]
        fn without_marks_every_byte_is_text(answer in "[a-z {}\\[\\]\":,\n]{0,40}", which in 0usize..4) {
            let watch = watch(ALL.get(which).cloned(), false);
            let expected: Vec<Found> = if answer.is_empty() { vec![] } else { vec![text(&answer)] };
            prop_assert_eq!(read(&watch, &answer), expected);
        }
    }
}
