//! What engines find beside them: shared libraries that packages bring, and the driver of the GPU.
//!
//! Python knows packages and drivers, and hands both over. This module decides which of the libraries an engine
//! is to have, and whether the driver will do.

use std::{cmp::Ordering, path::PathBuf};

use serde::Deserialize;

use super::manifest::EngineManifest;

/// What there is beside the engines.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Surroundings {
    /// Folders that hold `<id>/<gpu_backend>/manifest.json`, in search order.
    pub engines_dirs: Vec<PathBuf>,
    /// What packages of engines depend on.
    #[serde(default)]
    pub packaged: Vec<Packaged>,
    /// Version of NVIDIA's driver, where there is one.
    #[serde(default)]
    pub cuda_driver: Option<String>,
}

/// A Python distribution that some package of engines depends on.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Packaged {
    /// Its name.
    pub name: String,
    /// As the package of engines says it: `nvidia-cublas>=13,<14`.
    pub requirement: String,
    /// Its shared libraries; none where it is not installed.
    pub files: Vec<PathBuf>,
}

/// Libraries of one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Libraries {
    /// In the order in which they are to be opened.
    pub found: Vec<PathBuf>,
    /// What to say of those that packages ought to have brought.
    pub missing: Vec<String>,
}

impl Surroundings {
    /// What of an engine's libraries packages have brought. What is in none of them is the dynamic linker's to
    /// find.
    pub fn libraries_of(&self, manifest: &EngineManifest) -> Libraries {
        let mut libraries = Libraries::default();
        for library in &manifest.libraries {
            let packaged = self.packaged.iter().find(|it| is_same(&it.name, &library.distribution));
            let file = packaged.and_then(|it| {
                let is_it =
                    |file: &&PathBuf| file.file_name().is_some_and(|name| name == library.name.as_str());
                it.files.iter().find(is_it)
            });
            if let Some(file) = file {
                libraries.found.push(file.clone());
            } else {
                let wanted = packaged.map_or(&library.distribution, |it| &it.requirement);
                libraries.missing.push(format!("{} comes with: pip install '{wanted}'", library.name));
            }
        }
        libraries
    }

    /// Is the driver older than the engine needs? Where nobody knows of a driver, nobody can tell.
    pub fn driver_is_too_old(&self, needed: &str) -> bool {
        self.cuda_driver.as_deref().is_some_and(|driver| compare(driver, needed) == Ordering::Less)
    }
}

/// As Python compares the names of distributions.
fn is_same(one: &str, other: &str) -> bool {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '.'], "-");
    plain(one) == plain(other)
}

/// Versions by their numbers. A number that is missing is 0.
fn compare(one: &str, other: &str) -> Ordering {
    let numbers = |version: &str| -> Vec<u32> {
        version.split('.').map(|part| part.trim().parse().unwrap_or(0)).collect()
    };
    let (mut one, mut other) = (numbers(one), numbers(other));
    let length = one.len().max(other.len());
    one.resize(length, 0);
    other.resize(length, 0);
    one.cmp(&other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_compared_by_their_numbers() {
        let too_old = |driver: Option<&str>, needed| {
            Surroundings { cuda_driver: driver.map(str::to_owned), ..Surroundings::default() }
                .driver_is_too_old(needed)
        };
        for (driver, needed, is_too_old) in [
            ("580.95.05", "580.65.06", false),
            ("580.65.06", "580.65.06", false),
            ("580", "580.65.06", true),
            ("99.1", "580.65.06", true),
            ("1000", "580.65.06", false),
        ] {
            assert_eq!(too_old(Some(driver), needed), is_too_old, "{driver} for {needed}");
        }
        assert!(!too_old(None, "580.65.06"));
    }
}
