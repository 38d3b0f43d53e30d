//! The samples in C, and what `llm-node engine new` makes of C: all pass, also as sanitizers build them.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod support;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use llm_node_conformance::{Outcome, Status, Subject};
use llm_node_fixtures::compiler;
use support::{checked, checked_by, compile, root, scratch, subject, template, template_model, told};

const PATIENCE: Duration = Duration::from_mins(1);

/// A sample, and a check that then is not skipped.
const SAMPLES: &[(&str, &str)] = &[
    ("my_engine", "tier0.generate"),
    ("sample_markov", "tier0.prompts"),
    ("c-tier0", "tier0.prompts"),
    ("c-batch", "batch.scripts"),
];

/// The sample's source, its id and version.
fn source(name: &str) -> (String, &'static str, &'static str) {
    match name {
        "my_engine" | "sample_markov" => {
            let path = root().join("engines/sample_c").join(format!("{name}.c"));
            let id = if name == "my_engine" { "my_engine" } else { "sample_markov" };
            (std::fs::read_to_string(path).unwrap(), id, "1.0.0")
        }
        template_of => (template(template_of), "tiny", "0.1.0"),
    }
}

/// Compiles a sample whose source was perhaps changed; `ENGINE_CFLAGS` are heeded, which `make sanitize` sets.
fn built(folder: &Path, name: &str, change: impl Fn(String) -> String, flags: &[&str]) -> Subject {
    let (text, id, version) = source(name);
    let (file, library) = (folder.join("engine.c"), folder.join("libsample.so"));
    std::fs::write(&file, change(text)).unwrap();
    compile(&file, &library, flags);
    subject(library, (id, version), template_model())
}

fn passes(outcomes: &[Outcome], asked: &str) {
    assert!(!outcomes.iter().any(Outcome::failed), "{}", told(outcomes));
    let passed = outcomes.iter().any(|one| one.check.name == asked && one.status == Status::Passed);
    assert!(passed, "{asked} was not asked");
}

#[test]
fn samples_pass() {
    for (name, asked) in SAMPLES {
        let subject = built(&scratch(&format!("sample-{name}")), name, |text| text, &[]);
        passes(&checked(&subject, &[], PATIENCE), asked);
    }
}

const SANITIZERS: &[&str] =
    &["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"];

const THREADS: &[&str] = &["-g", "-O1", "-fsanitize=thread"];

/// What comes before the command of a check, so that a sanitizer's runtime is there before all else. `None`: this
/// compiler has none.
fn under(library: &str, options: &str) -> Option<Vec<OsString>> {
    let told = compiler().arg(format!("-print-file-name={library}")).output().unwrap();
    let runtime = String::from_utf8(told.stdout).unwrap().trim().to_owned();
    Path::new(&runtime)
        .is_absolute()
        .then(|| ["env".into(), format!("LD_PRELOAD={runtime}").into(), options.into()].to_vec())
}

fn under_sanitizers() -> Option<Vec<OsString>> {
    under("libasan.so", "ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=1")
}

/// Locks of the checks themselves, which are Rust, are unknown to it.
fn under_thread_sanitizer() -> Option<Vec<OsString>> {
    under("libtsan.so", "TSAN_OPTIONS=halt_on_error=1:ignore_noninstrumented_modules=1")
}

#[test]
fn a_sample_passes_as_sanitizers_build_it() {
    let Some(prefix) = under_sanitizers() else { return };
    let folder = scratch("sanitized-right");
    let subject = built(&folder, "c-batch", |text| text, SANITIZERS);
    passes(&checked_by(&prefix, &subject, &[], PATIENCE), "batch.scripts");
}

const OF_THREADS: &[&str] =
    &["models.threads", "tokenizer.threads", "batch.contexts", "batch.threads", "batch.cancel"];

#[test]
fn a_sample_has_no_races() {
    let Some(prefix) = under_thread_sanitizer() else { return };
    let subject = built(&scratch("threads-right"), "c-batch", |text| text, THREADS);
    passes(&checked_by(&prefix, &subject, OF_THREADS, PATIENCE), "tokenizer.threads");
}

#[test]
fn a_race_is_found() {
    let Some(prefix) = under_thread_sanitizer() else { return };
    let racing = |text: String| {
        let right = "   (void)model;\n   size_t n = 0;\n   for (size_t i = 0; i < text_len; n++) {";
        assert_eq!(text.matches(right).count(), 1);
        let wrong = "   (void)model;\n   static size_t calls;\n   calls++;\n   size_t n = 0;\n   for (size_t i = 0; i < text_len; n++) {";
        text.replace(right, wrong)
    };
    let subject = built(&scratch("threads-wrong"), "c-batch", racing, THREADS);
    let outcomes = checked_by(&prefix, &subject, &["tokenizer.threads"], PATIENCE);
    let Status::Failed(finding) = &outcomes[0].status else { panic!("{:?}", outcomes[0].status) };
    assert!(finding.seen.contains("ThreadSanitizer: data race"), "{}", finding.seen);
    assert!(finding.seen.contains(" in tokenize"), "{}", finding.seen);
}

/// What a sanitizer says is what was seen.
#[test]
fn what_a_sanitizer_sees_is_found() {
    let Some(prefix) = under_sanitizers() else { return };
    let beyond = |text: String| {
        let (right, wrong) = ("calloc((size_t)all, sizeof *context->cells)", "calloc((size_t)all, 3)");
        assert_eq!(text.matches(right).count(), 1);
        text.replace(right, wrong)
    };
    let subject = built(&scratch("sanitized-wrong"), "c-batch", beyond, SANITIZERS);
    let outcomes = checked_by(&prefix, &subject, &["batch.limits"], PATIENCE);
    let Status::Failed(finding) = &outcomes[0].status else { panic!("{:?}", outcomes[0].status) };
    assert!(finding.seen.contains("AddressSanitizer: heap-buffer-overflow"), "{}", finding.seen);
    let overflow = |text: String| {
        let right = "*ticket = ++context->ticket;";
        assert_eq!(text.matches(right).count(), 1);
        text.replace(right, &format!("{right}\n   volatile int most = 0x7fffffff;\n   most = most + 1;"))
    };
    let subject = built(&scratch("sanitized-overflow"), "c-batch", overflow, SANITIZERS);
    let outcomes = checked_by(&prefix, &subject, &["batch.rows"], PATIENCE);
    let Status::Failed(finding) = &outcomes[0].status else { panic!("{:?}", outcomes[0].status) };
    assert!(finding.seen.contains("runtime error: signed integer overflow"), "{}", finding.seen);
}
