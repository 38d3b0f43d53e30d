//! `check_engine` and what belongs to it: the conformance suite, each check in a process of its own.

use std::{
    ffi::OsString,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::Duration,
};

use llm_node_conformance::{By, CHECKS, Check, ITEMS, Outcome, Selection, Status, Subject};
use llm_node_core::error::{ErrorCode, Fault};
use llm_node_node::registry::{
    manifest::{self, EngineManifest},
    search,
    surroundings::{Packaged, Surroundings},
    verdict::Refusal,
};
use pyo3::prelude::*;
use serde::{Deserialize, Serialize};

use crate::{
    fault::{malformed, raised},
    supervisor::json,
};

/// An engine's folder and what its manifest says.
#[derive(Serialize)]
struct Engine {
    folder: PathBuf,
    binary: PathBuf,
    id: String,
    version: String,
    gpu_backend: String,
    formats: Vec<String>,
    #[serde(skip)]
    manifest: EngineManifest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    folder: PathBuf,
    packaged: Vec<Packaged>,
    model: Option<PathBuf>,
    checks: Vec<String>,
    options: Vec<(String, String)>,
    quick: bool,
    seed: u64,
    deadline_seconds: f64,
}

#[derive(Serialize)]
struct Entry<'m> {
    name: &'static str,
    level: llm_node_conformance::Level,
    what: &'static str,
    contract: String,
    line: usize,
    mend: &'m str,
}

#[derive(Serialize)]
struct Told<'o> {
    #[serde(flatten)]
    entry: Entry<'o>,
    status: &'static str,
    seen: &'o str,
    script: &'o [String],
    seconds: f64,
}

impl<'o> Told<'o> {
    fn of(outcome: &'o Outcome) -> Self {
        let Outcome { check, status, seconds } = outcome;
        let (status, seen, script, mend) = match status {
            Status::Passed => ("passed", "", &[][..], None),
            Status::Skipped { why } => ("skipped", why.as_str(), &[][..], None),
            Status::Failed(finding) => {
                ("failed", finding.seen.as_str(), &finding.script[..], finding.mend.as_deref())
            }
        };
        let entry = Entry { mend: mend.unwrap_or(check.mend), ..entry(check) };
        Self { entry, status, seen, script, seconds: *seconds }
    }
}

fn entry(check: &'static Check) -> Entry<'static> {
    let Check { name, level, what, mend, .. } = *check;
    let (contract, line) = check.quotation();
    Entry { name, level, what, contract, line, mend }
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn conformance_checks(py: Python<'_>) -> PyResult<String> {
    let all: Vec<Entry> = CHECKS.iter().copied().flatten().map(entry).collect();
    json(&all).map_err(|fault| raised(py, &fault))
}

#[derive(Serialize)]
struct Item {
    group: &'static str,
    asks: &'static str,
    checks: &'static [&'static str],
    other: Option<&'static str>,
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn conformance_items(py: Python<'_>) -> PyResult<String> {
    let item = |item: &'static llm_node_conformance::Item| Item {
        group: item.group,
        asks: item.asks,
        checks: item.checks(),
        other: match item.by {
            By::Checks(_) => None,
            By::Other(why) => Some(why),
        },
    };
    let all: Vec<Item> = ITEMS.iter().map(item).collect();
    json(&all).map_err(|fault| raised(py, &fault))
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn engine_at(py: Python<'_>, path: &str) -> PyResult<String> {
    look(Path::new(path)).and_then(|engine| json(&engine)).map_err(|fault| raised(py, &fault))
}

fn look(path: &Path) -> Result<Engine, Fault> {
    let not_found = |words: String| Fault::new(ErrorCode::InvalidRequest, words);
    let path = std::path::absolute(path).map_err(|error| not_found(error.to_string()))?;
    let folder = if path.join("manifest.json").is_file() {
        path
    } else {
        let engines = search::meant(&path).unwrap_or_else(|| path.clone());
        let mut found: Vec<PathBuf> =
            search::search(&Surroundings { engines_dirs: vec![engines], ..Surroundings::default() })
                .into_iter()
                .map(|found| found.directory)
                .filter(|folder| folder.starts_with(&path))
                .collect();
        match (found.pop(), found.len()) {
            (Some(folder), 0) => folder,
            (None, _) => {
                return Err(not_found(format!(
                    "{} has no manifest.json, and no folder below it has",
                    path.display()
                )));
            }
            (Some(_), _) => {
                return Err(not_found(format!(
                    "{} holds several engines: name one of their folders",
                    path.display()
                )));
            }
        }
    };
    let (manifest, refusal) = manifest::read(&folder.join("manifest.json"))
        .map_err(|refusal| Fault::new(refusal.code(), refusal.to_string()))?;
    // Whether there is a library is for a check to say, and one that is to be built is not there yet.
    if let Some(refusal) = refusal.filter(|refusal| !matches!(refusal, Refusal::BinaryNotFound { .. })) {
        return Err(Fault::new(refusal.code(), refusal.to_string()));
    }
    let EngineManifest { id, version, gpu_backend, formats, .. } = manifest.clone();
    Ok(Engine { binary: folder.join(&manifest.binary), folder, id, version, gpu_backend, formats, manifest })
}

/// See `_core.pyi`.
#[pyfunction]
#[expect(clippy::needless_pass_by_value, reason = "it is made for the call")]
pub(crate) fn check_engine(
    py: Python<'_>,
    plan: &str,
    child: Vec<OsString>,
    progress: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let plan: Plan = serde_json::from_str(plan)
        .map_err(|error| raised(py, &malformed("the plan of the checks", &error)))?;
    let engine = look(&plan.folder).map_err(|fault| raised(py, &fault))?;
    let surroundings = Surroundings { packaged: plan.packaged, ..Surroundings::default() };
    let subject = Subject {
        library: engine.binary,
        libraries: surroundings.libraries_of(&engine.manifest).found,
        id: engine.id,
        version: engine.version,
        gpu_backend: engine.gpu_backend,
        model: plan.model,
        options: plan.options,
        quick: plan.quick,
        seed: plan.seed,
    };
    let deadline = Duration::try_from_secs_f64(plan.deadline_seconds).unwrap_or(Duration::MAX);
    let selection = Selection { names: plan.checks, deadline };
    let progress = progress.clone().unbind();
    let mut stopped = None;
    let ran = py.detach(|| {
        llm_node_conformance::run(&subject, &selection, &child, &mut |outcome: &Outcome| {
            let told = Told::of(outcome);
            let called = Python::attach(|py| {
                // Ctrl-C reaches Python only where Python code runs.
                py.check_signals()?;
                let text = json(&told).map_err(|fault| raised(py, &fault))?;
                progress.call1(py, (text,)).map(drop)
            });
            match called {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    stopped = Some(error);
                    ControlFlow::Break(())
                }
            }
        })
    });
    match (stopped, ran) {
        (Some(error), _) => Err(error),
        (None, Ok(_)) => Ok(()),
        (None, Err(error)) => Err(raised(py, &Fault::new(ErrorCode::Internal, error.to_string()))),
    }
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn engine_claims(py: Python<'_>, folder: PathBuf, claim: Option<&str>) -> PyResult<()> {
    let claim: Option<manifest::Claim> = claim
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| raised(py, &malformed("the claim", &error)))?;
    Ok(py.detach(move || manifest::claim(&folder.join("manifest.json"), claim.as_ref()))?)
}

/// See `_core.pyi`.
#[pyfunction]
pub(crate) fn run_check(py: Python<'_>, job: &str) {
    py.detach(|| llm_node_conformance::child(Path::new(job)));
}
