//! The generating loop on a toy engine: what a request gets never depends on what runs beside it.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    num::NonZeroUsize,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::toy_engine::{BOS, Costs, EOS, POISON, Stages, ToyEngine, ToyTokenizer, limits, simulated};
use llm_node_core::{
    chat::{
        conversation::{Conversation, Format, Json, Message, Part, Tool, ToolInput},
        model::{ModelChat, SyntaxChoice},
    },
    constrain::{Prototype, Tables, Wanted},
    engine::{EngineFault, EngineFaultKind, Limits, StepEngine, Token, Tokenizer},
    error::{ErrorCode, Fault},
    event::{self, Event, Finish, PickedToken, Usage},
    request::{FORBIDS, Prompt, Request, Sampling, ValidRequest},
    session::{Remade, Session, SessionOptions},
    speculate::{Drafter, Lookup, Speller, Want},
    text::template::ChatTemplate,
};
use llm_node_cpu::Crew;
use proptest::prelude::*;

static TABLES: LazyLock<Tables> =
    LazyLock::new(|| Tables::new(Arc::new(ToyTokenizer::new().vocabulary().clone())).unwrap());

/// Forms that answers of the toy may have to keep to.
static FORMS: LazyLock<Vec<Arc<Prototype>>> = LazyLock::new(|| {
    let schema = r#"{"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 6}, "numbers": {"type": "array", "items": {"type": "integer"}, "maxItems": 3}
    }, "required": ["name", "numbers"]}"#;
    // Places in it look alike that are not.
    let siblings =
        r#"{"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}}"#;
    let forms = [
        Format::Object,
        Format::Schema { schema: Json::new(siblings).unwrap(), strict: true },
        Format::Schema { schema: Json::new(schema).unwrap(), strict: true },
        Format::Regex("[a-f]{3,30}(x|[0-9]{4,8})?".into()),
        Format::Lark("start: \"abc\" /[a-d]/{2,9} <|turn|> \"f\"".into()),
    ];
    forms.into_iter().map(|form| Arc::new(TABLES.compile(&form.into()).unwrap())).collect()
});

/// A chat in which the toy may call something.
static CHAT: LazyLock<ModelChat> = LazyLock::new(|| {
    let template = "{% for tool in tools or [] %}{{ tool.function.name }},{% endfor %}\
        {% for m in messages %}<|turn|>{{ m.content }}{% for c in m.tool_calls or [] %}\
        <|call|>{{ c.function.name }}<|args|>{{ c.function.arguments | tojson }}{% endfor %}{% endfor %}";
    let tokenizer = ToyTokenizer::new();
    let vocabulary = tokenizer.vocabulary();
    let chat =
        ModelChat::of(ChatTemplate::compile(template, vocabulary).unwrap(), vocabulary, &SyntaxChoice::Found);
    assert!(chat.has_tools(), "{chat}");
    chat
});

/// What it may call, by name.
const TOOLS: [(&str, &str); 3] = [
    (
        "a",
        r#"{"properties": {"n": {"type": "integer", "minimum": 10, "maximum": 99}}, "required": ["n"], "additionalProperties": false}"#,
    ),
    ("b", r#"{"properties": {"s": {"type": "string", "maxLength": 4}}, "additionalProperties": false}"#),
    (
        "c",
        r#"{"properties": {"e": {"enum": ["abc", "abd", null]}}, "required": ["e"], "additionalProperties": false}"#,
    ),
];

/// Calls of these, wherever the model makes them.
static CALLS: LazyLock<Arc<Prototype>> = LazyLock::new(|| {
    let wanted = Wanted::of(Format::Text, &talk(""), CHAT.calls().unwrap());
    assert!(wanted.is_of_calls());
    Arc::new(TABLES.compile(&wanted).unwrap())
});

fn talk(text: &str) -> Conversation {
    let tools = TOOLS.map(|(name, schema)| Tool {
        name: name.into(),
        description: None,
        input: ToolInput::Object(Json::new(schema).unwrap()),
        strict: true,
    });
    let messages = vec![Message::User { parts: vec![Part::Text(text.into())], name: None }];
    Conversation { messages, tools: tools.into(), ..Conversation::default() }
}

fn request(prompt: Vec<Token>, max_tokens: u32) -> Request {
    Request {
        prompt: Prompt::Tokens(prompt),
        max_tokens: Some(max_tokens),
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop: Vec::new(),
        ignore_eos: false,
        logprobs: None,
        format: Format::Text,
        source: 0,
    }
}

fn valid(request: Request, limits: &Limits) -> ValidRequest {
    ValidRequest::new(request, &ToyTokenizer::new(), Some(&CHAT), limits, 42, 0).unwrap()
}

fn hosting(engine: ToyEngine, options: SessionOptions) -> Session<ToyEngine> {
    let tokenizer = ToyTokenizer::new();
    let vocabulary = Arc::new(tokenizer.vocabulary().clone());
    Session::new(engine, vocabulary, options).with_speller(Speller::new(Arc::new(tokenizer)))
}

fn session(limits: Limits, options: SessionOptions) -> Session<ToyEngine> {
    hosting(ToyEngine::new(limits), options)
}

/// All that one request got.
#[derive(Clone, Debug, Default, PartialEq)]
struct Answer {
    started: u32,
    text: String,
    /// Name, input, and whether that is complete.
    calls: Vec<(String, String, bool)>,
    tokens: Vec<PickedToken>,
    ending: Option<Result<(Finish, Usage), Fault>>,
    cached: u32,
    /// Drafted, and accepted.
    guessed: (u32, u32),
}

impl Answer {
    /// All that may not depend on what ran beside it.
    fn content(&self) -> Self {
        Self { cached: 0, guessed: (0, 0), ..self.clone() }
    }

    /// The same without log-probabilities, of which the last digits depend on who adds them up.
    fn certain(&self) -> Self {
        let tokens = self.tokens.iter().map(|it| PickedToken { logprobs: None, ..it.clone() });
        Self { tokens: tokens.collect(), ..self.content() }
    }

    /// These, with the tokens that they belong to.
    fn logprobs(&self) -> Vec<(Token, f32)> {
        let of = |it: &PickedToken| {
            let all = it.logprobs.clone().into_iter();
            let own = it.id;
            all.flat_map(move |it| {
                std::iter::once((own, it.logprob))
                    .chain(it.top.into_iter().map(|(_, id, logprob)| (id, logprob)))
            })
            .collect::<Vec<_>>()
        };
        self.tokens.iter().flat_map(of).collect()
    }
}

/// Are these log-probabilities the first of those, but for rounding?
fn begins_alike(whole: &[(Token, f32)], first: &[(Token, f32)]) -> bool {
    first.len() <= whole.len() && first.iter().zip(whole).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-4)
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
                match piece.part {
                    event::Part::Text => answer.text.push_str(&piece.text),
                    event::Part::Input => answer.calls.last_mut().unwrap().1.push_str(&piece.text),
                    event::Part::Reasoning => panic!("{piece:?}"),
                }
                answer.tokens.extend(piece.tokens);
            }
            Event::CallBegan { name, .. } => answer.calls.push((name, String::new(), false)),
            Event::CallEnded => answer.calls.last_mut().unwrap().2 = true,
            Event::Finished { reason, usage, .. } => {
                answer.cached = usage.cached_tokens;
                answer.guessed = (usage.drafted_tokens, usage.accepted_tokens);
                // What it costs depends on company; what it gives does not.
                answer.ending = Some(Ok((
                    reason,
                    Usage {
                        prompt_tokens: usage.prompt_tokens,
                        completion_tokens: usage.completion_tokens,
                        reasoning_tokens: usage.reasoning_tokens,
                        ..Usage::default()
                    },
                )));
            }
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
    recorded(request).0
}

