//! A worker as the node sees it: a process at the other end of a socket.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use llm_node_core::{
    error::ErrorCode,
    event::{Event, Finish},
    request::{Prompt, Request, Sampling},
    shape::{ContextSize, Shape, Sizing},
};
use llm_node_wire::message::{
    Answer, EmbedInput, EngineAddress, FromWorker, LoadPlan, Question, Speculation, ToWorker,
};
use llm_node_worker::serve::exit;
use support::{Outcome, Worker, compile, fake, greedy, plan, root, toy_model};
use tempfile::{TempDir, tempdir};

struct Toy {
    folder: TempDir,
    engine: EngineAddress,
}

impl Toy {
    fn new(flags: &[&str]) -> Self {
        let folder = tempdir().unwrap();
        let engine = fake(folder.path(), flags);
        Self { folder, engine }
    }

    fn plan(&self) -> LoadPlan {
        plan(self.engine.clone(), toy_model(self.folder.path()))
    }

    fn load(&self) -> Worker {
        Worker::load(self.plan()).0
    }
}

/// Twenty steps a second: 2048 tokens take longer than any test.
fn slow(mut plan: LoadPlan) -> LoadPlan {
    plan.options = vec![("step_us".into(), "50000".into())];
    plan
}

fn endless() -> Request {
    let mut request = greedy("hello", 0);
    request.max_tokens = None;
    request.ignore_eos = true;
    request
}

#[test]
fn a_probe_gives_a_verdict_and_the_worker_ends() {
    let toy = Toy::new(&[]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Probe(toy.engine.clone()));
    let FromWorker::Verdict(Ok(facts)) = worker.next().unwrap() else { panic!("no verdict") };
    assert_eq!(facts.abi_version, 1);
    assert!(facts.extensions.iter().any(|id| id == "engine.batch/1"), "{facts:?}");
    assert_eq!(worker.ended().code(), Some(exit::DONE));
    assert!(!worker.stages.is_empty());
}

#[test]
fn a_refusal_names_its_kind_and_keeps_the_words() {
    let toy = Toy::new(&["ABI_VERSION=2"]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Probe(toy.engine.clone()));
    let FromWorker::Verdict(Err(refusal)) = worker.next().unwrap() else { panic!("no refusal") };
    assert_eq!(refusal.kind, "AbiMismatch");
    assert_eq!(refusal.fault.code, ErrorCode::AbiMismatch);
    assert_eq!(refusal.fault.message, "ABI version mismatch: expected 1, got 2");
}

#[test]
fn a_crash_in_a_constructor_is_blamed_on_dlopen() {
    let toy = Toy::new(&["CRASH_IN_CONSTRUCTOR"]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Probe(toy.engine.clone()));
    worker.next().unwrap_err();
    assert_eq!(worker.ended().code(), None);
    assert!(worker.stages.last().unwrap().contains("dlopen"), "{:?}", worker.stages);
}

#[test]
fn a_model_answers_and_stops_when_told() {
    let toy = Toy::new(&[]);
    let (mut worker, facts) = Worker::load(toy.plan());
    assert_eq!(facts.source, "batch");
    assert!(facts.generates && facts.max_sequences >= 64 && facts.context_length > 0, "{facts:?}");
    worker.generate(7, greedy("hello", 5));
    let outcome = worker.outcome(7);
    assert!(outcome.started);
    let (_, usage) = outcome.finished();
    assert_eq!(outcome.tokens.len() as u32, usage.completion_tokens);
    assert!(usage.prompt_tokens > 0 && (1..=5).contains(&usage.completion_tokens), "{usage:?}");
    worker.send(&ToWorker::Stop);
    assert!(worker.next().is_err());
    assert_eq!(worker.ended().code(), Some(exit::DONE));
    assert!(worker.stages.iter().any(|stage| stage.contains("engine_init")), "{:?}", worker.stages);
    assert!(worker.stages.last().unwrap().contains("engine_shutdown"), "{:?}", worker.stages);
}

/// How many events came with each message until the request ended.
fn messages_of(worker: &mut Worker, id: u64, request: Request) -> Vec<usize> {
    worker.generate(id, request);
    let mut sizes = Vec::new();
    loop {
        let FromWorker::Step(events) = worker.next().unwrap() else { panic!("no step") };
        sizes.push(events.len());
        if let Some((_, Event::Finished { reason, usage, .. })) = events.last() {
            assert_eq!((*reason, usage.completion_tokens), (Finish::Length, 40));
            return sizes;
        }
    }
}

