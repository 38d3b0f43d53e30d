//! Engines compiled on the spot, and the suite run on them.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use llm_node_conformance::{Outcome, Selection, Status, Subject, run};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder of this test's own, below cargo's.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Compiles a C file into a library.
pub(crate) fn compile(source: &Path, output: &Path, flags: &[String]) {
    let result = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        .env_remove("LD_PRELOAD")
        .args([
            "-std=gnu99",
            "-shared",
            "-fPIC",
            "-O0",
            "-fvisibility=hidden",
            "-I",
            llm_node_abi::HEADER_DIR,
        ])
        .args(flags)
        .arg("-o")
        .args([output, source])
        .args(["-lm", "-lpthread"])
        .output()
        .expect("a C compiler");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

/// tests/fakes/fake_engine.c with these switches, and a model that it takes.
pub(crate) fn fake(name: &str, switches: &[&str]) -> Subject {
    let folder = scratch(name);
    let library = folder.join("libfake.so");
    let flags: Vec<String> = switches.iter().map(|switch| format!("-DFAKE_{switch}")).collect();
    compile(&root().join("tests/fakes/fake_engine.c"), &library, &flags);
    let model = folder.join("model.toy");
    std::fs::write(&model, "TOY1\nn_context=256\neog_every=0\ngeneral.name=a toy\n").unwrap();
    Subject {
        library,
        id: "fake".to_owned(),
        version: "1.0.0".to_owned(),
        gpu_backend: "cpu".to_owned(),
        model: Some(model),
        quick: true,
        seed: 0,
    }
}

/// Runs checks, all of them if none is named.
pub(crate) fn checked(subject: &Subject, names: &[&str], deadline: Duration) -> Vec<Outcome> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    let program = [OsString::from(env!("CARGO_BIN_EXE_check-one"))];
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
