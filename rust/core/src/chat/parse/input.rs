//! A call's input: from the syntax that it is written in to JSON, piece by piece.

use super::{
    Found, Known, Parsed,
    cursor::{Cursor, Read, Stop, window},
    head::{BARE_HEAD, HEAD, input_syntax},
    source::{Source, control_length, is_blank, overlap, shown, spelled, unspelled, until_control},
};
use crate::chat::{
    syntax::{InputSyntax, Tags, ToolSyntax},
    values::{JsonScan, NoValue, Python, Scanned, Unescape, escape, loose, nested, quoted},
};

/// In a call's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Input {
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
pub(super) struct Argument {
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

/// What reading a piece of an input came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// More has to come.
    Waits,
    /// It goes on.
    Goes,
    /// It is complete. So many braces are open that it has opened itself.
    Ends(usize),
    /// It goes on as none can.
    Broken,
}

/// Where an input comes from, and where it goes.
pub(super) struct Reading<'a> {
    pub(super) source: &'a mut Source,
    pub(super) known: &'a Known,
    pub(super) tools: &'a ToolSyntax,
    pub(super) short: Stop,
    pub(super) out: &'a mut Vec<Parsed>,
}

impl Input {
    /// Takes something out of what is held.
    pub(super) fn read(&mut self, from: &mut Reading<'_>) -> Turn {
        match self {
            Input::Json => match from.json() {
                Some(input) => {
                    *self = input;
                    Turn::Goes
                }
                None => Turn::Waits,
            },
            Input::Object(scan) => from.object(scan),
            Input::Encoded(unescape) => from.encoded(unescape, 0),
            Input::Wrapped(unescape) => from.encoded(unescape, 1),
            Input::Skipped(scan) => from.skipped(scan),
            Input::Given(text) => {
                let text = from.known.shown(std::mem::take(text));
                from.source.tell(0, Found::Input(text), from.out);
                Turn::Ends(0)
            }
            Input::Tags(count) => match from.tag(*count) {
                Ok(argument) => {
                    *self = Input::Tag(argument);
                    Turn::Goes
                }
                Err(turn) => turn,
            },
            Input::Tag(argument) => match from.argument(argument) {
                Turn::Ends(_) => {
                    *self = Input::Tags(argument.before + 1);
                    Turn::Goes
                }
                turn => turn,
            },
            Input::Keywords(count) => from.keyword(count),
            Input::Quoted => from.quoted(),
            Input::Nested => from.nested(),
        }
    }

    /// The model has ended its answer here by itself: the input is complete if it lacks nothing but marks.
    /// True: it is.
    pub(super) fn finish(&self, known: &Known, source: &mut Source, out: &mut Vec<Parsed>) -> bool {
        match self {
            Input::Tags(_) if known.text => true,
            Input::Tags(count) => {
                source.tell(0, Found::Input(closing(*count).to_owned()), out);
                true
            }
            Input::Skipped(scan) => scan.may_end(),
            _ => false,
        }
    }
}

/// What closes an object that is put together from so many arguments.
fn closing(count: u32) -> &'static str {
    if count == 0 { "{}" } else { "}" }
}

/// What stands before the argument of that number.
fn separator(before: u32) -> &'static str {
    if before == 0 { "{" } else { ", " }
}

