//! How a model calls tools and marks reasoning, found in its chat template.
//!
//! Conversations with sentinel words are rendered and compared: what a call adds to a message, less the
//! sentinels, are the literals of the syntax. It is used only if the parser, given each probe as rendered,
//! returns the calls that it was made of. It knows no model by its name.

mod around;
mod marks;
mod probes;

use std::{collections::BTreeSet, sync::Arc};

use serde_json::Value;

pub use self::around::{reasoning_syntax, said_syntax};
pub(crate) use self::probes::{SAID, THOUGHT, TOOLS, probe, tools};
use self::{
    marks::{common_prefix, common_suffix, mark_begin, mark_end, shared_begin, shared_end},
    probes::{IDS, KEYS, NUMBER, VALUES},
};
use super::{
    conversation::{Conversation, Message, Part},
    parse::{Found, Known, Parser, Watch},
    syntax::{
        Body, Family, Frame, Hole, InputSyntax, Literal, Object, ReasoningSyntax, Shape, Tags, ToolSyntax,
    },
};
use crate::{
    engine::{Token, Vocabulary, attribute},
    text::control::ControlTokens,
};

/// Renders a conversation as the model's template does, without the beginning of an answer.
pub type Render<'a> = &'a dyn Fn(&Conversation) -> Option<String>;

/// Why no syntax was found.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Underivable(pub String);

/// What may be looked for in literals, and what ends an answer.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    vocabulary: &'a Vocabulary,
}

impl<'a> Tokens<'a> {
    /// Of a model.
    pub fn of(vocabulary: &'a Vocabulary) -> Self {
        Self { vocabulary }
    }

    fn control(self) -> &'a ControlTokens {
        self.vocabulary.control_tokens()
    }

    /// A literal in which control tokens are tokens.
    pub fn literal(self, text: impl Into<String>) -> Literal {
        Literal::new(text, self.control())
    }

    /// The texts of tokens that end an answer.
    fn ends(self) -> BTreeSet<String> {
        (0..self.vocabulary.len() as Token)
            .filter(|&it| self.vocabulary.has(it, attribute::END_OF_GENERATION))
            .map(|it| String::from_utf8_lossy(self.vocabulary.token_bytes(it)).into_owned())
            .filter(|it| !it.is_empty())
            .collect()
    }
}

/// What a call adds to a message.
struct Region {
    text: String,
}

/// The JSON value that begins there, and where it ends.
fn json_at(text: &str, at: usize) -> Option<(Value, usize)> {
    let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Value>();
    let value = values.next()?.ok()?;
    Some((value, at + values.byte_offset()))
}

/// Where an object with the key and the value of that number stands.
fn input_span(text: &str, which: usize) -> Option<(usize, usize)> {
    let key = text.find(&format!("\"{}\"", KEYS[which]))?;
    let begin = text[..key].rfind('{')?;
    let (value, end) = json_at(text, begin)?;
    let wanted = serde_json::json!({ KEYS[which]: VALUES[which] });
    (value == wanted).then_some((begin, end))
}

/// The object that holds the name and the input of a call, its keys, and where it stands.
fn object_span(text: &str, which: usize) -> Option<(String, String, Shape, (usize, usize))> {
    let (inner, inner_end) = input_span(text, which)?;
    let name = Value::from(TOOLS[which]);
    let input = serde_json::json!({ KEYS[which]: VALUES[which] });
    for (begin, _) in text[..inner].match_indices('{') {
        let Some((Value::Object(outer), end)) = json_at(text, begin) else { continue };
        if end < inner_end {
            continue;
        }
        let flat = |outer: &serde_json::Map<String, Value>| {
            let name_key = outer.iter().find(|it| *it.1 == name)?.0.clone();
            let input_key = outer.iter().find(|it| *it.1 == input)?.0.clone();
            Some((name_key, input_key))
        };
        if let Some((name_key, input_key)) = flat(&outer) {
            return Some((name_key, input_key, Shape::Flat, (begin, end)));
        }
        if outer.get(TOOLS[which]) == Some(&input) {
            return Some((String::new(), String::new(), Shape::NameIsKey, (begin, end)));
        }
        for (key, value) in &outer {
            if let Some((name_key, input_key)) = value.as_object().and_then(flat) {
                return Some((name_key, input_key, Shape::Within(key.clone()), (begin, end)));
            }
        }
    }
    None
}

