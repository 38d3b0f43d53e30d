//! Which parts of a JSON schema are enforced, and the schema that consists of these alone.
//!
//! llguidance says which keyword it does not know, and not where; what a hostile reference or its own
//! options in a client's schema do to it is worse. So it never sees a client's schema: it sees one in which
//! references point to one flat list, keywords that say nothing are gone, and every other keyword is known
//! to be enforced.
//!
//! What cannot be enforced is refused with keyword and place where a client was promised enforcement
//! (`strict`). Elsewhere it is left out, so that the grammar admits more and never less, and is told.

mod numbers;
mod references;

use std::collections::{HashMap, HashSet};

use llguidance::derivre::RegexBuilder;
use serde_json::{Map, Value, json};

use self::numbers::{Steps, is_exact};
pub(super) use self::references::escaped;
use super::{expression, formats, guarded, limits, words};
use crate::{
    chat::grammar,
    error::{ErrorCode, Fault},
};

/// A schema of which every keyword is enforced.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Enforced {
    pub(super) schema: Value,
    /// JSON pointers to the keywords that were left out.
    pub(super) relaxed: Vec<String>,
}

const TYPES: [&str; 7] = ["null", "boolean", "number", "integer", "string", "array", "object"];
/// Keywords that say something of one type alone. Without a type they stand for alternatives.
const TYPED: [&str; 17] = [
    "properties",
    "patternProperties",
    "additionalProperties",
    "required",
    "minProperties",
    "maxProperties",
    "items",
    "prefixItems",
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "multipleOf",
];
/// A compiled part of a schema.
struct Node {
    schema: Value,
    /// Into how many alternatives llguidance takes it apart.
    alternatives: usize,
}

/// Where in the document a schema stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// As a JSON pointer behind `#`.
    pointer: &'a str,
    /// What `#` means here: the document, or an embedded one with an `$id` of its own.
    base: &'a str,
    depth: usize,
    /// Schemas that lead here, those behind references included.
    chain: usize,
    /// Is it one of several that hold together? Then it cannot say that what it does not know is forbidden.
    shared: bool,
}

/// A keyword, and the schema that it stands in.
#[derive(Clone, Copy)]
struct Keyword<'a> {
    key: &'a str,
    value: &'a Value,
    place: Place<'a>,
}

/// Into how many alternatives a keyword's schema is taken apart, where it is kept.
type Kept = Result<usize, Fault>;

/// It is not taken apart.
const ONE: usize = 1;

