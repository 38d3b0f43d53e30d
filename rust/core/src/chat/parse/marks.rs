//! Reads an answer by the marks of a syntax: text, reasoning, calls, and what stands between them.

use super::{
    Calling, Found, Parsed, Watch,
    cursor::{Cursor, Read, Stop, window},
    head::{HEAD, Head, head_at, is_list, is_section, next_head, openers},
    input::{Input, Reading, Turn},
    passing::Passing,
    source::{Source, control_length, edge, is_blank, overlap, shown, until_control},
};
use crate::chat::{
    syntax::{OPEN, ReasoningSyntax},
    values::{JsonScan, Scanned},
};

/// Where an answer stands that is read by its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
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

/// What may be found in text, and how many bytes it takes.
enum Mark {
    /// The beginning of a call.
    Call(Head),
    /// What opens reasoning.
    Reasoning(usize),
    /// What closes reasoning that was not opened: the model does not think.
    Thought(usize),
    /// What stands around text.
    Says(usize),
    /// What stands behind all of the answer.
    End(usize),
}

/// Reads an answer by its marks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Marks {
    source: Source,
    pub(super) state: State,
    /// Only white space came since the answer or the last section: reasoning may begin, and calls.
    fresh: bool,
    /// Only white space came since the line began.
    line: bool,
    /// It has thought since then: reasoning does not begin again.
    thought: bool,
    /// White space that follows is dropped.
    skips: bool,
    /// In text that began with a mark, and ends with another.
    marked: bool,
    /// Braces that close the object of the call under way, behind its input.
    depth: usize,
    /// Does that call stand in a block of code?
    fenced: bool,
    /// The call under way; `None`: it is told already, or there is none.
    call: Option<Calling>,
    /// What need not be read.
    passing: Passing,
}

impl Marks {
    pub(super) fn new(watch: &Watch) -> Self {
        let thinks = watch.thinks;
        let state = if thinks { State::Reasoning } else { State::Free };
        Self {
            source: Source::default(),
            state,
            fresh: true,
            line: true,
            thought: false,
            skips: thinks || watch.says,
            marked: watch.says,
            depth: 0,
            fenced: false,
            call: None,
            passing: Passing::of(watch),
        }
    }

    /// Before the byte of that number.
    pub(crate) fn at(base: u64) -> Self {
        Self { source: Source::at(base), ..Self::new(&Watch::default()) }
    }

    /// Inside a call whose input begins with the byte of that number.
    pub(crate) fn in_call(tool: usize, base: u64) -> Self {
        let call = Some(Calling { tool, marked: true, begin: base });
        Self { state: State::Input(tool, Input::Json), call, ..Self::at(base) }
    }

    pub(crate) fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    pub(crate) fn held(&self) -> usize {
        self.source.held.len()
    }

    pub(crate) fn calling(&self, watch: &Watch) -> Option<Calling> {
        let (call, tools) = (self.call?, watch.tools.as_ref()?);
        let goes_on = match self.state {
            State::Input(..) | State::Tail(Some(_)) => true,
            State::Tail(None) | State::Section if is_list(tools) => true,
            State::Tail(None) => call.marked && (is_section(tools) || !tools.call.1.is_blank()),
            State::Section => call.marked && tools.section.as_ref().is_some_and(|it| !it.1.is_blank()),
            State::Free | State::Reasoning | State::Done => false,
        };
        goes_on.then_some(call)
    }

    pub(crate) fn deny(&mut self, out: &mut Vec<Parsed>) {
        self.source.tell_text(self.source.held.len(), out);
        (self.state, self.line, self.fresh) = (State::Free, false, false);
    }

    /// See [`super::Parser::pass`].
    pub(super) fn pass(&mut self, text: &str, watch: &Watch) -> Option<Parsed> {
        if self.skips || !self.source.held.is_empty() {
            return None;
        }
        match self.state {
            State::Free => {
                // At the beginning there is more to be found than marks of calls.
                let bare = watch.tools.as_ref().is_some_and(|it| it.bare);
                let plain = !self.fresh || !bare && self.reasoning_of(watch, true).is_none();
                if !plain || !self.passing.text.pass(text.as_bytes()) {
                    return None;
                }
                self.said(text);
                Some(self.source.pass(text, Found::Text))
            }
            State::Reasoning if self.thought && self.passing.thought.pass(text.as_bytes()) => {
                Some(self.source.pass(text, Found::Reasoning))
            }
            _ => None,
        }
    }

