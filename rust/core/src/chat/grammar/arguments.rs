//! Arguments that are spelled otherwise than in JSON: as Python's keywords, as Gemma spells objects, and as elements
//! inside elements.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use super::{Callable, NAME, Rules, is_any_object, json, quoted, regex_escaped, required, within};
use crate::chat::{
    parse::is_text,
    syntax::{Literal, OPEN},
    values::ITEM,
};

/// Any value in Gemma's spelling.
const ANYTHING: &str = "anything";
/// Text in it.
const TEXT: &str = "text";

/// A part of a tool's input.
struct Part<'a> {
    tool: &'a Callable,
    /// Its schema, and where that stands in the tool's.
    of: &'a Value,
    place: String,
    /// What its rules are called, which nothing else is.
    rule: String,
}

impl<'a> Part<'a> {
    /// The whole input of the tool with that number.
    fn whole(tool: &'a Callable, index: usize) -> Self {
        Self { tool, of: &tool.schema, place: "#".to_owned(), rule: format!("input{index}") }
    }

    /// Its properties in their order.
    fn properties(&self) -> impl Iterator<Item = (&'a String, Part<'a>)> {
        properties(self.of).enumerate().map(|(number, (key, of))| {
            let (place, rule) =
                (format!("{}/properties/{key}", self.place), format!("{}_{number}v", self.rule));
            (key, Part { tool: self.tool, of, place, rule })
        })
    }

    /// Any of its items.
    fn items(&self) -> Part<'a> {
        let of = self.of.get("items").unwrap_or(&Value::Bool(true));
        Part { tool: self.tool, of, place: format!("{}/items", self.place), rule: format!("{}i", self.rule) }
    }

    fn kind(&self) -> Option<&'a str> {
        self.of.get("type").and_then(Value::as_str)
    }

    fn keywords(&self) -> usize {
        self.of.as_object().map_or(0, Map::len)
    }
}