/// Finds the syntax of tool calls.
pub fn tool_syntax(
    render: Render<'_>,
    tokens: Tokens<'_>,
    reasoning: Option<&ReasoningSyntax>,
) -> Result<ToolSyntax, Underivable> {
    // Some templates write the last message of a conversation in another way.
    let followed = |conversation: &Conversation| {
        let mut conversation = conversation.clone();
        conversation
            .messages
            .push(Message::User { parts: vec![Part::Text("THENALPHA".to_owned())], name: None });
        render(&conversation)
    };
    find(render, tokens, reasoning).or_else(|why| find(&followed, tokens, reasoning).map_err(|_| why))
}

fn find(
    render: Render<'_>,
    tokens: Tokens<'_>,
    reasoning: Option<&ReasoningSyntax>,
) -> Result<ToolSyntax, Underivable> {
    let failed = |what: &str| Underivable(what.to_owned());
    let said = render(&probe(SAID, "", &[])).ok_or_else(|| failed("a message of text is not rendered"))?;
    let regions = Regions { said: &said, tokens, reasoning };
    let region = |probe: &Conversation| render(probe).and_then(|it| regions.of(&it));
    let one = format!("{{\"{}\": \"{}\"}}", KEYS[0], VALUES[0]);
    let other = format!("{{\"{}\": \"{}\"}}", KEYS[1], VALUES[1]);
    let single = region(&probe("", "", &[(0, &one)])).ok_or_else(|| failed("a call is not rendered"))?;
    if !single.text.contains(TOOLS[0]) {
        return Err(failed("a call is not rendered"));
    }
    let double = region(&probe("", "", &[(0, &one), (1, &other)])).filter(|it| it.text.contains(VALUES[1]));

    let draft = if let Some((name_key, input_key, shape, span)) = object_span(&single.text, 0) {
        let second =
            double.as_ref().and_then(|it| Some((object_span(&it.text, 0)?.3, object_span(&it.text, 1)?.3)));
        let object = Object { name_key, input_key, shape, list: false };
        Draft { body: Body::Object(object), span, second }
    } else {
        let found = pattern(&single.text, double.as_ref(), tokens, &|input: &str| {
            region(&probe("", "", &[(0, input)])).map(|it| it.text)
        });
        found.ok_or_else(|| failed("name and arguments of a call are not found in what is rendered"))?
    };
    let mut syntax = draft.around(&single.text, double.as_ref(), tokens);

    let both = render(&probe(SAID, "", &[(0, &one)]));
    syntax.anywhere = both.is_some_and(|it| {
        let core = opener(&syntax).text().trim();
        let follows = it.rfind(SAID).map(|at| &it[at + SAID.len()..]);
        !core.is_empty() && follows.is_some_and(|it| it.find(core).is_some_and(|at| !it[..at].contains('\n')))
    });
    verify(&syntax, render, &regions)?;
    Ok(syntax)
}

fn opener(syntax: &ToolSyntax) -> &Literal {
    match &syntax.section {
        Some((open, _)) if !open.is_blank() => open,
        _ => &syntax.call.0,
    }
}

/// What the calls of probes are compared with.
struct Regions<'a> {
    /// A message of text alone.
    said: &'a str,
    tokens: Tokens<'a>,
    reasoning: Option<&'a ReasoningSyntax>,
}

