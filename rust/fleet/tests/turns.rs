//! Two models of which one fits at a time, for ten minutes of requests that come by chance: each has its turn.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a world that is not as it should be fails its test"
)]

#[allow(dead_code, reason = "this world has a clock of its own")]
mod support;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use fastrand::Rng;
use llm_node_core::{
    facts::ModelFacts,
    memory::{Estimate, Figures, MemoryUse},
    options::ModelOptions,
};
use llm_node_fleet::{
    ChosenEngine, Deadlines, Device, DeviceKind, Effect, Event, Fleet, FoundModel, LoadKey, Moment, Reading,
    Ticket, Usual, WorkerId,
};
use support::{death, device};

const GIB: u64 = 1 << 30;
const ROOM: Duration = Duration::from_mins(2);
const TIME: Duration = Duration::from_mins(10);
const MODELS: [&str; 2] = ["a", "b"];
/// A model's weights are 5 GiB of 8.
const LOAD: Duration = Duration::from_secs(5);

/// What is going to happen.
enum Next {
    Told(Box<Event>),
    /// Somebody asks one of the models.
    Comes,
    /// A worker has answered one request.
    Answered(WorkerId),
}

#[derive(Default)]
struct Worker {
    model: String,
    answering: usize,
    is_draining: bool,
    loads_since: Option<Moment>,
}

struct World {
    fleet: Fleet,
    now: Moment,
    rng: Rng,
    ahead: BTreeMap<(Moment, u64), Next>,
    next: u64,
    workers: BTreeMap<WorkerId, Worker>,
    /// Whose load is waited for, and since when.
    waiting: BTreeMap<Ticket, (&'static str, Moment)>,
    loading: Duration,
    longest_wait: Duration,
    answered: BTreeMap<String, usize>,
}

impl World {
    fn later(&mut self, after: Duration, what: Next) {
        self.next += 1;
        self.ahead.insert((self.now + after, self.next), what);
    }

    fn read(&mut self) {
        let host = Device { name: "host".into(), ..device(DeviceKind::Host, 0, 64 * GIB, 32 * GIB) };
        self.tell(Event::Reading(Reading { began: self.now, devices: vec![host], is_whole: true }));
    }

