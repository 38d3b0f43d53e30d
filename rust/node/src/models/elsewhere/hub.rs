//! The cache of the Hugging Face hub's client: `models--ORG--REPO/snapshots/COMMIT/`, whose files are links to
//! `blobs/`. vLLM and transformers use it, and so does llama.cpp since 2026-03.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::super::{Model, scan};

/// The branch whose snapshot is meant where no revision is named.
const MAIN: &str = "refs/main";

pub(super) fn models(folder: &Path, headers: &scan::Headers) -> Vec<Model> {
    let (_, repositories) = scan::entries(folder);
    repositories
        .iter()
        .filter_map(|repository| {
            let name = name(repository)?;
            let files = files(repository, &snapshot(repository)?);
            Some(scan::repository_models(&name, &files, headers))
        })
        .flatten()
        .collect()
}

/// `models--ORG--REPO` → `ORG/REPO`
fn name(repository: &Path) -> Option<String> {
    let folder = scan::file_name(repository);
    let (organisation, name) = folder.strip_prefix("models--")?.split_once("--")?;
    (!organisation.is_empty() && !name.is_empty()).then(|| format!("{organisation}/{name}"))
}

/// The snapshot of `main`; without that branch, the only one.
fn snapshot(repository: &Path) -> Option<PathBuf> {
    let snapshots = repository.join("snapshots");
    match fs::read_to_string(repository.join(MAIN)) {
        Ok(commit) => {
            let commit = commit.trim();
            let is_name = !commit.is_empty() && commit.bytes().all(|byte| byte.is_ascii_alphanumeric());
            is_name.then(|| snapshots.join(commit))
        }
        Err(_) => match &scan::entries(&snapshots).1[..] {
            [only] => Some(only.clone()),
            _ => None,
        },
    }
}

/// Its files that lie in the repository: a link may lead anywhere.
fn files(repository: &Path, snapshot: &Path) -> Vec<PathBuf> {
    let Ok(home) = repository.canonicalize() else { return Vec::new() };
    let is_inside = |file: &PathBuf| file.canonicalize().is_ok_and(|real| real.starts_with(&home));
    scan::files_of_repository(snapshot).into_iter().filter(is_inside).collect()
}
