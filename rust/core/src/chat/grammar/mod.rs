//! How a model has to write calls, as a grammar in Lark.
//!
//! The model's own syntax gives the marks, the tools' schemas what stands between them. What is written by it is
//! what the chat template would render, so that the model sees what it was trained on.

mod arguments;
mod tags;

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::syntax::{
    Body, CLOSE, Frame, Hole, InputSyntax, Literal, Messages, OPEN, Object, Shape, ToolSyntax, control_token,
};
use crate::engine::Vocabulary;

/// A tool that may be called.
#[derive(Clone, Debug)]
pub(crate) struct Callable {
    pub(crate) name: String,
    /// The schema of its input, an object, of which every keyword is enforced.
    pub(crate) schema: Value,
}

/// Calls that are to be put into a grammar.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written<'a> {
    pub(crate) syntax: &'a ToolSyntax,
    pub(crate) tools: &'a [Callable],
    /// More than one?
    pub(crate) several: bool,
    pub(crate) vocabulary: &'a Vocabulary,
}

/// Can calls of that syntax be put into a grammar?
pub(crate) fn is_writable(syntax: &ToolSyntax) -> bool {
    let Body::Pattern { input, .. } = &syntax.body else { return true };
    match input {
        InputSyntax::Json | InputSyntax::Quoted(_) | InputSyntax::Nested(_) => true,
        InputSyntax::Tagged(tags) => tags::is_writable(tags),
    }
}

/// What is put before the rest of a call, so that the grammar of [`rests`] knows which call it is: the tool by its
/// number, and whether the call has the marks of its syntax.
pub(crate) fn selector(tool: usize, marked: bool) -> String {
    format!("{}{tool}:", if marked { 'm' } else { 'u' })
}

/// Rules for at least one call, with all that stands around it; for exactly one, unless `several`. The first of
/// them is `calls`. Texts that are written as they are keep to no rule of their schema: `loose` gets the places of
/// such rules, tool by tool. `None`: see [`is_writable`].
pub(crate) fn calls(written: Written<'_>, loose: &mut Vec<(String, String)>) -> Option<String> {
    let syntax = written.syntax;
    let mut rules = Rules::of(written, loose)?;
    let all = match &syntax.frame {
        Frame::Messages(messages) => rules.messages(messages)?,
        Frame::Elements(elements) => {
            let text = &elements.text;
            let (open, close) = (rules.literal(&text.open)?, rules.literal(&text.close)?);
            // The prompt may have opened it.
            format!("({open})? {close} {} ({})?", rules.section()?, rules.literal(&text.end)?)
        }
        Frame::Plain => rules.section()?,
    };
    let _ = writeln!(rules.text, "calls: {all}");
    Some(rules.text)
}

/// Rules for what follows where the input of a call begins: the rest of that call, and of the section it stands in.
/// The first of them is `rests`; it begins with a [`selector`]. A call without its marks is followed up to the end of
/// its object, or of the list that it stands in. `loose` and `None` as in [`calls`].
pub(crate) fn rests(written: Written<'_>, loose: &mut Vec<(String, String)>) -> Option<String> {
    let syntax = written.syntax;
    let mut rules = Rules::of(written, loose)?;
    let behind = rules.literal(&syntax.call.1)?;
    let close = match &syntax.section {
        Some((_, close)) => rules.literal(close)?,
        None => String::new(),
    };
    // Without its marks a call is an object with one or two braces behind it.
    let braces = if syntax.body.depth() == 0 { "" } else { "(\"}\" \"}\"?)?" };
    let in_messages = matches!(syntax.frame, Frame::Messages(_));
    let (end, unmarked_end) = if in_messages {
        // One in each.
        (format!("{behind} {close}"), String::new())
    } else if is_list(syntax) {
        let more = rules.more()?;
        (format!("{more} \"]\" {behind} {close}"), format!("{braces} {more} \"]\""))
    } else if syntax.section.is_some() {
        let more = rules.more()?;
        (format!("{behind} {more} {close}"), braces.to_owned())
    } else {
        (behind, braces.to_owned())
    };
    let of_each = |marked: bool| {
        let one = |index| format!("{} SPACE? input{index}", quoted(&selector(index, marked)));
        (0..written.tools.len()).map(one).collect::<Vec<_>>().join(" | ")
    };
    let object = quoted(&"}".repeat(syntax.body.depth()));
    let (marked, unmarked) = (of_each(true), of_each(false));
    // The last token may hold what follows it; a message holds nothing else.
    let more = if in_messages { "" } else { "BEHIND?" };
    let _ = writeln!(rules.text, "rests: (({marked}) {object} {end} | ({unmarked}) {unmarked_end}) {more}");
    // A mark has white space behind it that nobody has read yet.
    rules.text.push_str("SPACE: /[ \\t\\r\\n]{1,4}/\nBEHIND: /(?s:.+)/\n");
    Some(rules.text)
}

