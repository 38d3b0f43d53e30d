//! A stream's events as the bytes of its connection.
//!
//! Owns what has to be done for each token: JSON's escapes, and the frames of HTTP/1.1's chunked coding; and
//! the order of a block's frames: its beginning, its deltas, its end. Knows no API family's words, and not
//! even those of server-sent events: what stands around the text is the family's, made once per stream, and
//! only filled in here.

use std::{
    collections::HashMap,
    io::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use llm_node_core::{
    engine::Token,
    error::Fault,
    event::{Event, Finish, Part, PickedToken, Piece},
};

use crate::{
    blocks::{Block, Kept},
    pattern::{Items, Pattern, Place},
};

/// What is filled into a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hole {
    /// A JSON string: in a delta the piece, at the end of a block all of its text.
    Text,
    /// The same text as it is, which is JSON itself.
    Json,
    /// The same text as base64, without quotes.
    Base64,
    /// The called tool's name, as a JSON string.
    Name,
    /// The call's id, without quotes.
    Id,
    /// Number of the call in this answer, from 0.
    Call,
    /// Number of the block among those that are written, from 0.
    Block,
    /// A number that is one more each time.
    Number,
    /// Log-probabilities as the stream's pattern has them, of the piece or of the block; `null` where there
    /// are none.
    Logprobs,
    /// In a delta the numbers of the tokens behind its piece, as a JSON list.
    Tokens,
}

impl Hole {
    /// The hole of that name.
    pub fn of(name: &str) -> Option<Self> {
        Some(match name {
            "text" => Hole::Text,
            "json" => Hole::Json,
            "base64" => Hole::Base64,
            "name" => Hole::Name,
            "id" => Hole::Id,
            "call" => Hole::Call,
            "block" => Hole::Block,
            "number" => Hole::Number,
            "logprobs" => Hole::Logprobs,
            "tokens" => Hole::Tokens,
            _ => return None,
        })
    }
}

/// Bytes with holes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Template {
    /// Bytes, and the hole behind them.
    segments: Vec<(Vec<u8>, Hole)>,
    tail: Vec<u8>,
}

impl Template {
    /// `tail` stands behind the last hole.
    pub fn new(segments: Vec<(Vec<u8>, Hole)>, tail: Vec<u8>) -> Self {
        Self { segments, tail }
    }

    fn has(&self, hole: Hole) -> bool {
        self.segments.iter().any(|it| it.1 == hole)
    }

    fn has_text(&self) -> bool {
        self.has(Hole::Text) || self.has(Hole::Json) || self.has(Hole::Base64)
    }

    fn has_bytes(&self) -> bool {
        !self.segments.is_empty() || !self.tail.is_empty()
    }
}

/// How the blocks of one part are written. What has no template is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartTemplates {
    /// Where a block begins.
    pub begin: Option<Template>,
    /// For each piece.
    pub delta: Option<Template>,
    /// Where a block has ended by itself.
    pub end: Option<Template>,
    /// Where it was cut off; `None`: as `end`.
    pub cut: Option<Template>,
}

impl PartTemplates {
    fn get(&self, stage: Stage) -> Option<&Template> {
        match stage {
            Stage::Begin => self.begin.as_ref(),
            Stage::Delta => self.delta.as_ref(),
            Stage::End => self.end.as_ref(),
            Stage::Cut => self.cut.as_ref().or(self.end.as_ref()),
        }
    }

    fn are_any(&self) -> bool {
        self.begin.is_some() || self.delta.is_some() || self.end.is_some() || self.cut.is_some()
    }

    /// Does the end of a block tell its text?
    fn keeps(&self) -> bool {
        self.end.iter().chain(&self.cut).any(Template::has_text)
    }

    /// Does it tell its log-probabilities?
    fn keeps_logprobs(&self) -> bool {
        self.end.iter().chain(&self.cut).any(|it| it.has(Hole::Logprobs))
    }
}

/// How calls of one tool are written, where that is not as those of others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Instead of [`Frames::input`]; tools may share them.
    pub templates: Arc<PartTemplates>,
    /// The name that is told of it.
    pub name: String,
}

/// How a whole stream is written.
#[derive(Debug, Default)]
pub struct Frames {
    /// What the model says.
    pub text: PartTemplates,
    /// What it thinks.
    pub reasoning: PartTemplates,
    /// What it calls.
    pub input: PartTemplates,
    /// By name, the tools whose calls are written otherwise.
    pub tools: HashMap<String, Told>,
    /// How log-probabilities are written, where they are wanted.
    pub pattern: Option<Pattern>,
    /// Does the connection take HTTP/1.1's chunked coding?
    pub chunked: bool,
    /// Are the blocks wanted once more at the end?
    pub keeps: bool,
    /// The next for [`Hole::Number`].
    pub number: AtomicU64,
}

