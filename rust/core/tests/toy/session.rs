//! The generating loop on a toy engine: what a request gets never depends on what runs beside it.

use std::{collections::BTreeMap, sync::Arc};

use crate::toy_engine::{BOS, EOS, POISON, ToyEngine, ToyTokenizer, limits};
use llm_node_core::{
    engine::{EngineFaultKind, Limits, StepEngine, Token, Tokenizer},
    error::{ErrorCode, Fault},
    event::{Event, Finish, PickedToken, Usage},
    request::{Prompt, Request, Sampling, ValidRequest},
    session::{Session, SessionOptions},
};
use proptest::prelude::*;

fn request(prompt: Vec<Token>, max_tokens: u32) -> Request {
    Request {
        prompt: Prompt::Tokens(prompt),
        max_tokens: Some(max_tokens),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
    }
}

fn valid(request: Request, limits: &Limits) -> ValidRequest {
    ValidRequest::new(request, &ToyTokenizer::new(), None, limits, 42, 0).unwrap()
}

fn session(limits: Limits, options: SessionOptions) -> Session<ToyEngine> {
    let vocabulary = Arc::new(ToyTokenizer::new().vocabulary().clone());
    Session::new(ToyEngine::new(limits), vocabulary, options)
}

/// All that one request got.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    started: u32,
    text: String,
    tokens: Vec<PickedToken>,
    ending: Option<Result<(Finish, Usage), Fault>>,
}

fn collect(events: &mut Vec<(u64, Event)>, answers: &mut BTreeMap<u64, Answer>) {
    for (id, event) in events.drain(..) {
        let answer = answers.entry(id).or_default();
        assert_eq!(answer.ending, None, "nothing follows the ending");
        match event {
            Event::Started { .. } => {
                assert_eq!((answer.started, answer.text.as_str()), (0, ""));
                answer.started += 1;
            }
            Event::Piece(piece) => {
                assert_eq!(answer.started, 1);
                assert!(!piece.text.is_empty() || piece.tokens.iter().all(|it| it.logprobs.is_some()));
                answer.text.push_str(&piece.text);
                answer.tokens.extend(piece.tokens);
            }
            Event::Finished { reason, usage } => answer.ending = Some(Ok((reason, usage))),
            Event::Failed(fault) => answer.ending = Some(Err(fault)),
        }
    }
}

fn run(session: &mut Session<ToyEngine>, requests: Vec<ValidRequest>) -> BTreeMap<u64, Answer> {
    let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
    for (id, request) in (0..).zip(requests) {
        session.submit(id, request).unwrap();
    }
    while !session.is_idle() {
        session.step(&mut events).unwrap();
        collect(&mut events, &mut answers);
    }
    answers
}

fn alone(request: &ValidRequest) -> Answer {
    let mut session = session(limits(), SessionOptions::default());
    run(&mut session, vec![request.clone()]).remove(&0).unwrap()
}

#[derive(Clone, Debug)]
struct Job {
    request: Request,
    arrives: usize,
    cancelled: Option<usize>,
}

fn sampling() -> impl Strategy<Value = Sampling> {
    (
        prop_oneof![Just(0.0f32), 0.2f32..1.5],
        prop_oneof![Just(0u32), 1u32..50],
        prop_oneof![Just(1.0f32), 0.3f32..1.0],
        prop_oneof![Just(1.0f32), 1.0f32..1.5],
        any::<u64>(),
    )
        .prop_map(|(temperature, top_k, top_p, repeat_penalty, seed)| Sampling {
            temperature,
            top_k,
            top_p,
            repeat_penalty,
            seed: Some(seed),
            ..Sampling::default()
        })
}

fn job() -> impl Strategy<Value = Job> {
    let prompt = prop::collection::vec(prop_oneof![0x61i32..0x67, Just(BOS), 0i32..255], 1..40);
    let stop = prop::collection::vec("[a-f]{1,2}", 0..2);
    (
        (prompt, 0u32..40, sampling(), stop),
        (any::<bool>(), prop_oneof![3 => Just(None), 1 => (0u32..3).prop_map(Some)]),
        (0usize..30, prop_oneof![3 => Just(None), 1 => (0usize..40).prop_map(Some)]),
    )
        .prop_map(
            |((prompt, max_tokens, sampling, stop), (ignore_eos, logprobs), (arrives, cancelled))| Job {
                request: Request {
                    prompt: Prompt::Tokens(prompt),
                    max_tokens: Some(max_tokens),
                    sampling,
                    stop,
                    ignore_eos,
                    logprobs,
                },
                arrives,
                cancelled: cancelled.map(|it| arrives + it),
            },
        )
}

