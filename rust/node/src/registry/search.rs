//! Where candidates lie: `<engines dir>/<id>/<gpu_backend>/manifest.json`, sorted, the first of an
//! id and backend wins.
//!
//! Runs no foreign code: what it finds is still to be probed.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use llm_node_wire::message::EngineAddress;

use super::{
    manifest::{self, EngineManifest},
    surroundings::{Libraries, Surroundings},
    verdict::Refusal,
};

/// Folder names that promise an engine even where the manifest is missing. Others (`src`, `target`)
/// are an engine's source, and nobody's business.
const BACKENDS: [&str; 5] = ["cpu", "cuda", "metal", "rocm", "vulkan"];

/// A folder found, before its engine is opened.
#[derive(Clone, Debug)]
pub struct Found {
    /// The manifest's id, or the folder's name.
    pub id: String,
    /// The manifest's backend, or the folder's name.
    pub gpu_backend: String,
    /// Folder of the manifest, absolute where the system says so.
    pub directory: PathBuf,
    /// What could be read.
    pub manifest: Option<EngineManifest>,
    /// Libraries that packages have brought for it, and those that they have not.
    pub libraries: Libraries,
    /// Set where the engine must not be opened.
    pub refusal: Option<Refusal>,
}

impl Found {
    /// For the process that opens it.
    pub fn address(&self) -> Option<EngineAddress> {
        self.manifest.as_ref().map(|manifest| EngineAddress {
            id: manifest.id.clone(),
            version: manifest.version.clone(),
            gpu_backend: manifest.gpu_backend.clone(),
            directory: self.directory.clone(),
            binary: self.directory.join(&manifest.binary),
            libraries: self.libraries.found.clone(),
        })
    }
}

/// All candidates below the folders, in order of preference.
pub fn search(surroundings: &Surroundings) -> Vec<Found> {
    let mut found = Vec::new();
    let mut kept: HashMap<(String, String), PathBuf> = HashMap::new();
    for engines_dir in &surroundings.engines_dirs {
        for engine in folders(engines_dir) {
            for directory in folders(&engine) {
                let Some(mut candidate) = look(&engine, &directory, surroundings) else { continue };
                // One that this machine cannot run leaves the id to the next.
                if candidate.manifest.is_some()
                    && !matches!(candidate.refusal, Some(Refusal::DriverTooOld { .. }))
                {
                    let key = (candidate.id.clone(), candidate.gpu_backend.clone());
                    match kept.get(&key) {
                        // The same folder may be reached twice; that is one engine.
                        Some(first) if *first == candidate.directory => continue,
                        Some(first) => {
                            candidate.refusal = Some(Refusal::DuplicateEngine {
                                id: candidate.id.clone(),
                                kept: first.clone(),
                                refused: candidate.directory.clone(),
                            });
                        }
                        None => {
                            kept.insert(key, candidate.directory.clone());
                        }
                    }
                }
                found.push(candidate);
            }
        }
    }
    found
}

/// The engines folder that somebody means who names this one, which holds no engines: the folder of one
/// engine, of one of its backends, or one above engines.
pub fn meant(folder: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(folder).ok()?;
    let is_backend = |folder: &Path| folder.join("manifest.json").is_file();
    let is_engine = |folder: &Path| folders(folder).iter().any(|it| is_backend(it));
    let holds_engines = |folder: &Path| folders(folder).iter().any(|it| is_engine(it));
    if holds_engines(&folder) {
        return None;
    }
    let above = folder.parent();
    if is_backend(&folder) {
        above?.parent().map(Path::to_path_buf)
    } else if is_engine(&folder) {
        above.map(Path::to_path_buf)
    } else {
        folders(&folder).into_iter().find(|it| holds_engines(it))
    }
}