impl Reading<'_> {
    /// Up to the next control token.
    fn plain(&self) -> usize {
        until_control(&self.source.held)
    }

    /// Tells of bytes that came to this much of the input; if that is nothing, they are forgotten.
    fn tell(&mut self, length: usize, text: String) {
        if text.is_empty() {
            self.source.skip(length);
        } else {
            self.source.tell(length, Found::Input(text), self.out);
        }
    }

    /// The same for bytes that are passed on as they are.
    fn pass(&mut self, length: usize) {
        let text = shown(&self.source.held[..length]);
        self.tell(length, text);
    }

    /// Which value begins here?
    fn json(&mut self) -> Option<Input> {
        let blank = self.source.held.iter().take_while(|&&it| is_blank(it)).count();
        self.source.skip(blank);
        Some(match self.source.held.first()? {
            b'{' if self.known.text => match wrapped(window(&self.source.held, BARE_HEAD, self.short)) {
                Ok(length) => {
                    self.source.skip(length);
                    Input::Wrapped(Unescape::default())
                }
                Err(Stop::Short) => return None,
                Err(Stop::Other) => Input::Object(JsonScan::default()),
            },
            b'{' => Input::Object(JsonScan::default()),
            b'"' => {
                self.source.skip(1);
                Input::Encoded(Unescape::default())
            }
            _ => Input::Skipped(JsonScan::default()),
        })
    }

    fn object(&mut self, scan: &mut JsonScan) -> Turn {
        let plain = self.plain();
        if plain == 0 {
            // Inside a string a control token is nothing; elsewhere the object is broken.
            if !scan.in_string() {
                return Turn::Broken;
            }
            self.source.skip(control_length(&self.source.held).unwrap_or(0));
            return Turn::Goes;
        }
        let mut ahead = scan.clone();
        match ahead.push(&self.source.held[..plain]) {
            Scanned::Ends(length) => {
                self.pass(length);
                Turn::Ends(0)
            }
            Scanned::Broken(length) => {
                self.pass(length);
                Turn::Broken
            }
            Scanned::More => {
                // An escape is never split.
                let whole = plain < self.source.held.len() || self.short == Stop::Other;
                let length = if whole { plain } else { plain - ahead.unfinished().min(plain) };
                if length == 0 {
                    return Turn::Waits;
                }
                if length < plain {
                    scan.push(&self.source.held[..length]);
                } else {
                    *scan = ahead;
                }
                self.pass(length);
                Turn::Goes
            }
        }
    }

    fn encoded(&mut self, unescape: &mut Unescape, inside: usize) -> Turn {
        let plain = self.plain();
        if plain == 0 {
            self.source.skip(control_length(&self.source.held).unwrap_or(0));
            return Turn::Goes;
        }
        let mut text = String::new();
        let end = unescape.push(&shown(&self.source.held[..plain]), &mut text);
        self.tell(end.unwrap_or(plain), text);
        if end.is_some() { Turn::Ends(inside) } else { Turn::Goes }
    }

    fn skipped(&mut self, scan: &mut JsonScan) -> Turn {
        let plain = self.plain();
        let length = match scan.push(&self.source.held[..plain]) {
            Scanned::More if plain == self.source.held.len() => {
                self.source.skip(plain);
                return Turn::Waits;
            }
            Scanned::More => plain,
            Scanned::Ends(length) | Scanned::Broken(length) => length,
        };
        self.tell(length, "{}".to_owned());
        Turn::Ends(0)
    }

    /// The next tagged argument, or what its absence means.
    fn tag(&mut self, count: u32) -> Result<Argument, Turn> {
        let InputSyntax::Tagged(tags) = input_syntax(self.tools) else { return Err(Turn::Broken) };
        let begun = tag(tags, self.known, count, window(&self.source.held, HEAD, self.short));
        let close = Cursor { bytes: &self.source.held, at: 0, short: self.short }.literal(&self.tools.call.1);
        match (begun, close) {
            (Ok((length, key, argument)), _) => {
                let text = if argument.whole {
                    String::new()
                } else {
                    format!("{}{}: ", separator(count), quoted(&key))
                };
                self.tell(length, text);
                Ok(argument)
            }
            (Err(Stop::Short), _) | (_, Err(Stop::Short)) => Err(Turn::Waits),
            // The answer ends here, and maybe inside a mark.
            (_, Err(_)) if self.short == Stop::Other => Err(Turn::Waits),
            _ => {
                if !self.known.text {
                    self.tell(0, closing(count).to_owned());
                }
                Err(Turn::Ends(0))
            }
        }
    }

    fn argument(&mut self, argument: &mut Argument) -> Turn {
        let InputSyntax::Tagged(tags) = input_syntax(self.tools) else { return Turn::Broken };
        let lead = if argument.raw { "" } else { tags.after_value.lead() };
        let mut core = if argument.raw { RAW.1.as_bytes().to_vec() } else { Vec::new() };
        core.extend_from_slice(tags.after_value.core());
        if let Some(at) = memchr::memmem::find(&self.source.held, &core) {
            let text = shown(&self.source.held[..at]);
            let text = text.strip_suffix(lead).unwrap_or(&text);
            let value = match argument.text {
                Some(true) if argument.whole => argument.put(text),
                Some(true) => argument.put(text) + "\"",
                _ => loose(text),
            };
            self.tell(at + core.len(), value);
            return Turn::Ends(0);
        }
        if argument.text != Some(true) {
            return Turn::Waits;
        }
        let all = [lead.as_bytes(), &core[..]].concat();
        // Where the answer ends here, what may be a mark is none of the argument.
        let waits = overlap(&self.source.held, &all).max(overlap(&self.source.held, &core));
        let said = self.source.held.len() - waits;
        if said > 0 {
            let text = argument.put(&shown(&self.source.held[..said]));
            argument.begun = true;
            self.tell(said, text);
        }
        Turn::Waits
    }

    fn keyword(&mut self, count: &mut u32) -> Turn {
        let plain = self.plain();
        match keyword(&self.source.held[..plain]) {
            Ok(Some((length, key, value))) => {
                let object = format!("{{{}: {value}}}", quoted(&key));
                if let Some(text) = self.known.plain(&object) {
                    self.tell(length, text);
                } else {
                    self.tell(length, format!("{}{}: {value}", separator(*count), quoted(&key)));
                    *count += 1;
                }
                Turn::Goes
            }
            Ok(None) => {
                let blank = self.source.held.iter().position(|&it| it == b')').map_or(0, |it| it + 1);
                self.source.skip(blank);
                if *count > 0 || !self.known.text {
                    self.tell(0, closing(*count).to_owned());
                }
                Turn::Ends(0)
            }
            Err(Stop::Short) if plain == self.source.held.len() => Turn::Waits,
            Err(_) => Turn::Broken,
        }
    }

    fn quoted(&mut self) -> Turn {
        let InputSyntax::Quoted(mark) = input_syntax(self.tools) else { return Turn::Broken };
        match Python::new(&spelled(&self.source.held), mark.text()).first() {
            Ok((value, length)) if value.starts_with('{') => {
                let length = unspelled(&self.source.held, length);
                self.tell(length, self.known.shown(value));
                Turn::Ends(0)
            }
            Err(NoValue::Short) => Turn::Waits,
            _ => Turn::Broken,
        }
    }

    fn nested(&mut self) -> Turn {
        let InputSyntax::Nested(mark) = input_syntax(self.tools) else { return Turn::Broken };
        let end = memchr::memmem::find(&self.source.held, self.tools.call.1.core());
        let Some(at) = end else { return Turn::Waits };
        let text = spelled(&self.source.held[..at]);
        let value = nested(&text, mark.text(), &|it| self.known.texts.contains(it));
        self.tell(at, self.known.shown(value));
        Turn::Ends(0)
    }
}