fn tight_limits() -> impl Strategy<Value = Limits> {
    (1u32..9, 1u32..60, 1u32..9, 0u64..200, prop_oneof![Just(1u32), 2u32..20]).prop_map(
        |(max_sequences, max_batch_tokens, max_rows, more_cache, cache_page)| Limits {
            max_sequences,
            max_batch_tokens,
            max_rows,
            // Each fits alone (prompt and answer are below 80), two may not.
            cache_tokens: 80 + u64::from(cache_page) + more_cache,
            cache_page,
            ..limits()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn company_changes_nothing(
        jobs in prop::collection::vec(job(), 1..24),
        limits in tight_limits(),
        prefill_tokens in 1u32..40,
        boast in prop_oneof![Just(0u64), Just(1000u64)],
    ) {
        let options = SessionOptions { prefill_tokens, ..SessionOptions::default() };
        let vocabulary = Arc::new(ToyTokenizer::new().vocabulary().clone());
        let mut engine = ToyEngine::new(limits.clone());
        engine.boast = boast;
        let mut session = Session::new(engine, vocabulary, options);
        let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
        let mut steps = 0;
        loop {
            for (id, job) in (0..).zip(&jobs) {
                if job.arrives == steps {
                    session.submit(id, valid(job.request.clone(), &limits)).unwrap();
                }
                if job.cancelled == Some(steps) {
                    session.cancel(id, &mut events);
                }
            }
            session.step(&mut events).unwrap();
            collect(&mut events, &mut answers);
            let load = session.load();
            prop_assert!(load.running <= load.max_running);
            steps += 1;
            if steps > 80 && session.is_idle() { break; }
            prop_assert!(steps < 100_000, "no progress");
        }
        prop_assert!(session.engine().is_empty(), "sequences were left behind");
        for (id, job) in (0..).zip(&jobs) {
            let answer = answers.get(&id).expect("an answer");
            let alone = alone(&valid(job.request.clone(), &limits));
            if let Some(Ok((Finish::Cancelled, usage))) = &answer.ending {
                    prop_assert!(job.cancelled.is_some());
                    prop_assert!(alone.text.starts_with(&answer.text));
                    prop_assert!(alone.tokens.starts_with(&answer.tokens));
                    prop_assert!(usage.completion_tokens >= answer.tokens.len() as u32);
            } else { prop_assert_eq!(answer, &alone); }
        }
    }
}

/// Small caches do lead to preemption, or the property above shows less than it says.
#[test]
fn a_short_cache_preempts_and_nobody_fails() {
    let limits = Limits { cache_tokens: 300, ..limits() };
    let requests: Vec<_> = (0..8)
        .map(|index| {
            let mut request = request(vec![BOS, index], 250);
            request.ignore_eos = true;
            valid(request, &limits)
        })
        .collect();
    let mut session = session(limits, SessionOptions::default());
    // Admission promises 252 tokens to each, which would let in one; the engine promises too much.
    let expected: Vec<_> = requests.iter().map(alone).collect();
    let answers = run(&mut session, requests.clone());
    assert_eq!(answers.values().cloned().collect::<Vec<_>>(), expected);
    assert_eq!(session.load().preemptions, 0);

    let vocabulary = Arc::new(ToyTokenizer::new().vocabulary().clone());
    let mut engine = ToyEngine::new(session.limits().clone());
    engine.boast = 10_000;
    let mut session = Session::new(engine, vocabulary, SessionOptions::default());
    let answers = run(&mut session, requests);
    assert_eq!(answers.into_values().collect::<Vec<_>>(), expected);
    assert!(session.load().preemptions > 0);
}

#[test]
fn streams_go_on_while_a_long_prompt_is_read() {
    let options = SessionOptions { prefill_tokens: 16, ..SessionOptions::default() };
    let mut session = session(limits(), options);
    let mut events = Vec::new();
    for id in 0..3 {
        let mut request = request(vec![BOS, id], 200);
        request.ignore_eos = true;
        session.submit(id as u64, valid(request, &limits())).unwrap();
    }
    session.step(&mut events).unwrap();
    session.submit(9, valid(request(vec![BOS; 200], 10), &limits())).unwrap();
    for _ in 0..13 {
        session.step(&mut events).unwrap();
    }
    let steps = &session.engine().steps[1..];
    for (index, step) in steps.iter().enumerate() {
        assert_eq!(&step[..3], &[(0, 1, 1), (1, 1, 1), (2, 1, 1)]);
        let (tokens, rows) = if index < 12 { (16, 0) } else { (8, 1) };
        assert_eq!(step[3], (3, tokens, rows));
    }
}

#[test]
fn a_hole_is_filled_by_who_waits() {
    let limits = Limits { max_sequences: 3, ..limits() };
    let mut session = session(limits.clone(), SessionOptions::default());
    let mut events = Vec::new();
    for id in 0..5 {
        let mut request = request(vec![BOS, 0x61 + id as Token], if id == 1 { 2 } else { 9 });
        request.ignore_eos = true;
        session.submit(id, valid(request, &limits)).unwrap();
    }
    for _ in 0..3 {
        session.step(&mut events).unwrap();
    }
    // Request 1 ended in the second step; request 3 sits in its place in the third.
    assert_eq!(session.engine().steps[2], [(0, 1, 1), (1, 2, 1), (2, 1, 1)]);
    session.cancel(0, &mut events);
    session.step(&mut events).unwrap();
    assert_eq!(session.engine().steps[3], [(0, 2, 1), (1, 1, 1), (2, 1, 1)]);
}

#[test]
fn a_full_queue_refuses() {
    let options = SessionOptions { queue_limit: 2, queue_tokens: 10, prefill_tokens: 8 };
    let limits = Limits { max_sequences: 1, ..limits() };
    let mut session = session(limits.clone(), options);
    for id in 0..3 {
        session.submit(id, valid(request(vec![BOS], 5), &limits)).unwrap();
    }
    let fault = session.submit(3, valid(request(vec![BOS], 5), &limits)).unwrap_err();
    assert_eq!(fault.code, ErrorCode::QueueFull);
    let mut events = Vec::new();
    session.step(&mut events).unwrap();
    let load = session.load();
    assert_eq!((load.queued, load.queued_tokens, load.running, load.cache_used), (2, 2, 1, 1));
    session.cancel(1, &mut events);
    session.cancel(77, &mut events);
    assert_eq!(session.submit(4, valid(request(vec![BOS; 9], 5), &limits)), Ok(()));
    assert_eq!(
        events.last(),
        Some(&(
            1,
            Event::Finished {
                reason: Finish::Cancelled,
                usage: Usage { prompt_tokens: 1, ..Usage::default() }
            }
        ))
    );
}

#[test]
fn no_tokens_wanted_is_length_at_once() {
    let mut session = session(limits(), SessionOptions::default());
    let answers = run(&mut session, vec![valid(request(vec![BOS, 0x61], 0), &limits())]);
    assert_eq!(
        answers[&0].ending,
        Some(Ok((Finish::Length, Usage { prompt_tokens: 2, ..Usage::default() })))
    );
    assert!(session.engine().steps.is_empty());
}

#[test]
fn end_of_generation_ends_unless_it_is_ignored() {
    let wanted = |ignore_eos| {
        let mut request = request(vec![BOS, 0x61], 5);
        request.sampling.bias = vec![(EOS, 1000.0)];
        request.ignore_eos = ignore_eos;
        request.logprobs = Some(2);
        alone(&valid(request, &limits()))
    };
    let answer = wanted(false);
    let usage = Usage { prompt_tokens: 2, completion_tokens: 1, cached_tokens: 0 };
    assert_eq!(
        (answer.text.as_str(), answer.tokens.len(), answer.ending),
        ("", 0, Some(Ok((Finish::Stop, usage))))
    );
    let answer = wanted(true);
    let usage = Usage { prompt_tokens: 2, completion_tokens: 5, cached_tokens: 0 };
    assert_eq!((answer.text.as_str(), answer.ending), ("", Some(Ok((Finish::Length, usage)))));
    assert_eq!(answer.tokens.len(), 5);
    let logprobs = answer.tokens[0].logprobs.as_ref().unwrap();
    assert_eq!((logprobs.bytes.as_slice(), logprobs.top[0].1, logprobs.top.len()), (&b"</s>"[..], EOS, 2));
    assert!(logprobs.logprob > -1e-3 && logprobs.logprob <= 0.0);
}

#[test]
fn the_answer_ends_before_a_stop_string() {
    let mut request = request(vec![BOS, 0x61], 60);
    request.ignore_eos = true;
    request.sampling.bias =
        (0..256).filter(|it| !(0x61..0x67).contains(it)).map(|it| (it, f32::NEG_INFINITY)).collect();
    let whole = alone(&valid(request.clone(), &limits()));
    assert_eq!(whole.text.len(), whole.tokens.iter().filter(|it| it.id < 256).count());
    request.logprobs = Some(0);
    request.stop = vec!["no such".into(), whole.text[7..10].to_owned()];
    let cut = whole.text.find(&request.stop[1]).unwrap();
    let answer = alone(&valid(request, &limits()));
    assert_eq!(answer.text, whole.text[..cut]);
    assert!(matches!(answer.ending, Some(Ok((Finish::Stop, _)))));
    assert_eq!(answer.tokens.iter().filter(|it| it.id < 256).count(), cut);
}

#[test]
fn rows_that_are_not_numbers_cost_their_request_alone() {
    let good = valid(request(vec![BOS, 0x61], 20), &limits());
    let mut session = session(limits(), SessionOptions::default());
    let answers =
        run(&mut session, vec![good.clone(), valid(request(vec![BOS, POISON], 5), &limits()), good.clone()]);
    let Some(Err(fault)) = &answers[&1].ending else { panic!("{answers:?}") };
    assert_eq!(fault.code, ErrorCode::Internal);
    assert!(fault.message.contains("the engine returned logits that are not numbers"), "{fault}");
    assert_eq!([&answers[&0], &answers[&2]], [&alone(&good), &alone(&good)]);
    assert!(session.engine().is_empty());
}

#[test]
fn a_bias_that_forbids_everything_is_the_client_s_fault() {
    let mut request = request(vec![BOS, 0x61], 20);
    request.sampling.bias = (0..263).map(|it| (it, f32::NEG_INFINITY)).collect();
    let Some(Err(fault)) = alone(&valid(request, &limits())).ending else { panic!() };
    assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("logit_bias")));
}

