use llm_node_core::event::Event as Happened;
use llm_node_wire::message::Question;

use super::*;
use crate::{
    config::NodeConfig,
    supervise::{
        Supervisor, What,
        affinity::Beginning,
        inflight::{Form, Link},
        suspects::Fingerprint,
    },
};

#[cfg(unix)]
#[test]
fn a_defect_fails_all_that_waits_ends_all_workers_and_refuses_the_rest() {
    let node = Supervisor::new(NodeConfig::example());
    let inner = Arc::clone(&node.inner);
    let heard = node.await_defect();

    // What is under way: a stream, two orders, and a process that would sleep for long.
    let (outbox, _outgoing) = mpsc::channel();
    let link = [Link { worker: 1, outbox }];
    inner.traffic.open(1, "m");
    let asked = Fingerprint::of("m", &"hello");
    let stream = inner
        .traffic
        .submit(&link, &Beginning::default(), 7, Form::Events, asked, |_| ToWorker::Drain)
        .unwrap();
    let (decided, decides) = inner.traffic.ticket();
    let (queued, queues) = inner.traffic.ticket();
    let (messages, received) = mpsc::channel();
    let unload = Event::Unload { ticket: queued, model_id: "m".to_owned(), timeout: Duration::ZERO };
    messages.send(Message::Order(queued, unload, Waiter::Client(queues))).unwrap();
    let starting = Arc::clone(&inner);
    let started = thread::spawn(move || {
        let launch = Launch {
            worker: 1,
            command: &["sleep".to_owned(), "600".to_owned()],
            engine_env: &[],
            sight: Sight::Nothing,
            start_timeout: Duration::from_mins(5),
            engine: "e".to_owned(),
            model: Some("m".to_owned()),
            hear: Arc::new(|_| ()),
        };
        starting.processes.start(launch, &starting.traffic).map(|_| ())
    });
    while inner.processes.get(1).is_none() {
        thread::yield_now();
    }

    watched(&Arc::downgrade(&inner), &received, |waiters| {
        waiters.insert(decided, Waiter::Client(decides));
        panic::resume_unwind(Box::new("a defect"));
    });

    assert!(started.join().unwrap().is_err(), "the process is killed");
    let told = inner.traffic.drain();
    let outcomes: HashMap<Ticket, _> = told.outcomes.into_iter().collect();
    for ticket in [decided, queued, heard] {
        assert_eq!(outcomes[&ticket], Err(defect()));
    }
    let [delivery] = &told.deliveries[..] else { panic!("the stream ends once: {:?}", told.deliveries) };
    let is_it = matches!(&delivery.what,
        What::Event { stream: id, event: Happened::Failed(fault), .. } if *id == stream && *fault == defect());
    assert!(is_it, "{delivery:?}");

    let refused = [node.system(true), node.unload("m", Duration::ZERO), node.await_defect()];
    assert_eq!(node.drain().outcomes, refused.map(|ticket| (ticket, Err(defect()))));
    assert_eq!(node.ask("m", Question::ChatTemplate).unwrap_err(), defect());
    assert!(!node.next_reading(Duration::MAX), "the devices are not read any more");
    let began = Instant::now();
    node.shutdown(Duration::from_mins(10));
    assert!(began.elapsed() < Duration::from_mins(1));
}