impl Argument {
    /// More of its text as it stands in the input.
    fn put(&self, text: &str) -> String {
        if self.whole {
            return text.to_owned();
        }
        let mut out = if self.begun { String::new() } else { "\"".to_owned() };
        escape(text, &mut out);
        out
    }
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
    let short = cursor.short;
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
    match cursor.exact(trail) {
        Err(Stop::Short) => return Err(Stop::Short),
        Ok(()) | Err(Stop::Other) => {}
    }
    // An answer that is cut in this mark has not begun the value.
    if cursor.bytes.len() < HEAD {
        cursor.short = Stop::Short;
    }
    let raw = match cursor.exact(RAW.0.as_bytes()) {
        Err(Stop::Short) if !cursor.rest().is_empty() => return Err(Stop::Short),
        Err(Stop::Short) => return Err(short),
        read => read.is_ok(),
    };
    let whole = known.text && key == "input";
    let text = if whole || raw { Some(true) } else { text };
    Ok((cursor.at, key, Argument { before, text, whole, begun: false, raw }))
}

/// An argument in Python's spelling: how many bytes it takes, its name and its value. `None`: the call ends.
fn keyword(bytes: &[u8]) -> Read<Option<(usize, String, String)>> {
    let mut cursor = Cursor { bytes, at: 0, short: Stop::Short };
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
        Err(NoValue::Short) => Err(Stop::Short),
        Err(NoValue::Other) => Err(Stop::Other),
    }
}