    /// This is text, and told.
    fn said(&mut self, text: &str) {
        let (begins, last) = text.rsplit_once('\n').map_or((self.line, text), |(_, last)| (true, last));
        self.line = begins && last.trim().is_empty();
        self.fresh = self.fresh && text.trim().is_empty();
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
            State::Input(tool, input) if by_itself => {
                let known = watch.known.get(tool);
                if known.is_some_and(|it| input.finish(it, &mut self.source, out)) {
                    self.source.tell(0, Found::CallEnded, out);
                }
            }
            _ => {}
        }
        // What began a mark of a call that is open says nothing.
        self.source.skip(self.source.held.len());
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
        if watch.tools.is_none() && watch.said.is_none() && self.reasoning_of(watch, self.fresh).is_none() {
            self.source.tell_text(self.source.held.len(), out);
            return false;
        }
        let held = &self.source.held;
        let (mut fresh, mut line) = (self.fresh, self.line);
        let (mut at, mut found) = (0, None);
        while at < held.len() {
            match self.mark_at(watch, at, fresh, line, short) {
                Ok(mark) => {
                    found = Some(mark);
                    break;
                }
                Err(Stop::Short) => break,
                Err(Stop::Other) => {}
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
        let keep = if short == Stop::Short || found.is_some() { edge(&held[..at]) } else { 0 };
        let said = at - keep;
        // The white space that is kept is looked at again.
        let text = shown(&held[..said]);
        self.said(&text);
        self.source.tell_text(said, out);
        let Some(mark) = found else { return false };
        self.source.skip(keep);
        match mark {
            Mark::Call(head) => {
                self.call = None;
                self.begin(head, watch, out);
            }
            Mark::Reasoning(length) => {
                self.source.skip(length);
                (self.state, self.skips) = (State::Reasoning, true);
            }
            Mark::Thought(length) => {
                self.source.skip(length);
                (self.thought, self.line, self.skips) = (true, true, true);
            }
            Mark::Says(length) => {
                self.source.skip(length);
                (self.marked, self.skips) = (!self.marked, true);
                self.line |= !self.marked;
            }
            Mark::End(length) => {
                self.source.skip(length);
                (self.marked, self.line, self.skips) = (false, true, true);
            }
        }
        true
    }

    /// How reasoning is marked, if it may begin where only white space stands before.
    fn reasoning_of<'a>(&self, watch: &'a Watch, fresh: bool) -> Option<&'a ReasoningSyntax> {
        watch.reasoning.as_deref().filter(|_| fresh && !self.thought)
    }

    /// The mark that begins with the held byte of that number.
    fn mark_at(&self, watch: &Watch, at: usize, fresh: bool, line: bool, short: Stop) -> Read<Mark> {
        let held = &self.source.held;
        let length_of = |core: &[u8]| {
            let mut cursor = Cursor { bytes: held, at, short };
            cursor.core(core).map(|()| cursor.at - at)
        };
        let mut stop = Stop::Other;
        let mut or_else = |read: Read<Mark>| match read {
            Err(why) => {
                stop = if why == Stop::Short { why } else { stop };
                None
            }
            mark => Some(mark),
        };
        if let Some(reasoning) = self.reasoning_of(watch, fresh) {
            let opens = or_else(length_of(reasoning.open.core()).map(Mark::Reasoning));
            let closes = || length_of(reasoning.close.core()).map(Mark::Thought);
            if let Some(mark) = opens.or_else(|| or_else(closes())) {
                return mark;
            }
        }
        if let Some(tools) = &watch.tools
            && let Some(mark) =
                or_else(head_at(watch, tools, &held[at..], fresh, line, short).map(Mark::Call))
        {
            return mark;
        }
        if let Some(said) = &watch.said {
            let core = if self.marked { said.close.core() } else { said.open.core() };
            let anywhere = self.marked || core.first() == Some(&OPEN) || line;
            // A call may begin in the same way.
            if anywhere && !core.is_empty() && stop == Stop::Other {
                match length_of(core) {
                    Err(Stop::Other) => {}
                    read => return read.map(Mark::Says),
                }
            }
            // A model may leave the first mark of its text out.
            let ends = [said.end.core(), said.close.core()].into_iter().filter(|_| !said.end.is_blank());
            for core in ends.filter(|it| it.first() == Some(&OPEN) || line) {
                match length_of(core) {
                    Ok(length) => return Ok(Mark::End(length)),
                    Err(Stop::Short) => stop = Stop::Short,
                    Err(Stop::Other) => {}
                }
            }
        }
        Err(stop)
    }

    fn begin(&mut self, head: Head, watch: &Watch, out: &mut Vec<Parsed>) {
        self.source.tell(head.length, Found::CallBegan(watch.known[head.tool].name.clone()), out);
        if self.call.is_none() && !matches!(head.input, Input::Given(_)) {
            let usual = watch.tools.as_ref().is_some_and(|it| it.body.depth() == head.depth);
            self.call =
                Some(Calling { tool: head.tool, marked: head.marked && usual, begin: self.source.base() });
        }
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
        // Nobody writes these tokens by chance: some models forget to close what they think.
        let tools = || watch.tools.iter().flat_map(|it| openers(it)).map(|it| it.0);
        let says = watch.said.iter().map(|it| it.open.core()).filter(|it| *it != close);
        let calls = || tools().chain(says.clone()).filter(|it| it.first() == Some(&OPEN));
        let begin = calls().filter_map(|it| Some((memchr::memmem::find(held, it)?, 0))).min();
        let Some((at, length)) = ends.into_iter().chain(begin).min() else {
            let waits = match short {
                Stop::Short => calls().chain([close]).map(|it| overlap(held, it)).max().unwrap_or(0),
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
        self.marked = length > 0 && watch.said.as_ref().is_some_and(|it| it.open.core() == close);
        true
    }

    fn input(&mut self, watch: &Watch, short: Stop, out: &mut Vec<Parsed>) -> bool {
        let State::Input(tool, input) = &mut self.state else { return false };
        let (Some(known), Some(tools)) = (watch.known.get(*tool), &watch.tools) else { return false };
        let mut reading = Reading { source: &mut self.source, known, tools, short, out };
        match input.read(&mut reading) {
            Turn::Waits => return false,
            Turn::Goes => {}
            Turn::Ends(inside) => {
                self.depth += inside;
                self.ended(watch, out);
            }
            Turn::Broken => self.broken(),
        }
        true
    }

    fn ended(&mut self, watch: &Watch, out: &mut Vec<Parsed>) {
        self.source.tell(0, Found::CallEnded, out);
        self.state = match self.depth {
            _ if !watch.parallel => State::Done,
            0 => State::Tail(None),
            depth => State::Tail(Some(JsonScan::inside(depth))),
        };
    }

    /// The input goes on as none can: the call stays open.
    fn broken(&mut self) {
        (self.state, self.line, self.fresh) = (State::Free, false, false);
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
        if cursor.marks(&tools.call.1).is_err() {
            return false;
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
