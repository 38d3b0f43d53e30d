//! Arguments that stand between tags, as they are where they are text, and as JSON where they are not.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::{
    Callable, NAME, Rules, arguments::choices, core_terms, is_any_object, quoted, regex_escaped, required,
    within,
};
use crate::chat::{
    parse::is_text,
    syntax::{OPEN, Tags},
};

/// What a tag says of values, where it says of them whether they are text: first of those that are.
const IS_TEXT: [&str; 2] = ["true", "false"];
/// What it says of text where it says of every value of which type it is.
const STRING: &str = "string";
/// What it says there of other values.
const OTHERS: [&str; 5] = ["number", "boolean", "null", "object", "array"];

/// Can what tags say of values be written?
pub(super) fn is_writable(tags: &Tags) -> bool {
    tags.kind.as_ref().is_none_or(|it| [IS_TEXT[0], STRING].contains(&it.0.as_str()))
}

/// What a value may be, and what its tag says of that.
struct Form {
    kind: String,
    /// Terms. `None`: any text, which is what stands before the next closing tag.
    value: Option<String>,
}

impl Form {
    fn new(kind: &str, value: Option<String>) -> Self {
        Self { kind: quoted(kind), value }
    }

    /// Text that is written as it is.
    fn text(kind: &str, of: &Value) -> Self {
        let all = choices(of).map(|all| all.into_iter().filter_map(Value::as_str).map(quoted).collect());
        Self::new(kind, all.map(|it: Vec<_>| it.join(" | ")))
    }

    /// What a value by this schema may be, where its tag says of which type it is.
    fn typed(of: &Value, whole: &Value) -> Vec<Self> {
        let json = |of: &Value| Some(super::json(&within(of, whole)));
        let with_type = |kind: &str| {
            let mut of = of.as_object().cloned().unwrap_or_default();
            of.insert("type".to_owned(), kind.into());
            Self::typed(&Value::Object(of), whole)
        };
        if is_text(of) {
            return vec![Self::text(STRING, of)];
        }
        if let Some(all) = choices(of) {
            let each = all.into_iter().map(|it| match it {
                Value::String(_) => Self::text(STRING, &json!({ "const": it })),
                _ => Self::new(word(it), json(&json!({ "const": it }))),
            });
            return each.collect();
        }
        let of_object = of.as_object().filter(|it| !it.is_empty());
        let branches = ["anyOf", "oneOf"].into_iter().find_map(|it| of.get(it)?.as_array());
        match (of.get("type"), branches) {
            (Some(Value::Array(kinds)), _) => {
                kinds.iter().filter_map(Value::as_str).flat_map(with_type).collect()
            }
            (Some(Value::String(kind)), _) => {
                let kind = if kind == "integer" { OTHERS[0] } else { kind };
                vec![Self::new(kind, json(of))]
            }
            (None, Some(all)) if of_object.is_some_and(|it| it.len() == 1) => {
                all.iter().flat_map(|it| Self::typed(it, whole)).collect()
            }
            (None, None) if of_object.is_none() => {
                [STRING].iter().chain(&OTHERS).flat_map(|it| with_type(it)).collect()
            }
            _ => {
                // Of which type it is follows from more than one keyword. Whoever reads only asks whether it is text.
                let kind = OTHERS.map(quoted).join(" | ");
                vec![Self { kind: format!("({kind})"), value: json(of) }]
            }
        }
    }
}

/// The word for the type of a value that is no text.
fn word(value: &Value) -> &'static str {
    match value {
        Value::Number(_) => OTHERS[0],
        Value::Bool(_) => OTHERS[1],
        Value::Object(_) => OTHERS[3],
        Value::Array(_) => OTHERS[4],
        Value::Null | Value::String(_) => OTHERS[2],
    }
}

impl Rules<'_> {
    /// Arguments in the order of the schema; any, where it names none.
    pub(super) fn tagged(&mut self, tags: &Tags, index: usize, tool: &Callable) -> Option<String> {
        let schema = &tool.schema;
        let kind = tags.kind.as_ref().map_or("", |it| it.0.as_str());
        if is_any_object(schema) {
            let any = self.argument(tags, &format!("value{index}"), NAME, &[Form::new(kind, None)])?;
            return Some(format!("({any})*"));
        }
        let properties = schema.get("properties").and_then(Value::as_object);
        let required: Vec<&str> = schema.as_object().into_iter().flat_map(required).collect();
        let mut all = Vec::new();
        for (number, (key, of)) in properties.into_iter().flatten().enumerate() {
            let mut forms = match kind {
                STRING => Form::typed(of, schema),
                _ if is_text(of) => vec![Form::text(kind, of)],
                "" => vec![Form::new(kind, Some(super::json(&within(of, schema))))],
                _ => vec![Form::new(IS_TEXT[1], Some(super::json(&within(of, schema))))],
            };
            // Texts are all alike, and keep to no rule of theirs.
            let mut has_text = false;
            forms.retain(|it| it.value.is_some() || !std::mem::replace(&mut has_text, true));
            if has_text && of.as_object().is_some_and(|it| it.len() > 1) {
                self.loose.push((tool.name.clone(), format!("#/properties/{key}")));
            }
            let argument = self.argument(tags, &format!("value{index}_{number}"), &quoted(key), &forms)?;
            all.push(if required.contains(&key.as_str()) { argument } else { format!("({argument})?") });
        }
        Some(if all.is_empty() { quoted("") } else { all.join(" ") })
    }

    /// One of them: its name as a term, and what its value may be. A text needs the `rule` for itself.
    fn argument(&mut self, tags: &Tags, rule: &str, key: &str, forms: &[Form]) -> Option<String> {
        let (before, behind) = (self.literal(&tags.before_key)?, self.literal(&tags.after_key)?);
        let mut all = Vec::new();
        for Form { kind, value } in forms {
            let kind = match &tags.kind {
                Some((_, end)) => format!("{kind} {}", self.literal(end)?),
                None => String::new(),
            };
            let value = match value {
                Some(value) => format!("({value}) {}", self.literal(&tags.after_value)?),
                None => self.text(tags, rule)?,
            };
            all.push(format!("{kind} {value}"));
        }
        Some(format!("{before} {key} {behind} ({})", all.join(" | ")))
    }

    /// Any text, up to its closing tag and with that.
    fn text(&mut self, tags: &Tags, rule: &str) -> Option<String> {
        // White space before the mark is for whoever reads: the first mark ends the text. A control token is no text, so
        // that what stands before it in the mark is the last of that.
        let core = tags.after_value.core();
        let plain = core.iter().position(|&it| it == OPEN).unwrap_or(core.len());
        let closing = regex_escaped(std::str::from_utf8(&core[..plain]).ok()?);
        let lazy = if plain == core.len() { "[lazy]" } else { "" };
        let _ = writeln!(self.text, "{rule}{lazy}: /(?s:.*){closing}/");
        let mark = core_terms(&core[plain..], self.written.vocabulary)?.join(" ");
        Some(format!("{rule} {mark} {}", quoted(tags.after_value.trail())))
    }
}
