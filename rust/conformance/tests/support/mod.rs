//! Engines compiled on the spot, and the suite run on them.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

pub(crate) use llm_node_fixtures::{compile, compile_fake, root, scratch, toy_model};

use llm_node_conformance::{Outcome, Selection, Status, Subject, run};

/// The fake with these switches, and a model that it takes.
pub(crate) fn fake(name: &str, switches: &[&str]) -> Subject {
    let folder = scratch(name);
    let library = folder.join("libfake.so");
    compile_fake(&library, switches);
    let model = toy_model(&folder, "n_context=256\neog_every=0\ngeneral.name=a toy\n");
    subject(library, ("fake", "1.0.0"), model)
}

/// An engine for the processor, with a model.
pub(crate) fn subject(library: PathBuf, (id, version): (&str, &str), model: PathBuf) -> Subject {
    Subject {
        library,
        libraries: Vec::new(),
        id: id.to_owned(),
        version: version.to_owned(),
        gpu_backend: "cpu".to_owned(),
        model: Some(model),
        options: Vec::new(),
        quick: true,
        seed: 0,
    }
}

/// The source in C that `llm-node engine new tiny` begins with.
pub(crate) fn template(name: &str) -> String {
    let path = root().join("python/llm_node/templates").join(name).join("engine.c");
    std::fs::read_to_string(path).unwrap().replace("@ID@", "tiny")
}

/// The model of the templates.
pub(crate) fn template_model() -> PathBuf {
    root().join("python/llm_node/templates/every/models/hello.@ID@")
}

/// Runs checks, all of them if none is named.
pub(crate) fn checked(subject: &Subject, names: &[&str], deadline: Duration) -> Vec<Outcome> {
    checked_by(&[], subject, names, deadline)
}

/// As [`checked`], with something before the command of each process.
pub(crate) fn checked_by(
    prefix: &[OsString],
    subject: &Subject,
    names: &[&str],
    deadline: Duration,
) -> Vec<Outcome> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let program = [prefix, &[OsString::from(env!("CARGO_BIN_EXE_check-one"))]].concat();
    run(subject, &Selection { names, deadline }, &program, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// What is said of an engine, for people who read why a test failed.
pub(crate) fn told(outcomes: &[Outcome]) -> String {
    let line = |outcome: &Outcome| match &outcome.status {
        Status::Failed(finding) => {
            Some(format!("{}: {}\n    {}", outcome.check.name, finding.seen, finding.script.join("\n    ")))
        }
        Status::Passed | Status::Skipped { .. } => None,
    };
    outcomes.iter().filter_map(line).collect::<Vec<_>>().join("\n")
}

/// Does `work` for each item, some at a time, and gathers the complaints.
pub(crate) fn each<T: Sync>(items: &[T], work: impl Fn(&T) -> Option<String> + Sync) -> Vec<String> {
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Some(complaint) = work(item) {
                        complaints.lock().unwrap().push(complaint);
                    }
                }
            });
        }
    });
    complaints.into_inner().unwrap()
}
