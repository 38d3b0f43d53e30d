//! Ollama: `manifests/HOST/SPACE/MODEL/TAG`, which names layers by their digests, and `blobs/sha256-DIGEST`.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    super::{HUBS, Model, scan},
    OF_OLLAMA,
};

/// Longest manifest that is read, in bytes. Real ones have some hundred.
const MAX_MANIFEST: u64 = 1 << 20;
const WEIGHTS: &str = "application/vnd.ollama.image.model";
/// A model with such a layer is another one than its weights.
const ADAPTER: &str = "application/vnd.ollama.image.adapter";
/// The space of Ollama's own models, which stands in no name.
const LIBRARY: &str = "library";

pub(super) fn models(folder: &Path, headers: &scan::Headers) -> Vec<Model> {
    let below = |folder: &Path| scan::entries(folder).1;
    let mut models = Vec::new();
    for host in below(&folder.join("manifests")) {
        for space in below(&host) {
            for name in below(&space) {
                for tag in scan::entries(&name).0 {
                    if let Some(path) = weights(folder, &tag) {
                        models.push(model(&host, &space, &name, &tag, &path, headers));
                    }
                }
            }
        }
    }
    models
}

fn model(host: &Path, space: &Path, name: &Path, tag: &Path, path: &Path, headers: &scan::Headers) -> Model {
    let [host, space, name, tag] = [host, space, name, tag].map(scan::file_name);
    // What came from the hub is called as there.
    let folder = if HUBS.contains(&host.as_str()) {
        format!("{space}/{name}")
    } else if space == LIBRARY {
        format!("{OF_OLLAMA}/{name}")
    } else {
        format!("{OF_OLLAMA}/{space}/{name}")
    };
    let model = scan::named_gguf(format!("{folder}:{tag}"), path, headers);
    Model { folder: Some(folder), variant: Some(tag), ..model }
}

/// The file of the weights that a manifest names.
fn weights(folder: &Path, manifest: &Path) -> Option<PathBuf> {
    let mut text = Vec::new();
    File::open(manifest).ok()?.take(MAX_MANIFEST).read_to_end(&mut text).ok()?;
    let manifest: Value = serde_json::from_slice(&text).ok()?;
    let layers = manifest.get("layers")?.as_array()?;
    let of_kind = |kind: &'static str| {
        layers.iter().filter(move |layer| layer.get("mediaType").and_then(Value::as_str) == Some(kind))
    };
    let mut weights = of_kind(WEIGHTS);
    let (Some(layer), None, None) = (weights.next(), weights.next(), of_kind(ADAPTER).next()) else {
        return None;
    };
    let digest = layer.get("digest")?.as_str()?.strip_prefix("sha256:")?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    let path = folder.join("blobs").join(format!("sha256-{digest}"));
    (is_digest && path.is_file()).then_some(path)
}