impl Regions<'_> {
    /// What stands in a rendering in the place of what was said.
    fn of(&self, rendered: &str) -> Option<Region> {
        let begin = common_prefix(rendered, self.said);
        let begin = mark_begin(rendered, begin).min(mark_begin(self.said, begin));
        let mut end = rendered.len() - common_suffix(&rendered[begin..], &self.said[begin..]);
        if mark_begin(rendered, end) >= begin {
            end = mark_end(rendered, end);
        }
        let mut text = rendered.get(begin..end)?.to_owned();
        // Reasoning that is empty stands before a call in some templates and before text in none.
        if let Some(reasoning) = self.reasoning {
            let (open, close) = (reasoning.open.text().trim(), reasoning.close.text().trim());
            let inner = text.trim_start();
            let rest = inner.strip_prefix(open).unwrap_or(inner).trim_start();
            if let Some(rest) = rest.strip_prefix(close) {
                text = rest.trim_start().to_owned();
            }
        }
        for mark in self.tokens.ends() {
            if let Some(at) = text.find(&mark).filter(|&at| TOOLS.iter().any(|it| text[..at].contains(it))) {
                text.truncate(at);
            }
        }
        Some(Region { text })
    }
}

/// A body that was found, and where it stands.
struct Draft {
    body: Body,
    /// In the rendering of one call.
    span: (usize, usize),
    /// In that of two.
    second: Option<((usize, usize), (usize, usize))>,
}

impl Draft {
    /// The syntax with the literals around the body.
    fn around(mut self, single: &str, double: Option<&Region>, tokens: Tokens<'_>) -> ToolSyntax {
        let (mut before, mut after) = (&single[..self.span.0], &single[self.span.1..]);
        let mid = self.second.zip(double).map(|((first, second), it)| &it.text[first.1..second.0]);
        let literal = |text: &str| tokens.literal(text);
        let in_list = before.trim_end().ends_with('[') && after.trim_start().starts_with(']');
        let is_list = in_list && mid.is_none_or(|it| it.trim() == ",");
        let mut section = None;
        let (mut call, mut between) = ((before, after), "");
        if is_list && matches!(self.body, Body::Object(_) | Body::Python) {
            if let Body::Object(object) = &mut self.body {
                object.list = true;
            }
            before = before.trim_end().trim_end_matches('[');
            after = after.trim_start().strip_prefix(']').unwrap_or(after);
            (section, call) = (Some((literal(before), literal(after))), ("", ""));
        } else if let Some(mid) = mid {
            let open = shared_end(before, mid);
            let close = shared_begin(&mid[..mid.len() - open.len()], after);
            between = &mid[close.len()..mid.len() - open.len()];
            let mut around = (&before[..before.len() - open.len()], &after[close.len()..]);
            if around.1.trim().is_empty() && !around.0.trim().is_empty() {
                // Some close a section only behind several calls.
                let all = self.second.zip(double).map(|((_, second), it)| &it.text[second.1..]);
                around.1 = all.and_then(|it| it.strip_prefix(close)).unwrap_or(around.1);
            }
            if !around.0.trim().is_empty() || !around.1.trim().is_empty() {
                section = Some((literal(around.0), literal(around.1)));
            }
            call = (open, close);
        }
        let call = (literal(call.0), literal(call.1));
        let mut syntax = ToolSyntax {
            section,
            call,
            between: literal(between),
            body: self.body,
            anywhere: false,
            bare: false,
            family: Family::Derived,
            parallel: mid.is_some(),
            frame: Frame::Plain,
        };
        // Small models forget the mark of an object, which is not mistaken for anything else.
        let is_object = matches!(&syntax.body, Body::Object(object) if !object.list);
        syntax.bare = opener(&syntax).is_blank() || is_object;
        syntax
    }
}