    fn tell(&mut self, event: Event) {
        let mut ahead = VecDeque::from(self.fleet.handle(self.now, event));
        while let Some(effect) = ahead.pop_front() {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        let soon = Duration::from_millis(100);
        match effect {
            Effect::Find { worker, model_id, .. } => {
                let engine = ChosenEngine { id: "e".into(), version: "1".into(), gpu_backend: "cpu".into() };
                let key = LoadKey { build: "e".into(), model: model_id.clone() };
                self.workers.insert(worker, Worker { model: model_id, ..Worker::default() });
                let found = FoundModel {
                    engine,
                    size_bytes: 5 * GIB,
                    format: "gguf".into(),
                    architecture: None,
                    quantization: None,
                    key,
                    known: None,
                };
                self.later(
                    soon,
                    Next::Told(Box::new(Event::Found { worker, found: Ok(found), files: Vec::new() })),
                );
            }
            Effect::Spawn { worker, .. } => {
                self.later(soon, Next::Told(Box::new(Event::Started { worker, pid: worker as u32 })));
                let uses = Some(vec![MemoryUse { is_host: true, weights: 5 * GIB, ..MemoryUse::default() }]);
                let estimate = Estimate { uses, figures: Figures::default() };
                self.later(2 * soon, Next::Told(Box::new(Event::Estimated { worker, estimate })));
            }
            Effect::Proceed { worker, .. } => {
                self.workers.get_mut(&worker).unwrap().loads_since = Some(self.now);
                self.later(LOAD, Next::Told(Box::new(Event::Ready { worker, facts: ModelFacts::default() })));
            }
            Effect::Open { worker, .. } => {
                let since = self.workers.get_mut(&worker).unwrap().loads_since.take().unwrap();
                self.loading += self.now.since(since);
            }
            Effect::Drain { worker } => {
                let it = self.workers.get_mut(&worker).unwrap();
                it.is_draining = true;
                if it.answering == 0 {
                    self.later(Duration::ZERO, Next::Told(Box::new(Event::Drained { worker })));
                }
            }
            Effect::Stop { worker } | Effect::Kill { worker } => {
                assert_eq!(self.workers[&worker].answering, 0, "no answer is cut");
                let died = Event::Died { worker, death: death("it is told to"), is_known: false };
                self.later(soon, Next::Told(Box::new(died)));
            }
            Effect::Resolve { ticket, outcome } => {
                outcome.expect("nobody is refused");
                let (model, since) = self.waiting.remove(&ticket).unwrap();
                self.asks(model, since);
            }
            _ => {}
        }
    }

    /// The request goes to a worker, or has its model loaded first. `since`: when it came.
    fn asks(&mut self, model: &'static str, since: Moment) {
        let ready = self.fleet.view().ready(model, self.now);
        if let Some(&worker) = ready.ok().as_deref().and_then(<[WorkerId]>::first) {
            self.longest_wait = self.longest_wait.max(self.now.since(since));
            self.workers.get_mut(&worker).unwrap().answering += 1;
            let takes = Duration::from_millis(self.rng.u64(500..4000));
            self.later(takes, Next::Answered(worker));
            return self.tell(Event::Used { worker, requests: 1, idle_since: None });
        }
        self.next += 1;
        let ticket = self.next;
        self.waiting.insert(ticket, (model, since));
        self.tell(Event::Load {
            ticket,
            model_id: model.to_owned(),
            wishes: ModelOptions::default(),
            format: None,
            instead: None,
            for_request: true,
            tokens: 0,
        });
    }

    fn happens(&mut self, what: Next) {
        match what {
            Next::Told(event) => {
                self.read();
                self.tell(*event);
            }
            Next::Comes => {
                let model = self.rng.choice(MODELS).unwrap();
                self.asks(model, self.now);
                if self.now < Moment(TIME) {
                    let pause = Duration::from_millis(self.rng.u64(200..2000));
                    self.later(pause, Next::Comes);
                }
            }
            Next::Answered(worker) => {
                let it = self.workers.get_mut(&worker).unwrap();
                it.answering -= 1;
                let (is_idle, is_draining) = (it.answering == 0, it.is_draining);
                *self.answered.entry(it.model.clone()).or_default() += 1;
                if is_idle {
                    self.tell(Event::Used { worker, requests: 0, idle_since: Some(self.now) });
                }
                if is_idle && is_draining {
                    self.tell(Event::Drained { worker });
                }
            }
        }
    }
}

fn ten_minutes(seed: u64) -> World {
    let deadlines = Deadlines::new(Duration::from_secs(30), Duration::from_mins(1), ROOM);
    let mut world = World {
        fleet: Fleet::new(deadlines, Usual::default(), true, Some(8 * GIB)),
        now: Moment::default(),
        rng: Rng::with_seed(seed),
        ahead: BTreeMap::new(),
        next: 0,
        workers: BTreeMap::new(),
        waiting: BTreeMap::new(),
        loading: Duration::ZERO,
        longest_wait: Duration::ZERO,
        answered: BTreeMap::new(),
    };
    world.read();
    world.later(Duration::ZERO, Next::Comes);
    loop {
        let event_at = world.ahead.keys().next().map(|(at, _)| *at);
        // Once nobody comes any more, all that have come are answered.
        if event_at.is_none() && world.waiting.is_empty() {
            return world;
        }
        world.now = event_at.into_iter().chain(world.fleet.next_deadline()).min().unwrap().max(world.now);
        if event_at.is_some_and(|at| at <= world.now) {
            let (_, what) = world.ahead.pop_first().unwrap();
            world.happens(what);
        } else {
            world.read();
            world.tell(Event::Time);
        }
    }
}

#[test]
fn two_models_that_exclude_each_other_answer_by_turns() {
    for seed in 0..8 {
        let world = ten_minutes(seed);
        assert!(world.loading <= TIME / 3, "{seed}: {:?} of {TIME:?} it loads", world.loading);
        assert!(world.longest_wait <= ROOM, "{seed}: somebody waited {:?}", world.longest_wait);
        // About one request a second, shared by chance.
        for model in MODELS {
            assert!(world.answered[model] > 150, "{seed}: {:?}", world.answered);
        }
    }
}
