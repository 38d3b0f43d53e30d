//! Engines compiled on the spot, each test's its own: an engine runs only once in a process.

#![allow(dead_code, unused_imports, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub(crate) use llm_node_fixtures::{compile, compile_fake, root, scratch};

use llm_node_core::engine::{Best, Row, Slice, StepEngine, Ticket, Token};
use llm_node_host::{
    Context, ContextParams, InitConfig, LoadError, LoadedEngine, Model, ModelParams, Observer, OpenedEngine,
    unobserved,
};

/// The fake with these switches ("NULL_INFO", "TABLE_SIZE=0"), in a folder called `name`.
pub(crate) fn fake(name: &str, switches: &[&str]) -> PathBuf {
    let output = scratch(name).join("libfake.so");
    compile_fake(&output, switches);
    output
}

/// A model that the fake takes, in that folder.
pub(crate) fn toy_model(name: &str, metadata: &str) -> PathBuf {
    llm_node_fixtures::toy_model(&scratch(name), metadata)
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
