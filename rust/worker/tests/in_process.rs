//! A model within the own program, without process or socket.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::{collections::HashMap, path::PathBuf, sync::mpsc};

use llm_node_core::{
    error::ErrorCode,
    event::{Event, Finish},
    memory::MemoryUse,
    request::Request,
};
use llm_node_wire::message::{Answer, EmbedInput, LoadPlan, Question, Scheduling, Speculation};
use llm_node_worker::{Engine, EngineSettings, Report, Reporter, RunningModel, unobserved};
use support::{Outcome, SCHEDULING, fake, greedy, plan, toy_model};
use tempfile::{TempDir, tempdir};

struct Running {
    model: RunningModel,
    estimate: Vec<MemoryUse>,
    reports: mpsc::Receiver<Report>,
    engine: Engine,
    _folder: TempDir,
}

impl Running {
    fn new(flags: &[&str]) -> Self {
        Self::with(flags, |_| Speculation::default())
    }

    /// `speculation`: as it is wanted with this model's file.
    fn with(flags: &[&str], speculation: impl FnOnce(PathBuf) -> Speculation) -> Self {
        Self::planned(flags, |plan| plan.speculation = speculation(plan.model.clone()))
    }

    /// A tokenizer that takes 10 us for a byte, and a context for the longest text here.
    fn slow(queue_limit: u32) -> Self {
        Self::planned(&["TOKENIZE_NS=10000"], |plan| {
            std::fs::write(&plan.model, "TOY1\nn_context=400000\n").unwrap();
            plan.size.context_length = Some(400_000);
            plan.size.max_sequences = Some(8);
            plan.size.cache_tokens = Some(2_000_000);
            plan.scheduling.queue_limit = queue_limit;
        })
    }

    fn planned(flags: &[&str], change: impl FnOnce(&mut LoadPlan)) -> Self {
        let folder = tempdir().unwrap();
        let address = fake(folder.path(), flags);
        let engine = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap();
        let mut plan = plan(address, toy_model(folder.path()));
        change(&mut plan);
        let (sender, reports) = mpsc::channel();
        let reporter = Reporter::new(move |report| drop(sender.send(report)));
        let estimate = engine.size(&plan, None).unwrap().unwrap_or_default();
        let model = engine.load(&plan, None, &mut |_| ()).unwrap().start(plan.scheduling, reporter).unwrap();
        Self { model, estimate, reports, engine, _folder: folder }
    }

    /// The ids of requests, in the order in which they end, until the model is drained.
    fn endings(&self) -> Vec<(u64, Event)> {
        let mut endings = Vec::new();
        loop {
            match self.reports.recv().unwrap() {
                Report::Events(events) => endings.extend(
                    events
                        .into_iter()
                        .filter(|(_, event)| matches!(event, Event::Finished { .. } | Event::Failed(_))),
                ),
                Report::Drained => return endings,
                Report::Lost(fault) => panic!("{fault}"),
            }
        }
    }