#[test]
fn tokens_that_follow_each_other_closely_come_together() {
    let toy = Toy::new(&[]);
    let request = Request { max_tokens: Some(40), ..endless() };
    let mut worker = toy.load();
    let quick = messages_of(&mut worker, 1, request.clone());
    // What a prompt brings, the first token, never waits.
    assert!(quick[0] <= 2 && quick.len() < 38, "{quick:?}");

    let mut plan = toy.plan();
    plan.options = vec![("step_us".into(), "2500".into())];
    let (mut worker, _) = Worker::load(plan);
    let slow = messages_of(&mut worker, 1, request);
    assert!(
        slow.iter().all(|&size| size <= 2),
        "the first has the beginning beside it, the last the end: {slow:?}"
    );
    assert_eq!(slow.iter().sum::<usize>(), quick.iter().sum::<usize>(), "{slow:?} {quick:?}");
}

#[test]
fn sixteen_at_once_answer_as_each_alone() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    let prompts: Vec<String> = (0..16).map(|n| format!("prompt {n} {}", "x".repeat(n))).collect();
    let alone: Vec<Outcome> = (0..16u64)
        .map(|n| {
            worker.generate(n, greedy(&prompts[n as usize], 24));
            worker.outcome(n)
        })
        .collect();
    let ids: Vec<u64> = (100..116).collect();
    for &id in &ids {
        worker.generate(id, greedy(&prompts[id as usize - 100], 24));
    }
    let together = worker.outcomes(&ids);
    for (n, alone) in alone.iter().enumerate() {
        let other = &together[&(100 + n as u64)];
        assert_eq!(other.tokens, alone.tokens, "prompt {n}");
        assert_eq!(other.text, alone.text, "prompt {n}");
        assert_eq!(other.finished().0, alone.finished().0, "prompt {n}");
    }
    assert!(alone.iter().any(|outcome| outcome.text != alone[0].text), "all answers are the same");
}

#[test]
fn an_engine_that_gives_candidates_answers_as_one_that_gives_whole_rows() {
    let requests: Vec<Request> = [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling { top_k: 5, ..Sampling::default() },
        Sampling { top_p: 0.8, repeat_penalty: 1.2, ..Sampling::default() },
        Sampling { top_k: 200, min_p: 0.1, ..Sampling::default() },
        Sampling { min_p: 0.3, bias: vec![(0x61, 2.0)], ..Sampling::default() },
    ]
    .into_iter()
    .map(|sampling| Request {
        sampling: Sampling { seed: Some(7), ..sampling },
        ..greedy("once upon a time", 24)
    })
    .collect();
    let answers = |flags: &[&str]| {
        let toy = Toy::new(flags);
        let mut worker = toy.load();
        let ids: Vec<u64> = (0..requests.len() as u64).collect();
        for (&id, request) in ids.iter().zip(&requests) {
            worker.generate(id, request.clone());
        }
        let outcomes = worker.outcomes(&ids);
        // How much was cached or guessed depends on when a request came.
        let told = |id: &u64| {
            let (reason, usage) = outcomes[id].finished();
            (outcomes[id].text.clone(), reason, usage.prompt_tokens, usage.completion_tokens)
        };
        ids.iter().map(told).collect::<Vec<_>>()
    };
    let whole = answers(&[]);
    for top in ["TOP=1", "TOP=8", "TOP=64"] {
        assert_eq!(answers(&[top]), whole, "{top}");
    }
    assert!(whole.iter().any(|it| it.0 != whole[0].0), "all answers are the same");
}

#[test]
fn a_cancelled_request_ends_and_frees_its_place() {
    let toy = Toy::new(&[]);
    let mut wanted = toy.plan();
    wanted.size.max_sequences = Some(1);
    let mut worker = Worker::load(slow(wanted)).0;
    worker.generate(1, endless());
    worker.generate(2, greedy("hello", 3));
    worker.send(&ToWorker::Cancel { id: 1 });
    worker.send(&ToWorker::Cancel { id: 99 });
    let outcomes = worker.outcomes(&[1, 2]);
    assert_eq!(outcomes[&1].finished().0, Finish::Cancelled);
    assert_ne!(outcomes[&2].finished().0, Finish::Cancelled);
}

