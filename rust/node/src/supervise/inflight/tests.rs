use std::{slice, sync::atomic::AtomicUsize};

use llm_node_core::event::{Part, PickedToken, Piece, Usage};

use super::*;
use crate::{
    blocks::MOST_KEPT,
    frames::{Frames, Hole, PartTemplates, Template},
    supervise::What,
};

const SECOND: Duration = Duration::from_secs(1);

fn link(worker: u64) -> (Link, mpsc::Receiver<Outgoing>) {
    let (outbox, receiver) = mpsc::channel();
    (Link { worker, outbox }, receiver)
}

fn asked() -> Fingerprint {
    Fingerprint::of("m", &"hello")
}

fn finished() -> Event {
    Event::Finished { reason: Finish::Stop, stop: None, usage: Usage::default() }
}

fn piece(text: &str, tokens: Vec<PickedToken>) -> Event {
    Event::Piece(Piece { part: Part::Text, text: text.to_owned(), tokens })
}

#[test]
fn each_stream_ends_once() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    assert!(
        traffic
            .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| {
                ToWorker::Drain
            })
            .is_none(),
        "a worker that is not open"
    );
    traffic.open(1, "m");
    let ids: Vec<_> = (0..3)
        .map(|_| {
            traffic
                .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| {
                    ToWorker::Drain
                })
                .unwrap()
        })
        .collect();
    traffic.step(2, vec![(ids[0], finished())]); // not its stream
    traffic.step(1, vec![(ids[0], finished())]);
    traffic.step(1, vec![(ids[0], finished())]);
    assert_eq!(traffic.streams_of(1), 2);
    traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
    traffic.step(1, vec![(ids[1], finished())]);
    assert!(
        traffic
            .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| {
                ToWorker::Drain
            })
            .is_none()
    );
    let ended: Vec<_> = traffic
        .drain()
        .deliveries
        .into_iter()
        .filter_map(|delivery| match delivery.what {
            What::Event { stream, .. } => Some(stream),
            _ => None,
        })
        .collect();
    assert_eq!(ended, ids);
}

#[test]
fn a_whole_answer_wakes_nobody_before_its_ending() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    traffic.open(1, "m");
    let form = Form::Whole(Blocks::default());
    let id = traffic
        .submit(slice::from_ref(&link), &Beginning::default(), 0, form, asked(), |_| ToWorker::Drain)
        .unwrap();
    let token = |id| PickedToken { id, logprobs: None };
    for (text, tokens) in [("a", vec![token(1)]), ("", vec![]), ("bc", vec![token(2), token(3)])] {
        traffic.step(1, vec![(id, piece(text, tokens))]);
    }
    assert!(traffic.drain().deliveries.is_empty());
    traffic.step(1, vec![(id, finished())]);
    let told: Vec<_> = traffic.drain().deliveries.into_iter().map(|delivery| delivery.what).collect();
    let [What::Event { event: Event::Finished { .. }, told, .. }] = &told[..] else { panic!("{told:?}") };
    let [block] = &told.blocks[..] else { panic!("{told:?}") };
    assert_eq!((block.text.as_str(), block.complete), ("abc", true));
    assert_eq!(block.tokens, [token(1), token(2), token(3)]);
}

#[test]
fn tokens_are_counted_for_the_second_and_timed_one_by_one() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    traffic.open(1, "m");
    let id = traffic
        .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| ToWorker::Drain)
        .unwrap();
    let token = |id| PickedToken { id, logprobs: None };
    for tokens in [vec![token(1)], vec![], vec![token(2), token(3)]] {
        traffic.step(1, vec![(id, piece("a", tokens))]);
    }
    assert!(traffic.tokens_per_second(1) < 0.1, "the second is not over");
    traffic.tick(2 * SECOND);
    assert!((traffic.tokens_per_second(1) - 1.5).abs() < 1e-9);
    traffic.step(1, vec![(id, finished())]);
    traffic.tick(SECOND);
    assert!(traffic.tokens_per_second(1) < 0.1);
    let meters = serde_json::to_value(traffic.meters(|_| true)).unwrap();
    let counts = meters["m"]["between_tokens_seconds"]["counts"].as_array().unwrap();
    assert_eq!(counts.iter().filter_map(Value::as_u64).sum::<u64>(), 2, "nothing comes before the first");
}

