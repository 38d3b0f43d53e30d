//! `manifest.json`: what an engine says of itself before any of its code runs.
//!
//! Owns the parsing and its rules, and is the only place that parses one. Unknown fields are ignored.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use llm_node_abi::ENGINE_ABI_VERSION;
use llm_node_core::error::{ErrorCode, Fault};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::verdict::{AbiPlace, Refusal};
use crate::platform;

/// The field that only [`claim`] writes.
const CLAIM: &str = "conformance";

/// A manifest is a few hundred bytes; nothing honest comes near this.
const MAX_BYTES: u64 = 1024 * 1024;

/// A checked manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineManifest {
    /// Names the engine.
    pub id: String,
    /// The engine's own version.
    pub version: String,
    /// As text, as it stands there.
    pub abi_version: String,
    /// "cuda", "metal", "vulkan", "cpu", ...
    pub gpu_backend: String,
    /// Model architectures it runs; `*`: any.
    pub architectures: Vec<String>,
    /// Model formats it reads.
    pub formats: Vec<String>,
    /// File name of the shared library, in the manifest's folder.
    pub binary: String,
    /// Libraries that Python packages may bring for it, in the order in which they are opened.
    pub libraries: Vec<Library>,
    /// The oldest driver of NVIDIA's that it works with.
    pub cuda_driver: Option<String>,
    /// The keys of all settings that it knows, of its own, of a model and of a context; `None`: it does not say.
    pub options: Option<Vec<String>>,
    /// What `llm-node engine check --write` said there. It is shown, and never believed.
    pub conformance: Option<Claim>,
}

impl EngineManifest {
    /// Refuses a setting that the engine does not know, where it says which it knows: it would ignore it.
    pub fn knows<'k>(&self, keys: impl IntoIterator<Item = &'k String>) -> Result<(), Fault> {
        let Some(known) = &self.options else { return Ok(()) };
        let Some(unknown) = keys.into_iter().find(|key| !known.contains(key)) else { return Ok(()) };
        let all = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        let message = format!("the engine '{}' knows no option '{unknown}'; it knows {all}", self.id);
        Err(Fault::new(ErrorCode::InvalidRequest, message).param(format!("options.{unknown}")))
    }
}

/// A shared library that an engine needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// Its file name: "libcublas.so.13".
    pub name: String,
    /// The Python distribution that brings it: "nvidia-cublas".
    pub distribution: String,
}

/// Which level of the conformance suite an engine says to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Of the node whose suite it was.
    pub version: String,
    /// "2026-11-30".
    pub date: String,
    /// "must" or "should".
    pub level: String,
}

/// Reads a manifest. The second value is why its engine may not be opened although the manifest
/// could be read: then both are there, so that the engine can be listed under its name.
pub fn read(path: &Path) -> Result<(EngineManifest, Option<Refusal>), Refusal> {
    let unreadable = |reason: String| Refusal::ManifestUnreadable { path: path.to_path_buf(), reason };
    let directory = path.parent().unwrap_or(Path::new("."));
    for place in [directory, path] {
        let metadata = fs::metadata(place).map_err(|error| unreadable(error.to_string()))?;
        if platform::writable_by_others(&metadata) {
            return Err(Refusal::WritableByOthers { path: place.to_path_buf() });
        }
    }
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| unreadable(error.to_string()))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("it is longer than {MAX_BYTES} bytes")));
    }
    let manifest = parse(&text).map_err(|Problem { field, reason }| Refusal::ManifestInvalid {
        path: path.to_path_buf(),
        field,
        reason,
    })?;
    let refusal = check(path, directory, &manifest);
    Ok((manifest, refusal))
}

/// Writes into a manifest what its engine says of the conformance suite; `None`: nothing any more. All else
/// stays, and a file that says so already is left alone.
pub fn claim(path: &Path, claim: Option<&Claim>) -> io::Result<()> {
    let mut fields: Map<String, Value> = serde_json::from_slice(&fs::read(path)?)?;
    let claim = claim.map(serde_json::to_value).transpose()?;
    if fields.get(CLAIM) == claim.as_ref() {
        return Ok(());
    }
    fields.shift_remove(CLAIM);
    fields.extend(claim.map(|claim| (CLAIM.to_owned(), claim)));
    let fresh = path.with_extension("json.new");
    fs::write(&fresh, serde_json::to_string_pretty(&fields)? + "\n")?;
    fs::rename(fresh, path)
}

