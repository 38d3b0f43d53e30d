//! Engines compiled on the spot, each test's its own: an engine runs only once in a process.

#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use llm_node_core::engine::{Best, Row, Slice, StepEngine, Ticket, Token};
use llm_node_host::{
    Context, ContextParams, InitConfig, LoadError, LoadedEngine, Model, ModelParams, Observer, OpenedEngine,
    unobserved,
};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// A folder of this test's own, below cargo's.
pub(crate) fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Compiles a C file into a library; with ENGINE_CFLAGS too, which `make sanitize` sets.
pub(crate) fn compile(source: &Path, output: &Path, flags: &[&str]) {
    let further = std::env::var("ENGINE_CFLAGS").unwrap_or_default();
    let result = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()))
        // What is preloaded into the test is not for the compiler.
        .env_remove("LD_PRELOAD")
        .args(["-std=c99", "-shared", "-fPIC", "-O0", "-I", llm_node_abi::HEADER_DIR])
        .args(flags)
        .args(further.split_whitespace())
        .arg("-o")
        .args([output, source])
        .args(["-lm", "-lpthread"])
        .output()
        .expect("a C compiler");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
}

/// tests/fakes/fake_engine.c with these switches ("NULL_INFO", "TABLE_SIZE=0"), in a folder called `name`.
pub(crate) fn fake(name: &str, switches: &[&str]) -> PathBuf {
    let output = scratch(name).join("libfake.so");
    let flags: Vec<String> = switches.iter().map(|switch| format!("-DFAKE_{switch}")).collect();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    compile(&root().join("tests/fakes/fake_engine.c"), &output, &flags);
    output
}

/// A model that the fake takes.
pub(crate) fn toy_model(name: &str, metadata: &str) -> PathBuf {
    let path = scratch(name).join("model.toy");
    std::fs::write(&path, format!("TOY1\n{metadata}")).unwrap();
    path
}

pub(crate) fn open(path: &Path) -> Result<OpenedEngine, LoadError> {
    OpenedEngine::open(path, "fake", "1.0.0", unobserved())
}

pub(crate) fn config() -> InitConfig {
    InitConfig { gpu_backend: "cpu".to_owned(), ..InitConfig::default() }
}

pub(crate) fn loaded(name: &str, switches: &[&str]) -> LoadedEngine {
    open(&fake(name, switches)).unwrap().init(&config()).unwrap()
}

/// A model that never ends by itself.
pub(crate) fn model(name: &str, switches: &[&str]) -> Arc<Model> {
    let engine = Arc::new(loaded(name, switches));
    Model::load(&engine, &ModelParams::new(toy_model(name, "eog_every=0\n")), None).unwrap()
}

pub(crate) fn context(name: &str, switches: &[&str], params: &ContextParams) -> Context {
    Context::create(&model(name, switches), params).unwrap()
}

pub(crate) fn params() -> ContextParams {
    ContextParams { max_sequences: 8, context_length: 64, ..ContextParams::default() }
}

/// An observer, and what it has heard.
pub(crate) fn recorder() -> (Observer, Arc<Mutex<Vec<&'static str>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let list = Arc::clone(&heard);
    (Arc::new(move |call| list.lock().unwrap().push(call)), heard)
}

pub(crate) fn slice(sequence: u32, position: u32, tokens: &[Token], rows: u32) -> Slice<'_> {
    Slice { sequence, position, tokens, rows, candidates: 0 }
}

/// The logits of a row that came whole.
pub(crate) fn whole<'a>(row: &'a Row<'_>) -> &'a [f32] {
    match row {
        Row::Whole(logits) => logits,
        Row::Best(best) => panic!("candidates: {best:?}"),
    }
}

/// The candidates of a row that was cut down to them.
pub(crate) fn best<'r, 'a>(row: &'r Row<'a>) -> &'r Best<'a> {
    match row {
        Row::Whole(_) => panic!("a whole row"),
        Row::Best(best) => best,
    }
}

pub(crate) fn argmax(row: &[f32]) -> Token {
    let mut best = 0;
    for (index, logit) in row.iter().enumerate() {
        if *logit > row[best] {
            best = index;
        }
    }
    best as Token
}

/// One step whose every slice wants one row; the greedy token of each.
pub(crate) fn advance(context: &mut Context, slices: &[Slice<'_>]) -> Vec<Token> {
    let ticket: Ticket = context.step(slices).unwrap();
    let rows = context.collect(ticket, slices.iter().map(|slice| slice.rows as usize).sum()).unwrap();
    rows.iter().map(|row| argmax(whole(row))).collect()
}

/// The greedy continuation of one prompt, alone in its sequence.
pub(crate) fn continued(context: &mut Context, sequence: u32, prompt: &[Token], count: usize) -> Vec<Token> {
    let mut answer = advance(context, &[slice(sequence, 0, prompt, 1)]);
    while answer.len() < count {
        let position = (prompt.len() + answer.len() - 1) as u32;
        let last = answer[answer.len() - 1];
        answer.extend(advance(context, &[slice(sequence, position, &[last], 1)]));
    }
    answer
}