pub(super) struct Walk<'a> {
    root: &'a Value,
    strict: bool,
    /// Keywords that count as not enforceable.
    doubtful: &'a [&'a str],
    /// Before 2019-09 nothing counts beside a reference.
    lonely_references: bool,
    relaxed: Vec<String>,
    nodes: usize,
    values: usize,
    /// What all `multipleOf` have in common that may hold at once.
    steps: Steps,
    /// Where each schema behind a reference stands in `definitions`, by its place and whether it is shared.
    known: HashMap<(String, bool), usize>,
    definitions: Vec<Option<Node>>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(root: &'a Value, strict: bool, doubtful: &'a [&'a str]) -> Self {
        let draft = root.get("$schema").and_then(Value::as_str).unwrap_or_default();
        Self {
            root,
            strict,
            doubtful,
            lonely_references: ["draft-03", "draft-04", "draft-06", "draft-07"]
                .iter()
                .any(|old| draft.contains(old)),
            relaxed: Vec::new(),
            nodes: 0,
            values: 0,
            steps: Steps::ONES,
            known: HashMap::new(),
            definitions: Vec::new(),
        }
    }

    /// The schema at that place.
    pub(super) fn run(mut self, pointer: &str) -> Result<Enforced, Fault> {
        let place = Place { pointer, base: "", depth: 0, chain: 0, shared: false };
        let root = self.schema(self.root.pointer(pointer).unwrap_or(self.root), place)?;
        self.no_circles(&root.schema)?;
        let definitions: Map<String, Value> = self
            .definitions
            .into_iter()
            .enumerate()
            .filter_map(|(index, node)| Some((index.to_string(), node?.schema)))
            .collect();
        let schema = match root.schema {
            Value::Object(mut map) if !definitions.is_empty() => {
                map.insert("$defs".to_owned(), Value::Object(definitions));
                Value::Object(map)
            }
            other => other,
        };
        Ok(Enforced { schema, relaxed: self.relaxed })
    }

    fn schema(&mut self, value: &Value, place: Place<'_>) -> Result<Node, Fault> {
        self.nodes += 1;
        if self.nodes > limits::MAX_NODES {
            return Err(beyond(place, &format!("the schema has more than {} parts", limits::MAX_NODES)));
        }
        for (depth, most, what) in [
            (place.depth, limits::MAX_DEPTH, "schemas"),
            (place.chain, limits::MAX_DEPTH_THROUGH_REFERENCES, "schemas and references"),
            (place.pointer.matches('/').count(), limits::MAX_NESTING, "objects and arrays"),
        ] {
            if depth > most {
                let what =
                    format!("the schema is nested too deeply: more than {most} {what} within each other");
                return Err(beyond(place, &what));
            }
        }
        match value {
            Value::Bool(_) => Ok(Node { schema: value.clone(), alternatives: 1 }),
            Value::Object(map) => self.object(map, place),
            _ if self.strict => Err(invalid(place, "a schema must be an object or a boolean")),
            _ => {
                self.relaxed.push(format!("#{}", place.pointer));
                Ok(Node { schema: Value::Bool(true), alternatives: 1 })
            }
        }
    }

    fn object(&mut self, map: &Map<String, Value>, place: Place<'_>) -> Result<Node, Fault> {
        let mut out = Map::new();
        let embedded = map.get("$id").is_some_and(Value::is_string) && !place.pointer.is_empty();
        let place = Place { base: if embedded { place.pointer } else { place.base }, ..place };
        let parts = ["$ref", "anyOf", "oneOf", "allOf", "properties", "patternProperties"];
        let together = parts.iter().filter(|it| map.contains_key(**it)).count() > 1;
        let part = Place { shared: place.shared || together, ..place };
        let typeless = !map.contains_key("type") && TYPED.iter().any(|it| map.contains_key(*it));
        let mut combinations = if typeless { TYPES.len() - 1 } else { 1 };
        for (key, value) in map {
            if self.lonely_references && map.contains_key("$ref") && key != "$ref" {
                continue;
            }
            // What some clients write for a keyword that is not there.
            if value.is_null() && key != "const" {
                continue;
            }
            let it = Keyword { key, value, place };
            let shared = Keyword { place: part, ..it };
            if self.doubtful.contains(&key.as_str()) && key != "oneOf" {
                self.leave_out(it)?;
                continue;
            }
            let alternatives = match key.as_str() {
                "type" => self.types(it, &mut out)?,
                "enum" | "const" => self.constants(it, &mut out)?,
                "$ref" => self.reference(shared, &mut out)?,
                "allOf" | "anyOf" | "oneOf" => self.alternatives(shared, &mut out)?,
                "properties" | "patternProperties" => self.properties(it, &mut out)?,
                "additionalProperties" => self.child(it, &mut out)?,
                "items" | "prefixItems" | "additionalItems" => self.items(it, map, &mut out)?,
                "required" => self.required(it, &mut out)?,
                "minItems" | "maxItems" | "minLength" | "maxLength" | "minProperties" | "maxProperties" => {
                    self.count(it, &mut out)?
                }
                "minimum" | "maximum" | "exclusiveMinimum" | "exclusiveMaximum" | "multipleOf" => {
                    self.number(it, map, &mut out)?
                }
                "pattern" => {
                    let problem = value.as_str().map_or(Some("it is no text".to_owned()), unusable);
                    self.keep_if(problem.is_none(), it, &mut out).map_err(|fault| because(fault, problem))?
                }
                // It says something about strings alone.
                "format" if !may_be(map, "string") => ONE,
                "format" => match value.as_str().and_then(formats::schema) {
                    Some(schema) => {
                        both(&mut out, "allOf", vec![schema]);
                        ONE
                    }
                    None => self.leave_out(it)?,
                },
                "not" => match value {
                    Value::Bool(false) => ONE,
                    Value::Bool(true) => return Ok(Node { schema: Value::Bool(false), alternatives: ONE }),
                    _ => self.leave_out(it)?,
                },
                "unevaluatedProperties" => {
                    // Where nothing else says what properties there are, it is like `additionalProperties`.
                    let others = ["$ref", "anyOf", "oneOf", "allOf", "if"];
                    let alone = !place.shared && !others.iter().any(|it| map.contains_key(*it));
                    let closes = alone && value == &Value::Bool(false);
                    if closes && !map.contains_key("additionalProperties") {
                        out.insert("additionalProperties".to_owned(), Value::Bool(false));
                    }
                    if closes || admits_all(value) { ONE } else { self.leave_out(it)? }
                }
                _ if says_nothing(key, value, map) => ONE,
                _ => self.leave_out(it)?,
            };
            combinations = combinations.saturating_mul(alternatives.max(1));
            if combinations > limits::MAX_COMBINATIONS && alternatives < combinations {
                let what = format!(
                    "{key:?} has to be combined with what stands beside it in more than {} ways",
                    limits::MAX_COMBINATIONS
                );
                return Err(beyond(place, &what));
            }
        }
        self.whole_object(map, place, together, &mut out)?;
        Ok(Node { schema: Value::Object(out), alternatives: combinations })
    }

    /// What has to be seen together.
    fn whole_object(
        &mut self,
        map: &Map<String, Value>,
        place: Place<'_>,
        together: bool,
        out: &mut Map<String, Value>,
    ) -> Result<(), Fault> {
        // Without what it is in addition to, it would forbid more than the client did.
        let lost = |key: &str| map.contains_key(key) && !out.contains_key(key);
        if lost("properties") || lost("patternProperties") {
            out.remove("additionalProperties");
        }
        if map.contains_key("prefixItems") && !out.contains_key("prefixItems") {
            out.remove("items");
        }
        let silent = ["additionalProperties", "unevaluatedProperties", "patternProperties"]
            .iter()
            .all(|key| !map.contains_key(*key));
        let alone = !together && !place.shared;
        if alone && self.strict && silent && out.contains_key("properties") {
            out.insert("additionalProperties".to_owned(), Value::Bool(false));
        }
        let optional = optional(out);
        if optional > limits::MAX_OPTIONAL {
            let what = format!("{optional} properties may be left out, and {} can", limits::MAX_OPTIONAL);
            return Err(beyond(place, &what));
        }
        let of = |key: &str| out.get(key).and_then(Value::as_u64);
        let (least, most) = (of("minProperties").unwrap_or(0), of("maxProperties"));
        let required = out.get("required").and_then(Value::as_array).map_or(0, Vec::len) as u64;
        let free = out.get("additionalProperties") != Some(&Value::Bool(false));
        let one_of_them =
            !free && least <= 1 && most.unwrap_or(1) == 1 && !out.contains_key("patternProperties");
        // A key that comes twice counts once, and no grammar sees to it that it does not.
        let countable = if optional > 0 { one_of_them } else { least <= required + 1 };
        for key in ["minProperties", "maxProperties"] {
            if out.contains_key(key) && !countable {
                out.remove(key);
                self.leave_out(Keyword { key, value: &Value::Null, place })?;
            }
        }
        Ok(())
    }

    fn child(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, place } = it;
        let pointer = format!("{}/{key}", place.pointer);
        let node = self.schema(value, place.within(&pointer))?;
        out.insert(key.to_owned(), node.schema);
        Ok(ONE)
    }

    fn types(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let all = match it.value {
            Value::String(_) => std::slice::from_ref(it.value),
            Value::Array(all) => all,
            _ => &[],
        };
        let known = !all.is_empty() && all.iter().all(|it| it.as_str().is_some_and(|it| TYPES.contains(&it)));
        self.keep_if(known, it, out)?;
        Ok(all.len())
    }

    fn constants(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, place } = it;
        let count = if key == "const" { 1 } else { value.as_array().map_or(0, Vec::len) };
        self.values += count;
        if self.values > limits::MAX_VALUES {
            return Err(beyond(place, &format!("the schema lists more than {} values", limits::MAX_VALUES)));
        }
        self.keep_if(count > 0 && is_exact(value), it, out)?;
        Ok(count)
    }

    fn alternatives(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, place } = it;
        let Some(all) = value.as_array().filter(|it| !it.is_empty()) else {
            return self.leave_out(it);
        };
        let shared = place.shared || (key == "allOf" && all.len() > 1);
        let mut nodes = Vec::with_capacity(all.len());
        let mut count = usize::from(key == "allOf");
        for (index, value) in all.iter().enumerate() {
            let pointer = format!("{}/{key}/{index}", place.pointer);
            let node = self.schema(value, Place { shared, ..place }.within(&pointer))?;
            if key == "allOf" {
                count = count.saturating_mul(node.alternatives);
                if count > limits::MAX_COMBINATIONS {
                    let what = format!(
                        "what is in \"allOf\" has to be combined in more than {} ways",
                        limits::MAX_COMBINATIONS
                    );
                    return Err(beyond(place, &what));
                }
            } else {
                count = count.saturating_add(node.alternatives);
            }
            nodes.push(node.schema);
        }
        let mut key = key;
        if key == "oneOf" && self.doubtful.contains(&key) && nodes.len() > 1 {
            self.leave_out(it)?;
            // "At least one of them" admits more.
            key = "anyOf";
        }
        both(out, key, nodes);
        Ok(count)
    }

    fn properties(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, place } = it;
        let Some(all) = value.as_object() else { return self.leave_out(it) };
        let mut patterns = all.keys().filter(|_| key == "patternProperties");
        if let Some(problem) = patterns.find_map(|it| unusable(it)) {
            return self.leave_out(it).map_err(|fault| because(fault, Some(problem)));
        }
        let mut schemas = Map::new();
        for (name, value) in all {
            let pointer = format!("{}/{key}/{}", place.pointer, escaped(name));
            let node = self.schema(value, Place { shared: false, ..place }.within(&pointer))?;
            schemas.insert(name.clone(), node.schema);
        }
        out.insert(key.to_owned(), Value::Object(schemas));
        Ok(ONE)
    }

    fn items(&mut self, it: Keyword<'_>, map: &Map<String, Value>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, place } = it;
        let place = Place { shared: false, ..place };
        // Before 2020-12 a list stood in `items`, and `additionalItems` was for what came behind it.
        let is_list = |key: &str| map.get(key).is_some_and(Value::is_array);
        match (key, value) {
            ("additionalItems", _) if !is_list("items") => Ok(ONE),
            ("additionalItems", _) => {
                let pointer = format!("{}/{key}", place.pointer);
                let node = self.schema(value, place.within(&pointer))?;
                out.insert("items".to_owned(), node.schema);
                Ok(ONE)
            }
            ("items" | "prefixItems", Value::Array(all)) => {
                let mut nodes = Vec::with_capacity(all.len());
                for (index, value) in all.iter().enumerate() {
                    let pointer = format!("{}/{key}/{index}", place.pointer);
                    nodes.push(self.schema(value, place.within(&pointer))?.schema);
                }
                out.insert("prefixItems".to_owned(), Value::Array(nodes));
                Ok(ONE)
            }
            ("prefixItems", _) => self.leave_out(it),
            _ => self.child(Keyword { place, ..it }, out),
        }
    }

    fn required(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let names = it.value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
        // `required: false` beside a property, as OpenAPI 2 and draft 3 have it, says nothing.
        if it.value == &Value::Bool(false) {
            return Ok(ONE);
        }
        self.keep_if(names, it, out)
    }

    fn count(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { key, value, .. } = it;
        let whole = |it: f64| (it >= 0.0 && it.fract() == 0.0 && it < 1e9).then_some(it as u64);
        let Some(count) = value.as_f64().and_then(whole) else {
            return self.leave_out(it);
        };
        if key.starts_with("max") || count > 0 {
            out.insert(key.to_owned(), Value::from(count));
        }
        Ok(ONE)
    }

    fn keep_if(&mut self, can: bool, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        if !can {
            return self.leave_out(it);
        }
        out.insert(it.key.to_owned(), it.value.clone());
        Ok(ONE)
    }

    fn leave_out(&mut self, Keyword { key, place, .. }: Keyword<'_>) -> Kept {
        if self.strict {
            let message = format!("{key:?} at #{} cannot be enforced", place.pointer);
            return Err(Fault::new(ErrorCode::UnsupportedParameter, message));
        }
        self.relaxed.push(format!("#{}/{key}", place.pointer));
        Ok(ONE)
    }
}