fn look(engine: &Path, directory: &Path, surroundings: &Surroundings) -> Option<Found> {
    let directory = std::path::absolute(directory).unwrap_or_else(|_| directory.to_path_buf());
    let path = directory.join("manifest.json");
    let folder =
        |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let (id, gpu_backend) = (folder(engine), folder(&directory));
    if fs::symlink_metadata(&path).is_err() && !BACKENDS.contains(&gpu_backend.as_str()) {
        return None;
    }
    Some(match manifest::read(&path) {
        Ok((manifest, refusal)) => Found {
            id: manifest.id.clone(),
            gpu_backend: manifest.gpu_backend.clone(),
            directory,
            refusal: refusal.or_else(|| too_old(&manifest, surroundings)),
            libraries: surroundings.libraries_of(&manifest),
            manifest: Some(manifest),
        },
        Err(refusal) => Found {
            id,
            gpu_backend,
            directory,
            manifest: None,
            libraries: Libraries::default(),
            refusal: Some(refusal),
        },
    })
}

fn too_old(manifest: &EngineManifest, surroundings: &Surroundings) -> Option<Refusal> {
    let needed = manifest.cuda_driver.as_ref().filter(|needed| surroundings.driver_is_too_old(needed))?;
    let driver = surroundings.cuda_driver.clone().unwrap_or_default();
    Some(Refusal::DriverTooOld { needed: needed.clone(), driver })
}

