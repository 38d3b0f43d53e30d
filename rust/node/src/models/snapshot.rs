//! A Hugging Face snapshot: `config.json` and `*.safetensors` in one folder. Weights in several files have an index,
//! which says which they are.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Says what the model is.
pub(super) const CONFIG: &str = "config.json";
/// Says in which of several files each weight lies.
const INDEX: &str = "model.safetensors.index.json";
/// Longest of these two that is read, in bytes.
const MAX_JSON: u64 = 16 * 1024 * 1024;

/// What a snapshot says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// `model_type`, or the first of `architectures`.
    pub(super) architecture: Option<String>,
    /// `max_position_embeddings`.
    pub(super) context_length: Option<u64>,
    /// Of all weights together.
    pub(super) size_bytes: u64,
}

/// Does the folder look like one?
pub(super) fn is_snapshot(directory: &Path, files: &[PathBuf]) -> bool {
    directory.join(CONFIG).is_file() && files.iter().any(|file| is_weights(file))
}

/// Reads `config.json` and looks at the weights' beginnings. The error says what is wrong where.
pub(super) fn read(directory: &Path, files: &[PathBuf]) -> Result<Snapshot, String> {
    let config = json(&directory.join(CONFIG))?;
    let mut size_bytes = 0_u64;
    for file in shards(directory, files)? {
        size_bytes = size_bytes.saturating_add(weights(&file)?);
    }
    let text = |value: &Value| value.as_str().map(str::to_owned);
    // Models that see and hear keep the language model's numbers one level down.
    let number =
        |key: &str| config.get(key).or_else(|| config.get("text_config")?.get(key)).and_then(Value::as_u64);
    Ok(Snapshot {
        architecture: config
            .get("model_type")
            .and_then(text)
            .or_else(|| config.get("architectures")?.get(0).and_then(text)),
        context_length: number("max_position_embeddings"),
        size_bytes,
    })
}

fn json(path: &Path) -> Result<Value, String> {
    let mut text = Vec::new();
    File::open(path)
        .and_then(|file| file.take(MAX_JSON).read_to_end(&mut text))
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    serde_json::from_slice(&text).map_err(|error| format!("{}: damaged: {error}", path.display()))
}

/// The files of its weights: those of the index, else all there are. The error names one that is missing.
fn shards(directory: &Path, files: &[PathBuf]) -> Result<Vec<PathBuf>, String> {
    let path = directory.join(INDEX);
    if !path.is_file() {
        return Ok(files.iter().filter(|file| is_weights(file)).cloned().collect());
    }
    let index = json(&path)?;
    let places = index.get("weight_map").and_then(Value::as_object);
    let names: BTreeSet<&str> =
        places.into_iter().flat_map(|map| map.values()).filter_map(Value::as_str).collect();
    if names.is_empty() {
        return Err(format!("{}: damaged: it names no file of weights", path.display()));
    }
    names
        .into_iter()
        .map(|name| {
            let is_it = |file: &&PathBuf| file.file_name().is_some_and(|own| own == name);
            files
                .iter()
                .find(is_it)
                .cloned()
                .ok_or_else(|| format!("{}: {name} is missing, which {INDEX} names", directory.display()))
        })
        .collect()
}

fn is_weights(file: &Path) -> bool {
    file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("safetensors"))
}

/// The file's size, when the header that it announces lies within it.
fn weights(path: &Path) -> Result<u64, String> {
    let fault = |what: String| format!("{}: {what}", path.display());
    let length = fs::metadata(path).map_err(|error| fault(format!("cannot be read: {error}")))?.len();
    let mut prefix = [0; 8];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut prefix))
        .map_err(|error| fault(format!("damaged at byte 0: {error}")))?;
    let header = u64::from_le_bytes(prefix);
    if header.checked_add(8).is_none_or(|end| end > length) {
        return Err(fault(format!(
            "damaged at byte 0: a header of {header} bytes in a file of {length} bytes"
        )));
    }
    Ok(length)
}
