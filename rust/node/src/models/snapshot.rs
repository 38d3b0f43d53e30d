//! A Hugging Face snapshot: `config.json` and `*.safetensors` in one folder.

use std::{
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

/// Longest `config.json` that is read, in bytes.
const MAX_CONFIG: u64 = 16 * 1024 * 1024;

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
    directory.join("config.json").is_file() && files.iter().any(|file| is_weights(file))
}

/// Reads `config.json` and looks at the weights' beginnings. The error says what is wrong where.
pub(super) fn read(directory: &Path, files: &[PathBuf]) -> Result<Snapshot, String> {
    let path = directory.join("config.json");
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(MAX_CONFIG).read_to_end(&mut text))
        .map_err(|error| format!("{}: cannot be read: {error}", path.display()))?;
    let config: Value =
        serde_json::from_slice(&text).map_err(|error| format!("{}: damaged: {error}", path.display()))?;
    let mut size_bytes = 0_u64;
    for file in files.iter().filter(|file| is_weights(file)) {
        size_bytes = size_bytes.saturating_add(weights(file)?);
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