#[test]
fn an_answer_too_long_to_be_kept_is_cancelled_and_fails() {
    let traffic = Traffic::default();
    let (link, receiver) = link(1);
    traffic.open(1, "m");
    let form = Form::Whole(Blocks::default());
    let id = traffic
        .submit(slice::from_ref(&link), &Beginning::default(), 0, form, asked(), |_| ToWorker::Drain)
        .unwrap();
    traffic.step(1, vec![(id, piece(&"a".repeat(MOST_KEPT), vec![])), (id, piece("a", vec![]))]);
    let told: Vec<_> = traffic.drain().deliveries.into_iter().map(|delivery| delivery.what).collect();
    let [What::Event { event: Event::Failed(fault), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((fault.code, traffic.streams_of(1)), (ErrorCode::RequestTooLarge, 0));
    let sent: Vec<_> = receiver.try_iter().collect();
    assert!(matches!(&sent[1], Outgoing::Message(it) if **it == ToWorker::Cancel { id }), "{sent:?}");
}

#[test]
fn an_ending_comes_behind_the_frames_and_says_the_next_number() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    traffic.open(1, "m");
    let template = |head: &str| Template::new(vec![(head.into(), Hole::Number)], b">".to_vec());
    let text = PartTemplates {
        begin: Some(template("<begin ")),
        delta: Some(template("<")),
        end: Some(template("<end ")),
        cut: None,
    };
    let stream = || {
        let number = AtomicU64::new(2);
        let frames = Frames { text: text.clone(), number, keeps: true, ..Frames::default() };
        let form = Form::Bytes(Writing::new(frames));
        traffic
            .submit(slice::from_ref(&link), &Beginning::default(), 0, form, asked(), |_| ToWorker::Drain)
            .unwrap()
    };
    let id = stream();
    // It does not read: what goes on with a block has one number.
    traffic.hold(0, 1);
    let pieces = ["a", "b", "c"].map(|text| (id, piece(text, vec![])));
    traffic.step(1, pieces.into());
    traffic.step(1, vec![(id, finished())]);
    let mut told = traffic.drain().deliveries.into_iter().map(|delivery| delivery.what);
    let Some(What::Bytes(mut bytes)) = told.next() else { panic!() };
    assert_eq!(bytes.frame(), b"<begin 2><3><end 4>");
    let Some(What::Event { told, .. }) = told.next() else { panic!() };
    assert_eq!((told.number, told.blocks[0].text.as_str()), (5, "abc"));
    let id = stream();
    traffic.step(1, vec![(id, piece("a", vec![]))]);
    traffic.step(1, vec![(id, Event::Failed(Fault::new(ErrorCode::EngineFault, "gone")))]);
    let Some(What::Event { told, .. }) = traffic.drain().deliveries.pop().map(|it| it.what) else { panic!() };
    assert_eq!(told.number, 4, "what stands open has no end of its own");
}

#[test]
fn the_waker_is_called_once_per_drain() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    traffic.open(1, "m");
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let id = traffic
        .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| ToWorker::Drain)
        .unwrap();
    let started = || vec![(id, Event::Started { prompt_tokens: 1, cached_tokens: 0, relaxed: Vec::new() })];
    traffic.step(1, started());
    traffic.set_waker(Some(Arc::new(move || {
        counted.fetch_add(1, Ordering::SeqCst);
    })));
    traffic.step(1, started());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(traffic.drain().deliveries.len(), 2);
    traffic.step(1, started());
    traffic.step(1, started());
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[test]
fn who_watches_hears_when_a_worker_gets_busy_and_idle() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    let heard = Arc::new(AtomicUsize::new(0));
    let hears = Arc::clone(&heard);
    traffic.set_hears_of_use(move || {
        hears.fetch_add(1, Ordering::SeqCst);
    });
    let heard = || heard.load(Ordering::SeqCst);
    let taken = || {
        traffic
            .take_uses()
            .into_iter()
            .map(|(id, requests, idle)| (id, requests, idle.is_some()))
            .collect::<Vec<_>>()
    };
    traffic.open(1, "m");
    let submit = || {
        traffic.submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked(), |_| {
            ToWorker::Drain
        })
    };
    let stream = submit().unwrap();
    let question = traffic.ask(slice::from_ref(&link), asked(), |_| ToWorker::Drain).unwrap();
    traffic.step(1, vec![(stream, finished())]);
    assert_eq!((taken(), taken()), (vec![(1, 2, false)], vec![]));
    traffic.forget_question(question);
    assert_eq!(heard(), 0);
    traffic.tick(SECOND);
    assert_eq!((heard(), taken()), (1, vec![(1, 0, true)]));
    traffic.tick(SECOND);
    assert_eq!(heard(), 1);
    // What comes to one that is busy is counted, and told of once a second.
    let (first, second) = (submit().unwrap(), submit().unwrap());
    assert_eq!(taken(), [(1, 2, false)]);
    let third = submit().unwrap();
    traffic.tick(SECOND);
    assert_eq!((heard(), taken()), (2, vec![(1, 1, false)]));
    traffic.step(1, [first, second, third].map(|stream| (stream, finished())).into());
    assert_eq!(taken(), [(1, 0, true)]);
    // Who waits for it hears of it at once.
    traffic.await_use(true);
    let stream = submit().unwrap();
    assert_eq!((heard(), taken()), (3, vec![(1, 1, false)]));
    traffic.close(1);
    assert!(
        submit().is_none() && traffic.ask(slice::from_ref(&link), asked(), |_| ToWorker::Drain).is_none()
    );
    traffic.step(1, vec![(stream, finished())]);
    assert_eq!((heard(), taken()), (4, vec![(1, 0, true)]));
}