fn is_list(syntax: &ToolSyntax) -> bool {
    matches!(&syntax.body, Body::Object(Object { list: true, .. }) | Body::Python)
}

/// The grammar so far: a rule `input` for what each tool is given, by its number, and `one` for a call.
struct Rules<'a> {
    written: Written<'a>,
    text: String,
    /// A call of each tool without its marks.
    bodies: Vec<String>,
    loose: &'a mut Vec<(String, String)>,
}

impl<'a> Rules<'a> {
    fn of(written: Written<'a>, loose: &'a mut Vec<(String, String)>) -> Option<Self> {
        if !is_writable(written.syntax) {
            return None;
        }
        let mut rules = Self { written, text: String::new(), bodies: Vec::new(), loose };
        let mut bodies = Vec::new();
        for (index, tool) in written.tools.iter().enumerate() {
            let input = match &written.syntax.body {
                Body::Pattern { input: InputSyntax::Tagged(tags), .. } => rules.tagged(tags, index, tool)?,
                Body::Pattern { input: InputSyntax::Quoted(mark), .. } => rules.quoted(mark, index, tool)?,
                Body::Pattern { input: InputSyntax::Nested(mark), .. } => rules.nested(mark, index, tool)?,
                Body::Python => rules.keywords(index, tool)?,
                _ => json(&tool.schema),
            };
            let _ = writeln!(rules.text, "input{index}: {input}");
            bodies.push(rules.body(index, tool)?);
        }
        let body = bodies.join(" | ");
        let one = if is_list(written.syntax) {
            // The marks stand around all of it.
            format!("({body})")
        } else {
            rules.marked(&format!("({body})"))?
        };
        let _ = writeln!(rules.text, "one: {one}");
        rules.bodies = bodies;
        Some(rules)
    }

    /// Between the marks of a call.
    fn marked(&self, body: &str) -> Option<String> {
        let (before, behind) = &self.written.syntax.call;
        Some(format!("{} {body} {}", self.literal(before)?, self.literal(behind)?))
    }

    /// Between the marks around all calls.
    fn within_section(&self, calls: &str) -> Option<String> {
        match &self.written.syntax.section {
            Some((open, close)) => Some(format!("{} {calls} {}", self.literal(open)?, self.literal(close)?)),
            None => Some(calls.to_owned()),
        }
    }

    /// All calls, with what stands around them.
    fn section(&mut self) -> Option<String> {
        let all = format!("one {}", self.more()?);
        let all =
            if is_list(self.written.syntax) { self.marked(&format!("\"[\" {all} \"]\""))? } else { all };
        self.within_section(&all)
    }

    /// Messages with a call in each.
    fn messages(&mut self, messages: &Messages) -> Option<String> {
        let Written { syntax, tools, several, vocabulary } = self.written;
        let mut all = Vec::new();
        for (tool, body) in tools.iter().zip(&self.bodies) {
            let (before, behind) = messages.call;
            let header = marks(&format!("{before}{}{behind}{}", tool.name, messages.message), vocabulary)?;
            all.push(format!("{header} {}", self.within_section(&self.marked(body)?)?));
        }
        let _ = writeln!(self.text, "message: {}", all.join(" | "));
        let next = marks(&format!("{}{}", messages.ends[0], messages.next), vocabulary)?;
        let more = if several && syntax.parallel { format!("({next} message)*") } else { String::new() };
        Some(format!("{} message {more}", thoughts(messages, vocabulary)?))
    }

    /// A call without its marks.
    fn body(&mut self, index: usize, tool: &Callable) -> Option<String> {
        match &self.written.syntax.body {
            Body::Object(object) => {
                let closing = "}".repeat(self.written.syntax.body.depth());
                Some(format!("{} input{index} {}", quoted(&opening(object, tool)), quoted(&closing)))
            }
            Body::Pattern { pieces, .. } => {
                let mut all = Vec::new();
                for piece in pieces {
                    all.push(match piece {
                        Hole::Name => quoted(&tool.name),
                        Hole::Id => "/[0-9A-Za-z_-]{1,24}/".to_owned(),
                        Hole::Lit(literal) => self.literal(literal)?,
                        Hole::Input => format!("input{index}"),
                    });
                }
                Some(all.join(" "))
            }
            Body::Python => Some(format!("{} input{index}", quoted(&format!("{}(", tool.name)))),
        }
    }

    /// Calls behind the first.
    fn more(&mut self) -> Option<String> {
        let syntax = self.written.syntax;
        if !(self.written.several && syntax.parallel) {
            return Some(String::new());
        }
        let between = if is_list(syntax) { quoted(", ") } else { self.literal(&syntax.between)? };
        Some(format!("({between} one)*"))
    }

