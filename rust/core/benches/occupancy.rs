//! What it takes to say how busy a model is, with 64 requests under way: a worker does so between two steps, a few times
//! a second.
#![allow(clippy::unwrap_used, reason = "a toy that does not do as told ends the benchmark")]

#[allow(dead_code, reason = "tests use more of it")]
#[path = "../tests/toy/toy_engine.rs"]
mod toy_engine;

use std::{
    hint::black_box,
    sync::{Arc, Mutex},
};

use criterion::{Criterion, criterion_group, criterion_main};
use llm_node_core::{
    chat::conversation::Format,
    engine::Tokenizer,
    request::{Prompt, Request, Sampling, ValidRequest},
    session::{Occupancy, Session, SessionOptions},
};
use toy_engine::{ToyEngine, ToyTokenizer, limits};

const REQUESTS: u64 = 64;

fn busy() -> Session<ToyEngine> {
    let tokenizer = ToyTokenizer::new();
    let vocabulary = Arc::new(tokenizer.vocabulary().clone());
    let mut session = Session::new(ToyEngine::new(limits()), vocabulary, SessionOptions::default());
    for id in 0..REQUESTS {
        let request = Request {
            prompt: Prompt::Tokens(vec![id as i32; 16]),
            max_tokens: Some(200),
            sampling: Sampling { temperature: 0.0, ..Sampling::default() },
            stop: Vec::new(),
            ignore_eos: true,
            logprobs: None,
            format: Format::Text,
            source: 0,
        };
        let request = ValidRequest::new(request, &tokenizer, None, &limits(), 42, 0).unwrap();
        session.submit(id, request).unwrap();
    }
    let mut events = Vec::new();
    while session.occupancy().running < REQUESTS as usize {
        session.step(&mut events).unwrap();
    }
    session
}

fn look(criterion: &mut Criterion) {
    let session = busy();
    let shown = Mutex::new(Occupancy::default());
    criterion.bench_function("how busy it is, 64 requests", |bencher| {
        bencher.iter(|| *shown.lock().unwrap() = black_box(session.occupancy()));
    });
}

criterion_group!(benches, look);
criterion_main!(benches);
