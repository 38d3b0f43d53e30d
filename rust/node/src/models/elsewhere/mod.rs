//! Models that other programs have fetched: where each of them keeps its own, and what it calls them.
//!
//! Read in the strict sense: files are opened for reading, nothing is created, locked or touched. What cannot
//! be read is passed over, and a layout that has changed gives no models rather than wrong ones.

mod hub;
mod llama_cpp;
mod ollama;

use std::path::Path;

use super::{Model, scan};
use crate::config::{Cache, Origin};

/// Stands where others have an organisation, in the names of Ollama's own models.
pub(super) const OF_OLLAMA: &str = "ollama";

/// All models of a cache, in no order.
pub(super) fn models(cache: &Cache, headers: &scan::Headers) -> Vec<Model> {
    match cache.origin {
        Origin::Hub => hub::models(&cache.path, headers),
        Origin::LlamaCpp => llama_cpp::models(&cache.path, headers),
        Origin::LmStudio => lm_studio(&cache.path, headers),
        Origin::Ollama => ollama::models(&cache.path, headers),
        Origin::Own | Origin::Demo => Vec::new(),
    }
}

/// `PUBLISHER/MODEL/FILE.gguf`, as the models folder has it.
fn lm_studio(folder: &Path, headers: &scan::Headers) -> Vec<Model> {
    let (_, publishers) = scan::entries(folder);
    publishers
        .into_iter()
        .flat_map(|folder| scan::organisation(&scan::file_name(&folder), &folder, headers))
        .collect()
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::PathBuf};

    use super::*;

    fn gguf() -> Vec<u8> {
        let mut bytes = b"GGUF\x03\x00\x00\x00".to_vec();
        bytes.extend(0_u64.to_le_bytes());
        bytes.extend(1_u64.to_le_bytes());
        bytes.extend(20_u64.to_le_bytes());
        bytes.extend(b"general.architecture");
        bytes.extend(8_u32.to_le_bytes());
        bytes.extend(5_u64.to_le_bytes());
        bytes.extend(b"llama");
        bytes
    }

    fn put(root: &Path, name: &str, bytes: &[u8]) -> PathBuf {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    fn ids(root: &Path, origin: Origin) -> BTreeSet<String> {
        let cache = Cache { origin, path: root.to_path_buf() };
        models(&cache, &scan::Headers::default()).into_iter().map(|model| model.id).collect()
    }

    fn set(ids: &[&str]) -> BTreeSet<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn the_hub_has_the_snapshot_of_main() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        for (name, commit) in [("model-Q4_0.gguf", "new"), ("model-Q8_0.gguf", "old")] {
            let blob = put(root, &format!("models--org--repo/blobs/{commit}"), &gguf());
            let snapshot = root.join("models--org--repo/snapshots").join(commit);
            fs::create_dir_all(&snapshot).unwrap();
            symlink(blob, snapshot.join(name)).unwrap();
        }
        put(root, "models--org--repo/refs/main", b"new");
        // A link out of the cache is none of its files.
        let outside = tempfile::tempdir().unwrap();
        let secret = put(outside.path(), "secret-Q4_1.gguf", &gguf());
        symlink(secret, root.join("models--org--repo/snapshots/new/secret-Q4_1.gguf")).unwrap();
        put(root, "models--org--other/refs/main", b"../../../../etc");
        put(root, "datasets--org--repo/refs/main", b"new");
        assert_eq!(ids(root, Origin::Hub), set(&["org/repo:Q4_0"]));
        assert_eq!(ids(root, Origin::LlamaCpp), set(&["org/repo:Q4_0"]), "llama.cpp's is laid out so, too");
    }

    #[test]
    fn llama_cpp_tells_by_its_manifests_where_the_organisation_ends() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "my_org_repo_model-Q4_0.gguf", &gguf());
        put(root.path(), "manifest=my_org=repo=latest.json", b"{}");
        put(root.path(), "somebody_file-Q8_0.gguf", &gguf());
        put(root.path(), "my_org_repo_model-Q4_0.gguf.etag", b"x");
        assert_eq!(ids(root.path(), Origin::LlamaCpp), set(&["my_org/repo:Q4_0", "somebody_file-Q8_0"]));
    }

    #[test]
    fn lm_studio_has_publishers() {
        let root = tempfile::tempdir().unwrap();
        put(root.path(), "publisher/model-GGUF/model-Q4_K_M.gguf", &gguf());
        put(root.path(), "publisher/model-GGUF/mmproj-model-f16.gguf", &gguf());
        assert_eq!(ids(root.path(), Origin::LmStudio), set(&["publisher/model-GGUF:Q4_K_M"]));
    }

    #[test]
    fn ollama_has_manifests_and_blobs() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let digest = "a".repeat(64);
        put(root, &format!("blobs/sha256-{digest}"), &gguf());
        let manifest = |digest: &str, more: &str| {
            format!(
                r#"{{"layers":[{{"mediaType":"application/vnd.ollama.image.template","digest":"sha256:bb"}},
                {{"mediaType":"application/vnd.ollama.image.model","digest":"sha256:{digest}"}}{more}]}}"#
            )
        };
        let plain = manifest(&digest, "");
        put(root, "manifests/registry.ollama.ai/library/qwen3/4b", plain.as_bytes());
        put(root, "manifests/registry.ollama.ai/somebody/tuned/latest", plain.as_bytes());
        put(root, "manifests/hf.co/org/repo-GGUF/Q4_K_M", plain.as_bytes());
        put(root, "manifests/registry.ollama.ai/library/gone/1b", manifest(&"c".repeat(64), "").as_bytes());
        put(
            root,
            "manifests/registry.ollama.ai/library/odd/1b",
            manifest("../../../etc/passwd", "").as_bytes(),
        );
        let adapter = r#",{"mediaType":"application/vnd.ollama.image.adapter","digest":"sha256:dd"}"#;
        put(root, "manifests/registry.ollama.ai/library/adapted/1b", manifest(&digest, adapter).as_bytes());
        put(root, "manifests/registry.ollama.ai/library/broken/1b", b"{");
        assert_eq!(
            ids(root, Origin::Ollama),
            set(&["ollama/qwen3:4b", "ollama/somebody/tuned:latest", "org/repo-GGUF:Q4_K_M"])
        );
    }
}