/// The same, and prompt and answer as tokens. The last of these may be missing.
fn recorded(request: &ValidRequest) -> (Answer, Vec<Token>) {
    let limits = Limits { context_length: 1000, ..limits() };
    let tokens = Arc::new(Mutex::new(Vec::new()));
    let recorder = Box::new(Recorder(Arc::clone(&tokens)));
    let mut session = session(limits, SessionOptions::default()).with_drafter(recorder);
    let answer = run(&mut session, vec![request.clone()]).remove(&0).unwrap();
    let tokens = tokens.lock().unwrap().clone();
    (answer, tokens)
}

/// Proposes nothing, and keeps what it was shown.
#[derive(Debug)]
struct Recorder(Arc<Mutex<Vec<Token>>>);

impl Drafter for Recorder {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        for want in wants {
            want.tokens.clone_into(&mut self.0.lock().unwrap());
        }
    }

    fn forget(&mut self, _id: u64) {}
}

#[derive(Clone, Debug)]
struct Job {
    request: Request,
    /// Which of the forms its answer has.
    form: Option<usize>,
    arrives: usize,
    cancelled: Option<usize>,
}

impl Job {
    fn valid(&self, limits: &Limits) -> ValidRequest {
        let request = valid(self.request.clone(), limits);
        match (self.form, &self.request.prompt) {
            (Some(form), _) => request.constrained(Arc::clone(&FORMS[form])),
            (None, Prompt::Chat(_)) => request.constrained(Arc::clone(&CALLS)),
            (None, _) => request,
        }
    }
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
    // Many begin alike, so that there is something to be kept and shared.
    let own = prop::collection::vec(prop_oneof![0x61i32..0x67, Just(BOS), 0i32..255], 1..40);
    let prompt = (0usize..3, 0usize..30, own).prop_map(|(family, common, own)| {
        let beginning = (0..common as Token).map(|it| 0x61 + (it * (family as Token + 1)) % 6);
        beginning.chain(own.into_iter().take(40 - common)).collect::<Vec<_>>()
    });
    let stop = prop::collection::vec("[a-f]{1,2}", 0..2);
    (
        (prompt, 0u32..40, sampling(), stop),
        (
            prop_oneof![3 => any::<bool>().prop_map(Err), 1 => "[a-f]{1,20}".prop_map(Ok)],
            prop_oneof![3 => Just(None), 1 => (0u32..3).prop_map(Some)],
            prop_oneof![2 => Just(None), 1 => (0..FORMS.len()).prop_map(Some)],
        ),
        (0usize..30, prop_oneof![3 => Just(None), 1 => (0usize..40).prop_map(Some)], 0u64..4),
    )
        .prop_map(
            |((prompt, max_tokens, sampling, stop), (kind, logprobs, form), (arrives, cancelled, source))| {
                let ignore_eos = kind == Err(true);
                let form = form.filter(|_| kind.is_err());
                let prompt = match kind {
                    Ok(text) => Prompt::Chat(talk(&text)),
                    Err(_) => Prompt::Tokens(prompt),
                };
                Job {
                    form,
                    request: Request {
                        prompt,
                        max_tokens: Some(max_tokens),
                        sampling,
                        stop,
                        ignore_eos: ignore_eos && form.is_none(),
                        logprobs,
                        format: Format::Text,
                        source,
                    },
                    arrives,
                    cancelled: cancelled.map(|it| arrives + it),
                }
            },
        )
}

fn tight_limits() -> impl Strategy<Value = Limits> {
    (
        (1u32..9, 1u32..60, 1u32..9, 0u64..200, prop_oneof![Just(1u32), 2u32..20]),
        (any::<bool>(), any::<bool>(), prop_oneof![Just(0u32), 1u32..4, Just(u32::MAX)], any::<bool>()),
        (prop_oneof![Just(0u32), 1u32..60, Just(256)], prop_oneof![4 => Just(true), 1 => Just(false)]),
    )
        .prop_map(
            |(
                (max_sequences, max_batch_tokens, max_rows, more_cache, cache_page),
                (shares_prefixes, saves, max_rollback, walled),
                (max_candidates, fetches),
            )| {
                let cache_page = if shares_prefixes { 1 } else { cache_page };
                let walled = walled && !shares_prefixes && cache_page == 1;
                Limits {
                    max_sequences,
                    max_batch_tokens,
                    max_rows,
                    // Each fits alone (prompt and answer are below 80), two may not.
                    cache_tokens: if walled {
                        80 * u64::from(max_sequences)
                    } else {
                        80 + u64::from(cache_page) + more_cache
                    },
                    context_length: if walled { 80 } else { limits().context_length },
                    cache_page,
                    shares_prefixes,
                    saves,
                    max_rollback,
                    max_candidates,
                    fetches,
                    ..limits()
                }
            },
        )
}

/// A clock that goes on by itself, at a gait that changes: what it says may change when things happen,
/// and nothing else.
fn restless() -> Duration {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(1) });
    NOW.with(|now| {
        now.set(now.get() + (now.get() * 7919) % 40_000);
        Duration::from_micros(now.get())
    })
}

/// Proposes the right tokens, wrong ones and none, by turns.
#[derive(Debug)]
struct Guesser {
    answers: Vec<Vec<Token>>,
    turn: usize,
}

impl Drafter for Guesser {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        for want in wants {
            self.turn += 1;
            let right = self.answers.iter().find(|it| it.starts_with(want.tokens));
            let right = right.map_or(&[][..], |it| &it[want.tokens.len()..]);
            want.draft.extend(right.iter().take(self.turn % 5));
            if self.turn.is_multiple_of(3) {
                want.draft.push(0x61);
            }
            if self.turn.is_multiple_of(7) {
                // As like the right ones as can be.
                for token in &mut want.draft {
                    *token = match *token {
                        0x61 => 0x62,
                        0x62 => 0x61,
                        other => other,
                    };
                }
            }
            want.draft.truncate(want.most as usize);
        }
    }

    fn forget(&mut self, _id: u64) {}
}

#[derive(Clone, Debug)]
struct Ways {
    prefill_tokens: u32,
    keep_prefixes: bool,
    max_running: u32,
    restless: bool,
    boast: u64,
    copies_whole: bool,
    drafts: usize,
    crew: usize,
    stages: Stages,
}