#[test]
fn bad_requests_fail_one_by_one() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    let mut forbidden = greedy("hello", 3);
    forbidden.prompt = Prompt::Tokens(vec![1, -5, i32::MAX]);
    worker.generate(1, forbidden);
    worker.generate(2, greedy(&"long ".repeat(20_000), 3));
    let mut temperature = greedy("hello", 3);
    temperature.sampling.temperature = f32::NAN;
    worker.generate(3, temperature);
    worker.generate(4, greedy("hello", 3));
    let outcomes = worker.outcomes(&[1, 2, 3, 4]);
    for (id, code) in [
        (1, ErrorCode::InvalidRequest),
        (2, ErrorCode::ContextLengthExceeded),
        (3, ErrorCode::InvalidRequest),
    ] {
        let Some(Event::Failed(fault)) = &outcomes[&id].ending else { panic!("{:?}", outcomes[&id]) };
        assert_eq!(fault.code, code, "{fault:?}");
    }
    outcomes[&4].finished();
}

#[test]
fn equal_seeds_give_equal_answers() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    let mut request = greedy("hello", 24);
    request.sampling = Sampling { temperature: 1.0, seed: Some(7), ..Sampling::default() };
    worker.generate(1, request.clone());
    worker.generate(2, request);
    let outcomes = worker.outcomes(&[1, 2]);
    assert_eq!(outcomes[&1].tokens, outcomes[&2].tokens);
}

#[test]
fn drain_refuses_the_new_and_finishes_the_old() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    worker.generate(1, greedy("hello", 10));
    worker.send(&ToWorker::Drain);
    worker.generate(2, greedy("hello", 10));
    let mut outcomes = [Outcome::default(), Outcome::default()];
    let mut drained = false;
    while !drained || outcomes.iter().any(|outcome| outcome.ending.is_none()) {
        match worker.next().unwrap() {
            FromWorker::Step(events) => {
                for (id, event) in events {
                    outcomes[id as usize - 1].take(event);
                }
            }
            FromWorker::Drained => {
                assert!(outcomes[0].ending.is_some(), "drained, but not done");
                drained = true;
            }
            other => panic!("{other:?}"),
        }
    }
    outcomes[0].finished();
    let Some(Event::Failed(fault)) = &outcomes[1].ending else { panic!("{:?}", outcomes[1]) };
    assert_eq!(fault.code, ErrorCode::ShuttingDown);
    worker.send(&ToWorker::Stop);
    assert_eq!(worker.ended().code(), Some(exit::DONE));
}

#[test]
fn stop_ends_what_is_under_way() {
    let toy = Toy::new(&[]);
    let mut worker = Worker::load(slow(toy.plan())).0;
    worker.generate(1, endless());
    worker.generate(2, endless());
    worker.send(&ToWorker::Stop);
    for outcome in worker.outcomes(&[1, 2]).values() {
        let Some(Event::Failed(fault)) = &outcome.ending else { panic!("{outcome:?}") };
        assert_eq!(fault.code, ErrorCode::ShuttingDown);
    }
    assert_eq!(worker.ended().code(), Some(exit::DONE));
}

#[test]
fn questions_are_answered() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    let question = Question::Tokenize { text: "hello".into(), add_special: false, parse_special: false };
    worker.send(&ToWorker::Ask { id: 1, question });
    let FromWorker::Answer { id: 1, answer: Ok(Answer::Tokens(tokens)) } = worker.next().unwrap() else {
        panic!("no tokens")
    };
    worker.send(&ToWorker::Ask { id: 2, question: Question::Detokenize { tokens } });
    let answer = FromWorker::Answer { id: 2, answer: Ok(Answer::Text("hello".into())) };
    assert_eq!(worker.next().unwrap(), answer);
    worker.send(&ToWorker::Ask { id: 3, question: Question::Detokenize { tokens: vec![-3] } });
    let FromWorker::Answer { id: 3, answer: Err(_) } = worker.next().unwrap() else { panic!("no error") };
}

#[test]
fn a_worker_ends_with_its_node() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    worker.generate(1, greedy("hello", 3));
    assert_eq!(worker.abandon().ended().code(), Some(exit::ORPHANED));
}

#[test]
fn a_worker_ends_with_its_node_while_engine_init_hangs() {
    let toy = Toy::new(&["HANG_IN_INIT"]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(toy.plan()));
    worker.wait_for_stage("engine_init");
    assert_eq!(worker.abandon().ended().code(), Some(exit::ORPHANED));
}

#[test]
fn a_worker_ends_with_its_node_while_a_step_hangs() {
    let toy = Toy::new(&["HANG_IN_STEP"]);
    let mut worker = toy.load();
    assert!(worker.stages.last().unwrap().contains("engine.batch/1 step"), "{:?}", worker.stages);
    worker.generate(1, greedy("hello", 3));
    // Nothing comes of it, which cannot be waited for; the request is at least with the worker.
    worker.send(&ToWorker::Ask { id: 2, question: Question::MemoryUse });
    loop {
        if let FromWorker::Answer { id: 2, .. } = worker.next().unwrap() {
            break;
        }
    }
    assert_eq!(worker.abandon().ended().code(), Some(exit::ORPHANED));
}