fn check(path: &Path, directory: &Path, manifest: &EngineManifest) -> Option<Refusal> {
    match manifest.abi_version.parse::<u32>() {
        Ok(version) if version == ENGINE_ABI_VERSION => {}
        Ok(got) => {
            return Some(Refusal::AbiMismatch {
                expected: ENGINE_ABI_VERSION,
                got,
                place: AbiPlace::Manifest,
                path: path.to_path_buf(),
            });
        }
        Err(_) => {
            return Some(Refusal::ManifestInvalid {
                path: path.to_path_buf(),
                field: "abi_version".to_owned(),
                reason: format!("is {:?}, not a whole number in quotes", manifest.abi_version),
            });
        }
    }
    let binary: PathBuf = directory.join(&manifest.binary);
    match fs::metadata(&binary) {
        Ok(metadata) if !metadata.is_file() => Some(Refusal::BinaryNotFound { path: binary }),
        Ok(metadata) if platform::writable_by_others(&metadata) => {
            Some(Refusal::WritableByOthers { path: binary })
        }
        Ok(_) => None,
        Err(_) => Some(Refusal::BinaryNotFound { path: binary }),
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Problem {
    /// Empty: the whole file.
    field: String,
    reason: String,
}

fn parse(text: &[u8]) -> Result<EngineManifest, Problem> {
    let value: Value =
        serde_json::from_slice(text).map_err(|error| invalid("", &format!("is not JSON: {error}")))?;
    let Value::Object(fields) = value else {
        return Err(invalid("", "is not a JSON object"));
    };
    let manifest = EngineManifest {
        id: text_field(&fields, "id")?,
        version: text_field(&fields, "version")?,
        abi_version: text_field(&fields, "abi_version")?,
        gpu_backend: text_field(&fields, "gpu_backend")?,
        architectures: list_field(&fields, "architectures")?,
        formats: list_field(&fields, "formats")?,
        binary: text_field(&fields, "binary")?,
        libraries: libraries_field(&fields)?,
        cuda_driver: driver_field(&fields)?,
        options: options_field(&fields)?,
        // Nothing depends on it, so a wrong one is none.
        conformance: fields.get(CLAIM).and_then(|claim| Claim::deserialize(claim).ok()),
    };
    if !is_id(&manifest.id) {
        return Err(invalid("id", "must match [a-z0-9][a-z0-9._-]{0,63}"));
    }
    if !is_id(&manifest.gpu_backend) {
        return Err(invalid("gpu_backend", "must be a word like \"cuda\""));
    }
    if !is_plain_file_name(&manifest.binary) {
        return Err(invalid("binary", "must be a plain file name in the manifest's own folder"));
    }
    Ok(manifest)
}

fn invalid(field: &str, reason: &str) -> Problem {
    Problem { field: field.to_owned(), reason: reason.to_owned() }
}

fn text_field(fields: &Map<String, Value>, field: &str) -> Result<String, Problem> {
    match fields.get(field) {
        None => Err(invalid(field, "is missing")),
        Some(Value::String(text)) if text.is_empty() => Err(invalid(field, "is empty")),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(invalid(field, &format!("must be text in quotes, not {}", kind(other)))),
    }
}

fn list_field(fields: &Map<String, Value>, field: &str) -> Result<Vec<String>, Problem> {
    let items = match fields.get(field) {
        None => return Err(invalid(field, "is missing")),
        Some(Value::Array(items)) if items.is_empty() => return Err(invalid(field, "is empty")),
        Some(Value::Array(items)) => items,
        Some(other) => {
            return Err(invalid(field, &format!("must be a list of texts, not {}", kind(other))));
        }
    };
    items
        .iter()
        .map(|item| match item {
            Value::String(text) if !text.is_empty() => Ok(text.clone()),
            other => Err(invalid(field, &format!("must be a list of texts, but holds {}", kind(other)))),
        })
        .collect()
}

/// `[["libcublas.so.13", "nvidia-cublas"], ...]`, or nothing.
fn libraries_field(fields: &Map<String, Value>) -> Result<Vec<Library>, Problem> {
    const FIELD: &str = "libraries";
    let wrong =
        || invalid(FIELD, "must be a list of pairs: a library's file name, and the package it comes with");
    let Some(value) = fields.get(FIELD) else { return Ok(Vec::new()) };
    let pairs: Vec<(String, String)> = Deserialize::deserialize(value).map_err(|_| wrong())?;
    let is_right = |(name, package): &(String, String)| {
        !name.is_empty() && is_plain_file_name(name) && !package.is_empty()
    };
    if !pairs.iter().all(is_right) {
        return Err(wrong());
    }
    Ok(pairs.into_iter().map(|(name, distribution)| Library { name, distribution }).collect())
}

/// `{"cuda_driver": ">=580.65.06"}`, or nothing. What else stands there is for others.
fn driver_field(fields: &Map<String, Value>) -> Result<Option<String>, Problem> {
    let Some(value) = fields.get("requires").and_then(|requires| requires.get("cuda_driver")) else {
        return Ok(None);
    };
    let version = value.as_str().and_then(|text| text.strip_prefix(">=")).map(str::trim);
    let is_version = |text: &str| !text.is_empty() && text.split('.').all(|part| part.parse::<u32>().is_ok());
    match version.filter(|text| is_version(text)) {
        Some(version) => Ok(Some(version.to_owned())),
        None => Err(invalid("requires", "must name the driver as in {\"cuda_driver\": \">=580.65.06\"}")),
    }
}

/// `["threads", ...]`, empty, or nothing.
fn options_field(fields: &Map<String, Value>) -> Result<Option<Vec<String>>, Problem> {
    let Some(value) = fields.get("options") else { return Ok(None) };
    let keys: Vec<String> = Deserialize::deserialize(value)
        .map_err(|_| invalid("options", "must be a list of texts, the keys of the settings that it knows"))?;
    Ok(Some(keys))
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "an empty text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn is_id(text: &str) -> bool {
    let first = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    bytes.len() <= 64
        && bytes.first().is_some_and(|&c| first(c))
        && bytes.iter().all(|&c| first(c) || matches!(c, b'.' | b'_' | b'-'))
}

/// Both kinds of separator and a drive's colon are refused everywhere: a manifest means the same on
/// every system.
fn is_plain_file_name(text: &str) -> bool {
    !matches!(text, "." | "..") && !text.contains(['/', '\\', ':', '\0'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = r#"{"id": "my_engine", "version": "1.0.0", "abi_version": "1", "gpu_backend": "cpu",
        "architectures": ["llama"], "formats": ["gguf"], "binary": "libmy_engine.so", "license": 7}"#;

    fn with(field: &str, value: &str) -> Result<EngineManifest, Problem> {
        let mut fields: Map<String, Value> = serde_json::from_str(GOOD).unwrap();
        if value.is_empty() {
            fields.remove(field);
        } else {
            fields.insert(field.to_owned(), serde_json::from_str(value).unwrap());
        }
        parse(serde_json::to_string(&fields).unwrap().as_bytes())
    }

    #[test]
    fn a_good_one_is_read_and_unknown_fields_are_ignored() {
        let manifest = parse(GOOD.as_bytes()).unwrap();
        assert_eq!(manifest.id, "my_engine");
        assert_eq!(manifest.formats, ["gguf"]);
    }

    #[test]
    fn what_it_says_of_checks_is_shown_if_it_can_be_read() {
        let claim = r#"{"version": "0.1.0", "date": "2026-11-30", "level": "must", "by": "me"}"#;
        assert_eq!(with("conformance", claim).unwrap().conformance.unwrap().level, "must");
        for wrong in ["1", "{}", r#"{"version": 1, "date": "", "level": ""}"#] {
            assert_eq!(with("conformance", wrong).unwrap().conformance, None);
        }
    }

    #[test]
    fn what_is_written_of_checks_leaves_the_rest_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("manifest.json");
        fs::write(&path, GOOD).unwrap();
        claim(&path, None).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), GOOD);
        let said = Claim { version: "1".to_owned(), date: "2026-11-30".to_owned(), level: "must".to_owned() };
        claim(&path, Some(&said)).unwrap();
        assert_eq!(parse(&fs::read(&path).unwrap()).unwrap().conformance, Some(said));
        claim(&path, None).unwrap();
        let left: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let before: Map<String, Value> = serde_json::from_str(GOOD).unwrap();
        assert!(left.iter().eq(before.iter()), "{left:?}");
    }

    #[test]
    fn a_missing_or_wrong_field_is_named() {
        for field in ["id", "version", "abi_version", "gpu_backend", "architectures", "formats", "binary"] {
            for value in ["", "1", "null", "{}", "\"\"", "[]", "[1]", "[\"\"]"] {
                match with(field, value) {
                    Err(Problem { field: named, .. }) => assert_eq!(named, field, "{value}"),
                    other => panic!("{field} = {value}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn a_binary_elsewhere_is_refused() {
        for name in ["\"../x.so\"", "\"/usr/lib/x.so\"", "\"a\\\\b.dll\"", "\"..\"", "\"c:x.dll\""] {
            assert!(matches!(with("binary", name), Err(Problem { field, .. }) if field == "binary"));
        }
    }

    #[test]
    fn libraries_and_the_driver_may_stand_there() {
        let libraries =
            r#"[["libcublasLt.so.13", "nvidia-cublas"], ["libcudart.so.13", "nvidia-cuda-runtime"]]"#;
        let names: Vec<String> =
            with("libraries", libraries).unwrap().libraries.into_iter().map(|library| library.name).collect();
        assert_eq!(names, ["libcublasLt.so.13", "libcudart.so.13"]);
        for wrong in ["1", "[1]", r#"["a", "b"]"#, r#"[["../a", "b"]]"#, r#"[["", "b"]]"#, r#"[["a", ""]]"#] {
            assert!(matches!(with("libraries", wrong), Err(Problem { field, .. }) if field == "libraries"));
        }
        let driver = |requires| with("requires", requires).map(|manifest| manifest.cuda_driver);
        assert_eq!(driver(r#"{"cuda_driver": ">=580.65.06"}"#).unwrap().as_deref(), Some("580.65.06"));
        assert_eq!(driver(r#"{"python": 3}"#).unwrap(), None);
        for wrong in [r#"{"cuda_driver": 580}"#, r#"{"cuda_driver": "580"}"#, r#"{"cuda_driver": ">=new"}"#] {
            assert!(matches!(driver(wrong), Err(Problem { field, .. }) if field == "requires"), "{wrong}");
        }
    }

    #[test]
    fn settings_that_an_engine_does_not_know_are_refused() {
        let asked = ["threads".to_owned(), "treads".to_owned()];
        let manifest = with("options", r#"["threads", "load_mode"]"#).unwrap();
        assert_eq!(manifest.knows(&asked[..1]), Ok(()));
        let fault = manifest.knows(&asked).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("options.treads")));
        assert!(fault.message.contains("no option 'treads'; it knows threads, load_mode"), "{fault}");
        assert!(with("options", "[]").unwrap().knows(&asked).unwrap_err().message.ends_with("it knows none"));
        // One that says nothing may know any.
        assert_eq!(parse(GOOD.as_bytes()).unwrap().knows(&asked), Ok(()));
        for wrong in ["1", "null", "[1]", "{}"] {
            assert!(matches!(with("options", wrong), Err(Problem { field, .. }) if field == "options"));
        }
    }

    #[test]
    fn ids_keep_to_the_rule() {
        for id in ["\"A\"", "\"-a\"", "\"a b\"", "\"\u{e9}\"", &format!("\"{}\"", "a".repeat(65))] {
            assert!(matches!(with("id", id), Err(Problem { field, .. }) if field == "id"), "{id}");
        }
        assert!(with("id", &format!("\"{}\"", "a".repeat(64))).is_ok());
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = parse(&bytes);
        }
    }
}
