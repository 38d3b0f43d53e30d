//! Where a call begins: its marks and its tool's name, up to its input.

use super::{
    Watch,
    cursor::{Cursor, Read, Stop, window},
    input::Input,
    source::{control_length, is_blank, shown},
};
use crate::chat::syntax::{Body, Hole, InputSyntax, OPEN, Object, Shape, ToolSyntax};

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
    /// Does all that its syntax has before it stand there?
    pub(super) marked: bool,
}

impl Head {
    /// One behind a mark.
    fn marked(length: usize, tool: usize, input: Input, depth: usize) -> Self {
        Self { length, tool, input, depth, fenced: false, marked: true }
    }
}

/// What the first call of a message may begin with, and whether that is the mark of the section.
pub(super) fn openers(tools: &ToolSyntax) -> impl Iterator<Item = (&[u8], bool)> {
    let section = tools.section.as_ref().map(|it| it.0.core()).filter(|it| !it.is_empty());
    section.map(|it| (it, true)).into_iter().chain(call_openers(tools).map(|it| (it, false)))
}

/// What a call may begin with: its mark, and less of it, as some models have it: the last line of the mark, or the
/// token that it begins with, if nothing else begins with that.
fn call_openers(tools: &ToolSyntax) -> impl Iterator<Item = &[u8]> {
    let whole = tools.call.0.core();
    let line = whole.iter().rposition(|&it| it == b'\n').map(|at| &whole[at + 1..]);
    let token = control_length(whole).filter(|&it| it < whole.len() && !whole[it..].contains(&OPEN));
    let section = tools.section.as_ref().map_or(&[][..], |it| it.0.core());
    let token = token.filter(|&it| !section.starts_with(&whole[..it]));
    let all = [Some(whole), line, token.map(|it| &whole[..it])];
    all.into_iter().flatten().filter(|it| !it.is_empty())
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
    for (at, (opener, is_section)) in openers(tools).enumerate() {
        if opener[0] != OPEN && !tools.anywhere && !line {
            continue;
        }
        let mut cursor = window(bytes, HEAD, short);
        let found = cursor.core(opener).and_then(|()| {
            if is_list(tools) {
                cursor.byte(b'[')?;
            }
            if is_section {
                cursor.literal(&tools.call.0)?;
            }
            body(watch, tools, cursor)
        });
        if found.as_ref().err() != Some(&Stop::Other) {
            return found.map(|head| Head { marked: at == 0, ..head });
        }
    }
    if tools.bare && fresh && !bytes.first().is_some_and(|&it| is_blank(it)) {
        return bare(watch, tools, window(bytes, BARE_HEAD, short));
    }
    Err(Stop::Other)
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
pub(super) fn next_head(watch: &Watch, tools: &ToolSyntax, cursor: Cursor<'_>) -> Read<Head> {
    if tools.call.0.is_blank() {
        return body(watch, tools, cursor);
    }
    for opener in call_openers(tools) {
        let mut cursor = cursor;
        cursor.blank();
        let found = cursor.core(opener).and_then(|()| body(watch, tools, cursor));
        if found.as_ref().err() != Some(&Stop::Other) {
            return found;
        }
    }
    Err(Stop::Other)
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
            let mut rest = &pieces[..];
            while let [piece, behind @ ..] = rest {
                rest = behind;
                match piece {
                    Hole::Lit(literal) => {
                        let before = cursor.at;
                        let read = cursor.literal(literal);
                        if let (Err(stop), [Hole::Id, Hole::Lit(next), behind @ ..]) = (read, behind) {
                            // Some models leave the id out.
                            cursor.at = before;
                            cursor.literal(next).map_err(|it| if it == Stop::Other { stop } else { it })?;
                            rest = behind;
                        } else {
                            read?;
                        }
                    }
                    Hole::Id | Hole::Name => {
                        let word = cursor.until(&stops(behind, input, tools))?;
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
    }
}

/// Does a mark stand before the input?
fn behind_mark(pieces: &[Hole]) -> bool {
    let before = pieces.iter().rev().find(|it| !matches!(it, Hole::Input));
    matches!(before, Some(Hole::Lit(literal)) if !literal.is_blank())
}

/// What a name or an id ends at.
fn stops<'a>(behind: &'a [Hole], input: &'a InputSyntax, tools: &'a ToolSyntax) -> Vec<&'a [u8]> {
    let mut all: Vec<&[u8]> = Vec::new();
    if let [Hole::Lit(literal), rest @ ..] = behind
        && !literal.is_blank()
    {
        all.push(literal.core());
        if let [Hole::Id, Hole::Lit(next), ..] = rest {
            all.push(next.core());
        }
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
