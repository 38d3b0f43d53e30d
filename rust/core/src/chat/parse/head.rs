//! Where a call begins: its marks and its tool's name, up to its input.

use super::{
    Watch,
    cursor::{Cursor, Read, Stop, window},
    input::Input,
    source::{is_blank, shown},
};
use crate::chat::syntax::{Body, Hole, InputSyntax, Literal, Object, Shape, ToolSyntax};

/// Bytes from a mark to the end of the tool's name, at most. Beyond, the mark was text.
pub(super) const HEAD: usize = 1024;
/// The same for an answer that begins like a call without a mark.
pub(super) const BARE_HEAD: usize = 256;

/// The beginning of a call, up to its input.
pub(super) struct Head {
    /// Bytes that it takes.
    pub(super) length: usize,
    /// Which tool.
    pub(super) tool: usize,
    pub(super) input: Input,
    /// Braces of the call's object that are open around the input.
    pub(super) depth: usize,
    /// Does it stand in a block of code?
    pub(super) fenced: bool,
    /// Is there a mark before it?
    pub(super) marked: bool,
}

impl Head {
    /// One behind a mark.
    fn marked(length: usize, tool: usize, input: Input, depth: usize) -> Self {
        Self { length, tool, input, depth, fenced: false, marked: true }
    }
}

/// What all calls of a message begin with.
pub(super) fn opener(tools: &ToolSyntax) -> &Literal {
    match &tools.section {
        Some((open, _)) if !open.is_blank() => open,
        _ => &tools.call.0,
    }
}

pub(super) fn is_list(tools: &ToolSyntax) -> bool {
    match &tools.body {
        Body::Object(object) => object.list,
        body => *body == Body::Python,
    }
}

pub(super) fn is_section(tools: &ToolSyntax) -> bool {
    tools.section.is_some() || is_list(tools)
}

pub(super) fn input_syntax(tools: &ToolSyntax) -> &InputSyntax {
    match &tools.body {
        Body::Pattern { input, .. } => input,
        _ => &InputSyntax::Json,
    }
}

/// Does a call begin here?
pub(super) fn head_at(
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
    body(watch, tools, cursor).map(|head| Head { fenced, marked: false, ..head })
}

/// Does another call of a section begin here?
pub(super) fn next_head(watch: &Watch, tools: &ToolSyntax, mut cursor: Cursor<'_>) -> Read<Head> {
    cursor.literal(&tools.call.0)?;
    body(watch, tools, cursor)
}

fn body(watch: &Watch, tools: &ToolSyntax, mut cursor: Cursor<'_>) -> Read<Head> {
    let tool = |name: &str| watch.known.iter().position(|it| it.name == name).ok_or(Stop::Other);
    match &tools.body {
        Body::Object(syntax) => {
            let head = object(syntax, tool, cursor)?;
            // It was written before anything could hold it to the tool's schema.
            let is_loose = matches!(head.input, Input::Given(_)) && watch.known[head.tool].strict;
            if is_loose { Err(Stop::Other) } else { Ok(head) }
        }
        Body::Python => {
            let name = cursor.until(&[b"("])?;
            cursor.core(b"(")?;
            Ok(Head::marked(cursor.at, tool(&name)?, Input::Keywords(0), 0))
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
                // Behind a mark of its own it begins at once.
                InputSyntax::Json if behind_mark(pieces) => Input::Json,
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
            Ok(Head::marked(cursor.at, found.ok_or(Stop::Other)?, input, 0))
        }
        Body::Harmony => Err(Stop::Other),
    }
}

/// Does a mark stand before the input?
fn behind_mark(pieces: &[Hole]) -> bool {
    let before = pieces.iter().rev().find(|it| !matches!(it, Hole::Input));
    matches!(before, Some(Hole::Lit(literal)) if !literal.is_blank())
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
        // Behind it the input begins, whatever it is: so it is known before any of that is written.
        let colon = cursor.at;
        cursor.blank();
        match &syntax.shape {
            Shape::NameIsKey => return Ok(Head::marked(colon, tool(&key)?, Input::Json, depth)),
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
            if let Some(tool) = found {
                return Ok(Head::marked(colon, tool, Input::Json, depth));
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
    Ok(Head::marked(cursor.at, found.ok_or(Stop::Other)?, Input::Given(given), 0))
}