    fn literal(&self, literal: &Literal) -> Option<String> {
        terms(literal, self.written.vocabulary)
    }
}

/// Messages that say what the model thinks, up to where the next one begins. Their text is seen by no grammar, nor is the
/// mark that ends it; the mark before it is, where it is chosen.
fn thoughts(messages: &Messages, vocabulary: &Vocabulary) -> Option<String> {
    let [open, message, next] =
        [messages.thoughts, messages.message, messages.next].map(|it| marks(it, vocabulary));
    Some(format!("({} ({})? {})*", open?, message?, next?))
}

/// What stands before and behind the text of an answer.
pub(crate) fn around_text(frame: &Frame, vocabulary: &Vocabulary) -> Option<(String, String)> {
    match frame {
        Frame::Plain => None,
        Frame::Elements(elements) => {
            let text = &elements.text;
            let [open, close, end] = [&text.open, &text.close, &text.end].map(|it| terms(it, vocabulary));
            // The prompt may have opened it.
            Some((format!("({})?", open?), format!("({} ({})?)?", close?, end?)))
        }
        Frame::Messages(messages) => {
            let header = marks(&format!("{}{}", messages.text, messages.message), vocabulary)?;
            Some((format!("{} {header}", thoughts(messages, vocabulary)?), String::new()))
        }
    }
}

/// A text in which control tokens are spelled, as terms.
fn marks(text: &str, vocabulary: &Vocabulary) -> Option<String> {
    terms(&Literal::new(text, vocabulary.control_tokens()), vocabulary)
}

/// A text with its control tokens, as terms.
fn terms(literal: &Literal, vocabulary: &Vocabulary) -> Option<String> {
    if literal.is_blank() {
        return Some(quoted(literal.text()));
    }
    let mut terms: Vec<String> = Vec::new();
    terms.extend(term(literal.lead().as_bytes()));
    terms.extend(core_terms(literal.core(), vocabulary)?);
    terms.extend(term(literal.trail().as_bytes()));
    Some(terms.join(" "))
}

/// The same of what stands between the white space at its edges.
fn core_terms(core: &[u8], vocabulary: &Vocabulary) -> Option<Vec<String>> {
    let mut terms = Vec::new();
    let mut parts = core.split(|&it| it == OPEN);
    terms.extend(term(parts.next()?));
    for part in parts {
        let end = part.iter().position(|&it| it == CLOSE)?;
        terms.push(format!("<[{}]>", control_token(vocabulary, &part[..end])?));
        terms.extend(term(&part[end + 1..]));
    }
    Some(terms)
}

/// What stands before the input of a call that is a JSON object.
fn opening(object: &Object, tool: &Callable) -> String {
    let Object { name_key, input_key, shape, .. } = object;
    let key = |text: &str| Value::from(text).to_string();
    let name = key(&tool.name);
    let flat = format!("{{{}: {name}, {}: ", key(name_key), key(input_key));
    match shape {
        Shape::Flat => flat,
        Shape::Within(within) => format!("{{{}: {flat}", key(within)),
        Shape::NameIsKey => format!("{{{name}: "),
    }
}

/// The name of an argument of which the schema says nothing.
const NAME: &str = "/[A-Za-z_][0-9A-Za-z_]{0,63}/";

/// Does the schema leave it open which properties there are?
fn is_any_object(schema: &Value) -> bool {
    schema.get("properties").is_none() && schema.get("additionalProperties") != Some(&Value::Bool(false))
}

/// The properties that an object by this schema must have.
pub(crate) fn required(schema: &Map<String, Value>) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

/// A term for a text; none for an empty one. It is a part of a string between whole characters.
fn term(text: &[u8]) -> Option<String> {
    (!text.is_empty()).then(|| quoted(&String::from_utf8_lossy(text)))
}

/// A part of a schema by itself: references mean places in the whole, and what holds for white space holds here.
fn within(part: &Value, whole: &Value) -> Value {
    let mut part = part.clone();
    for key in ["$defs", "x-guidance"] {
        if let (Some(part), Some(whole)) = (part.as_object_mut(), whole.get(key)) {
            part.insert(key.to_owned(), whole.clone());
        }
    }
    part
}

/// A term for JSON by a schema.
fn json(schema: &Value) -> String {
    format!("%json {schema}")
}

/// A string of Lark: its escapes are those of JSON.
fn quoted(text: &str) -> String {
    Value::from(text).to_string()
}

fn regex_escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        if character == '\n' {
            escaped.push_str("\\n");
            continue;
        }
        if r"\.+*?()|[]{}^$/#&~-".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}
