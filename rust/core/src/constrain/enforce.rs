//! What of a client's schema is enforced: asks llguidance, and where that does not take it, which part is to blame.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::{
    limits,
    schema::{Enforced, Walk, escaped},
    words,
};
use crate::{
    chat::grammar,
    error::{ErrorCode, Fault},
};

/// Keywords that can be dropped from what is compiled, where llguidance turns out not to compile them, in
/// the order in which that is tried.
const DOUBTFUL: [&[&str]; 3] = [
    &["oneOf"],
    &["oneOf", "patternProperties", "pattern", "format", "multipleOf", "minProperties", "maxProperties"],
    &[
        "oneOf",
        "patternProperties",
        "pattern",
        "format",
        "multipleOf",
        "minProperties",
        "maxProperties",
        "allOf",
        "enum",
        "const",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
    ],
];

/// What of `schema` can be enforced, as `compiles` says: it is asked whether llguidance takes a schema, and
/// gives its words where not.
pub(super) fn enforced<T>(
    schema: &Value,
    strict: bool,
    compiles: impl Fn(&Value) -> Result<T, String>,
) -> Result<(T, Vec<String>), Fault> {
    let first = match attempt(schema, "", strict, &[], &compiles) {
        Ok(done) => return Ok(done),
        Err(Unusable::Refused(fault)) if strict => return Err(fault),
        Err(Unusable::Refused(fault)) => fault,
        Err(Unusable::Uncompiled(why)) if strict => return Err(blame(schema, why, &compiles)),
        Err(Unusable::Uncompiled(why)) => uncompiled("", &why),
    };
    for doubtful in DOUBTFUL {
        if let Ok(done) = attempt(schema, "", false, doubtful, &compiles) {
            return Ok(done);
        }
    }
    match compiles(&json!({ "type": "object" })) {
        Ok(it) => Ok((it, vec!["#".to_owned()])),
        Err(_) => Err(first),
    }
}

/// Why a schema cannot be used.
enum Unusable {
    /// It says what cannot be enforced.
    Refused(Fault),
    /// llguidance does not take what is left of it, in its words.
    Uncompiled(String),
}

/// Compiles the schema at that place.
fn attempt<T>(
    root: &Value,
    pointer: &str,
    strict: bool,
    doubtful: &[&str],
    compiles: &impl Fn(&Value) -> Result<T, String>,
) -> Result<(T, Vec<String>), Unusable> {
    let Enforced { schema, relaxed } =
        Walk::new(root, strict, doubtful).run(pointer).map_err(Unusable::Refused)?;
    compiles(&schema).map(|it| (it, relaxed)).map_err(Unusable::Uncompiled)
}

/// What is said of a strict schema that does not compile: the keyword to blame, or as good as any, and its place.
fn blame<T>(root: &Value, why: String, compiles: &impl Fn(&Value) -> Result<T, String>) -> Fault {
    let (pointer, why) = culprit(root, why, compiles);
    let relaxed = DOUBTFUL.into_iter().filter(|_| !words::is_unmet(&why));
    let helps = |it: &&[&str]| attempt(root, &pointer, false, it, compiles).is_ok();
    let fault = relaxed.filter(helps).find_map(|it| Walk::new(root, true, it).run(&pointer).err());
    match fault {
        Some(fault) => Fault { message: format!("{fault}: {}", words::of_schema(&why)), ..fault },
        None => uncompiled(&pointer, &why),
    }
}

fn uncompiled(pointer: &str, why: &str) -> Fault {
    let why = words::of_schema(why);
    Fault::new(
        ErrorCode::UnsupportedParameter,
        format!("at #{pointer}: the schema cannot be enforced: {why}"),
    )
}

/// The innermost schema that does not compile, where the whole does not for that reason, and what is said of it.
fn culprit<T>(
    root: &Value,
    why: String,
    compiles: &impl Fn(&Value) -> Result<T, String>,
) -> (String, String) {
    let (mut pointer, mut why) = (String::new(), why);
    let (mut seen, mut tries) = (HashSet::new(), 0);
    // What takes too much would take it again.
    while !words::is_too_much(&why) {
        let unmet = words::is_unmet(&why);
        let inner = parts(root, &pointer, unmet).into_iter().find_map(|part| {
            if tries == limits::MAX_TRIES || !seen.insert(part.clone()) {
                return None;
            }
            tries += 1;
            match attempt(root, &part, true, &[], compiles) {
                Err(Unusable::Uncompiled(why)) if words::is_unmet(&why) == unmet => Some((part, why)),
                _ => None,
            }
        });
        let Some(found) = inner else { break };
        (pointer, why) = found;
    }
    (pointer, why)
}

/// The places of schemas within the one at that place. `must`: of those that have to be met.
fn parts(root: &Value, pointer: &str, must: bool) -> Vec<String> {
    let Some(map) = root.pointer(pointer).and_then(Value::as_object) else { return Vec::new() };
    let least = map.get("minItems").and_then(Value::as_u64).unwrap_or(0);
    let required: HashSet<&str> = grammar::required(map).collect();
    let mut found = Vec::new();
    for (key, value) in map {
        let all = |names: Vec<String>| names.into_iter().map(|it| format!("{pointer}/{key}/{it}"));
        match (key.as_str(), value) {
            ("properties" | "patternProperties", Value::Object(inner)) => {
                let names = inner.keys().filter(|it| !must || required.contains(it.as_str()));
                found.extend(all(names.map(|it| escaped(it)).collect()));
            }
            ("allOf", Value::Array(inner)) => found.extend(all(numbers(inner.len()))),
            ("anyOf" | "oneOf", Value::Array(inner)) if !must => found.extend(all(numbers(inner.len()))),
            ("items" | "prefixItems", Value::Array(inner)) => {
                let count = if must { inner.len().min(least as usize) } else { inner.len() };
                found.extend(all(numbers(count)));
            }
            ("items", Value::Object(_)) if !must || least > 0 => found.push(format!("{pointer}/{key}")),
            ("additionalProperties", Value::Object(_)) if !must => found.push(format!("{pointer}/{key}")),
            ("$ref", Value::String(reference)) => {
                let target = Walk::new(root, true, &[]).resolve(reference, "");
                found.extend(target.map(|it| it.1));
            }
            _ => {}
        }
    }
    found
}

fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|it| it.to_string()).collect()
}
