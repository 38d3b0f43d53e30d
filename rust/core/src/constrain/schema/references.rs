//! References: what they mean, and where it stands.

use serde_json::{Map, Value};

use super::{Kept, Keyword, Place, Walk};
use crate::error::{ErrorCode, Fault};

impl<'a> Walk<'a> {
    pub(super) fn reference(&mut self, it: Keyword<'_>, out: &mut Map<String, Value>) -> Kept {
        let Keyword { value, place, .. } = it;
        let Some((target, pointer, base)) = value.as_str().and_then(|it| self.resolve(it, place.base)) else {
            return self.leave_out(it);
        };
        let key = (pointer, place.shared);
        let index = if let Some(&index) = self.known.get(&key) {
            index
        } else {
            let index = self.definitions.len();
            self.definitions.push(None);
            self.known.insert(key.clone(), index);
            let inside = Place { pointer: &key.0, base: &base, depth: 0, chain: place.chain + 1, ..place };
            let node = self.schema(target, inside)?;
            self.definitions[index] = Some(node);
            index
        };
        out.insert("$ref".to_owned(), Value::String(format!("#/$defs/{index}")));
        Ok(self.definitions[index].as_ref().map_or(1, |it| it.alternatives))
    }

    /// What a reference means within the document, with its place and what `#` means there.
    pub(in crate::constrain) fn resolve(
        &self,
        reference: &str,
        base: &str,
    ) -> Option<(&'a Value, String, String)> {
        let root: &'a Value = self.root;
        let own = root.get("$id").and_then(Value::as_str).unwrap_or_default().trim_end_matches('#');
        let (document, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let start = if document.is_empty() {
            base.to_owned()
        } else if document == own {
            String::new()
        } else {
            let found = find(root, "$id", document, true)?;
            // What is relative means another place in an embedded document than in the whole one.
            let is_embedded =
                |end: usize| root.pointer(&found[..end]).is_some_and(|it| it["$id"].is_string());
            let within = found.match_indices('/').any(|(end, _)| end > 0 && is_embedded(end));
            if !document.contains(':') && (within || !base.is_empty()) {
                return None;
            }
            found
        };
        let fragment = percent_decoded(fragment)?;
        if !fragment.is_empty() && !fragment.starts_with('/') {
            let at = find(root.pointer(&start)?, "$anchor", &fragment, false)?;
            let pointer = start.clone() + &at;
            return Some((root.pointer(&pointer)?, pointer, start));
        }
        let pointer = start.clone() + &fragment;
        // An embedded document on the way is what `#` means from there on.
        let mut inner = start;
        for (end, _) in pointer.match_indices('/').chain([(pointer.len(), "")]) {
            if end > inner.len() && root.pointer(&pointer[..end])?.get("$id").is_some_and(Value::is_string) {
                pointer[..end].clone_into(&mut inner);
            }
        }
        Some((root.pointer(&pointer)?, pointer, inner))
    }

    /// Refuses references that lead to themselves and say nothing on the way.
    pub(super) fn no_circles(&self, root: &Value) -> Result<(), Fault> {
        let next = |schema: &Value| {
            let map = schema.as_object().filter(|it| it.len() == 1)?;
            map.get("$ref")?.as_str()?.rsplit('/').next()?.parse::<usize>().ok()
        };
        let definitions = self.definitions.iter().flatten().map(|it| &it.schema);
        for schema in definitions.chain([root]) {
            let mut at = next(schema);
            for _ in 0..=self.definitions.len() {
                let Some(index) = at else { break };
                at = self.definitions.get(index).and_then(Option::as_ref).and_then(|it| next(&it.schema));
            }
            if let Some(index) = at {
                let pointer = self.known.iter().find(|it| *it.1 == index).map_or("", |it| it.0.0.as_str());
                let message = format!("\"$ref\" at #{pointer} leads back to itself");
                return Err(Fault::new(ErrorCode::UnsupportedParameter, message));
            }
        }
        Ok(())
    }
}

/// Where the schema is whose `key` is `wanted`; in embedded documents as well, if `embedded`. What is no schema
/// is not looked into.
fn find(value: &Value, key: &str, wanted: &str, embedded: bool) -> Option<String> {
    let inside = |name: &str, value: &Value| {
        let skipped = !embedded && value.get("$id").is_some_and(Value::is_string);
        let found = if skipped { None } else { find(value, key, wanted, embedded) };
        Some(format!("/{}{}", escaped(name), found?))
    };
    match value {
        Value::Object(map) if map.get(key).and_then(Value::as_str) == Some(wanted) => Some(String::new()),
        Value::Object(map) => map
            .iter()
            .filter(|it| !["enum", "const", "default", "examples"].contains(&it.0.as_str()))
            .find_map(|(name, value)| inside(name, value)),
        Value::Array(all) => {
            all.iter().enumerate().find_map(|(index, value)| inside(&index.to_string(), value))
        }
        _ => None,
    }
}

pub(in crate::constrain) fn escaped(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

/// The fragment of an address, as it was meant.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        if first == b'%' {
            let (digits, after) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = after;
        } else {
            bytes.push(first);
        }
    }
    String::from_utf8(bytes).ok()
}