impl Frames {
    fn of<'a>(&'a self, part: Part, call: Option<&'a Called>) -> &'a PartTemplates {
        match (part, call.and_then(|it| it.told.as_ref())) {
            (Part::Text, _) => &self.text,
            (Part::Reasoning, _) => &self.reasoning,
            (Part::Input, Some(told)) => &told.templates,
            (Part::Input, None) => &self.input,
        }
    }

    /// Room for frames.
    pub fn bytes(&self) -> Bytes {
        // Most of what is written at once is one delta.
        let delta = self.text.delta.as_ref();
        let length =
            delta.map_or(0, |it| it.tail.len() + it.segments.iter().map(|it| it.0.len()).sum::<usize>());
        let mut buffer = Vec::with_capacity(FRAME + length + 32);
        buffer.extend_from_slice(&[0; FRAME]);
        Bytes { buffer, chunked: self.chunked }
    }

    /// Appends a frame. Strings are equal, byte for byte, to what Python's `json.dumps` writes with
    /// `ensure_ascii=False`.
    pub fn fill(&self, frame: &Frame, into: &mut Bytes) {
        let call = frame.call.as_deref();
        let Some(template) = self.of(frame.part, call).get(frame.stage) else { return };
        let into = &mut into.buffer;
        // Writing to memory does not fail, and neither does a text.
        for (bytes, hole) in &template.segments {
            into.extend_from_slice(bytes);
            match hole {
                Hole::Text => {
                    let _ = serde_json::to_writer(&mut *into, &frame.text);
                }
                Hole::Json => {
                    // In JSON a line may end between two words alone. It must not end the frame.
                    into.extend(frame.text.bytes().map(|it| if it.is_ascii_control() { b' ' } else { it }));
                }
                Hole::Base64 => into.extend_from_slice(STANDARD.encode(&frame.text).as_bytes()),
                Hole::Name => {
                    let _ = serde_json::to_writer(&mut *into, call.map_or("", Called::told));
                }
                Hole::Id => into.extend_from_slice(call.map_or(b"", |it| it.id.as_bytes())),
                Hole::Call => {
                    let _ = write!(into, "{}", call.map_or(0, |it| it.index));
                }
                Hole::Block => {
                    let _ = write!(into, "{}", frame.block);
                }
                Hole::Number => {
                    let _ = write!(into, "{}", self.number.fetch_add(1, Ordering::Relaxed));
                }
                Hole::Logprobs => match &self.pattern {
                    Some(pattern) if !frame.items.is_empty() => pattern.write(&frame.items, into),
                    _ => into.extend_from_slice(b"null"),
                },
                Hole::Tokens => {
                    let _ = serde_json::to_writer(&mut *into, &frame.tokens);
                }
            }
        }
        into.extend_from_slice(&template.tail);
    }
}

/// Where in its block a frame stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Begin,
    Delta,
    End,
    Cut,
}

/// A call, as far as its frames name it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Called {
    index: u32,
    id: String,
    name: String,
    told: Option<Told>,
}

impl Called {
    /// The name that is told of its tool.
    fn told(&self) -> &str {
        self.told.as_ref().map_or(&self.name, |it| &it.name)
    }
}

/// What one frame is to tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    part: Part,
    stage: Stage,
    block: u32,
    call: Option<Arc<Called>>,
    text: String,
    items: Items,
    /// Numbers of the tokens, where they are told.
    tokens: Vec<Token>,
}

impl Frame {
    /// Bytes of what it tells, but for JSON's escapes.
    pub fn len(&self) -> usize {
        self.text.len() + self.items.len() + size_of_val(&self.tokens[..])
    }

    /// Has it nothing to tell?
    pub fn is_empty(&self) -> bool {
        self.stage == Stage::Delta && self.text.is_empty() && self.items.is_empty() && self.tokens.is_empty()
    }

    /// Tells with this one what the next one tells, if that goes on with the same block; else gives it back.
    pub fn append(&mut self, more: Self) -> Option<Self> {
        let is_more = self.stage == Stage::Delta && more.stage == Stage::Delta && self.block == more.block;
        if !is_more || self.part != more.part {
            return Some(more);
        }
        self.text += &more.text;
        self.items.append(more.items);
        self.tokens.extend(more.tokens);
        None
    }
}

/// A stream on its way to becoming frames.
#[derive(Debug)]
pub struct Writing {
    frames: Arc<Frames>,
    /// Where the tokens so far end in its text.
    place: Place,
    open: Option<Open>,
    /// Blocks that were written, the open one included.
    blocks: u32,
    kept: Kept,
    /// Those that have ended, where they are wanted once more.
    done: Vec<Block>,
}

/// The block under way.
#[derive(Debug)]
struct Open {
    part: Part,
    block: u32,
    call: Option<Arc<Called>>,
    text: String,
    tokens: Vec<PickedToken>,
    /// Where its first token begins.
    place: Place,
}

impl Writing {
    /// A stream that has not begun.
    pub fn new(frames: Frames) -> Self {
        Self {
            frames: Arc::new(frames),
            place: Place::default(),
            open: None,
            blocks: 0,
            kept: Kept::default(),
            done: Vec::new(),
        }
    }

