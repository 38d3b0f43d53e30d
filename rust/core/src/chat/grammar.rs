//! How a model has to write calls, as a grammar in Lark.
//!
//! The model's own syntax gives the marks, the tools' schemas what stands between them. What is written by it is
//! what the chat template would render, so that the model sees what it was trained on.

use std::fmt::Write as _;

use serde_json::Value;

use super::syntax::{
    Body, CLOSE, Hole, InputSyntax, Literal, OPEN, Object, Shape, Tags, ToolSyntax, control_token,
};
use crate::engine::Vocabulary;

/// A tool that may be called.
#[derive(Clone, Debug)]
pub(crate) struct Callable {
    pub(crate) name: String,
    /// The schema of its input, an object, of which every keyword is enforced.
    pub(crate) schema: Value,
}

/// Rules for at least one call, with all that stands around it; for exactly one, unless `several`. The first of
/// them is `calls`. Texts that are written as they are keep to no rule of their schema: `loose` gets the places of
/// such rules, tool by tool. `None`: calls of that syntax cannot be put into a grammar.
pub(crate) fn calls(
    syntax: &ToolSyntax,
    tools: &[Callable],
    several: bool,
    vocabulary: &Vocabulary,
    loose: &mut Vec<(String, String)>,
) -> Option<String> {
    let mut rules = Rules { vocabulary, text: String::new(), loose };
    let mut bodies = Vec::new();
    for (index, tool) in tools.iter().enumerate() {
        let body = rules.body(syntax, index, tool)?;
        let _ = writeln!(rules.text, "call{index}: {body}");
        bodies.push(format!("call{index}"));
    }
    let in_list = matches!(&syntax.body, Body::Object(Object { list: true, .. }));
    let body = bodies.join(" | ");
    let (before, behind) = (rules.literal(&syntax.call.0)?, rules.literal(&syntax.call.1)?);
    // In a list the marks stand around all of it.
    let (one, between) = if in_list {
        (format!("({body})"), "\", \"".to_owned())
    } else {
        (format!("{before} ({body}) {behind}"), rules.literal(&syntax.between)?)
    };
    let _ = writeln!(rules.text, "one: {one}");
    let all = if several && syntax.parallel { format!("one ({between} one)*") } else { "one".to_owned() };
    let all = if in_list { format!("{before} \"[\" {all} \"]\" {behind}") } else { all };
    let all = match &syntax.section {
        Some((open, close)) => format!("{} {all} {}", rules.literal(open)?, rules.literal(close)?),
        None => all,
    };
    let _ = writeln!(rules.text, "calls: {all}");
    Some(rules.text)
}

/// The grammar so far.
struct Rules<'a> {
    vocabulary: &'a Vocabulary,
    text: String,
    loose: &'a mut Vec<(String, String)>,
}

impl Rules<'_> {
    fn body(&mut self, syntax: &ToolSyntax, index: usize, tool: &Callable) -> Option<String> {
        match &syntax.body {
            Body::Object(object) => Some(object_call(object, tool)),
            Body::Pattern { pieces, input } => {
                let mut all = Vec::new();
                for piece in pieces {
                    all.push(match piece {
                        Hole::Name => quoted(&tool.name),
                        Hole::Id => "/[0-9A-Za-z_-]{1,24}/".to_owned(),
                        Hole::Lit(literal) => self.literal(literal)?,
                        Hole::Input => match input {
                            InputSyntax::Json => json(&tool.schema),
                            InputSyntax::Tagged(tags) => self.tagged(tags, index, tool)?,
                            InputSyntax::Quoted(_) | InputSyntax::Nested(_) => return None,
                        },
                    });
                }
                Some(all.join(" "))
            }
            Body::Python | Body::Harmony => None,
        }
    }

    /// Arguments in the order of the schema. Text is what stands before the next closing tag.
    fn tagged(&mut self, tags: &Tags, index: usize, tool: &Callable) -> Option<String> {
        let schema = &tool.schema;
        if tags.kind.is_some() || tags.after_value.core().contains(&OPEN) {
            return None;
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let required: Vec<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let mut all = Vec::new();
        for (number, (key, of)) in properties.into_iter().flatten().enumerate() {
            let (before, behind) = (self.literal(&tags.before_key)?, self.literal(&tags.after_key)?);
            let rule = format!("value{index}_{number}");
            if is_text(of) {
                if of.as_object().is_some_and(|it| it.len() > 1) {
                    self.loose.push((tool.name.clone(), format!("#/properties/{key}")));
                }
                // White space before the mark is for whoever reads: the first mark ends the text.
                let closing = regex_escaped(std::str::from_utf8(tags.after_value.core()).ok()?);
                let _ = writeln!(self.text, "{rule}[lazy]: /(?s:.*){closing}/");
                let (key_term, trail) = (quoted(key), quoted(tags.after_value.trail()));
                all.push((
                    format!("{before} {key_term} {behind} {rule} {trail}"),
                    required.contains(&key.as_str()),
                ));
            } else {
                // References mean places in the whole schema, and what holds for white space holds here.
                let mut of = of.clone();
                for key in ["$defs", "x-guidance"] {
                    if let (Some(of), Some(whole)) = (of.as_object_mut(), schema.get(key)) {
                        of.insert(key.to_owned(), whole.clone());
                    }
                }
                let closing = self.literal(&tags.after_value)?;
                let value = format!("{before} {} {behind} {} {closing}", quoted(key), json(&of));
                all.push((value, required.contains(&key.as_str())));
            }
        }
        let optional =
            |(text, is_required): (String, bool)| if is_required { text } else { format!("({text})?") };
        Some(all.into_iter().map(optional).collect::<Vec<_>>().join(" "))
    }

    /// A text with its control tokens, as terms.
    fn literal(&self, literal: &Literal) -> Option<String> {
        if literal.is_blank() {
            return Some(quoted(literal.text()));
        }
        let mut terms: Vec<String> = Vec::new();
        terms.extend(term(literal.lead().as_bytes()));
        let mut parts = literal.core().split(|&it| it == OPEN);
        terms.extend(term(parts.next()?));
        for part in parts {
            let end = part.iter().position(|&it| it == CLOSE)?;
            terms.push(format!("<[{}]>", control_token(self.vocabulary, &part[..end])?));
            terms.extend(term(&part[end + 1..]));
        }
        terms.extend(term(literal.trail().as_bytes()));
        Some(terms.join(" "))
    }
}

/// A call that is a JSON object.
fn object_call(object: &Object, tool: &Callable) -> String {
    let Object { name_key, input_key, shape, .. } = object;
    let key = |text: &str| Value::from(text).to_string();
    let (name, input) = (key(&tool.name), json(&tool.schema));
    let flat = |before: &str, behind: &str| {
        let head = format!("{before}{{{}: {name}, {}: ", key(name_key), key(input_key));
        format!("{} {input} {}", quoted(&head), quoted(&format!("}}{behind}")))
    };
    match shape {
        Shape::Flat => flat("", ""),
        Shape::Within(within) => flat(&format!("{{{}: ", key(within)), "}"),
        Shape::NameIsKey => format!("{} {input} {}", quoted(&format!("{{{name}: ")), quoted("}")),
    }
}

/// A term for a text; none for an empty one. It is a part of a string between whole characters.
fn term(text: &[u8]) -> Option<String> {
    (!text.is_empty()).then(|| quoted(&String::from_utf8_lossy(text)))
}

fn is_text(schema: &Value) -> bool {
    schema.get("type").is_some_and(|it| it == "string") && schema.get("enum").is_none()
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
