//! llama.cpp's cache. Before 2026-03: `ORG_REPO_FILE.gguf`, and `manifest=ORG=REPO=TAG.json`, which tells where
//! the organisation ends. Since then it is the hub's.

use std::path::{Path, PathBuf};

use super::{
    super::{Model, scan},
    hub,
};

pub(super) fn models(folder: &Path, headers: &scan::Headers) -> Vec<Model> {
    let (mut files, _) = scan::entries(folder);
    let mut models = hub::models(folder, headers);
    let mut repositories: Vec<(String, String)> = files.iter().filter_map(|file| manifest(file)).collect();
    // The longest beginning first: `a_b` may be an organisation beside `a`.
    repositories.sort_by_key(|(organisation, name)| std::cmp::Reverse(organisation.len() + name.len()));
    repositories.dedup();
    for (organisation, name) in repositories {
        let beginning = format!("{organisation}_{name}_");
        let (own, others): (Vec<PathBuf>, Vec<PathBuf>) =
            files.into_iter().partition(|file| scan::file_name(file).starts_with(&beginning));
        files = others;
        models.extend(scan::repository_models(&format!("{organisation}/{name}"), &own, headers));
    }
    for file in files.iter().filter(|file| file.extension().is_some_and(|end| end == "gguf")) {
        let name = scan::file_name(file);
        models.push(scan::named_gguf(scan::stem(&name), file, headers));
    }
    models
}

/// `manifest=ORG=REPO=TAG.json` → (`ORG`, `REPO`)
fn manifest(file: &Path) -> Option<(String, String)> {
    let name = scan::file_name(file);
    let mut parts = name.strip_prefix("manifest=")?.strip_suffix(".json")?.splitn(3, '=');
    let (organisation, name) = (parts.next()?, parts.next()?);
    parts.next()?;
    (!organisation.is_empty() && !name.is_empty()).then(|| (organisation.to_owned(), name.to_owned()))
}