    /// What makes bytes of its frames.
    pub fn frames(&self) -> Arc<Frames> {
        Arc::clone(&self.frames)
    }

    /// Takes what an event adds, and tells the frames of it.
    pub fn take(&mut self, event: Event, mut tell: impl FnMut(&Arc<Frames>, Frame)) -> Result<(), Fault> {
        match event {
            Event::Piece(piece) => return self.piece(piece, &mut tell),
            Event::CallBegan { index, id, name } => {
                self.end(true, &mut tell);
                let told = self.frames.tools.get(&name).cloned();
                self.begin(Part::Input, Some(Arc::new(Called { index, id, name, told })), &mut tell);
            }
            Event::CallEnded => self.end(true, &mut tell),
            Event::Started { .. } | Event::Finished { .. } | Event::Failed(_) => {}
        }
        Ok(())
    }

    /// The answer is at its end: tells the frames of what is open, and gives the blocks where they are
    /// wanted once more.
    pub fn finish(&mut self, reason: Finish, mut tell: impl FnMut(&Arc<Frames>, Frame)) -> Vec<Block> {
        let is_call = self.open.as_ref().is_some_and(|it| it.part == Part::Input);
        self.end(reason.is_natural() && !is_call, &mut tell);
        std::mem::take(&mut self.done)
    }

    /// The number behind those of all frames that were filled.
    pub fn number(&self) -> u64 {
        self.frames.number.load(Ordering::Relaxed)
    }

    fn piece(
        &mut self,
        Piece { part, text, tokens }: Piece,
        tell: &mut impl FnMut(&Arc<Frames>, Frame),
    ) -> Result<(), Fault> {
        if self.open.as_ref().is_none_or(|it| it.part != part) {
            self.end(true, tell);
            self.begin(part, None, tell);
        }
        let Self { frames, place, open: Some(open), kept, .. } = self else { return Ok(()) };
        let templates = frames.of(part, open.call.as_deref());
        if frames.keeps || templates.keeps() {
            kept.add(text.len())?;
            open.text += &text;
        }
        let pattern = frames.pattern.as_ref().filter(|_| part == Part::Text);
        if let Some(delta) = &templates.delta {
            let items = pattern.map_or_else(Items::default, |it| it.items(&tokens, place));
            let mut frame = open.frame(Stage::Delta, text, items);
            if delta.has(Hole::Tokens) {
                frame.tokens = tokens.iter().map(|it| it.id).collect();
            }
            tell(frames, frame);
        }
        if pattern.is_some() && (frames.keeps || templates.keeps_logprobs()) {
            open.tokens.extend(tokens);
        }
        Ok(())
    }

    fn begin(&mut self, part: Part, call: Option<Arc<Called>>, tell: &mut impl FnMut(&Arc<Frames>, Frame)) {
        let are_any = self.frames.of(part, call.as_deref()).are_any();
        let place = self.place.clone();
        let open = Open { part, block: self.blocks, call, text: String::new(), tokens: Vec::new(), place };
        if are_any {
            self.blocks += 1;
        }
        self.tell(&open, Stage::Begin, String::new(), Items::default(), tell);
        self.open = Some(open);
    }

    fn end(&mut self, by_itself: bool, tell: &mut impl FnMut(&Arc<Frames>, Frame)) {
        let Some(mut open) = self.open.take() else { return };
        let stage = if by_itself { Stage::End } else { Stage::Cut };
        let text = if self.frames.keeps { open.text.clone() } else { std::mem::take(&mut open.text) };
        let items = match &self.frames.pattern {
            Some(pattern) if !open.tokens.is_empty() => pattern.items(&open.tokens, &mut open.place.clone()),
            _ => Items::default(),
        };
        self.tell(&open, stage, text, items, tell);
        if self.frames.keeps {
            let Open { part, call, text, tokens, .. } = open;
            let (id, name) = call.map(|it| (it.id.clone(), it.name.clone())).unwrap_or_default();
            self.done.push(Block { part, text, tokens, id, name, complete: by_itself });
        }
    }

    fn tell(
        &self,
        open: &Open,
        stage: Stage,
        text: String,
        items: Items,
        tell: &mut impl FnMut(&Arc<Frames>, Frame),
    ) {
        if self.frames.of(open.part, open.call.as_deref()).get(stage).is_some_and(Template::has_bytes) {
            tell(&self.frames, open.frame(stage, text, items));
        }
    }
}

impl Open {
    fn frame(&self, stage: Stage, text: String, items: Items) -> Frame {
        let Self { part, block, call, .. } = self;
        let (part, block, call) = (*part, *block, call.clone());
        Frame { part, stage, block, call, text, items, tokens: Vec::new() }
    }
}

/// Before the body: at most eight hexadecimal digits and a line feed with its carriage return.
const FRAME: usize = 10;

/// Whole frames on their way to one connection, written at once.
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

    /// Is there no frame yet?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to write to the connection: one chunk where it takes chunks. An empty one would end the
    /// answer, so there is nothing to write where there is no frame.
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
mod tests;