/// A call that is no JSON object.
fn pattern(
    single: &str,
    double: Option<&Region>,
    tokens: Tokens<'_>,
    with: &dyn Fn(&str) -> Option<String>,
) -> Option<Draft> {
    let call = Written::find(single, 0)?;
    let literal = |text: &str| tokens.literal(text);
    let second = double.and_then(|it| {
        let first = Written::find(&it.text, 0)?;
        Some((first, Written::find_from(&it.text, 1, first.value.1)?, it.text.as_str()))
    });

    if let Some(span) = input_span(single, 0) {
        let other = second.map(|(_, it, text)| {
            let end = text[it.name.1..].find('{').map_or(it.name.1, |at| it.name.1 + at);
            it.between(text, end)
        });
        let mut pieces = call.pieces(single, span.0, other, tokens);
        pieces.push(Hole::Input);
        let body = Body::Pattern { pieces, input: InputSyntax::Json };
        let second = second.and_then(|(first, other, text)| {
            let (one, two) = (input_span(text, 0)?, input_span(text, 1)?);
            Some(((first.begin(), one.1), (other.begin(), two.1)))
        });
        return Some(Draft { body, span: (call.begin(), span.1), second });
    }

    let between = &single[call.key.1..call.value.0];
    let after = &single[call.value.1..];
    let head = &single[call.name.1..call.key.0];
    // Python: name(key='value').
    if head == "(" && matches!(between, "='" | "=\"") {
        let end = call.value.1 + after.find(')')? + 1;
        let second = second.and_then(|(first, other, text)| {
            let end = |it: &Written| text[it.value.1..].find(')').map(|at| it.value.1 + at + 1);
            Some(((first.name.0, end(&first)?), (other.name.0, end(&other)?)))
        });
        return Some(Draft { body: Body::Python, span: (call.name.0, end), second });
    }
    // Gemma: name{key:<mark>value<mark>}.
    if head == "{"
        && let Some(mark) = between.strip_prefix(':').filter(|it| !it.is_empty())
        && let Some(rest) = after.strip_prefix(mark)
        && rest.starts_with('}')
    {
        let width = mark.len() + 1;
        let body = Body::Pattern {
            pieces: vec![Hole::Name, Hole::Input],
            input: InputSyntax::Quoted(literal(mark)),
        };
        let second = second.map(|(first, other, _)| {
            ((first.name.0, first.value.1 + width), (other.name.0, other.value.1 + width))
        });
        return Some(Draft { body, span: (call.name.0, call.value.1 + width), second });
    }
    // Elements: <mark><key>value<mark></key>.
    let closing = format!("</{}>", KEYS[0]);
    if between == ">"
        && let Some(end) = after.find(&closing)
        && let Some(before) = head.strip_suffix('<')
        && !after[..end].trim().is_empty()
        && before.ends_with(&after[..end])
    {
        let mark = &after[..end];
        let mut pieces = vec![Hole::Name];
        let behind = &before[..before.len() - mark.len()];
        if !behind.trim().is_empty() {
            pieces.push(Hole::Lit(literal(behind)));
        }
        pieces.push(Hole::Input);
        let body = Body::Pattern { pieces, input: InputSyntax::Nested(literal(mark)) };
        let second = second.map(|(first, other, text)| {
            let end = |it: &Written, which: usize| {
                let closing = format!("</{}>", KEYS[which]);
                text[it.value.1..].find(&closing).map_or(it.value.1, |at| it.value.1 + at + closing.len())
            };
            ((first.name.0, end(&first, 0)), (other.name.0, end(&other, 1)))
        });
        return Some(Draft { body, span: (call.name.0, call.value.1 + end + closing.len()), second });
    }

    // Tags.
    let pair = with(&format!("{{\"{}\": \"{}\", \"{}\": \"{}\"}}", KEYS[0], VALUES[0], KEYS[1], VALUES[1]))?;
    let first = Written::find(&pair, 0)?;
    let key = pair[first.value.1..].find(KEYS[1])? + first.value.1;
    let last = pair[key..].find(VALUES[1])? + key + VALUES[1].len();
    let mid = &pair[first.value.1..key];
    let mut before_key = shared_end(head, mid);
    let mut after_value = shared_begin(mid, &pair[last..]);
    // What follows the name without arguments, too, is no part of the first one.
    let empty = with("{}").unwrap_or_default();
    let behind = empty.rfind(TOOLS[0]).map_or("", |at| &empty[at + TOOLS[0].len()..]);
    let shared = shared_begin(head, behind).trim_end().len();
    if shared + before_key.len() > head.len() && mid.ends_with(&head[shared..]) {
        before_key = &head[shared..];
        after_value = &mid[..mid.len() - before_key.len()];
    }
    let name_end = call.key.0 - before_key.len();
    let second_head = second.map(|(_, other, text)| other.between(text, other.key.0 - before_key.len()));
    let mut pieces = call.pieces(single, name_end, second_head, tokens);
    pieces.push(Hole::Input);
    let number = with(&format!("{{\"{}\": {NUMBER}}}", KEYS[0]));
    let other = number.as_deref().and_then(|it| {
        let key = it.rfind(KEYS[0])? + KEYS[0].len();
        Some(&it[key..it[key..].find(NUMBER)? + key])
    });
    let (after_key, kind) = match other {
        Some(other) if other != between => {
            let (begin, end) = word_that_differs(between, other);
            (literal(&between[..begin]), Some((between[begin..end].to_owned(), literal(&between[end..]))))
        }
        _ => (literal(between), None),
    };
    let tags = Tags { before_key: literal(before_key), after_key, kind, after_value: literal(after_value) };
    let width = after_value.len();
    let second = second.map(|(first, other, _)| {
        ((first.begin(), first.value.1 + width), (other.begin(), other.value.1 + width))
    });
    let body = Body::Pattern { pieces, input: InputSyntax::Tagged(tags) };
    Some(Draft { body, span: (call.begin(), call.value.1 + width), second })
}