impl<'a> Place<'a> {
    fn within<'b>(self, pointer: &'b str) -> Place<'b>
    where
        'a: 'b,
    {
        Place { pointer, depth: self.depth + 1, chain: self.chain + 1, ..self }
    }
}

/// Adds a list of schemas to what holds already.
fn both(out: &mut Map<String, Value>, key: &str, nodes: Vec<Value>) {
    match out.get_mut(key) {
        Some(Value::Array(all)) if key == "allOf" => all.extend(nodes),
        Some(_) => both(out, "allOf", vec![json!({ key: nodes })]),
        None => {
            out.insert(key.to_owned(), Value::Array(nodes));
        }
    }
}

/// Properties that may be left out.
fn optional(schema: &Map<String, Value>) -> usize {
    let required: HashSet<&str> = grammar::required(schema).collect();
    let names = schema.get("properties").and_then(Value::as_object);
    names.map_or(0, |it| it.keys().filter(|name| !required.contains(name.as_str())).count())
}

/// May an instance be of this type?
fn may_be(schema: &Map<String, Value>, kind: &str) -> bool {
    match schema.get("type") {
        Some(Value::String(only)) => only == kind,
        Some(Value::Array(all)) => all.iter().any(|it| it == kind),
        _ => true,
    }
}

/// Annotations, keywords that nobody knows, and those that need no looking after: they admit everything.
fn says_nothing(key: &str, value: &Value, schema: &Map<String, Value>) -> bool {
    let has = |key: &str| schema.contains_key(key);
    let is = |it: bool| value == &Value::Bool(it);
    let empty = value.as_object().is_some_and(Map::is_empty);
    match key {
        "if" => !has("then") && !has("else"),
        "then" | "else" => !has("if"),
        "minContains" | "maxContains" => !has("contains"),
        "uniqueItems" => is(false) || schema.get("maxItems").and_then(Value::as_u64).is_some_and(|it| it < 2),
        "unevaluatedItems" | "propertyNames" => admits_all(value),
        "dependentRequired" | "dependentSchemas" | "dependencies" => empty,
        "contains" | "$dynamicRef" | "$recursiveRef" | "extends" | "disallow" | "divisibleBy" => false,
        _ => true,
    }
}

