//! The engines there are: searched for, probed out of process, each with its verdict.
//!
//! Owns the list and its freshness. Refuses to open an engine: a throw-away process does that, and
//! what it dies of is the verdict.

pub mod manifest;
pub mod search;
pub mod surroundings;
pub mod verdict;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use llm_node_wire::message::{EngineAddress, EngineFacts};
use parking_lot::{Condvar, Mutex};

use self::{
    manifest::EngineManifest,
    search::Found,
    surroundings::Surroundings,
    verdict::{Candidate, Refusal},
};
use crate::models::Readable;

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
    surroundings: Mutex<Surroundings>,
    known: Mutex<HashMap<Stamp, Known>>,
    /// Probes have ended.
    probed: Condvar,
}

/// What is known of an engine.
#[derive(Debug, Default)]
struct Known {
    verdict: Option<Result<EngineFacts, Refusal>>,
    /// It is being looked at.
    is_probed: bool,
}

impl Known {
    /// Does somebody have to look?
    fn is_open(&self, refresh: bool) -> bool {
        let passing = |verdict: &Result<_, Refusal>| verdict.as_ref().is_err_and(Refusal::is_passing);
        !self.is_probed && (refresh || self.verdict.as_ref().is_none_or(passing))
    }

    /// Does somebody look whose verdict is needed? Without `refresh` the last one will do.
    fn is_awaited(&self, refresh: bool) -> bool {
        self.is_probed && (refresh || self.verdict.is_none())
    }
}

/// Whatever becomes of a probe, nobody waits for it for ever.
struct Probing<'a>(&'a Registry, Vec<Stamp>);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        let mut known = self.0.known.lock();
        for stamp in &self.1 {
            if let Some(known) = known.get_mut(stamp) {
                known.is_probed = false;
            }
        }
        drop(known);
        self.0.probed.notify_all();
    }
}

impl Registry {
    /// Over these folders, in search order.
    pub fn new(surroundings: Surroundings) -> Self {
        Self { surroundings: Mutex::new(surroundings), known: Mutex::default(), probed: Condvar::new() }
    }

    /// From now on over these folders. What is known of the engines that stay is kept.
    pub fn search_in(&self, surroundings: Surroundings) {
        *self.surroundings.lock() = surroundings;
    }

    fn search(&self) -> Vec<Found> {
        let surroundings = self.surroundings.lock().clone();
        search::search(&surroundings)
    }

    /// What the manifests say that their engines read. Opens no engine.
    pub fn readable(&self) -> Readable {
        let manifests = self.search().into_iter().filter_map(|found| found.manifest);
        Readable(
            manifests
                .flat_map(|manifest| {
                    let architectures = manifest.architectures;
                    manifest.formats.into_iter().map(move |format| (format, architectures.clone()))
                })
                .collect(),
        )
    }

