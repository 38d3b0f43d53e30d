//! The same with a real engine and a real model, which this crate has not got:
//!
//! ```text
//! LLM_NODE_TEST_ENGINE=engines/llama_cpp/cpu/libllama_engine.so LLM_NODE_TEST_ENGINE_ID=llama_cpp \
//! LLM_NODE_TEST_ENGINE_VERSION=0.1.0 LLM_NODE_TEST_MODEL=stories260K.gguf \
//!     cargo test -p llm-node-worker --test real_engine -- --ignored --nocapture
//! ```
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{env, path::PathBuf};

use llm_node_wire::message::{EngineAddress, FromWorker, LoadPlan, ToWorker};
use llm_node_worker::serve::exit;
use support::{Worker, greedy, plan};

fn wanted() -> LoadPlan {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    let path = |name| PathBuf::from(variable(name)).canonicalize().unwrap();
    let binary = path("LLM_NODE_TEST_ENGINE");
    let engine = EngineAddress {
        id: variable("LLM_NODE_TEST_ENGINE_ID"),
        version: variable("LLM_NODE_TEST_ENGINE_VERSION"),
        gpu_backend: "cpu".into(),
        directory: binary.parent().unwrap().into(),
        binary,
    };
    plan(engine, path("LLM_NODE_TEST_MODEL"))
}

#[test]
#[ignore = "needs a built engine and a model"]
fn many_at_once_answer_as_each_alone() {
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(wanted()));
    let uses = match worker.next().unwrap() {
        FromWorker::Estimated(uses) => uses,
        other => panic!("{other:?}"),
    };
    println!("estimated: {uses:#?}");
    worker.send(&ToWorker::Proceed);
    let FromWorker::Ready(facts) = worker.next().unwrap() else { panic!("not ready") };
    println!("{facts:#?}");
    let prompts = ["Once upon a time", "The dog", "Lily wanted to", "In the park"];
    let mut alone = Vec::new();
    for (id, prompt) in (0..).zip(prompts) {
        worker.generate(id, greedy(prompt, 40));
        let outcome = worker.outcome(id);
        println!("{prompt}{}", outcome.text);
        alone.push(outcome);
    }
    let ids: Vec<u64> = (100..164).collect();
    for &id in &ids {
        worker.generate(id, greedy(prompts[id as usize % 4], 40));
    }
    for (id, outcome) in worker.outcomes(&ids) {
        assert_eq!(outcome.text, alone[id as usize % 4].text);
    }
    worker.send(&ToWorker::Stop);
    while worker.next().is_ok() {}
    println!("{:#?}\n{:#?}", worker.stages, worker.logs);
    assert_eq!(worker.ended().code(), Some(exit::DONE));
}
