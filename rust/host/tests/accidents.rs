//! Engines that crash, exit or hang. Each is run in a child, which is this very program again and writes
//! down each call that the host announces; the last line names the call that did not return.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use llm_node_core::engine::StepEngine;
use llm_node_host::{Context, Model, ModelParams, Observer, OpenedEngine};
use support::*;

const LIBRARY: &str = "HOST_TEST_LIBRARY";
const JOURNAL: &str = "HOST_TEST_JOURNAL";
const STORY: &str = "HOST_TEST_STORY";

/// Nothing is expected to take this long; it only ends a test that hangs.
const DEADLINE: Duration = Duration::from_mins(1);

/// Not a test: what the children do.
#[test]
fn child() {
    let (Some(library), Some(journal)) = (std::env::var_os(LIBRARY), std::env::var_os(JOURNAL)) else {
        return;
    };
    let journal = PathBuf::from(journal);
    let observer: Observer = {
        let journal = journal.clone();
        Arc::new(move |call| note(&journal, call))
    };
    let opened = OpenedEngine::open(Path::new(&library), "fake", "1.0.0", observer).unwrap();
    let mut engine = opened.init(&config()).unwrap();
    let toy = journal.with_file_name("model.toy");
    std::fs::write(&toy, "TOY1").unwrap();
    if std::env::var(STORY).unwrap() == "tier 0" {
        engine.tier0_load(&toy).unwrap();
        engine.tier0_generate("once").unwrap();
    } else {
        let model = Model::load(&Arc::new(engine), &ModelParams::new(toy), None).unwrap();
        let mut context = Context::create(&model, &params()).unwrap();
        note(&journal, "step");
        let ticket = context.step(&[slice(0, 0, &[1, 2, 3], 1)]).unwrap();
        context.collect(ticket, 1).unwrap();
    }
}

fn note(journal: &Path, call: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(journal).unwrap();
    writeln!(file, "{call}").unwrap();
}

fn start(switch: &str, story: &str) -> (Child, PathBuf) {
    let name = format!("accident_{switch}_{story}");
    let library = fake(&name, &[switch]);
    let journal = scratch(&name).join("journal");
    let _ = std::fs::remove_file(&journal);
    let child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--test-threads=1"])
        .env(LIBRARY, library)
        .env(JOURNAL, &journal)
        .env(STORY, story)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    (child, journal)
}

fn last(journal: &Path) -> String {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    text.lines().last().unwrap_or_default().to_owned()
}

/// Waits for `done`, looking often.
fn wait<T>(child: &mut Child, mut done: impl FnMut(&mut Child) -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(result) = done(child) {
            return result;
        }
        if begun.elapsed() > DEADLINE {
            let _ = child.kill();
            panic!("nothing happened for {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn ended(switch: &str, story: &str) -> (ExitStatus, String) {
    let (mut child, journal) = start(switch, story);
    let status = wait(&mut child, |child| child.try_wait().unwrap());
    (status, last(&journal))
}

#[test]
fn a_good_engine_comes_to_the_end() {
    for story in ["tier 0", "steps"] {
        let (status, last) = ended("STEP_US=0", story);
        assert!(status.success(), "{story}: {status}");
        assert_eq!(last, "engine_shutdown");
    }
}

#[test]
fn a_crash_is_named_after_the_call() {
    const SEGMENTATION_FAULT: i32 = 11;
    for (switch, story, call) in [
        ("CRASH_IN_CONSTRUCTOR", "tier 0", "dlopen"),
        ("CRASH_IN_INIT", "tier 0", "engine_init"),
        ("CRASH_IN_LOAD", "tier 0", "engine_load_model"),
        ("CRASH_IN_LOAD", "steps", "models.load"),
        ("CRASH_IN_GENERATE", "tier 0", "engine_generate"),
        ("CRASH_IN_STEP", "steps", "step"),
        ("CRASH_IN_SHUTDOWN", "steps", "engine_shutdown"),
        ("CRASH_ON_BYTE=2", "steps", "step"),
    ] {
        let (status, last) = ended(switch, story);
        assert_eq!((status.signal(), last.as_str()), (Some(SEGMENTATION_FAULT), call), "{switch}");
    }
}

#[test]
fn an_engine_that_ends_the_process() {
    let (status, last) = ended("EXIT_IN_INIT", "tier 0");
    assert_eq!((status.code(), last.as_str()), (Some(0), "engine_init"));
    let (status, last) = ended("ABORT_IN_INIT", "tier 0");
    assert_eq!((status.signal(), last.as_str()), (Some(6), "engine_init"));
}

#[test]
fn a_hang_is_named_after_the_call() {
    for (switch, story, call) in [
        ("HANG_IN_CONSTRUCTOR", "tier 0", "dlopen"),
        ("HANG_IN_INIT", "tier 0", "engine_init"),
        ("HANG_IN_LOAD", "steps", "models.load"),
        ("HANG_IN_GENERATE", "tier 0", "engine_generate"),
        ("HANG_IN_STEP", "steps", "step"),
        ("HANG_IN_SHUTDOWN", "tier 0", "engine_shutdown"),
    ] {
        let (mut child, journal) = start(switch, story);
        wait(&mut child, |child| {
            assert_eq!(child.try_wait().unwrap(), None, "{switch}: it ended");
            (last(&journal) == call).then_some(())
        });
        // It is in the call, or about to be: and it does not come out of it.
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(child.try_wait().unwrap(), None, "{switch}: it ended");
        assert_eq!(last(&journal), call, "{switch}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
