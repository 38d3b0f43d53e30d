//! How long one order or event takes with 20 models.

use std::{hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use llm_node_core::{
    facts::ModelFacts,
    memory::{Estimate, Figures, MemoryUse},
    options::ModelOptions,
};
use llm_node_fleet::{
    ChosenEngine, Deadlines, Device, DeviceKind, DeviceState, Effect, Event, Fleet, Foreseen, FoundModel,
    LoadKey, Moment, ProcessUse, Reading, Setup, Usual, WorkerId,
};

const MODELS: u64 = 20;
const MIB: u64 = 1 << 20;
/// Of all models together.
const LIMIT: u64 = 64 * MIB;

fn load(ticket: u64, model: u64) -> Event {
    let wishes = ModelOptions { context_length: Some(4096), ..ModelOptions::default() };
    Event::Load {
        ticket,
        model_id: format!("model-{model}"),
        wishes,
        format: None,
        instead: None,
        for_request: false,
        tokens: 0,
    }
}

/// A model is to be loaded, and its engine has said what that takes, in bytes. Gives its worker.
fn begin(fleet: &mut Fleet, model: u64, weights: u64) -> WorkerId {
    let now = Moment::default();
    let effects = fleet.handle(now, load(model, model));
    let Some(&Effect::Find { worker, .. }) = effects.first() else { unreachable!("{effects:?}") };
    let found = FoundModel {
        engine: ChosenEngine { id: "e".into(), version: "1".into(), gpu_backend: "cpu".into() },
        size_bytes: weights,
        format: "gguf".into(),
        architecture: None,
        quantization: None,
        key: LoadKey { build: "e".into(), model: model.to_string() },
        known: None,
    };
    fleet.handle(now, Event::Found { worker, found: Ok(found), files: Vec::new() });
    fleet.handle(now, Event::Started { worker, pid: worker as u32 });
    let use_ = MemoryUse { is_host: true, weights, ..MemoryUse::default() };
    let estimate = Estimate { uses: Some(vec![use_]), figures: Figures::default() };
    fleet.handle(now, Event::Estimated { worker, estimate });
    worker
}

/// All models are loaded.
fn fleet() -> Fleet {
    let deadlines = Deadlines::new(Duration::from_secs(30), Duration::from_mins(10), Duration::from_mins(2));
    let mut fleet = Fleet::new(deadlines, Usual::default(), true, Some(LIMIT));
    let now = Moment::default();
    fleet.handle(now, reading());
    for model in 0..MODELS {
        let worker = begin(&mut fleet, model, MIB);
        let facts = ModelFacts { context_length: 4096, max_sequences: 8, ..ModelFacts::default() };
        fleet.handle(now, Event::Ready { worker, facts });
    }
    fleet
}

fn reading() -> Event {
    let processes = (1..=MODELS as u32).map(|pid| ProcessUse { pid, bytes: MIB }).collect();
    let host = Device {
        index: 0,
        name: "host".into(),
        bus_id: None,
        uuid: None,
        total_bytes: 1 << 40,
        free_bytes: 1 << 39,
        kind: DeviceKind::Host,
        processes,
        state: DeviceState::Ok,
        look: None,
    };
    Event::Reading(Reading { began: Moment::default(), devices: vec![host], is_whole: false })
}

fn handle(criterion: &mut Criterion) {
    let mut fleet = fleet();
    let now = Moment::default();
    criterion.bench_function("an order that joins, 20 models", |bencher| {
        bencher.iter(|| black_box(fleet.handle(now, load(1, 7))));
    });
    criterion.bench_function("a worker that is used, 20 models", |bencher| {
        bencher.iter(|| {
            fleet.handle(now, Event::Used { worker: 7, requests: 1, idle_since: None });
            black_box(fleet.view())
        });
    });
    criterion.bench_function("a reading, 20 models", |bencher| {
        bencher.iter(|| black_box(fleet.handle(now, reading())));
    });
    criterion.bench_function("a plan that needs the room of others, 20 models", |bencher| {
        let later = now + Duration::from_mins(1);
        let setup = Box::new(Setup::new("model-20", ModelOptions::default(), &Usual::default()));
        // The least that does not fit beside those that are loaded.
        let memory = vec![MemoryUse { is_host: true, weights: LIMIT - 5 * MIB, ..MemoryUse::default() }];
        let foreseen = Foreseen { memory, setup: Some(setup), ..Foreseen::default() };
        bencher.iter(|| {
            let (ticket, model_id, wishes) = (2, "model-20".to_owned(), ModelOptions::default());
            let plan = Event::Plan { ticket, model_id, wishes, foreseen: Some(foreseen.clone()) };
            black_box(fleet.handle(later, plan))
        });
    });
    criterion.bench_function("a reading while one waits for the room of others, 20 models", |bencher| {
        let mut fleet = crate::fleet();
        begin(&mut fleet, MODELS, LIMIT - 5 * MIB);
        assert_eq!(fleet.view().line.len(), 1);
        bencher.iter(|| black_box(fleet.handle(now, reading())));
    });
    criterion.bench_function("the view, 20 models", |bencher| bencher.iter(|| black_box(fleet.view())));
}

criterion_group!(benches, handle);
criterion_main!(benches);