/// Is it a schema that admits everything?
fn admits_all(value: &Value) -> bool {
    value == &Value::Bool(true) || value.as_object().is_some_and(Map::is_empty)
}

/// Why llguidance does not take the expression. It is asked, since only it knows.
fn unusable(pattern: &str) -> Option<String> {
    if pattern.len() > limits::MAX_PATTERN {
        return Some(format!(
            "it has {} bytes, and at most {} are allowed",
            pattern.len(),
            limits::MAX_PATTERN
        ));
    }
    let Some(pattern) = expression(pattern, "dw") else { return Some("it ends in a backslash".to_owned()) };
    guarded(|| RegexBuilder::new().mk_regex_for_serach(&pattern).err().map(|it| it.to_string()))
        .unwrap_or_else(Some)
        .map(|message| words::of_expression(&message))
}

fn because(fault: Fault, why: Option<String>) -> Fault {
    let why = why.map_or(String::new(), |it| format!(": {it}"));
    Fault { message: format!("{}{why}", fault.message), ..fault }
}

fn beyond(place: Place<'_>, what: &str) -> Fault {
    Fault::new(ErrorCode::UnsupportedParameter, format!("at #{}: {what}", place.pointer))
}

fn invalid(place: Place<'_>, what: &str) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, format!("at #{}: {what}", place.pointer))
}