    fn outcomes(&self, ids: &[u64]) -> HashMap<u64, Outcome> {
        let mut outcomes: HashMap<u64, Outcome> = HashMap::new();
        while !ids.iter().all(|id| outcomes.get(id).is_some_and(|o| o.ending.is_some())) {
            match self.reports.recv().unwrap() {
                Report::Events(events) => {
                    for (id, event) in events {
                        outcomes.entry(id).or_default().take(event);
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        outcomes
    }
}

#[test]
fn sixty_four_at_once_are_neither_lost_nor_mixed_up() {
    let running = Running::new(&[]);
    assert!(running.model.facts().max_sequences >= 64);
    let prompt = |id: u64| format!("story number {}", id % 64);
    for id in 0..64 {
        running.model.submit(id, greedy(&prompt(id), 30));
    }
    let together = running.outcomes(&(0..64).collect::<Vec<_>>());
    for id in [0, 17, 63] {
        running.model.submit(64 + id, greedy(&prompt(id), 30));
        let alone = running.outcomes(&[64 + id]).remove(&(64 + id)).unwrap();
        assert_eq!(alone.tokens, together[&id].tokens);
        assert_eq!(alone.text, together[&id].text);
    }
    assert_eq!(together.len(), 64);
}

#[test]
fn a_draft_model_changes_no_answer_and_its_memory_is_counted() {
    let off = Running::with(&[], |_| Speculation::Off);
    let drafting = Running::with(&[], Speculation::Model);
    for (id, prompt) in (0..).zip(["hello", "a story about the sea", "x"]) {
        off.model.submit(id, greedy(prompt, 40));
        let expected = off.outcomes(&[id]).remove(&id).unwrap();
        drafting.model.submit(id, greedy(prompt, 40));
        let (mut outcome, mut most) = (Outcome::default(), 0);
        while outcome.ending.is_none() {
            let Report::Events(events) = drafting.reports.recv().unwrap() else { panic!("not events") };
            let pieces = outcome.pieces;
            for (_, event) in events {
                outcome.take(event);
            }
            most = most.max(outcome.pieces - pieces);
        }
        assert_eq!((outcome.text, outcome.tokens), (expected.text, expected.tokens));
        // Whether drafts pay is measured, but the first answer begins with the hope that they do, and a
        // request that is alone gets two tokens of one step only by a draft.
        assert!(most > 1 || id > 0);
    }

    let facts = |running: &Running| running.model.facts().memory.clone();
    let (sender, answer) = mpsc::channel();
    drafting.model.ask(Question::MemoryUse, move |answer| drop(sender.send(answer)));
    assert_eq!(answer.recv().unwrap(), Ok(Answer::MemoryUse(facts(&drafting))));
    for (without, with) in [(&facts(&off), &facts(&drafting)), (&off.estimate, &drafting.estimate)] {
        let ([without], [with]) = (&without[..], &with[..]) else { panic!("{without:?}, {with:?}") };
        assert_eq!(with.weights, 2 * without.weights);
        assert_eq!(with.cache, 2 * without.cache);
        assert!(without.cache > 0);
    }
}

#[test]
fn a_draft_model_of_no_use_is_refused() {
    for (flags, file, why) in [
        (&["NO_BATCH"][..], "model.toy", "does not run"),
        (&["NO_EXTENSIONS"], "model.toy", "does not run"),
        (&[], "no-such-file", "no-such-file"),
    ] {
        let folder = tempdir().unwrap();
        let address = fake(folder.path(), flags);
        let engine = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap();
        let mut plan = plan(address, toy_model(folder.path()));
        plan.speculation = Speculation::Model(folder.path().join(file));
        let fault = engine.load(&plan, None, &mut |_| ()).unwrap_err();
        assert!(fault.message.contains(why), "{fault:?}");
        assert_eq!(fault.param.as_deref(), Some("draft_model"));
    }
}

#[test]
fn many_threads_may_submit_and_cancel() {
    let running = Running::new(&["EOG_EVERY=0"]);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let model = &running.model;
            scope.spawn(move || {
                for n in 0..8 {
                    let id = thread * 8 + n;
                    model.submit(id, greedy("hello", 1000));
                    if n % 2 == 0 {
                        model.cancel(id);
                    }
                }
            });
        }
    });
    let outcomes = running.outcomes(&(0..32).collect::<Vec<_>>());
    for (id, outcome) in &outcomes {
        let (finish, usage) = outcome.finished();
        assert_eq!(outcome.tokens.len() as u32, usage.completion_tokens);
        if id % 2 == 1 {
            assert_eq!((finish, usage.completion_tokens), (Finish::Length, 1000));
        }
    }
}

fn long(bytes: usize) -> Request {
    greedy(&"x".repeat(bytes), 1)
}

fn code(event: &Event) -> ErrorCode {
    match event {
        Event::Failed(fault) => fault.code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one_and_long_ones_keep_their_order() {
    let running = Running::slow(256);
    running.model.submit(1, long(300 << 10)); // 3 s
    running.model.submit(2, long(300 << 10));
    running.model.submit(3, long(100 << 10)); // 1 s
    running.model.submit(4, long(5 << 10));
    running.model.submit(5, greedy("hello", 3));
    running.model.drain();
    let endings = running.endings();
    let order: Vec<u64> = endings.iter().map(|(id, _)| *id).collect();
    assert_eq!(order, [5, 3, 4, 1, 2]);
    assert!(endings.iter().all(|(_, event)| matches!(event, Event::Finished { .. })), "{endings:?}");
}

#[test]
fn what_is_being_tokenised_can_be_cancelled_and_ends_once() {
    let running = Running::slow(256);
    for id in 1..=3 {
        running.model.submit(id, long(100 << 10));
    }
    for id in [1, 3] {
        running.model.cancel(id);
    }
    running.model.drain();
    let endings = running.endings();
    let order: Vec<u64> = endings.iter().map(|(id, _)| *id).collect();
    assert_eq!(order, [1, 3, 2]);
    for (_, event) in &endings[..2] {
        assert!(matches!(event, Event::Finished { reason: Finish::Cancelled, .. }), "{event:?}");
    }
    assert!(matches!(&endings[2].1, Event::Finished { reason: Finish::Length, .. }), "{endings:?}");
    running.model.submit(4, greedy("hello", 3));
    assert_eq!(code(running.outcomes(&[4])[&4].ending.as_ref().unwrap()), ErrorCode::ShuttingDown);
}

#[test]
fn a_stop_ends_what_waits_to_be_tokenised_and_answers_every_question() {
    let running = Running::slow(256);
    let (sender, answers) = mpsc::channel();
    for id in 1..=3 {
        running.model.submit(id, long(100 << 10));
        let sender = sender.clone();
        let text = "x".repeat(100 << 10);
        let question = Question::Tokenize { text, add_special: false, parse_special: false };
        running.model.ask(question, move |answer| drop(sender.send(answer)));
    }
    running.model.stop();
    for outcome in running.outcomes(&[1, 2, 3]).values() {
        assert_eq!(code(outcome.ending.as_ref().unwrap()), ErrorCode::ShuttingDown);
    }
    for _ in 1..=3 {
        assert_eq!(answers.recv().unwrap().unwrap_err().code, ErrorCode::ShuttingDown);
    }
}

#[test]
fn no_more_wait_to_be_tokenised_than_may_wait_at_all() {
    let running = Running::slow(2);
    running.model.submit(0, long(100 << 10));
    // It is being tokenised once its neighbour of another kind has been.
    running.model.submit(100, greedy(&"x".repeat(4000), 1));
    for id in 1..=6 {
        running.model.submit(id, long(100 << 10));
    }
    let (sender, answers) = mpsc::channel();
    let question = Question::Tokenize { text: "x".repeat(5000), add_special: false, parse_special: false };
    running.model.ask(question, move |answer| drop(sender.send(answer)));
    assert_eq!(answers.recv().unwrap().unwrap_err().code, ErrorCode::QueueFull);
    running.model.drain();
    let full = |event: &Event| matches!(event, Event::Failed(fault) if fault.code == ErrorCode::QueueFull);
    let endings = running.endings();
    assert_eq!(endings.len(), 8);
    assert!((4..=5).contains(&endings.iter().filter(|(_, event)| full(event)).count()), "{endings:?}");
}

#[test]
fn long_questions_are_answered_while_short_ones_pass_them() {
    let running = Running::slow(256);
    let (sender, answers) = mpsc::channel();
    for length in [100 << 10, 10] {
        let sender = sender.clone();
        let question =
            Question::Tokenize { text: "x".repeat(length), add_special: false, parse_special: false };
        running.model.ask(question, move |answer| drop(sender.send(answer)));
    }
    for length in [10, 100 << 10] {
        assert_eq!(answers.recv().unwrap(), Ok(Answer::Tokens(vec![120; length])));
    }
}

/// The node then counts the files, as for an engine that cannot say.
#[test]
fn an_estimate_of_nothing_is_none() {
    let folder = tempdir().unwrap();
    let address = fake(folder.path(), &["ESTIMATE_NOTHING"]);
    let engine = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap();
    assert_eq!(engine.estimate(&plan(address, toy_model(folder.path()))).unwrap().uses, None);
}

#[test]
fn a_text_that_cannot_be_tokenised_is_the_client_s() {
    let running = Running::new(&["REFUSE_TEXT"]);
    running.model.submit(1, greedy("why?", 3));
    assert_eq!(code(running.outcomes(&[1])[&1].ending.as_ref().unwrap()), ErrorCode::InvalidRequest);
}

/// In calls of bounded length, and still one vector for each, in order.
#[test]
fn many_inputs_become_as_many_vectors() {
    let running = Running::new(&[]);
    let ask = |inputs: Vec<String>| {
        let (sender, answer) = mpsc::channel();
        let inputs = inputs.into_iter().map(EmbedInput::Text).collect();
        running.model.ask(Question::Embed { inputs }, move |answer| drop(sender.send(answer)));
        match answer.recv().unwrap() {
            Ok(Answer::Embeddings { vectors, .. }) => vectors,
            other => panic!("{other:?}"),
        }
    };
    let inputs: Vec<String> = (0..200).map(|n| format!("{}{n}", "x".repeat(n * 5))).collect();
    let together = ask(inputs.clone());
    assert_eq!(together.len(), 200);
    for n in [0, 63, 64, 199] {
        assert_eq!(ask(vec![inputs[n].clone()]), [together[n].clone()]);
    }
}

#[test]
fn a_question_gets_its_answer_even_after_the_stop() {
    let running = Running::new(&[]);
    let ask = |question| {
        let (sender, answer) = mpsc::channel();
        running.model.ask(question, move |answer| drop(sender.send(answer)));
        answer.recv().unwrap()
    };
    let embed = Question::Embed { inputs: vec![EmbedInput::Text("hello".into())] };
    assert!(matches!(ask(embed.clone()), Ok(Answer::Embeddings { .. })));
    assert!(matches!(ask(Question::MemoryUse), Ok(Answer::MemoryUse(_))));
    running.model.stop();
    assert!(ask(embed).is_err());
    running.model.submit(1, greedy("hello", 3));
    let Some(Event::Failed(_)) = running.outcomes(&[1])[&1].ending.clone() else { panic!("not refused") };
}

/// Nobody has unloaded it: who comes too late is told the fault as well.
#[test]
fn whoever_comes_after_the_fault_that_ended_an_engine_is_told_it() {
    let slow_to_end = &["ROW_TOO_NARROW", "DESTROY_US=20000"];
    for flags in [&["ROW_TOO_NARROW"][..], slow_to_end, &["NO_END_ELEMENT", "NO_BATCH", "EOG_EVERY=1"]] {
        let running = Running::new(flags);
        running.model.submit(1, greedy("hello", 3));
        let mut endings = Vec::new();
        let lost = loop {
            match running.reports.recv().unwrap() {
                Report::Events(events) => endings.extend(events),
                Report::Lost(fault) => break fault,
                Report::Drained => panic!("it was not drained"),
            }
        };
        assert_eq!(lost.code, ErrorCode::EngineFault, "{flags:?}");
        assert!(matches!(endings.last(), Some((1, Event::Failed(_)))), "{flags:?}");
        // Without a pause, so that some come in each moment of the end.
        let late: Vec<u64> = (2..1000).collect();
        for id in &late {
            running.model.submit(*id, greedy("hello", 3));
        }
        for (id, outcome) in running.outcomes(&late) {
            assert_eq!(outcome.ending, Some(Event::Failed(lost.clone())), "{id} {flags:?}");
        }
    }
}

#[test]
fn an_engine_takes_one_model_after_another_and_two_at_once() {
    let running = Running::new(&[]);
    let folder = tempdir().unwrap();
    let address = fake(folder.path(), &[]);
    let second = plan(address, toy_model(folder.path()));
    let (sender, reports) = mpsc::channel();
    let reporter = Reporter::new(move |report| drop(sender.send(report)));
    let other = running
        .engine
        .load(&second, None, &mut |_| ())
        .unwrap()
        .start(Scheduling { queue_limit: 4, ..SCHEDULING }, reporter)
        .unwrap();
    running.model.submit(1, greedy("hello", 3));
    running.outcomes(&[1]);
    other.submit(1, greedy("hello", 3));
    assert!(matches!(reports.recv().unwrap(), Report::Events(_)));
    drop(other);
    running.model.submit(2, greedy("hello", 3));
    running.outcomes(&[2]);
}

#[test]
fn tier_0_holds_one_model_at_a_time() {
    let folder = tempdir().unwrap();
    let address = fake(folder.path(), &["NO_EXTENSIONS"]);
    let engine = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap();
    let plan = plan(address, toy_model(folder.path()));
    let first = engine.load(&plan, None, &mut |_| ()).unwrap();
    assert_eq!(first.facts().source, "tier0");
    engine.load(&plan, None, &mut |_| ()).unwrap_err();
    drop(first);
    engine.load(&plan, None, &mut |_| ()).unwrap();
}

#[test]
fn an_engine_can_be_opened_again_after_its_end() {
    let folder = tempdir().unwrap();
    let address = fake(folder.path(), &[]);
    for _ in 0..2 {
        let engine = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap();
        let refusal = Engine::open(&address, &EngineSettings::default(), unobserved()).unwrap_err();
        assert_eq!(refusal.kind, "AlreadyRunning");
        drop(engine);
    }
}