#[test]
fn each_question_is_answered_once_and_has_a_deadline() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    traffic.open(1, "m");
    let ask = || traffic.ask(slice::from_ref(&link), asked(), |_| ToWorker::Drain).unwrap();
    let outcomes =
        || traffic.drain().outcomes.into_iter().map(|(id, it)| (id, it.map_err(|fault| fault.code)));
    let (answered, forgotten, late) = (ask(), ask(), ask());
    assert_eq!(traffic.owed_by(1), Some(3));
    traffic.answer(2, answered, Ok(Answer::Text("of another".into())));
    traffic.answer(1, answered, Ok(Answer::Text("hello".into())));
    traffic.answer(1, answered, Ok(Answer::Text("again".into())));
    traffic.forget_question(forgotten);
    traffic.answer(1, forgotten, Ok(Answer::Text("late".into())));
    assert_eq!(outcomes().collect::<Vec<_>>(), [(answered, Ok(r#"{"Text":"hello"}"#.to_owned()))]);
    for _ in 0..=QUESTION_SECONDS {
        traffic.tick(SECOND);
    }
    assert_eq!(outcomes().collect::<Vec<_>>(), [(late, Err(ErrorCode::Timeout))]);
    let orphan = ask();
    traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
    assert_eq!(outcomes().collect::<Vec<_>>(), [(orphan, Err(ErrorCode::EngineCrashed))]);
    assert_eq!(
        (traffic.owed_by(1), traffic.ask(slice::from_ref(&link), asked(), |_| ToWorker::Drain)),
        (None, None)
    );
}

#[test]
fn who_had_sent_nothing_is_suspected_first() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    let run = |texts: &[&'static str]| -> Vec<RequestId> {
        traffic.open(1, "m");
        let submit = |text: &&str| {
            let asked = Fingerprint::of("m", text);
            traffic
                .submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked, |_| {
                    ToWorker::Drain
                })
                .unwrap()
        };
        texts.iter().map(submit).collect()
    };
    let refused = |text: &str| traffic.acquit(Fingerprint::of("m", &text), "m").is_err();
    for times in 1..=2 {
        let ids = run(&["answered", "poison"]);
        traffic.step(1, vec![(ids[0], piece("a", vec![]))]);
        assert_eq!(traffic.suspect(1, "m", true), times == 2);
        traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
    }
    assert!(refused("poison") && !refused("answered"));
    // Where all had sent something, it may be any of them; who is served afterwards was not.
    for _ in 0..2 {
        for id in run(&["answered"]) {
            traffic.step(1, vec![(id, piece("a", vec![]))]);
        }
        traffic.suspect(1, "m", true);
        traffic.end_of_worker(1, &Fault::new(ErrorCode::EngineCrashed, "gone"));
    }
    assert!(refused("answered"));
    for id in run(&["answered"]) {
        traffic.step(1, vec![(id, finished())]);
    }
    assert!(!refused("answered"));
}

#[test]
fn the_one_request_that_an_engine_died_of_is_told_so() {
    let traffic = Traffic::default();
    let (link, _receiver) = link(1);
    let fault = Fault::new(ErrorCode::EngineCrashed, "gone").details(r#"{"retry_after":1}"#.to_owned());
    let told = |count: usize, has_begun: bool, by_fault: bool| {
        traffic.open(1, "m");
        for number in 0..count {
            let asked = Fingerprint::of("m", &number);
            let submitted =
                traffic.submit(slice::from_ref(&link), &Beginning::default(), 0, Form::Events, asked, |_| {
                    ToWorker::Drain
                });
            if has_begun {
                traffic.step(1, vec![(submitted.unwrap(), piece("a", vec![]))]);
            }
        }
        traffic.suspect(1, "m", by_fault);
        traffic.end_of_worker(1, &fault);
        let told = traffic.drain().deliveries.into_iter().filter_map(|it| match it.what {
            What::Event { event: Event::Failed(fault), .. } => Some(fault.details.unwrap()),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let (plain, blamed) = (r#"{"retry_after":1}"#, r#"{"retry_after":1,"crashes":1}"#);
    assert_eq!(told(1, false, true), [blamed]);
    assert_eq!(told(2, false, true), [plain, plain], "nobody knows which");
    assert_eq!(told(1, false, false), [plain], "it was killed");
    assert_eq!(told(1, true, true), [plain], "the client knows that it had begun");
}

#[test]
fn a_reply_that_is_dropped_is_an_error() {
    let traffic = Arc::new(Traffic::default());
    let (ticket, reply) = traffic.ticket();
    drop(reply);
    let (other, reply) = traffic.ticket();
    reply.send(Ok("1".into()));
    let outcomes = traffic.drain().outcomes;
    assert_eq!((outcomes[0].0, outcomes[0].1.as_ref().unwrap_err().code), (ticket, ErrorCode::Internal));
    assert_eq!(outcomes[1..], [(other, Ok("1".to_owned()))]);
}