/// The word in which one text differs from another.
fn word_that_differs(one: &str, other: &str) -> (usize, usize) {
    let is_word = |it: char| it.is_alphanumeric();
    let begin = common_prefix(one, other);
    let begin = one[..begin].trim_end_matches(is_word).len();
    let end = one.len() - common_suffix(&one[begin..], &other[begin..]);
    let end = one.len() - one[end..].trim_start_matches(is_word).len();
    (begin, end)
}

/// Where the parts of a call stand.
#[derive(Clone, Copy)]
struct Written {
    id: Option<(usize, usize)>,
    name: (usize, usize),
    key: (usize, usize),
    value: (usize, usize),
}

impl Written {
    fn find(text: &str, which: usize) -> Option<Self> {
        Self::find_from(text, which, 0)
    }

    fn find_from(text: &str, which: usize, from: usize) -> Option<Self> {
        let find =
            |what: &str, from: usize| text[from..].find(what).map(|at| (from + at, from + at + what.len()));
        let key = find(KEYS[which], from)?;
        let value = find(VALUES[which], key.1)?;
        // A name may stand in a header, too: the last one before the arguments counts.
        let name = text[from..key.0].rfind(TOOLS[which])? + from;
        let id = find(IDS[which], from).filter(|it| it.1 <= key.0);
        Some(Self { id, name: (name, name + TOOLS[which].len()), key, value })
    }

    /// Where the first of name and id stands.
    fn begin(&self) -> usize {
        self.id.map_or(self.name.0, |it| it.0.min(self.name.0))
    }

    /// What stands between the name, or an id behind it, and a place.
    fn between<'a>(&self, text: &'a str, end: usize) -> &'a str {
        let begin = self.id.map_or(self.name.1, |it| it.1.max(self.name.1));
        text.get(begin..end).unwrap_or("")
    }

    /// Name, id and the literals up to that place. `other`: what stands there in a second call.
    fn pieces(&self, text: &str, end: usize, other: Option<&str>, tokens: Tokens<'_>) -> Vec<Hole> {
        let mut pieces = Vec::new();
        match self.id {
            Some(id) if id.0 < self.name.0 => {
                pieces.extend([Hole::Id, Hole::Lit(tokens.literal(&text[id.1..self.name.0])), Hole::Name]);
            }
            Some(id) => {
                pieces.extend([Hole::Name, Hole::Lit(tokens.literal(&text[self.name.1..id.0])), Hole::Id]);
            }
            None => pieces.push(Hole::Name),
        }
        let last = self.between(text, end);
        match other {
            // A number that counts the calls.
            Some(other) if other != last && !other.is_empty() => {
                let (begin, end) = word_that_differs(last, other);
                pieces.extend([
                    Hole::Lit(tokens.literal(&last[..begin])),
                    Hole::Id,
                    Hole::Lit(tokens.literal(&last[end..])),
                ]);
            }
            _ if last.trim().is_empty() => {}
            _ => pieces.push(Hole::Lit(tokens.literal(last))),
        }
        pieces
    }
}