fn stages() -> impl Strategy<Value = Stages> {
    (prop_oneof![Just(0usize), 1usize..20], any::<bool>(), 0usize..4)
        .prop_map(|(most, sums, whole_every)| Stages { most, sums, whole_every, fails_to_fetch: false })
}

fn ways() -> impl Strategy<Value = Ways> {
    (
        (1u32..40, any::<bool>(), 0u32..6, any::<bool>()),
        (
            prop_oneof![Just(0u64), Just(1000u64)],
            any::<bool>(),
            0usize..3,
            prop_oneof![Just(1usize), Just(8)],
        ),
        stages(),
    )
        .prop_map(
            |(
                (prefill_tokens, keep_prefixes, max_running, restless),
                (boast, copies_whole, drafts, crew),
                stages,
            )| Ways {
                prefill_tokens,
                keep_prefixes,
                max_running,
                restless,
                boast,
                copies_whole,
                drafts,
                crew,
                stages,
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_batch_invariant(
        jobs in prop::collection::vec(job(), 1..24),
        limits in tight_limits(),
        ways in ways(),
        remade in prop::option::of((0usize..80, tight_limits())),
    ) {
        let (plain, texts): (Vec<_>, Vec<_>) = jobs.iter().map(|it| recorded(&it.valid(&limits))).unzip();
        let options = SessionOptions {
            prefill_tokens: ways.prefill_tokens,
            keep_prefixes: ways.keep_prefixes,
            max_running: ways.max_running,
            saved_bytes: 200,
            target_step: Duration::from_millis(30),
            clock: if ways.restless { restless } else { || Duration::ZERO },
            ..SessionOptions::default()
        };
        let engine = |limits: &Limits| {
            let mut engine = ToyEngine::new(limits.clone());
            engine.boast = ways.boast;
            engine.copies_whole = ways.copies_whole;
            engine.stages = ways.stages.clone();
            if !limits.fetches {
                // Then it has to give what was asked for.
                engine.stages.most = 0;
            }
            engine
        };
        let crew = Crew::new(NonZeroUsize::new(ways.crew).unwrap(), "test").unwrap();
        let mut session = hosting(engine(&limits), options).with_crew(crew);
        session = match ways.drafts {
            0 => session,
            1 => session.with_drafter(Box::new(Lookup::default())),
            _ => session.with_drafter(Box::new(Guesser { answers: texts, turn: 0 })),
        };
        let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
        let mut steps = 0;
        loop {
            for (id, job) in (0..).zip(&jobs) {
                if job.arrives == steps {
                    session.submit(id, job.valid(&limits)).unwrap();
                }
                if job.cancelled == Some(steps) {
                    session.cancel(id, &mut events);
                }
            }
            if let Some((at, others)) = &remade && *at == steps {
                session.reshape(&mut events, |context| {
                    *context = engine(others);
                    Ok(Remade { max_running: ways.max_running, drafter: Some(Box::new(Lookup::default())) })
                }).unwrap();
                prop_assert_eq!(session.check_integrity(), Ok(()));
            }
            session.step(&mut events).unwrap();
            prop_assert_eq!(session.check_integrity(), Ok(()));
            collect(&mut events, &mut answers);
            let load = session.occupancy();
            prop_assert!(load.running <= load.max_running);
            steps += 1;
            if steps > 80 && session.is_idle() { break; }
            prop_assert!(steps < 100_000, "no progress");
        }
        prop_assert!(ways.keep_prefixes || session.engine().is_empty());
        prop_assert_eq!(session.engine().held(), session.occupancy().kept_tokens, "sequences were left behind");
        for ((id, job), alone) in (0..).zip(&jobs).zip(&plain) {
            let answer = answers.get(&id).expect("an answer");
            prop_assert!(ways.keep_prefixes || answer.cached == 0);
            if let Some(Ok((Finish::Cancelled, usage))) = &answer.ending {
                    prop_assert!(job.cancelled.is_some());
                    prop_assert!(alone.text.starts_with(&answer.text));
                    prop_assert!(alone.certain().tokens.starts_with(&answer.certain().tokens));
                    prop_assert!(usage.completion_tokens >= answer.tokens.len() as u32);
            } else {
                prop_assert_eq!(answer.certain(), alone.certain());
                prop_assert_eq!(answer.logprobs().len(), alone.logprobs().len());
            }
            prop_assert!(begins_alike(&alone.logprobs(), &answer.logprobs()));
        }
    }
}

/// Answers do keep to their form, to the end where they have room, with and without drafts; and drafts of what
/// is not admitted cost nothing but themselves.
#[test]
fn answers_keep_to_their_form() {
    let limits = limits();
    for (form, prototype) in FORMS.iter().enumerate() {
        for seed in 0..8 {
            let mut request = request(vec![BOS, 0x61 + seed], 200);
            request.sampling = Sampling { seed: Some(seed as u64), temperature: 1.0, ..Sampling::default() };
            let request = valid(request, &limits).constrained(Arc::clone(prototype));
            let plain = alone(&request);
            let (finish, _) = plain.ending.clone().unwrap().unwrap();
            let mut constraint = prototype.constraint();
            for token in &plain.tokens {
                assert!(constraint.mask().unwrap().admits(token.id));
                constraint.consume(token.id).unwrap();
            }
            assert_eq!(finish == Finish::Stop, constraint.is_accepting().unwrap(), "{form} {}", plain.text);
            let answers = vec![
                vec![BOS, 0x61 + seed]
                    .into_iter()
                    .chain(plain.tokens.iter().map(|it| it.id))
                    .collect::<Vec<_>>(),
            ];
            let mut session = session(limits.clone(), SessionOptions::default())
                .with_drafter(Box::new(Guesser { answers, turn: 0 }));
            let drafted = run(&mut session, vec![request]).remove(&0).unwrap();
            assert_eq!(drafted.content(), plain.content());
            assert!(drafted.guessed.1 > 0, "{drafted:?}");
        }
    }
}

/// Calls that begin by themselves are valid, however they are proposed; and the property above says something of
/// them.
#[test]
fn calls_keep_to_their_schemas() {
    let limits = Limits { context_length: 1000, ..limits() };
    let (mut complete, mut drafted) = (0, 0);
    for seed in 0..40 {
        let mut request = request(Vec::new(), 90);
        request.prompt = Prompt::Chat(talk("ab"));
        request.sampling = Sampling { seed: Some(seed), temperature: 1.0, ..Sampling::default() };
        let request = valid(request, &limits).constrained(Arc::clone(&CALLS));
        let (plain, tokens) = recorded(&request);
        for (name, input, ended) in &plain.calls {
            let schema = TOOLS.iter().find(|it| it.0 == name).unwrap().1;
            if *ended {
                complete += 1;
                let (schema, input) =
                    (serde_json::from_str(schema).unwrap(), serde_json::from_str(input).unwrap());
                assert!(jsonschema::is_valid(&schema, &input), "{name} {input}");
            }
        }
        let mut session = session(limits.clone(), SessionOptions::default())
            .with_drafter(Box::new(Guesser { answers: vec![tokens], turn: 0 }));
        let guessed = run(&mut session, vec![request]).remove(&0).unwrap();
        assert_eq!(guessed.content(), plain.content());
        drafted += guessed.guessed.1;
    }
    assert!(complete > 8 && drafted > 100, "{complete} {drafted}");
}

/// A grammar that takes too much at one place ends its request, and no other.
#[test]
fn a_grammar_that_takes_too_much_costs_its_request_alone() {
    let form = Format::Regex("a(.*a.*b.*c.*d.*e.*f.*g.*h.*){6,60}".into());
    let Ok(prototype) = TABLES.compile(&form.into()) else { return };
    let limits = limits();
    let good = valid(request(vec![BOS, 0x61], 60), &limits).constrained(Arc::clone(&FORMS[0]));
    let free = valid(request(vec![BOS, 0x63], 60), &limits);
    let bad = valid(request(vec![BOS, 0x62], 240), &limits).constrained(Arc::new(prototype));
    let mut session = session(limits, SessionOptions::default());
    let answers = run(&mut session, vec![good.clone(), bad, free.clone()]);
    assert_eq!([&answers[&0], &answers[&2]], [&alone(&good), &alone(&free)]);
    if let Some(Err(fault)) = &answers[&1].ending {
        assert_eq!(fault.code, ErrorCode::UnsupportedParameter, "{fault}");
    }
}

/// Candidates do decide, and where they do not the rest is fetched, or the property above shows less than
/// it says.
#[test]
fn candidates_decide_where_they_can() {
    let run_with = |stages: Stages, sampling: Sampling| {
        let limits = Limits { max_candidates: 64, fetches: true, ..limits() };
        let mut request = request(vec![BOS, 0x61], 40);
        (request.sampling, request.ignore_eos) = (sampling, true);
        let request = valid(request, &limits);
        let mut engine = ToyEngine::new(limits);
        engine.stages = stages;
        let mut session = hosting(engine, SessionOptions::default());
        let answer = run(&mut session, vec![request.clone()]).remove(&0).unwrap();
        assert_eq!(answer.content(), alone(&request).content());
        (session.engine().cut_down, session.engine().fetched)
    };
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let top_k = Sampling { top_k: 20, seed: Some(1), ..Sampling::default() };
    assert_eq!(run_with(Stages::default(), greedy.clone()), (40, 0));
    assert_eq!(run_with(Stages::default(), top_k.clone()), (40, 0));
    // The six tokens that are never picked would always be the likeliest.
    assert_eq!(run_with(Stages { most: 7, ..Stages::default() }, greedy.clone()), (40, 0));
    // What never decides is asked for no more, and what has to be whole is not asked for at all.
    assert_eq!(run_with(Stages { most: 6, ..Stages::default() }, greedy), (1, 1));
    assert_eq!(run_with(Stages { most: 9, ..Stages::default() }, top_k.clone()), (1, 1));
    let lifting = Sampling { bias: vec![(0x62, 1.0)], ..top_k };
    assert_eq!(run_with(Stages::default(), lifting), (0, 0));
    assert_eq!(run_with(Stages::default(), Sampling::default()), (0, 0));
}

#[test]
fn a_row_that_cannot_be_fetched_costs_its_request_alone() {
    let limits = Limits { max_candidates: 10, fetches: true, ..limits() };
    let mut engine = ToyEngine::new(limits.clone());
    engine.stages.fails_to_fetch = true;
    let mut session = hosting(engine, SessionOptions::default());
    let good = valid(request(vec![BOS, 0x61], 20), &limits);
    let mut bad = request(vec![BOS, 0x62], 20);
    bad.sampling = Sampling { top_k: 5, ..Sampling::default() };
    let answers = run(&mut session, vec![good.clone(), valid(bad, &limits), good.clone()]);
    let Some(Err(fault)) = &answers[&1].ending else { panic!("{answers:?}") };
    assert_eq!(fault.code, ErrorCode::UnsupportedFeature);
    assert_eq!([&answers[&0], &answers[&2]], [&alone(&good), &alone(&good)]);
    assert_eq!(session.engine().held(), session.occupancy().kept_tokens, "nothing else is left behind");
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
    assert_eq!(session.occupancy().preemptions, 0);

    let mut engine = ToyEngine::new(session.limits().clone());
    engine.boast = 10_000;
    let mut session = hosting(engine, SessionOptions::default());
    let answers = run(&mut session, requests);
    assert_eq!(answers.into_values().collect::<Vec<_>>(), expected);
    assert!(session.occupancy().preemptions > 0);
}

#[test]
fn streams_go_on_while_a_long_prompt_is_read() {
    for shares_prefixes in [true, false] {
        let limits = Limits { shares_prefixes, ..limits() };
        let options = SessionOptions { prefill_tokens: 16, ..SessionOptions::default() };
        let mut session = session(limits.clone(), options);
        let mut events = Vec::new();
        for id in 0..3 {
            let mut request = request(vec![BOS, id], 200);
            request.ignore_eos = true;
            session.submit(id as u64, valid(request, &limits)).unwrap();
        }
        session.step(&mut events).unwrap();
        session.submit(9, valid(request(vec![BOS; 200], 10), &limits)).unwrap();
        for _ in 0..26 {
            session.step(&mut events).unwrap();
        }
        let answers = [(0, 1, 1), (1, 1, 1), (2, 1, 1)];
        let pieces = (0..13).map(|index| if index < 12 { (3, 16, 0) } else { (3, 8, 1) });
        // In one pass where engines have one for both, and by turns where not.
        let expected: Vec<Vec<_>> = if shares_prefixes {
            pieces.map(|piece| answers.into_iter().chain([piece]).collect()).collect()
        } else {
            pieces.flat_map(|piece| [answers.to_vec(), vec![piece]]).collect()
        };
        assert_eq!(session.engine().steps[1..=expected.len()], expected);
    }
}

/// Each look at it takes a millisecond.
fn ticking() -> Duration {
    thread_local!(static NOW: Cell<u64> = const { Cell::new(0) });
    Duration::from_millis(NOW.with(|now| now.replace(now.get() + 1)))
}

#[test]
fn a_burst_is_read_before_answers_go_on() {
    for shares_prefixes in [true, false] {
        let limits = Limits { max_batch_tokens: 40, shares_prefixes, ..limits() };
        let options = SessionOptions { clock: ticking, ..SessionOptions::default() };
        let mut session = session(limits.clone(), options);
        let mut events = Vec::new();
        let submit = |session: &mut Session<ToyEngine>, id: u64| {
            let mut request = request(vec![id as Token; 20], 30);
            request.ignore_eos = true;
            session.submit(id, valid(request, &limits)).unwrap();
        };
        submit(&mut session, 100);
        for _ in 0..3 {
            session.step(&mut events).unwrap();
        }
        for id in 0..8 {
            submit(&mut session, id);
        }
        for _ in 0..5 {
            session.step(&mut events).unwrap();
        }
        let steps = &session.engine().steps[3..];
        let whole_prompts = |step: &[(u32, usize, u32)]| step.iter().all(|it| (it.1, it.2) == (20, 1));
        assert!(steps[..4].iter().all(|it| it.len() == 2 && whole_prompts(it)), "{steps:?}");
        assert_eq!(steps[4].len(), 9);
    }
}

/// A session whose engine takes time, in milliseconds, on a clock that nothing else moves.
fn timed(limits: Limits, [step, token, copy]: [u64; 3], options: &SessionOptions) -> Session<ToyEngine> {
    let mut engine = ToyEngine::new(limits);
    let [step, token, copy] = [step, token, copy].map(Duration::from_millis);
    engine.costs = Costs { step, token, copy };
    hosting(engine, SessionOptions { clock: simulated, ..*options })
}

/// Forty prompts of 20 tokens take 0.8 seconds. How long are streams without a token, if there are any, and
/// how long those of the burst without their second?
#[test]
fn a_burst_holds_up_its_own_answers_but_no_stream_for_long() {
    for shares_prefixes in [true, false] {
        for n_streams in [0, 8] {
            let limits = Limits { max_batch_tokens: 100, shares_prefixes, ..limits() };
            let options =
                SessionOptions { target_step: Duration::from_millis(40), ..SessionOptions::default() };
            let mut session = timed(limits.clone(), [4, 1, 0], &options);
            let mut events = Vec::new();
            let submit = |session: &mut Session<ToyEngine>, id: u64, tokens: u32| {
                let mut request = request(vec![id as Token; 20], tokens);
                request.ignore_eos = true;
                session.submit(id, valid(request, &limits)).unwrap();
            };
            // So that it is known what a prompt takes.
            submit(&mut session, 200, 3);
            for id in 0..n_streams {
                submit(&mut session, 100 + id, 200);
            }
            for _ in 0..10 {
                session.step(&mut events).unwrap();
            }
            for id in 0..40 {
                submit(&mut session, id, 2);
            }
            events.clear();
            let (mut told, mut pause) = (simulated(), Duration::ZERO);
            let mut begun = BTreeSet::new();
            // How many had begun when one ended.
            let mut ended = Vec::new();
            while ended.len() < 40 {
                session.step(&mut events).unwrap();
                let now = simulated();
                for (id, event) in events.drain(..) {
                    match event {
                        Event::Piece(_) if id >= 100 => {
                            pause = pause.max(now.saturating_sub(told));
                            told = now;
                        }
                        Event::Piece(_) => _ = begun.insert(id),
                        Event::Finished { .. } if id < 100 => ended.push(begun.len()),
                        _ => {}
                    }
                }
            }
            if n_streams == 0 {
                assert_eq!(ended, [40; 40], "all have their first token before any goes on");
            } else {
                // Four targets, and the steps under way then: one of prompts, and one of 48 answers.
                assert!(pause > Duration::from_millis(160), "{pause:?}");
                assert!(pause < Duration::from_millis(160 + 100 + 60), "{pause:?}");
            }
        }
    }
}

/// However many short ones come with each step.
#[test]
fn a_long_prompt_comes_to_its_end() {
    for shares_prefixes in [true, false] {
        let limits = Limits { shares_prefixes, ..limits() };
        let options = SessionOptions { prefill_tokens: 64, ..SessionOptions::default() };
        let mut session = session(limits.clone(), options);
        let mut events = Vec::new();
        let mut stream = request(vec![BOS], 200);
        stream.ignore_eos = true;
        session.submit(1000, valid(stream, &limits)).unwrap();
        session.step(&mut events).unwrap();
        session.submit(0, valid(request(vec![BOS; 240], 1), &limits)).unwrap();
        for step in 0..40 {
            for index in 0..4 {
                let id = 1 + 4 * step + index;
                // No two begin alike.
                let prompt =
                    vec![id as Token % 240, index as Token, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
                session.submit(id, valid(request(prompt, 3), &limits)).unwrap();
            }
            session.step(&mut events).unwrap();
        }
        let ended = events.iter().position(|(id, event)| *id == 0 && matches!(event, Event::Finished { .. }));
        let others = events.iter().filter(|(_, event)| matches!(event, Event::Finished { .. })).count();
        assert!(ended.is_some() && others > 20, "{others} ended beside it");
        let mut pieces = session.engine().steps.iter().flatten().filter(|it| it.1 > 15).map(|it| it.1);
        assert!(pieces.all(|it| it >= 32), "half of what a step takes of prompts");
    }
}

/// The middle one of three ends, copies are dear, and so a dummy token sits in its place. The engine takes no
/// more than four tokens in a step, drafted ones included.
#[test]
fn a_hole_is_padded_within_what_a_step_may_take() {
    let limits = Limits { max_sequences: 4, max_batch_tokens: 4, max_rows: 4, ..limits() };
    let requests: Vec<_> = [60, 10, 60]
        .into_iter()
        .map(|tokens| {
            // Alike, so that one is copied once and it is known what that takes.
            let mut request = request([vec![BOS; 80], vec![tokens as Token + 1]].concat(), tokens);
            request.ignore_eos = true;
            valid(request, &limits)
        })
        .collect();
    let plain: Vec<_> = requests.iter().map(alone).collect();
    let tokens = requests.iter().zip(&plain).map(|(request, answer)| {
        request.prompt().iter().copied().chain(answer.tokens.iter().map(|it| it.id)).collect()
    });
    let mut session = timed(limits, [20, 1, 10_000], &SessionOptions::default())
        .with_drafter(Box::new(Guesser { answers: tokens.collect(), turn: 0 }));
    let answers = run(&mut session, requests);
    for (answer, plain) in answers.values().zip(&plain) {
        assert_eq!(answer.content(), plain.content());
    }
    let steps = &session.engine().steps;
    let padded = |step: &&Vec<(u32, usize, u32)>| step.iter().any(|it| it.2 == 0 && it.1 == 1 && it.0 == 1);
    assert!(steps.iter().filter(padded).count() > 10, "{steps:?}");
    assert!(
        steps.iter().filter(padded).any(|step| step.iter().any(|it| it.2 == 2)),
        "with a draft beside it"
    );
}

/// Prompt tokens that the engine computed.
fn computed(session: &Session<ToyEngine>) -> usize {
    session.engine().steps.iter().flatten().map(|it| it.1).filter(|&tokens| tokens > 1).sum()
}

#[test]
fn a_conversation_goes_on_where_it_ended() {
    let mut session = session(limits(), SessionOptions::default());
    let mut first = request(vec![BOS; 100], 40);
    first.ignore_eos = true;
    let answer = run(&mut session, vec![valid(first, &limits())]).remove(&0).unwrap();
    assert_eq!((answer.cached, session.occupancy().kept), (0, 1));
    let mut prompt = vec![BOS; 100];
    prompt.extend(answer.tokens.iter().map(|it| it.id));
    prompt.extend([0x61; 10]);
    let second = valid(request(prompt, 5), &limits());
    let before = computed(&session);
    let answer = run(&mut session, vec![second.clone()]).remove(&0).unwrap();
    // All but the last token of the first answer, which was never computed, is there.
    assert_eq!((answer.cached, computed(&session) - before), (139, 11));
    assert_eq!(answer.content(), alone(&second).content());
    // The same again: only the row of its last token is missing.
    let answer = run(&mut session, vec![second.clone()]).remove(&0).unwrap();
    assert_eq!((answer.cached, answer.content()), (149, alone(&second).content()));
}

#[test]
fn what_many_begin_with_is_computed_once() {
    for shares_prefixes in [false, true] {
        let limits = Limits { shares_prefixes, ..limits() };
        let mut session = session(limits.clone(), SessionOptions::default());
        let requests: Vec<_> = (0..20)
            .map(|index| {
                let mut prompt = vec![BOS; 200];
                prompt.extend([0x61 + index, 0x62, 0x63]);
                valid(request(prompt, 20), &limits)
            })
            .collect();
        let answers = run(&mut session, requests.clone());
        for (answer, request) in answers.values().zip(&requests) {
            assert_eq!(answer.content(), alone(request).content());
        }
        assert_eq!(answers.values().filter(|it| it.cached == 200).count(), 19);
        assert_eq!(computed(&session), 203 + 19 * 3);
    }
}

#[test]
fn where_no_prompt_begins_like_another_little_is_kept() {
    for shares_prefixes in [false, true] {
        let limits = Limits { shares_prefixes, ..limits() };
        let mut session = session(limits.clone(), SessionOptions::default());
        let mut ask = |index: u8| {
            let prompt: Vec<_> = (0..40).map(|i| Token::from(index ^ i)).collect();
            let request = valid(request(prompt, 4), &limits);
            let answer = run(&mut session, vec![request.clone()]).remove(&0).unwrap();
            assert_eq!(answer.content(), alone(&request).content());
            (answer.cached, session.occupancy().kept)
        };
        for index in 0..12 {
            // Until it is a habit, all is kept. Where each has a part to itself, that costs nothing.
            let is_habit = shares_prefixes && index >= 7;
            assert_eq!(ask(index), (0, if is_habit { 1 } else { usize::from(index) + 1 }));
        }
        // One that begins like the newest finds it, and then all is kept again.
        assert_eq!(ask(11), (39, if shares_prefixes { 1 } else { 12 }));
        assert_eq!(ask(40), (0, if shares_prefixes { 2 } else { 13 }));
    }
}

#[test]
fn where_prompts_have_only_their_beginning_in_common_that_is_kept() {
    let limits = Limits { shares_prefixes: true, ..limits() };
    let mut session = session(limits.clone(), SessionOptions::default());
    let mut ask = |system: u8, own: u8| {
        let begin = (0..60).map(|i| Token::from(system ^ i));
        let prompt = begin.chain((0..40).map(|i| Token::from(own ^ i))).collect();
        let request = valid(request(prompt, 4), &limits);
        let answer = run(&mut session, vec![request.clone()]).remove(&0).unwrap();
        assert_eq!(answer.content(), alone(&request).content());
        (answer.cached, session.occupancy().cache_used)
    };
    // By turns, two system prompts. What only one began with may be gone on with, so the habit takes a while.
    for own in 0..24 {
        let system = if own % 2 == 0 { 64 } else { 128 };
        let (cached, cache_used) = ask(system, own);
        assert_eq!(cached, if own < 2 { 0 } else { 60 });
        if own >= 11 {
            // Both, and the newest whole: how long it would take again is not known.
            assert!((160..=163).contains(&cache_used), "{own}: {cache_used}");
        }
    }
}

#[test]
fn those_that_need_not_wait_pass_those_that_do() {
    let mut session = session(limits(), SessionOptions { prefill_tokens: 16, ..SessionOptions::default() });
    let mut events = Vec::new();
    let long = || valid(request(vec![BOS; 200], 1), &limits());
    for (id, request) in [
        (0, valid(request(vec![0x61], 60), &limits())),
        (1, long()),
        (2, long()),
        (3, valid(request(vec![0x62], 60), &limits())),
    ] {
        session.submit(id, request).unwrap();
    }
    session.step(&mut events).unwrap();
    assert_eq!((session.occupancy().running, session.occupancy().queued), (3, 1));
    while !session.is_idle() {
        session.step(&mut events).unwrap();
    }
    assert!((200..216).contains(&computed(&session)));
}

#[test]
fn kept_sequences_make_room_before_anyone_gives_way() {
    for shares_prefixes in [false, true] {
        let limits = Limits { cache_tokens: 300, shares_prefixes, ..limits() };
        let mut session = session(limits.clone(), SessionOptions::default());
        for index in 0..4 {
            let answers = run(&mut session, vec![valid(request(vec![0x61 + index; 120], 1), &limits)]);
            assert!(matches!(answers[&0].ending, Some(Ok(_))));
        }
        assert_eq!((session.occupancy().kept, session.occupancy().preemptions), (2, 0));
    }
}

#[test]
fn who_gives_way_comes_back_from_the_host() {
    for saves in [false, true] {
        // Admission promises the prompt and 256 tokens of the answer; more are wanted.
        let limits = Limits { cache_tokens: 1000, context_length: 700, saves, ..limits() };
        let requests: Vec<_> = (0..8)
            .map(|index| {
                let mut request = request(vec![BOS, index], 600);
                request.ignore_eos = true;
                valid(request, &limits)
            })
            .collect();
        let mut session = session(limits, SessionOptions::default());
        let answers = run(&mut session, requests.clone());
        for (answer, request) in answers.values().zip(&requests) {
            assert_eq!(answer.content(), alone(request).content());
        }
        assert!(session.occupancy().preemptions > 0);
        // Prompts of two tokens: whatever else is computed in one go is computed again.
        assert_eq!(computed(&session) == 8 * 2, saves);
    }
}

/// Answers under way, one that waits, and whatever the new context is like.
#[test]
fn answers_go_on_in_a_context_that_is_made_anew() {
    let before = Limits { max_sequences: 3, max_rows: 4, context_length: 300, cache_tokens: 700, ..limits() };
    let requests: Vec<_> = (0..5)
        .map(|index| {
            let mut request = request(vec![BOS, 0x61, index, index], 200);
            request.ignore_eos = true;
            valid(request, &before)
        })
        .collect();
    for (at, sequences, shares, saves) in [(1, 8, false, true), (70, 1, true, false), (150, 2, false, false)]
    {
        let mut session = session(Limits { saves, ..before.clone() }, SessionOptions::default())
            .with_drafter(Box::new(Lookup::default()));
        let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
        for (id, request) in (0..).zip(requests.clone()) {
            session.submit(id, request).unwrap();
        }
        for _ in 0..at {
            session.step(&mut events).unwrap();
        }
        collect(&mut events, &mut answers);
        let after = Limits {
            max_sequences: sequences,
            max_rows: 16,
            context_length: 900,
            cache_tokens: 900,
            shares_prefixes: shares,
            ..limits()
        };
        let remake = |engine: &mut ToyEngine| {
            *engine = ToyEngine::new(after);
            Ok(Remade { max_running: 0, drafter: Some(Box::new(Lookup::default())) })
        };
        session.reshape(&mut events, remake).unwrap();
        assert_eq!(session.check_integrity(), Ok(()));
        assert_eq!((session.occupancy().running, session.occupancy().max_running), (0, sequences as usize));
        let long = valid(request(vec![BOS; 800], 50), session.limits());
        session.submit(9, long.clone()).unwrap();
        while !session.is_idle() {
            session.step(&mut events).unwrap();
            collect(&mut events, &mut answers);
        }
        for (id, request) in (0..).zip(&requests).chain([(9, &long)]) {
            assert_eq!(answers[&id].content(), alone(request).content(), "request {id}, step {at}");
        }
    }
}

#[test]
fn what_a_smaller_context_cannot_take_fails_and_the_rest_goes_on() {
    let mut session = session(limits(), SessionOptions::default());
    let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
    let requests = [20, 60].map(|max_tokens| {
        let mut request = request(vec![BOS, 0x61], max_tokens);
        request.ignore_eos = true;
        valid(request, &limits())
    });
    for (id, request) in (0..).zip(requests.clone()) {
        session.submit(id, request).unwrap();
    }
    session.step(&mut events).unwrap();
    let remake = |engine: &mut ToyEngine| {
        *engine = ToyEngine::new(Limits { context_length: 40, ..limits() });
        Ok(Remade { max_running: 0, drafter: None })
    };
    session.reshape(&mut events, remake).unwrap();
    while !session.is_idle() {
        session.step(&mut events).unwrap();
    }
    collect(&mut events, &mut answers);
    assert_eq!(answers[&0].content(), alone(&requests[0]).content());
    let fault = answers[&1].ending.clone().unwrap().unwrap_err();
    assert_eq!(fault.code, ErrorCode::ContextLengthExceeded);

    session.submit(2, requests[0].clone()).unwrap();
    let gone =
        EngineFault { kind: EngineFaultKind::OomVram, message: "no memory".into(), call: "batch.create" };
    assert_eq!(session.reshape(&mut events, |_| Err(gone.clone())), Err(gone));
    collect(&mut events, &mut answers);
    assert!(answers[&2].ending.clone().unwrap().is_err() && session.step(&mut events).is_err());
}

#[test]
fn right_guesses_spare_steps() {
    let mut wanted = request(vec![BOS, 0x61], 200);
    wanted.ignore_eos = true;
    let wanted = valid(wanted, &limits());
    let plain = alone(&wanted);
    let tokens = wanted.prompt().iter().copied().chain(plain.tokens.iter().map(|it| it.id)).collect();
    let mut session = session(limits(), SessionOptions::default())
        .with_drafter(Box::new(Guesser { answers: vec![tokens], turn: 0 }));
    let answers = run(&mut session, vec![wanted]);
    assert_eq!(answers[&0].content(), plain.content());
    let load = session.occupancy();
    assert!(load.accepted > 40 && load.drafted > load.accepted, "{load:?}");
    let (drafted, accepted) = answers[&0].guessed;
    assert_eq!((u64::from(drafted), u64::from(accepted)), (load.drafted, load.accepted));
    assert_eq!(session.engine().steps.len() as u64 + load.accepted, 200);
}

/// What the form of an answer tells is proposed without anybody who guesses, and does not count as guessed.
#[test]
fn what_a_form_foresees_spares_steps() {
    let form = Arc::new(TABLES.compile(&Format::Regex("(abcdef){8}".into()).into()).unwrap());
    let wanted = valid(request(vec![BOS, 0x61], 60), &limits()).constrained(form);
    let tokenizer = ToyTokenizer::new();
    let vocabulary = Arc::new(tokenizer.vocabulary().clone());
    let mut plain = Session::new(ToyEngine::new(limits()), vocabulary, SessionOptions::default());
    let expected = run(&mut plain, vec![wanted.clone()]);
    let mut session = session(limits(), SessionOptions::default());
    let answers = run(&mut session, vec![wanted]);
    assert_eq!(answers, expected);
    assert_eq!(answers[&0].text, "abcdef".repeat(8));
    assert_eq!((plain.engine().steps.len(), session.occupancy().drafted), (49, 0));
    assert!(session.engine().steps.len() < 15, "{:?}", session.engine().steps);
}

/// Proposes as much as it may, and nothing of it is right.
#[derive(Debug)]
struct Babbler;

impl Drafter for Babbler {
    fn draft_all(&mut self, wants: &mut [Want<'_>]) {
        for want in wants {
            want.draft.resize(want.most as usize, BOS);
        }
    }

    fn forget(&mut self, _id: u64) {}
}

#[test]
fn a_request_whose_guesses_are_wrong_stops_guessing() {
    let limits = Limits { context_length: 700, ..limits() };
    let mut wanted = request(vec![BOS, 0x61], 600);
    wanted.ignore_eos = true;
    let wanted = valid(wanted, &limits);
    let mut session = timed(limits, [20, 1, 0], &SessionOptions::default()).with_drafter(Box::new(Babbler));
    let answers = run(&mut session, vec![wanted.clone()]);
    assert_eq!(answers[&0].content(), alone(&wanted).content());
    let load = session.occupancy();
    assert_eq!((load.accepted, session.engine().steps.len()), (0, 600));
    // A token costs a twentieth of a step: one in twenty that is right would be enough.
    assert!((1..40).contains(&load.drafted), "{load:?}");
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
    assert_eq!(session.engine().steps[2], [(1, 2, 1)]);
    session.cancel(0, &mut events);
    for _ in 0..2 {
        session.step(&mut events).unwrap();
    }
    assert_eq!(session.engine().steps[3..], [vec![(1, 1, 1), (2, 1, 1)], vec![(0, 2, 1)]]);
}

#[test]
fn a_full_queue_refuses() {
    let options =
        SessionOptions { queue_limit: 2, queue_tokens: 10, prefill_tokens: 8, ..SessionOptions::default() };
    let limits = Limits { max_sequences: 1, ..limits() };
    let mut session = session(limits.clone(), options);
    for id in 0..3 {
        session.submit(id, valid(request(vec![BOS], 5), &limits)).unwrap();
    }
    let fault = session.submit(3, valid(request(vec![BOS], 5), &limits)).unwrap_err();
    assert_eq!(fault.code, ErrorCode::QueueFull);
    let mut events = Vec::new();
    session.step(&mut events).unwrap();
    let load = session.occupancy();
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
                stop: None,
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
fn an_ending_says_how_long_it_waited_read_and_wrote() {
    static NOW: AtomicU64 = AtomicU64::new(0);
    let now = || NOW.load(Ordering::Relaxed);
    let clock = || Duration::from_secs(NOW.load(Ordering::Relaxed));
    let options = SessionOptions { max_running: 1, clock, ..SessionOptions::default() };
    let mut session = session(limits(), options);
    for id in 0..2 {
        session.submit(id, valid(request(vec![BOS, 0x61], 3), &limits())).unwrap();
    }
    let (mut events, mut times) = (Vec::new(), Vec::new());
    while !session.is_idle() {
        session.step(&mut events).unwrap();
        NOW.store(now() + 1, Ordering::Relaxed);
        times.extend(events.drain(..).filter_map(|(_, event)| match event {
            Event::Finished { usage, .. } => {
                Some([usage.waited, usage.read, usage.wrote].map(|it| it.as_secs()))
            }
            _ => None,
        }));
    }
    // Each takes three steps, and the clock goes on between them; the second one waits for the first.
    assert_eq!(times, [[0, 0, 2], [3, 0, 2]]);
}

#[test]
fn an_ending_names_its_stop_string_and_a_full_context() {
    let mut wanted = request(vec![BOS, 0x61], 60);
    wanted.ignore_eos = true;
    wanted.sampling.bias =
        (0..256).filter(|it| !(0x61..0x67).contains(it)).map(|it| (it, f32::NEG_INFINITY)).collect();
    let text = alone(&valid(wanted.clone(), &limits())).text;
    wanted.stop = vec!["no such".into(), text[2..4].to_owned()];
    let mut session = session(limits(), SessionOptions::default());
    session.submit(0, valid(wanted.clone(), &limits())).unwrap();
    let short = Limits { context_length: 10, ..limits() };
    session.submit(1, valid(Request { stop: Vec::new(), ..wanted.clone() }, &short)).unwrap();
    let mut events = Vec::new();
    while !session.is_idle() {
        session.step(&mut events).unwrap();
    }
    let endings: Vec<_> = events
        .into_iter()
        .filter_map(|(id, event)| match event {
            Event::Finished { reason, stop, .. } => Some((id, reason, stop)),
            _ => None,
        })
        .collect();
    let found = Some(wanted.stop[1].clone());
    assert_eq!(endings, [(0, Finish::StopString, found), (1, Finish::Context, None)]);
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
    let usage = Usage { prompt_tokens: 2, completion_tokens: 1, ..Usage::default() };
    assert_eq!(
        (answer.text.as_str(), answer.tokens.len(), answer.ending),
        ("", 0, Some(Ok((Finish::Stop, usage))))
    );
    let answer = wanted(true);
    let usage = Usage { prompt_tokens: 2, completion_tokens: 5, ..Usage::default() };
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
    assert!(matches!(answer.ending, Some(Ok((Finish::StopString, _)))));
    assert_eq!(answer.tokens.iter().filter(|it| it.id < 256).count(), cut);
}

#[test]
fn rows_that_are_not_numbers_cost_their_request_alone() {
    let good = valid(request(vec![BOS, 0x61], 20), &limits());
    let mut session = session(limits(), SessionOptions::default());
    let answers =
        run(&mut session, vec![good.clone(), valid(request(vec![BOS, POISON], 5), &limits()), good.clone()]);
    let Some(Err(fault)) = &answers[&1].ending else { panic!("{answers:?}") };
    assert_eq!(fault.code, ErrorCode::EngineFault);
    assert!(fault.message.contains("the engine returned logits that are not numbers"), "{fault}");
    assert_eq!([&answers[&0], &answers[&2]], [&alone(&good), &alone(&good)]);
    assert!(session.engine().is_empty());
}

#[test]
fn a_bias_that_forbids_everything_is_the_client_s_fault() {
    // The last four tokens of the vocabulary are never generated anyway.
    for (n_tokens, forbids) in [(265, f32::NEG_INFINITY), (265, FORBIDS), (261, FORBIDS)] {
        let mut request = request(vec![BOS, 0x61], 20);
        request.sampling.bias = (0..n_tokens).map(|it| (it, forbids)).collect();
        let fault = ValidRequest::new(request, &ToyTokenizer::new(), None, &limits(), 1, 0).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("logit_bias")));
    }
    let mut request = request(vec![BOS, 0x61], 3);
    request.sampling.bias = (0..261).filter(|it| *it != 0x62).map(|it| (it, FORBIDS)).collect();
    assert_eq!(alone(&valid(request, &limits())).text, "bbb");
}

/// A session with an engine that fails once, and two requests of which both are in the step.
fn failing(spoil: impl Fn(&mut ToyEngine)) -> (Session<ToyEngine>, BTreeMap<u64, Answer>, bool) {
    let mut engine = ToyEngine::new(limits());
    spoil(&mut engine);
    let mut session = hosting(engine, SessionOptions::default());
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
        (|it| it.fail_step = Some(EngineFaultKind::Internal), ErrorCode::EngineFault),
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
    let ways: [(Spoil, ErrorCode); 3] = [
        (|it| it.fail_step = Some(EngineFaultKind::DeviceLost), ErrorCode::EngineCrashed),
        (|it| it.fail_collect = Some(EngineFaultKind::Misbehaved), ErrorCode::EngineFault),
        (|it| it.forget_a_row = true, ErrorCode::EngineFault),
    ];
    for (spoil, code) in ways {
        let (mut session, answers, ok) = failing(spoil);
        assert!(!ok && session.is_idle());
        assert_eq!(answers.len(), 2);
        for answer in answers.values() {
            assert_eq!(answer.ending.as_ref().unwrap().as_ref().unwrap_err().code, code);
        }
        let refused = session.submit(5, valid(request(vec![BOS], 1), &limits())).unwrap_err();
        assert_eq!(refused.code, code);
        assert!(session.step(&mut Vec::new()).is_err());
    }
}

/// Also those whose sequence is just being freed.
#[test]
fn nobody_is_forgotten_when_freeing_ends_the_engine() {
    for (cache_tokens, max_tokens) in [(1 << 20, 3), (60, 50)] {
        let mut engine = ToyEngine::new(Limits { cache_tokens, ..limits() });
        // Promises what it does not have, so that in the small cache somebody gives way.
        engine.boast = 10_000;
        engine.fail_truncate = Some(EngineFaultKind::DeviceLost);
        let options = SessionOptions { keep_prefixes: false, ..SessionOptions::default() };
        let mut session = hosting(engine, options);
        let (mut events, mut answers) = (Vec::new(), BTreeMap::new());
        for id in 0..3 {
            let mut request = request(vec![BOS, 0x61], max_tokens);
            request.ignore_eos = true;
            session.submit(id, valid(request, &limits())).unwrap();
        }
        while session.step(&mut events).is_ok() {
            assert!(!session.is_idle());
        }
        collect(&mut events, &mut answers);
        assert_eq!(answers.len(), 3);
        for answer in answers.values() {
            assert_eq!(answer.ending.as_ref().unwrap().as_ref().unwrap_err().code, ErrorCode::EngineCrashed);
        }
    }
}

#[test]
fn a_boxed_engine_is_an_engine() {
    let engine: Box<dyn StepEngine> = Box::new(ToyEngine::new(limits()));
    let session = Session::new(engine, Arc::default(), SessionOptions::default());
    assert!(session.is_idle());
}