/// Sub-folders, sorted by name; none where the folder cannot be read.
fn folders(directory: &Path) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = match fs::read_dir(directory) {
        Ok(entries) => {
            entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        }
        Err(error) => {
            log::debug!("{}: {error}", directory.display());
            Vec::new()
        }
    };
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::{super::surroundings::Packaged, *};

    fn engine(root: &Path, folder: &str, id: &str, binary: bool, abi: &str) -> PathBuf {
        let directory = root.join(folder);
        fs::create_dir_all(&directory).unwrap();
        fs::write(
            directory.join("manifest.json"),
            format!(
                r#"{{"id": "{id}", "version": "1", "abi_version": "{abi}", "gpu_backend": "cpu",
                "architectures": ["llama"], "formats": ["gguf"], "binary": "lib.so"}}"#
            ),
        )
        .unwrap();
        if binary {
            fs::write(directory.join("lib.so"), "").unwrap();
        }
        directory
    }

    fn within<const N: usize>(engines_dirs: [&Path; N]) -> Surroundings {
        let engines_dirs = engines_dirs.iter().map(|path| path.to_path_buf()).collect();
        Surroundings { engines_dirs, ..Surroundings::default() }
    }

    #[test]
    fn one_whose_driver_is_too_old_leaves_its_id_to_the_next() {
        let root = tempfile::tempdir().unwrap();
        let (new, old) = (root.path().join("1"), root.path().join("2"));
        let manifest = engine(&new, "a/cpu", "same", true, "1").join("manifest.json");
        engine(&old, "a/cpu", "same", true, "1");
        let text = fs::read_to_string(&manifest).unwrap();
        let driver = r#"{"requires": {"cuda_driver": ">=580.65"},"#;
        fs::write(&manifest, text.replacen('{', driver, 1)).unwrap();
        let seen = |driver: &str| -> Vec<Option<String>> {
            let surroundings = Surroundings { cuda_driver: Some(driver.to_owned()), ..within([&new, &old]) };
            let kind = |found: &Found| found.refusal.as_ref().map(|refusal| refusal.kind().to_owned());
            search(&surroundings).iter().map(kind).collect()
        };
        assert_eq!(seen("550.1"), [Some("DriverTooOld".to_owned()), None]);
        assert_eq!(seen("580.65.1"), [None, Some("DuplicateEngine".to_owned())]);
    }

    #[test]
    fn libraries_come_from_the_packages_that_the_manifest_names() {
        let root = tempfile::tempdir().unwrap();
        let manifest = engine(root.path(), "a/cpu", "a", true, "1").join("manifest.json");
        let text = fs::read_to_string(&manifest).unwrap();
        let libraries = r#"{"libraries": [["libb.so.1", "nvidia_b"], ["libc.so.1", "nvidia-c"]],"#;
        fs::write(&manifest, text.replacen('{', libraries, 1)).unwrap();
        let packaged = |name: &str, files: &[&str]| Packaged {
            name: name.to_owned(),
            requirement: format!("{name}>=1"),
            files: files.iter().map(PathBuf::from).collect(),
        };
        let packaged =
            vec![packaged("nvidia-b", &["/x/libother.so", "/x/libb.so.1"]), packaged("nvidia-c", &[])];
        let found = search(&Surroundings { packaged, ..within([root.path()]) });
        assert_eq!(found[0].address().unwrap().libraries, [PathBuf::from("/x/libb.so.1")]);
        assert_eq!(found[0].libraries.missing, ["libc.so.1 comes with: pip install 'nvidia-c>=1'"]);
    }

    #[test]
    fn sorted_first_wins_and_a_later_one_is_listed() {
        let root = tempfile::tempdir().unwrap();
        let (one, two) = (root.path().join("1"), root.path().join("2"));
        engine(&one, "b/cpu", "same", true, "1");
        engine(&one, "a/cpu", "other", true, "1");
        engine(&two, "a/cpu", "same", true, "1");
        fs::create_dir_all(one.join("b/src")).unwrap();
        let found = search(&within([&one, &two, &root.path().join("none")]));
        let seen: Vec<_> = found
            .iter()
            .map(|found| (found.id.as_str(), found.refusal.as_ref().map(Refusal::kind)))
            .collect();
        assert_eq!(seen, [("other", None), ("same", None), ("same", Some("DuplicateEngine"))]);
    }

    #[test]
    fn a_folder_one_or_two_levels_off_leads_to_the_right_one() {
        let root = tempfile::tempdir().unwrap();
        let engines = root.path().join("engines");
        engine(&engines, "one/cpu", "one", true, "1");
        fs::create_dir_all(root.path().join("empty")).unwrap();
        let meant_by = |folder: &str| meant(&root.path().join(folder));
        assert_eq!(meant_by("engines"), None);
        for near in ["engines/one", "engines/one/cpu", ""] {
            assert_eq!(meant_by(near).as_deref(), Some(engines.as_path()), "{near}");
        }
        assert_eq!(meant_by("empty"), None);
        assert_eq!(meant_by("absent"), None);
    }

    #[test]
    fn each_flaw_has_its_refusal() {
        let root = tempfile::tempdir().unwrap();
        engine(root.path(), "abi/cpu", "abi", true, "2");
        engine(root.path(), "binary/cpu", "binary", false, "1");
        engine(root.path(), "abitext/cpu", "abitext", false, "one");
        fs::create_dir_all(root.path().join("missing/cpu")).unwrap();
        let json = engine(root.path(), "json/cpu", "json", true, "1");
        fs::write(json.join("manifest.json"), "{").unwrap();
        let found = search(&within([root.path()]));
        let refusal =
            |id: &str| found.iter().find(|found| found.id == id).and_then(|found| found.refusal.clone());
        let abi = refusal("abi").unwrap();
        assert_eq!(abi.to_string(), "ABI version mismatch: expected 1, got 2");
        assert_eq!(abi.code().as_str(), "abi_mismatch");
        assert_eq!(refusal("binary").unwrap().kind(), "BinaryNotFound");
        assert_eq!(refusal("abitext").unwrap().kind(), "ManifestInvalid");
        assert_eq!(refusal("missing").unwrap().kind(), "ManifestUnreadable");
        assert_eq!(refusal("json").unwrap().kind(), "ManifestInvalid");
    }

    #[cfg(unix)]
    #[test]
    fn what_anybody_may_write_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        for (place, id) in [("", "folder"), ("manifest.json", "manifest"), ("lib.so", "library")] {
            let root = tempfile::tempdir().unwrap();
            let directory = engine(root.path(), &format!("{id}/cpu"), id, true, "1");
            let place = if place.is_empty() { directory } else { directory.join(place) };
            let mut permissions = fs::metadata(&place).unwrap().permissions();
            permissions.set_mode(permissions.mode() | 0o002);
            fs::set_permissions(&place, permissions).unwrap();
            let found = search(&within([root.path()]));
            assert_eq!(found[0].refusal.as_ref().map(Refusal::kind), Some("WritableByOthers"), "{id}");
        }
    }
}
