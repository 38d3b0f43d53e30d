//! The engines there are: searched for, probed out of process, each with its verdict.
//!
//! Owns the list and its freshness. Refuses to open an engine: a throw-away process does that, and
//! what it dies of is the verdict.

pub mod manifest;
pub mod search;
pub mod verdict;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use llm_node_wire::message::{EngineAddress, EngineFacts};
use parking_lot::Mutex;

use self::{
    manifest::EngineManifest,
    search::Found,
    verdict::{Candidate, Refusal},
};

/// How many engines are looked at side by side. More would be faster only on an idle machine, and
/// makes the deadlines of all of them harder to keep on a busy one.
const PROBES_AT_ONCE: usize = 3;

/// Looks at an engine in a process of its own.
pub trait Probe: Send + Sync {
    /// Blocks until there is a verdict, at most for its own deadlines.
    fn probe(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal>;
}

type Stamp = Vec<(PathBuf, Option<SystemTime>, u64)>;

/// The list of engines. Verdicts are kept while manifest and library stay as they are.
#[derive(Debug, Default)]
pub struct Registry {
    engines_dirs: Vec<PathBuf>,
    verdicts: Mutex<HashMap<Stamp, Result<EngineFacts, Refusal>>>,
}

impl Registry {
    /// Over these folders, in search order.
    pub fn new(engines_dirs: Vec<PathBuf>) -> Self {
        Self { engines_dirs, verdicts: Mutex::default() }
    }

    /// Model formats that some manifest names. Opens no engine.
    pub fn formats(&self) -> Vec<String> {
        let mut formats: Vec<String> = search::search(&self.engines_dirs)
            .into_iter()
            .filter_map(|found| found.manifest)
            .flat_map(|manifest| manifest.formats)
            .collect();
        formats.sort();
        formats.dedup();
        formats
    }

    /// Every candidate with its verdict. `refresh` forgets the verdicts reached before. Blocks while
    /// engines that are new or changed are probed; a second caller waits for the first.
    pub fn candidates(&self, probe: &dyn Probe, refresh: bool) -> Vec<Candidate> {
        let found = search::search(&self.engines_dirs);
        // Held throughout: each engine is probed once, however many ask.
        let mut verdicts = self.verdicts.lock();
        if refresh {
            verdicts.clear();
        }
        let open: Vec<(Stamp, EngineAddress)> = found
            .iter()
            .filter(|found| found.refusal.is_none())
            .filter_map(|found| found.address().map(|address| (stamp(found), address)))
            .filter(|(stamp, _)| !verdicts.contains_key(stamp))
            .collect();
        for ((stamp, _), verdict) in open.iter().zip(probe_all(probe, &open)) {
            verdicts.insert(stamp.clone(), verdict);
        }
        let candidates = found
            .into_iter()
            .map(|found| {
                let verdict = match &found.refusal {
                    Some(refusal) => Err(refusal.clone()),
                    None => verdicts.get(&stamp(&found)).cloned().unwrap_or_else(|| {
                        // The files changed while their engine was looked at.
                        Err(Refusal::ManifestUnreadable {
                            path: found.directory.join("manifest.json"),
                            reason: "it is being replaced; ask again".to_owned(),
                        })
                    }),
                };
                Candidate {
                    id: found.id,
                    gpu_backend: found.gpu_backend,
                    directory: found.directory,
                    manifest: found.manifest,
                    verdict,
                }
            })
            .collect();
        verdicts.retain(|_, verdict| !verdict.as_ref().err().is_some_and(Refusal::is_passing));
        candidates
    }
}

fn probe_all(probe: &dyn Probe, open: &[(Stamp, EngineAddress)]) -> Vec<Result<EngineFacts, Refusal>> {
    let next = AtomicUsize::new(0);
    let results: Vec<Mutex<Option<Result<EngineFacts, Refusal>>>> =
        open.iter().map(|_| Mutex::new(None)).collect();
    std::thread::scope(|scope| {
        for _ in 0..PROBES_AT_ONCE.min(open.len()) {
            scope.spawn(|| {
                while let Some((index, (_, address))) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, open.get(i)?)))
                {
                    *results[index].lock() = Some(probe.probe(address));
                }
            });
        }
    });
    results
        .into_iter()
        .zip(open)
        .map(|(result, (_, address))| {
            result.into_inner().unwrap_or_else(|| {
                Err(Refusal::BinaryNotFound { path: address.binary.clone() }) // every index was taken
            })
        })
        .collect()
}

fn stamp(found: &Found) -> Stamp {
    let of = |path: &Path| {
        let metadata = fs::metadata(path).ok();
        let modified = metadata.as_ref().and_then(|metadata| metadata.modified().ok());
        (path.to_path_buf(), modified, metadata.map_or(0, |metadata| metadata.len()))
    };
    let manifest = of(&found.directory.join("manifest.json"));
    match &found.manifest {
        Some(EngineManifest { binary, .. }) => vec![manifest, of(&found.directory.join(binary))],
        None => vec![manifest],
    }
}