    /// Every candidate with its verdict. `refresh` looks at each of them anew. Blocks while engines that are
    /// new or changed are probed, each once, however many ask; whoever asks for no refresh does not wait for
    /// that of another.
    pub fn candidates(&self, probe: &dyn Probe, refresh: bool) -> Vec<Candidate> {
        let found = self.search();
        let addresses: Vec<(Stamp, EngineAddress)> = found
            .iter()
            .filter(|found| found.refusal.is_none())
            .filter_map(|found| found.address().map(|address| (stamp(found), address)))
            .collect();
        let mut known = self.known.lock();
        if refresh {
            let is_there = |stamp: &Stamp| addresses.iter().any(|(found, _)| found == stamp);
            known.retain(|stamp, known| known.is_probed || is_there(stamp));
        }
        let mut open = Vec::new();
        for (stamp, address) in &addresses {
            let known = known.entry(stamp.clone()).or_default();
            if known.is_open(refresh) {
                known.is_probed = true;
                open.push((stamp.clone(), address.clone()));
            }
        }
        drop(known);
        let probing = Probing(self, open.iter().map(|(stamp, _)| stamp.clone()).collect());
        let probed = probe_all(probe, &open);
        let mut known = self.known.lock();
        for ((stamp, _), verdict) in open.into_iter().zip(probed) {
            known.entry(stamp).or_default().verdict = Some(verdict);
        }
        drop(known);
        drop(probing);
        let mut known = self.known.lock();
        while addresses.iter().any(|(stamp, _)| known.get(stamp).is_some_and(|it| it.is_awaited(refresh))) {
            self.probed.wait(&mut known);
        }
        let candidates = found
            .into_iter()
            .map(|found| {
                let verdict = if let Some(refusal) = &found.refusal {
                    Err(refusal.clone())
                } else {
                    let verdict = known.get(&stamp(&found)).and_then(|known| known.verdict.clone());
                    verdict.unwrap_or_else(|| {
                        // The files changed while their engine was looked at.
                        Err(Refusal::ManifestUnreadable {
                            path: found.directory.join("manifest.json"),
                            reason: "it is being replaced; ask again".to_owned(),
                        })
                    })
                };
                let verdict = verdict.map_err(|refusal| refusal.with_missing(&found.libraries.missing));
                Candidate {
                    id: found.id,
                    gpu_backend: found.gpu_backend,
                    directory: found.directory,
                    manifest: found.manifest,
                    libraries: found.libraries.found,
                    verdict,
                }
            })
            .collect();
        drop(known);
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

#[cfg(test)]
mod tests {
    use std::sync::{
        atomic::AtomicBool,
        mpsc::{Receiver, Sender, channel},
    };

    use super::*;

    /// Looks at engines when it is told to.
    struct Gate {
        began: Mutex<Sender<String>>,
        open: Mutex<Receiver<()>>,
        refuses: AtomicBool,
    }

    impl Probe for Gate {
        fn probe(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal> {
            self.began.lock().send(address.id.clone()).unwrap();
            self.open.lock().recv().unwrap();
            if self.refuses.load(Ordering::Relaxed) {
                return Err(Refusal::BinaryNotFound { path: address.binary.clone() });
            }
            Ok(EngineFacts { abi_version: 1, extensions: vec![] })
        }
    }

    fn usable(candidates: &[Candidate]) -> Vec<bool> {
        candidates.iter().map(Candidate::is_usable).collect()
    }

    /// A folder of engines, with one.
    fn one_engine() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("e/cpu");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("libe.so"), "library").unwrap();
        let manifest = r#"{"id": "e", "version": "1", "abi_version": "1", "gpu_backend": "cpu",
                           "architectures": ["a"], "formats": ["f"], "binary": "libe.so"}"#;
        fs::write(folder.join("manifest.json"), manifest).unwrap();
        root
    }

    fn within(root: &tempfile::TempDir) -> Surroundings {
        Surroundings { engines_dirs: vec![root.path().to_owned()], ..Surroundings::default() }
    }

    #[test]
    fn other_folders_are_searched_from_then_on() {
        let root = one_engine();
        let ((began, _begins), (opens, open)) = (channel(), channel());
        let gate = Gate { began: Mutex::new(began), open: Mutex::new(open), refuses: AtomicBool::new(false) };
        let registry = Registry::new(Surroundings::default());
        assert!(registry.candidates(&gate, false).is_empty());
        registry.search_in(within(&root));
        opens.send(()).unwrap();
        assert_eq!(usable(&registry.candidates(&gate, false)), [true]);
        assert_eq!(registry.readable().formats(), ["f"]);
        registry.search_in(Surroundings::default());
        assert!(registry.candidates(&gate, true).is_empty());
    }

    #[test]
    fn nobody_waits_for_another_s_refresh() {
        let root = one_engine();
        let registry = Registry::new(within(&root));
        let ((began, begins), (opens, open)) = (channel(), channel());
        let gate = Gate { began: Mutex::new(began), open: Mutex::new(open), refuses: AtomicBool::new(false) };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| registry.candidates(&gate, false));
            begins.recv().unwrap();
            let second = scope.spawn(|| registry.candidates(&gate, false));
            opens.send(()).unwrap();
            assert_eq!([first, second].map(|it| usable(&it.join().unwrap())), [[true], [true]]);
            gate.refuses.store(true, Ordering::Relaxed);
            let refresh = scope.spawn(|| registry.candidates(&gate, true));
            begins.recv().unwrap();
            assert_eq!(
                usable(&registry.candidates(&gate, false)),
                [true],
                "the last verdict stands meanwhile"
            );
            opens.send(()).unwrap();
            assert_eq!(usable(&refresh.join().unwrap()), [false]);
            assert_eq!(usable(&registry.candidates(&gate, false)), [false]);
        });
        assert!(begins.try_recv().is_err(), "it was looked at once for each wish to look");
    }
}