/// A session with an engine that fails once, and two requests of which both are in the step.
fn failing(spoil: impl Fn(&mut ToyEngine)) -> (Session<ToyEngine>, BTreeMap<u64, Answer>, bool) {
    let vocabulary = Arc::new(ToyTokenizer::new().vocabulary().clone());
    let mut engine = ToyEngine::new(limits());
    spoil(&mut engine);
    let mut session = Session::new(engine, vocabulary, SessionOptions::default());
    let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
    for id in 0..2 {
        session.submit(id, valid(request(vec![BOS, 0x61], 20), &limits())).unwrap();
    }
    let outcome = session.step(&mut events);
    collect(&mut events, &mut answers);
    (session, answers, outcome.is_ok())
}

#[test]
fn a_failed_step_costs_its_requests_and_no_more() {
    type Spoil = fn(&mut ToyEngine);
    let ways: [(Spoil, ErrorCode); 3] = [
        (|it| it.fail_step = Some(EngineFaultKind::Internal), ErrorCode::Internal),
        (|it| it.fail_collect = Some(EngineFaultKind::OomVram), ErrorCode::OomVram),
        (|it| it.fail_step = Some(EngineFaultKind::InvalidArgument), ErrorCode::Internal),
    ];
    for (spoil, code) in ways {
        let (mut session, answers, ok) = failing(spoil);
        assert!(ok && session.is_idle() && session.engine().is_empty());
        for answer in answers.values() {
            assert_eq!(answer.ending.as_ref().unwrap().as_ref().unwrap_err().code, code);
        }
        let next = valid(request(vec![BOS, 0x62], 20), &limits());
        assert_eq!(run(&mut session, vec![next.clone()])[&0], alone(&next));
    }
}

#[test]
fn what_ends_the_engine_fails_everything() {
    type Spoil = fn(&mut ToyEngine);
    let ways: [Spoil; 3] = [
        |it| it.fail_step = Some(EngineFaultKind::DeviceLost),
        |it| it.fail_collect = Some(EngineFaultKind::Misbehaved),
        |it| it.forget_a_row = true,
    ];
    for spoil in ways {
        let (mut session, answers, ok) = failing(spoil);
        assert!(!ok && session.is_idle());
        assert_eq!(answers.len(), 2);
        for answer in answers.values() {
            assert_eq!(answer.ending.as_ref().unwrap().as_ref().unwrap_err().code, ErrorCode::EngineCrashed);
        }
        let refused = session.submit(5, valid(request(vec![BOS], 1), &limits())).unwrap_err();
        assert_eq!(refused.code, ErrorCode::EngineCrashed);
        assert!(session.step(&mut Vec::new()).is_err());
    }
}

#[test]
fn a_boxed_engine_is_an_engine() {
    let engine: Box<dyn StepEngine> = Box::new(ToyEngine::new(limits()));
    let session = Session::new(engine, Arc::default(), SessionOptions::default());
    assert!(session.is_idle());
}