#[test]
fn a_crash_in_a_step_ends_the_connection() {
    let toy = Toy::new(&["CRASH_IN_STEP"]);
    let mut worker = toy.load();
    worker.generate(1, greedy("hello", 3));
    while worker.next().is_ok() {}
    assert_eq!(worker.ended().code(), None);
    assert!(worker.stages.last().unwrap().contains("engine.batch/1 step"), "{:?}", worker.stages);
}

#[test]
fn a_model_that_is_none_is_a_failed_load() {
    let toy = Toy::new(&[]);
    let path = toy.folder.path().join("bad.toy");
    std::fs::write(&path, "something else").unwrap();
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(plan(toy.engine.clone(), path)));
    loop {
        match worker.next().unwrap() {
            FromWorker::Estimated(_) => worker.send(&ToWorker::Proceed(None)),
            FromWorker::LoadFailed(fault) => {
                assert!(matches!(fault.code, ErrorCode::ModelCorrupt | ErrorCode::LoadFailed), "{fault:?}");
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(worker.ended().code(), Some(exit::LOAD_FAILED));
}

#[test]
fn the_reason_of_a_failed_load_is_told_before_the_engine_can_hang() {
    let toy = Toy::new(&["LOAD_CODE=9", "HANG_IN_SHUTDOWN"]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(toy.plan()));
    let FromWorker::Estimated(_) = worker.next().unwrap() else { panic!("no estimate") };
    worker.send(&ToWorker::Proceed(None));
    let FromWorker::LoadFailed(fault) = worker.next().unwrap() else { panic!("no failure") };
    assert_eq!(fault.code, ErrorCode::LoadFailed);
    assert!(fault.message.contains("the toy would not load"), "{fault:?}");
    worker.wait_for_stage("engine_shutdown");
    assert_eq!(worker.abandon().ended().code(), Some(exit::ORPHANED));
}

#[test]
fn a_context_longer_than_the_model_is_refused_by_name() {
    let toy = Toy::new(&[]);
    let mut plan = toy.plan();
    plan.size.context_length = Some(1 << 20);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(plan));
    loop {
        match worker.next().unwrap() {
            FromWorker::Estimated(_) => worker.send(&ToWorker::Proceed(None)),
            FromWorker::LoadFailed(fault) => {
                assert_eq!(fault.code, ErrorCode::InvalidRequest);
                assert_eq!(fault.param.as_deref(), Some("context_length"));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Answers under way, one that waits, and one that came meanwhile have the text that they have where nothing happens.
#[test]
fn a_context_is_made_anew_under_answers_that_go_on() {
    let toy = Toy::new(&["MOST_SEQUENCES=100"]);
    let size = |context_length, max_sequences| ContextSize {
        context_length: Some(context_length),
        max_sequences: Some(max_sequences),
        cache_tokens: None,
    };
    for speculation in ["lookup", "model"] {
        let mut plan = LoadPlan {
            model: toy.folder.path().join("model.toy"),
            size: size(200, 2),
            options: vec![("step_us".into(), "3000".into())],
            ..toy.plan()
        };
        std::fs::write(&plan.model, "TOY1\nn_context=1000\n").unwrap();
        if speculation == "model" {
            plan.speculation = Speculation::Model(plan.model.clone());
        }
        let request =
            |id: u64| Request { ignore_eos: true, ..greedy(&format!("hello, this is request {id}"), 120) };
        let (mut quiet, _) = Worker::load(plan.clone());
        let expected: Vec<Outcome> = (0..4)
            .map(|id| {
                quiet.generate(id, request(id));
                quiet.outcome(id)
            })
            .collect();

        let (mut worker, before) = Worker::load(plan);
        let mut outcomes = vec![Outcome::default(); 5];
        for id in 0..3 {
            worker.generate(id, request(id));
        }
        let (mut sized, mut reshaped) = (Vec::new(), Vec::new());
        let mut asked = false;
        while outcomes.iter().take(4).any(|outcome| outcome.ending.is_none()) || reshaped.len() < 2 {
            match worker.next().unwrap() {
                FromWorker::Step(events) => {
                    for (id, event) in events {
                        outcomes[id as usize].take(event);
                    }
                    if !asked && outcomes[0].pieces > 3 {
                        asked = true;
                        worker.send(&ToWorker::Size(Sizing { size: size(2000, 2), shape: None }));
                        worker.send(&ToWorker::Size(Sizing { size: size(800, 3), shape: None }));
                    }
                }
                FromWorker::Sized(uses) => {
                    sized.push(uses);
                    if sized.len() == 2 {
                        worker.send(&ToWorker::Reshape(Sizing { size: size(800, 3), shape: None }));
                        worker.generate(3, request(3));
                    }
                }
                FromWorker::Reshaped(facts) => {
                    if reshaped.is_empty() {
                        // More than the engine takes.
                        worker.send(&ToWorker::Reshape(Sizing { size: size(800, 101), shape: None }));
                    }
                    reshaped.push(facts);
                }
                other => panic!("{other:?}"),
            }
        }
        // Each in a thread of its own.
        sized.sort_by_key(Result::is_ok);
        let [Err(too_long), Ok(Some(uses))] = &sized[..] else { panic!("{sized:?}") };
        assert_eq!(too_long.param.as_deref(), Some("context_length"));
        let [Ok(after), Err(too_many)] = &reshaped[..] else { panic!("{reshaped:?}") };
        assert_eq!((after.context_length, after.max_sequences), (800, 3));
        assert_eq!(after.memory, *uses, "what was estimated, and all of the former context is gone");
        assert!(after.memory[0].cache > before.memory[0].cache);
        assert!(too_many.message.contains("sequences"), "{too_many}");
        for (id, expected) in expected.iter().enumerate() {
            assert_eq!((&outcomes[id].text, &outcomes[id].tokens), (&expected.text, &expected.tokens));
            assert_eq!(outcomes[id].finished().0, Finish::Length);
        }
        worker.generate(4, greedy(&"a".repeat(600), 3));
        worker.outcome(4).finished();
        assert!(worker.stages.last().unwrap().contains("engine.batch/1 step"), "{:?}", worker.stages);
        worker.send(&ToWorker::Stop);
        assert!(worker.next().is_err());
        assert_eq!(worker.ended().code(), Some(exit::DONE));
    }
}

#[test]
fn a_context_has_the_size_that_was_chosen() {
    let toy = Toy::new(&[]);
    let model = toy.folder.path().join("model.toy");
    std::fs::write(&model, "TOY1\nn_context=1000\n").unwrap();
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(LoadPlan { model, ..toy.plan() }));
    let FromWorker::Estimated(estimate) = worker.next().unwrap() else { panic!("no estimate") };
    assert!(estimate.uses.is_none() && estimate.figures.are_of_contexts());
    let size = ContextSize::default();
    let takes = [(100, 3, 0), (1000, 3, 1500)].map(|(context_length, max_sequences, cache_tokens)| {
        let shape = Some(Shape { context_length, max_sequences, cache_tokens });
        worker.send(&ToWorker::Size(Sizing { size, shape }));
        let FromWorker::Sized(Ok(Some(uses))) = worker.next().unwrap() else { panic!("not sized") };
        uses
    });
    assert!(takes[0][0].cache < takes[1][0].cache);
    let shape = Shape { context_length: 1000, max_sequences: 3, cache_tokens: 1500 };
    worker.send(&ToWorker::Proceed(Some(shape)));
    let FromWorker::Ready(facts) = worker.next().unwrap() else { panic!("not loaded") };
    assert_eq!((facts.context_length, facts.max_sequences), (1000, 3));
    assert_eq!(facts.memory, takes[1]);
}

#[test]
fn only_an_engine_that_runs_in_steps_can_have_another_context() {
    let toy = Toy::new(&["NO_BATCH"]);
    let mut worker = toy.load();
    let size = ContextSize { context_length: Some(8), ..ContextSize::default() };
    worker.send(&ToWorker::Size(Sizing { size, shape: None }));
    let FromWorker::Sized(Err(fault)) = worker.next().unwrap() else { panic!("no refusal") };
    assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
    worker.send(&ToWorker::Reshape(Sizing { size, shape: None }));
    let FromWorker::Reshaped(Err(fault)) = worker.next().unwrap() else { panic!("no refusal") };
    assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
    worker.generate(1, greedy("hello", 3));
    worker.outcome(1).finished();
}

#[test]
fn the_node_s_defaults_are_cut_to_what_model_and_engine_can() {
    let toy = Toy::new(&["MOST_SEQUENCES=100"]);
    let mut plan = LoadPlan {
        model: toy.folder.path().join("model.toy"),
        usual_size: ContextSize {
            context_length: Some(8192),
            max_sequences: Some(1000),
            cache_tokens: Some(1 << 31),
        },
        ..toy.plan()
    };
    std::fs::write(&plan.model, "TOY1\nn_context=300\n").unwrap();
    let (mut worker, facts) = Worker::load(plan.clone());
    assert_eq!((facts.context_length, facts.max_sequences), (300, 64));
    worker.generate(1, greedy("hello", 3));
    worker.outcome(1).finished();
    plan.size.max_sequences = Some(1000);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(plan));
    let FromWorker::Estimated(_) = worker.next().unwrap() else { panic!("no estimate") };
    worker.send(&ToWorker::Proceed(None));
    let FromWorker::LoadFailed(_) = worker.next().unwrap() else { panic!("a load's own figure was changed") };
}

#[test]
fn a_loaded_model_says_that_it_is_alive() {
    let toy = Toy::new(&["HANG_ON_BYTE=33"]);
    let mut worker = toy.load();
    let FromWorker::Busy(idle) = worker.any().unwrap() else { panic!("not how busy it is") };
    assert_eq!((idle.running, idle.queued, idle.cache_used), (0, 0, 0));
    assert!(idle.cache_tokens > 0 && idle.max_running > 0);
    let FromWorker::Beat { call_seconds: 0 } = worker.any().unwrap() else { panic!("no beat") };
    worker.generate(1, greedy("stop!", 3));
    // A step that hangs does not keep the other threads from saying so.
    while !matches!(worker.any().unwrap(), FromWorker::Busy(busy) if busy.running + busy.queued == 1) {}
    while !matches!(worker.any().unwrap(), FromWorker::Beat { call_seconds: 1.. }) {}
}

#[test]
fn a_worker_can_be_stopped_between_estimate_and_load() {
    let toy = Toy::new(&[]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Load(toy.plan()));
    let FromWorker::Estimated(_) = worker.next().unwrap() else { panic!("no estimate") };
    worker.generate(1, greedy("hello", 3));
    let Some(Event::Failed(fault)) = worker.outcome(1).ending else { panic!("not refused") };
    assert_eq!(fault.code, ErrorCode::ModelLoading);
    worker.send(&ToWorker::Stop);
    assert_eq!(worker.ended().code(), Some(exit::DONE));
}

fn confined(flags: &[&str]) -> (TempDir, EngineAddress) {
    let folder = tempdir().unwrap();
    let source = root().join("rust/worker/tests/engines/confined.c");
    let engine = compile(folder.path(), &source, "confined", flags);
    (folder, engine)
}

/// What the engine says to a table of its attempts, a line for each.
fn attempts(table: &str) -> String {
    let (folder, engine) = confined(&[]);
    let mut worker = Worker::load(plan(engine, toy_model(folder.path()))).0;
    worker.generate(1, greedy(table, 200));
    worker.outcome(1).text
}

#[test]
fn an_engine_is_refused_what_it_has_no_business_with() {
    let text = attempts("forbidden");
    let allowed: Vec<&str> = text.lines().filter(|line| !line.ends_with(": refused")).collect();
    assert_eq!(allowed, [""; 0]);
    for name in [
        "inet",
        "unix_datagram",
        "netlink",
        "connect_unix",
        "io_uring_setup",
        "trace",
        "kill_parent",
        "privileged",
    ] {
        assert!(text.contains(&format!("{name}: refused\n")), "{name}: {text}");
    }
}

#[test]
fn an_engine_may_do_what_it_needs() {
    let text = attempts("needed");
    let refused: Vec<&str> = text.lines().filter(|line| !line.ends_with(": allowed")).collect();
    assert_eq!(refused, [""; 0]);
    assert!(text.contains("thread: allowed\n") && text.contains("run_program: allowed\n"), "{text}");
}

#[test]
fn an_engine_is_shut_in_while_it_is_probed() {
    let (_folder, engine) = confined(&["-DIN_CONSTRUCTOR"]);
    let mut worker = Worker::start();
    worker.send(&ToWorker::Probe(engine));
    let FromWorker::Verdict(Ok(facts)) = worker.next().unwrap() else { panic!("no verdict") };
    assert_eq!(facts.extensions, Vec::<String>::new());
}

#[test]
fn a_tier_0_engine_answers_in_order_as_a_stream() {
    let (folder, engine) = confined(&[]);
    let (mut worker, facts) = Worker::load(plan(engine, toy_model(folder.path())));
    assert_eq!(facts.source, "tier0");
    let prompt = "inet inet6 thread netlink";
    worker.generate(1, greedy(prompt, 2));
    let mut stopping = greedy(prompt, 10);
    stopping.stop = vec!["d\nthread".into()];
    worker.generate(2, stopping);
    let mut warm = greedy(prompt, 10);
    warm.sampling.temperature = 0.7;
    worker.generate(3, warm);
    let outcomes = worker.outcomes(&[1, 2, 3]);
    assert_eq!(outcomes[&1].text, "inet: refused\ninet6: refused\n");
    assert_eq!(outcomes[&1].pieces, 2);
    assert_eq!(outcomes[&1].finished().0, Finish::Length);
    assert_eq!(outcomes[&2].text, "inet: refused\ninet6: refuse");
    assert_eq!(outcomes[&2].finished().0, Finish::StopString);
    let Some(Event::Failed(fault)) = &outcomes[&3].ending else { panic!("{:?}", outcomes[&3]) };
    assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::UnsupportedParameter, Some("temperature")));
}

#[test]
fn an_engine_that_streams_is_served_one_request_after_another() {
    let toy = Toy::new(&["NO_BATCH"]);
    let (mut worker, facts) = Worker::load(toy.plan());
    assert_eq!(facts.source, "stream");
    for id in 1..=3 {
        worker.generate(id, greedy("hello", 20));
    }
    let mut biased = greedy("hello", 3);
    biased.sampling.bias = vec![(1, 1.0)];
    worker.generate(4, biased);
    let outcomes = worker.outcomes(&[1, 2, 3, 4]);
    let (_, usage) = outcomes[&1].finished();
    assert!(usage.prompt_tokens > 0 && usage.completion_tokens > 0);
    for id in 2..=3 {
        // They take different times.
        assert_eq!((&outcomes[&id].text, &outcomes[&id].tokens), (&outcomes[&1].text, &outcomes[&1].tokens));
        assert_eq!(outcomes[&id].finished().0, outcomes[&1].finished().0);
    }
    let Some(Event::Failed(fault)) = &outcomes[&4].ending else { panic!("{:?}", outcomes[&4]) };
    assert_eq!(fault.param.as_deref(), Some("logit_bias"));
    let batched = Toy::new(&[]);
    let mut other = batched.load();
    other.generate(1, greedy("hello", 20));
    assert_eq!(other.outcome(1).text, outcomes[&1].text);
}

#[test]
fn a_stream_can_be_cancelled_and_stopped() {
    let toy = Toy::new(&["NO_BATCH", "STEP_US=50000", "EOG_EVERY=0"]);
    let mut worker = toy.load();
    let mut long = greedy("hello", 0);
    long.max_tokens = None;
    for id in 1..=4 {
        worker.generate(id, long.clone());
    }
    worker.send(&ToWorker::Cancel { id: 3 });
    worker.send(&ToWorker::Cancel { id: 1 });
    let outcomes = worker.outcomes(&[1, 3]);
    assert_eq!(outcomes[&1].finished().0, Finish::Cancelled);
    assert_eq!(outcomes[&3].finished().0, Finish::Cancelled);
    assert!(!outcomes[&3].started);
    worker.send(&ToWorker::Stop);
    while worker.next().is_ok() {}
    assert_eq!(worker.ended().code(), Some(exit::DONE));
}

#[test]
fn rows_that_lie_end_the_worker_after_its_requests() {
    let toy = Toy::new(&["ROW_TOO_NARROW"]);
    let mut worker = toy.load();
    worker.generate(1, greedy("hello", 3));
    let Some(Event::Failed(fault)) = worker.outcome(1).ending else { panic!("it did not fail") };
    assert_eq!(fault.code, ErrorCode::EngineFault);
    while worker.next().is_ok() {}
    assert_eq!(worker.ended().code(), Some(exit::ENGINE_LOST));
    assert!(worker.log.iter().any(|line| line.contains("batch.collect")), "{:?}", worker.log);
}

/// The kind of a call that never returns, and what leads to it.
#[test]
fn a_call_that_hangs_ends_the_worker_and_is_named() {
    type Provoke = fn(&mut Worker);
    let generate: Provoke = |worker| worker.generate(1, greedy("hello", 3));
    let again: Provoke = |worker| {
        worker.generate(1, greedy(&"once upon a time ".repeat(8), 200));
        worker.generate(2, greedy(&"once upon a time ".repeat(8), 200));
    };
    let embed: Provoke = |worker| {
        worker.send(&ToWorker::Ask {
            id: 1,
            question: Question::Embed { inputs: vec![EmbedInput::Text("x".into())] },
        });
    };
    let ask: Provoke = |worker| {
        let question =
            Question::Tokenize { text: "!".repeat(100_000), add_special: false, parse_special: false };
        worker.send(&ToWorker::Ask { id: 1, question });
    };
    let prompt: Provoke = |worker| worker.generate(1, greedy("!", 3));
    let cases: [(&str, &[&str], Provoke); 9] = [
        ("engine_generate", &["HANG_IN_GENERATE", "NO_EXTENSIONS"], generate),
        ("stream.generate", &["HANG_ON_BYTE=101", "NO_BATCH"], generate),
        ("batch.step", &["HANG_ON_BYTE=101"], generate),
        ("batch.seq_remove", &["HANG_IN_CALL=SEQ_REMOVE"], generate),
        ("batch.seq_copy", &["HANG_IN_CALL=SEQ_COPY"], again),
        ("batch.cache_free", &["HANG_IN_CALL=CACHE_FREE"], generate),
        ("embed.embed", &["HANG_IN_CALL=EMBED"], embed),
        ("tokenizer.tokenize", &["HANG_IN_CALL=TOKENIZE"], ask),
        // A short one is tokenised on the thread that watches.
        ("tokenizer.tokenize", &["HANG_IN_CALL=TOKENIZE"], prompt),
    ];
    for (call, flags, provoke) in cases {
        let toy = Toy::new(flags);
        let mut plan = toy.plan();
        plan.step_timeout_seconds = 1;
        plan.scheduling.keep_prefixes = call != "batch.seq_remove";
        let (mut worker, _) = Worker::load(plan);
        provoke(&mut worker);
        while worker.next().is_ok() {}
        assert_eq!(worker.ended().code(), Some(exit::ENGINE_LOST), "{call}");
        let expected = format!("{call} did not return within 1 s");
        assert!(worker.log.contains(&expected), "{call}: {:?}", worker.log);
    }
}

#[test]
fn a_stream_that_goes_on_does_not_hang() {
    let toy = Toy::new(&["NO_BATCH", "STEP_US=400000", "EOG_EVERY=0"]);
    let mut plan = toy.plan();
    plan.step_timeout_seconds = 2;
    let (mut worker, _) = Worker::load(plan);
    worker.generate(1, greedy("hello", 12));
    assert_eq!(worker.outcome(1).finished().0, Finish::Length);
}

#[test]
fn texts_become_vectors() {
    let toy = Toy::new(&[]);
    let mut worker = toy.load();
    let question =
        Question::Embed { inputs: vec![EmbedInput::Text("one".into()), EmbedInput::Text("three".into())] };
    worker.send(&ToWorker::Ask { id: 1, question });
    match worker.next().unwrap() {
        FromWorker::Answer { id: 1, answer: Ok(Answer::Embeddings { vectors, tokens }) } => {
            assert_eq!(vectors.len(), 2);
            assert!(tokens[1] > tokens[0]);
        }
        other => panic!("{other:?}"),
    }
}

fn sample(folder: &TempDir, name: &str) -> EngineAddress {
    let source = root().join("engines/sample_c").join(format!("{name}.c"));
    compile(folder.path(), &source, name, &[])
}

#[test]
fn the_smallest_engine_answers_nothing_and_that_properly() {
    let folder = tempdir().unwrap();
    let mut worker = Worker::load(plan(sample(&folder, "my_engine"), toy_model(folder.path()))).0;
    worker.generate(1, greedy("hello", 3));
    let outcome = worker.outcome(1);
    assert!(outcome.started);
    let (finish, usage) = outcome.finished();
    assert_eq!((finish, usage.completion_tokens, outcome.text.as_str()), (Finish::Stop, 0, ""));
}

#[test]
fn the_sample_that_answers_takes_one_request_after_another() {
    let folder = tempdir().unwrap();
    let model = folder.path().join("model.txt");
    std::fs::write(&model, "once upon a time there was a cat and a dog").unwrap();
    let mut worker = Worker::load(plan(sample(&folder, "sample_markov"), model)).0;
    let ids: Vec<u64> = (1..=4).collect();
    for &id in &ids {
        worker.generate(id, greedy("once upon a time", 2));
    }
    for (id, outcome) in worker.outcomes(&ids) {
        let (finish, usage) = outcome.finished();
        assert_eq!((finish, usage.completion_tokens, outcome.pieces), (Finish::Length, 2, 2), "request {id}");
        assert_eq!(outcome.text, " there was");
    }
}