impl Rules<'_> {
    /// Keyword arguments in the order of the schema, and the bracket behind them.
    pub(super) fn keywords(&mut self, index: usize, tool: &Callable) -> Option<String> {
        let schema = &tool.schema;
        if is_any_object(schema) {
            let any = format!("{NAME} \"=\" {}", json(&within(&Value::Object(Map::new()), schema)));
            return Some(format!("({any} (\", \" {any})*)? \")\""));
        }
        let mut arguments = Vec::new();
        for (key, of) in properties(schema) {
            let value = match of.get("type").and_then(Value::as_str) {
                Some("boolean") if choices(of).is_none() => "(\"True\" | \"False\")".to_owned(),
                _ => json(&within(of, schema)),
            };
            arguments.push((named(key, "=", &value)?, is_required(schema, key)));
        }
        let close = quoted(")");
        Some(self.chain(&format!("input{index}"), &arguments, &quoted(", "), [&close, &close]))
    }

    /// An object in Gemma's spelling: keys without quotation marks, text between marks of its own.
    pub(super) fn quoted(&mut self, mark: &Literal, index: usize, tool: &Callable) -> Option<String> {
        if index == 0 {
            self.spellings(mark)?;
        }
        self.object(mark, &Part::whole(tool, index))
    }

    /// The rules that all of its objects share.
    fn spellings(&mut self, mark: &Literal) -> Option<()> {
        let around = self.literal(mark)?;
        // A control token is no text. Otherwise the first mark ends it.
        if mark.core().contains(&OPEN) {
            let _ = writeln!(self.text, "{TEXT}: {around} /(?s:.*)/ {around}");
        } else {
            let _ = writeln!(self.text, "{TEXT}: {around} quoted");
            let _ = writeln!(self.text, "quoted[lazy]: /(?s:.*){}/", regex_escaped(mark.text()));
        }
        let scalar = json(&serde_json::json!({ "type": ["number", "boolean", "null"] }));
        let list = format!("\"[\" ({ANYTHING} (\",\" {ANYTHING})*)? \"]\"");
        let _ = writeln!(self.text, "{ANYTHING}: {TEXT} | {scalar} | {list} | {}", any_object());
        Some(())
    }

    fn object(&mut self, mark: &Literal, part: &Part<'_>) -> Option<String> {
        if is_any_object(part.of) {
            return Some(any_object());
        }
        let mut arguments = Vec::new();
        for (key, inner) in part.properties() {
            let value = self.spelled(mark, &inner)?;
            arguments.push((named(key, ":", &value)?, is_required(part.of, key)));
        }
        let close = quoted("}");
        Some(format!("\"{{\" {}", self.chain(&part.rule, &arguments, &quoted(","), [&close, &close])))
    }

    /// A value. What is not enforced of it is told.
    fn spelled(&mut self, mark: &Literal, part: &Part<'_>) -> Option<String> {
        if let Some(all) = choices(part.of) {
            let around = self.literal(mark)?;
            let spelled = |it: &Value| match it {
                Value::String(text) => Some(format!("{around} {} {around}", quoted(text))),
                Value::Array(_) | Value::Object(_) => None,
                scalar => Some(quoted(&scalar.to_string())),
            };
            if let Some(all) = all.into_iter().map(spelled).collect::<Option<Vec<_>>>() {
                return Some(format!("({})", all.join(" | ")));
            }
        }
        let keywords = part.keywords();
        let (value, enforced) = match part.kind() {
            Some("string") => (TEXT.to_owned(), 1),
            Some("integer" | "number" | "boolean" | "null") => (scalar(part), keywords),
            Some("array") => {
                let item = self.spelled(mark, &part.items())?;
                let has_items = part.of.get("items").is_some();
                (format!("\"[\" ({item} (\",\" {item})*)? \"]\""), 1 + usize::from(has_items))
            }
            Some("object") => (self.object(mark, part)?, keywords),
            _ => (ANYTHING.to_owned(), 0),
        };
        self.enforced(part, enforced);
        Some(value)
    }

    /// Elements inside elements, each tag behind the mark: objects by their keys, lists as items, all else as it is.
    pub(super) fn nested(&mut self, mark: &Literal, index: usize, tool: &Callable) -> Option<String> {
        if index == 0 {
            self.texts(mark)?;
        }
        if is_any_object(&tool.schema) {
            return Some(format!("({})*", self.any_element(mark)?));
        }
        let whole = Part::whole(tool, index);
        let arguments = self.elements(mark, &whole)?;
        Some(self.chain(&whole.rule, &arguments, "", ["", ""]))
    }

    /// The rule for text up to the next mark, and that mark.
    fn texts(&mut self, mark: &Literal) -> Option<()> {
        if mark.core().contains(&OPEN) {
            let _ = writeln!(self.text, "{TEXT}: /(?s:.*)/ {}", self.literal(mark)?);
        } else {
            let _ = writeln!(self.text, "{TEXT}[lazy]: /(?s:.*){}/", regex_escaped(mark.text()));
        }
        Some(())
    }

    /// A tag behind the mark. A mark that is spelled is no term by itself: it would be the beginning of others that may
    /// stand in the same place, of which the longest counts.
    fn tag(&self, mark: &Literal, tag: &str) -> Option<String> {
        if mark.core().contains(&OPEN) {
            Some(format!("{} {}", self.literal(mark)?, quoted(tag)))
        } else {
            Some(quoted(&format!("{}{tag}", mark.text())))
        }
    }

    fn any_element(&self, mark: &Literal) -> Option<String> {
        Some(format!("{} {NAME} \">\" {TEXT} \"</\" {NAME} \">\"", self.tag(mark, "<")?))
    }

    /// The properties of an object as elements, and whether they must be there.
    fn elements(&mut self, mark: &Literal, part: &Part<'_>) -> Option<Vec<(String, bool)>> {
        let mut all = Vec::new();
        for (key, inner) in part.properties() {
            all.push((self.element(mark, key, &inner)?, is_required(part.of, key)));
        }
        Some(all)
    }

    /// An element with its value. What is not enforced of that is told.
    fn element(&mut self, mark: &Literal, key: &str, part: &Part<'_>) -> Option<String> {
        let closing = format!("</{key}>");
        let ends = self.written.syntax.call.1.text().contains(&closing);
        if key.is_empty() || key.contains(['<', '>', '/']) || key.contains(mark.text()) || ends {
            return None;
        }
        let (of, keywords) = (part.of, part.keywords());
        // What the elements of an object are called tells it from a list.
        let is_list = |of: &Value| {
            of["properties"].get(ITEM).is_some()
                && !properties(of).any(|it| it.0 != ITEM && is_required(of, it.0))
        };
        let (value, enforced) = match (choices(of), part.kind()) {
            (Some(all), _) if is_text(of) => {
                let all = all.into_iter().filter_map(Value::as_str).map(quoted).collect::<Vec<_>>();
                (Some(all.join(" | ")), keywords)
            }
            (Some(all), _) if all.iter().all(|it| !it.is_array() && !it.is_object() && !it.is_string()) => {
                let all = all.into_iter().map(|it| quoted(&it.to_string())).collect::<Vec<_>>();
                (Some(all.join(" | ")), keywords)
            }
            (None, Some("integer" | "number" | "boolean" | "null")) => (Some(scalar(part)), keywords),
            (None, Some("array")) => {
                let item = self.element(mark, ITEM, &part.items())?;
                // Elements do not tell an empty list from an empty text.
                (Some(format!("({item})+ | \"[]\"")), 1 + usize::from(of.get("items").is_some()))
            }
            (None, Some("object")) if is_any_object(of) => {
                (Some(format!("({})+ | \"{{}}\"", self.any_element(mark)?)), 0)
            }
            (None, Some("object")) if !is_list(of) => {
                let all = self.elements(mark, part)?;
                (Some(self.chain(&part.rule, &all, "", [&quoted("{}"), ""])), keywords)
            }
            (None, Some("string")) => (None, 1),
            _ => (None, 0),
        };
        self.enforced(part, enforced);
        let opening = self.tag(mark, &format!("<{key}>"))?;
        Some(match value {
            Some(value) => format!("{opening} ({value}) {}", self.tag(mark, &closing)?),
            None => format!("{opening} {TEXT} {}", quoted(&closing)),
        })
    }

    /// So many of a part's keywords are enforced: where these are not all, that is told.
    fn enforced(&mut self, part: &Part<'_>, keywords: usize) {
        if keywords < part.keywords() {
            self.loose.push((part.tool.name.clone(), part.place.clone()));
        }
    }

    /// Rules for arguments in their order, of which some may be left out, up to what closes them: the first where there
    /// are none. And the first of these rules. The `comma` stands before all but the first that is there.
    fn chain(&mut self, rule: &str, arguments: &[(String, bool)], comma: &str, close: [&str; 2]) -> String {
        let name =
            |number: usize, is_first: bool| format!("{rule}_{number}{}", if is_first { "f" } else { "" });
        for (number, (argument, is_required)) in arguments.iter().enumerate() {
            for is_first in [true, false] {
                let comma = if is_first { "" } else { comma };
                let with = format!("{comma} {argument} {}", name(number + 1, false));
                let without =
                    if *is_required { String::new() } else { format!(" | {}", name(number + 1, is_first)) };
                let _ = writeln!(self.text, "{}: {with}{without}", name(number, is_first));
            }
        }
        for (is_first, close) in [true, false].into_iter().zip(close) {
            let close = if close.is_empty() { "\"\"" } else { close };
            let _ = writeln!(self.text, "{}: {close}", name(arguments.len(), is_first));
        }
        name(0, true)
    }
}

/// An object of whatever it may be.
fn any_object() -> String {
    let pair = format!("{NAME} \":\" {ANYTHING}");
    format!("\"{{\" ({pair} (\",\" {pair})*)? \"}}\"")
}

/// A value that is spelled as in JSON.
fn scalar(part: &Part<'_>) -> String {
    json(&within(part.of, &part.tool.schema))
}

fn properties(schema: &Value) -> impl Iterator<Item = (&String, &Value)> {
    schema.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn is_required(schema: &Value, key: &str) -> bool {
    schema.as_object().is_some_and(|it| required(it).any(|it| it == key))
}

/// The values that it must be one of.
pub(super) fn choices(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum").and_then(Value::as_array)) {
        (Some(only), _) => Some(vec![only]),
        (None, Some(all)) => Some(all.iter().collect()),
        (None, None) => None,
    }
}

/// An argument, if its name can stand without quotation marks.
fn named(key: &str, sign: &str, value: &str) -> Option<String> {
    let is_name = !key.is_empty() && key.chars().all(|it| it == '_' || it.is_alphanumeric());
    is_name.then(|| format!("{} {value}", quoted(&format!("{key}{sign}"))))
}