/// Are the calls read back from what the template makes of them?
fn verify(syntax: &ToolSyntax, render: Render<'_>, regions: &Regions<'_>) -> Result<(), Underivable> {
    let probes: [(&str, &[(usize, &str)]); 8] = [
        ("", &[(0, "{}")]),
        ("", &[(1, r#"{"keybeta": "VALUEBETA"}"#)]),
        ("", &[(0, r#"{"keyalpha": "VALUEALPHA", "keybeta": "two words"}"#)]),
        ("", &[(0, r#"{"keygamma": 73519}"#)]),
        ("", &[(0, r#"{"keygamma": [1, {"a": "b"}]}"#)]),
        ("", &[(0, r#"{"keyalpha": "it's \"so\": a < b,\n{c}"}"#)]),
        (SAID, &[(0, r#"{"keyalpha": "VALUEALPHA"}"#)]),
        ("", &[(0, r#"{"keyalpha": "VALUEALPHA"}"#), (1, r#"{"keybeta": "VALUEBETA"}"#)]),
    ];
    for (text, calls) in probes {
        if calls.len() > 1 && !syntax.parallel {
            continue;
        }
        let Some(rendered) = render(&probe(text, "", calls)) else {
            return Err(Underivable(format!("the probe {calls:?} is not rendered")));
        };
        let mut region = regions.of(&rendered).map(|it| it.text).unwrap_or_default();
        if !text.is_empty() {
            // Some templates drop calls behind text, some write the text behind the calls.
            let Some((_, behind)) =
                rendered.split_once(text).filter(|it| it.1.contains(&region) && region.contains(TOOLS[0]))
            else {
                continue;
            };
            let end = behind.find(&region).map_or(0, |at| at + region.len());
            region = format!("{text}{}", &behind[..end]);
        }
        let read = read(syntax, &region, regions.tokens);
        let expected: Vec<(String, Value)> = calls
            .iter()
            .map(|(tool, input)| (TOOLS[*tool].to_owned(), serde_json::from_str(input).unwrap_or_default()))
            .collect();
        let said = read.0.replace(SAID, "");
        if read.1 != expected || !said.trim().is_empty() {
            return Err(Underivable(format!(
                "the probe {calls:?} is rendered as {region:?} and read as {read:?}"
            )));
        }
    }
    Ok(())
}

/// Text and calls of an answer, as the parser reads it.
fn read(syntax: &ToolSyntax, answer: &str, tokens: Tokens<'_>) -> (String, Vec<(String, Value)>) {
    let watch = Watch {
        tools: Some(Arc::new(syntax.clone())),
        known: tools().iter().map(Known::of).collect(),
        parallel: true,
        ..Watch::default()
    };
    let mut parser = Parser::new(Arc::new(watch));
    let mut parsed = Vec::new();
    let mut begin = 0;
    for token in tokens.control().find(answer) {
        parser.push(&answer[begin..token.start], &mut parsed);
        parser.push_control(answer[token.clone()].as_bytes(), &mut parsed);
        begin = token.end;
    }
    parser.push(&answer[begin..], &mut parsed);
    parser.finish(true, &mut parsed);
    let (mut text, mut calls, mut input) = (String::new(), Vec::new(), None);
    for part in parsed {
        match part.found {
            Found::Text(more) => text.push_str(&more),
            Found::CallBegan(name) => input = Some((name, String::new())),
            Found::Input(more) => {
                if let Some((_, input)) = &mut input {
                    input.push_str(&more);
                }
            }
            Found::CallEnded => {
                if let Some((name, input)) = input.take() {
                    calls.push((name, serde_json::from_str(&input).unwrap_or_default()));
                }
            }
            Found::Control(_) | Found::Reasoning(_) => {}
        }
    }
    (text, calls)
}
