//! A fleet in a world that is made up: workers that take their time, fail, hang, crash and do not die, and that take
//! more or less than was estimated; in half of all worlds on 1, 2 or 8 GPUs, or on one that shares the host's memory, which give memory back late, and
//! which not every process is seen on; others who take memory beside them, now and then nearly all; a clock that jumps to
//! whatever happens next. Orders are drawn at random, and what must always hold is looked at after each step. `PROPTEST_CASES=5000` makes 200,000 orders of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a world that is not as it should be fails its test"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use fastrand::Rng;
use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Estimate, Figures, GpuAddress, MemoryUse},
    options::{DeviceName, Devices, KeepAlive, ModelOptions},
    shape::Shape,
};
use llm_node_fleet::{
    Account, ChosenEngine, Deadlines, Death, Device, DeviceKind, DeviceState, Effect, Event, Fleet, Foreseen,
    FoundModel, History, IncidentKind, LoadKey, ModelView, Moment, ProcessUse, Reading, Setup, Status,
    Ticket, Usual, WorkerId, WorkerView,
};
use proptest::prelude::*;

const MODELS: usize = 4;
/// One that fits on no GPU alone, where there are some.
const LARGE: &str = "m3";
const GIB: u64 = 1 << 30;
const LIMIT: u64 = 8 * GIB;
/// All of a GPU, and what is free of the host without others.
const GPU: u64 = 12 * GIB;
const HOST_FREE: u64 = 32 * GIB;
/// Of what lies on a GPU that shares the host's memory, one part in so many is not the GPU's.
const HOST_PART: u64 = 4;
/// Where less is free of a GPU, or of the host, others have too little.
const LOW: [u64; 2] = [64 * GIB / 100, 64 * GIB / 20];
/// Nobody gives others anything before it has lasted so long.
const LASTS: Duration = Duration::from_secs(3);
const LOAD: Duration = Duration::from_mins(1);
const START: Duration = Duration::from_secs(30);
const ROOM: Duration = Duration::from_mins(2);
/// Nobody goes so soon after an answer.
const BETWEEN_REQUESTS: Duration = Duration::from_millis(500);
/// Who answers is not asked to go before.
const SHORTEST_TURN: Duration = Duration::from_secs(30);
/// After five crashes in a row.
const LONGEST_COOLING: Duration = Duration::from_secs(16);
/// No order may be open for longer than all deadlines on its way together, twice: what came before it ends first.
const LONGEST_WAIT: Duration = Duration::from_hours(1);

#[derive(Clone, Debug)]
enum Order {
    Load {
        model: usize,
        context_length: Option<u32>,
        threads: Option<u32>,
        pin: Option<bool>,
        keep_alive: Option<u8>,
        replicas: Option<u32>,
        /// Of a request that was too long.
        tokens: u32,
        devices: Option<Devices>,
    },
    /// A request, and how long its answer takes.
    Use {
        model: usize,
        milliseconds: u64,
    },
    Unload {
        model: usize,
        seconds: u64,
    },
    /// The configuration says something else of one of them.
    Configure {
        model: usize,
        pin: Option<bool>,
        keep_alive: Option<u8>,
    },
    /// A worker dies by itself.
    Crash {
        model: usize,
    },
    /// A client that asks again and again, and each time the engine dies soon after.
    Insist {
        model: usize,
        times: u8,
    },
    /// What becomes of the GPU; `None`: its driver does not answer.
    Gpu {
        state: Option<DeviceState>,
    },
    /// Others take so much of what there is of each device.
    Others {
        percent: u64,
    },
    Pass {
        milliseconds: u64,
    },
    Stop {
        seconds: u64,
    },
}

fn order() -> impl Strategy<Value = Order> {
    let model = 0..MODELS;
    prop_oneof![
        8 => (
            model.clone(),
            prop_oneof![3 => Just(None), 1 => (1u32..4).prop_map(Some)],
            prop_oneof![12 => Just(None), 1 => (1u32..3).prop_map(Some)],
            prop_oneof![10 => Just(None), 1 => any::<bool>().prop_map(Some)],
            prop_oneof![6 => Just(None), 1 => (0u8..90).prop_map(Some)],
            prop_oneof![8 => Just(None), 1 => Just(Some(1)), 4 => Just(Some(2)), 1 => Just(Some(3))],
            prop_oneof![8 => Just(0), 1 => 1u32..40_000],
            prop_oneof![
                8 => Just(None),
                1 => (1u32..4).prop_map(|count| Some(Devices::Count(count))),
                1 => (0u32..3).prop_map(|number| Some(Devices::Named(vec![DeviceName::Number(number)]))),
            ],
        )
            .prop_map(|(model, context_length, threads, pin, keep_alive, replicas, tokens, devices)| Order::Load {
                model,
                context_length,
                threads,
                pin,
                keep_alive,
                replicas,
                tokens,
                devices,
            }),
        6 => (model.clone(), 0u64..60_000)
            .prop_map(|(model, milliseconds)| Order::Use { model, milliseconds }),
        4 => (model.clone(), 0u64..20).prop_map(|(model, seconds)| Order::Unload { model, seconds }),
        1 => (model.clone(), any::<Option<bool>>(), prop::option::of(0u8..90))
            .prop_map(|(model, pin, keep_alive)| Order::Configure { model, pin, keep_alive }),
        2 => model.clone().prop_map(|model| Order::Crash { model }),
        1 => (model, 1u8..12).prop_map(|(model, times)| Order::Insist { model, times }),
        1 => prop_oneof![
            3 => Just(Some(DeviceState::Ok)),
            1 => Just(Some(DeviceState::Lost)),
            1 => Just(Some(DeviceState::Unreadable)),
            1 => Just(None),
        ]
        .prop_map(|state| Order::Gpu { state }),
        1 => prop_oneof![2 => Just(0), 1 => 0u64..90, 2 => 90u64..=100]
            .prop_map(|percent| Order::Others { percent }),
        8 => (0u64..40_000).prop_map(|milliseconds| Order::Pass { milliseconds }),
        1 => (0u64..10).prop_map(|seconds| Order::Stop { seconds }),
    ]
}

/// What the world knows of a worker.
#[derive(Debug, Default)]
struct Worker {
    model_id: String,
    /// What tells it from those that it takes the place of.
    asked: (Option<u32>, usize),
    /// Those that it lies on, where there are some.
    gpus: Vec<usize>,
    /// As it is to be loaded.
    setup: Option<Box<Setup>>,
    is_spawned: bool,
    has_process: bool,
    has_died: bool,
    is_open: bool,
    /// Nothing more comes of it.
    is_gone: bool,
    is_being_killed: bool,
    /// It ends, whatever it was doing.
    is_ending: bool,
    ready_at: Moment,
    /// Since when it has had nothing to answer, or been there without.
    idle_since: Moment,
    /// It has something to answer until then.
    busy_until: Option<Moment>,
    /// It gets nothing new.
    is_draining: bool,
    /// The size of its context, where that was chosen.
    shape: Option<Shape>,
    /// What was reserved for it, and on each of its devices at least.
    granted: u64,
    granted_of_each: u64,
    /// What its engine says that it takes, and how much of that is the GPU's, and how much the host's.
    says: u64,
    says_as: [u64; 2],
    /// Others took more while it was loaded, which may look as if it did.
    grew: bool,
    /// What it takes of its device, and until when, once it has ended.
    takes: u64,
    takes_until: Option<Moment>,
}

impl Worker {
    fn takes_of_each(&self) -> u64 {
        self.takes / self.gpus.len().max(1) as u64
    }

    /// As the GPU's and as the host's, where a GPU shares the host's memory.
    fn takes_as(&self) -> [u64; 2] {
        [self.takes - self.takes / HOST_PART, self.takes / HOST_PART]
    }
}

struct World {
    fleet: Fleet,
    is_on_gpu: bool,
    /// There is one GPU, and its memory is the host's.
    is_unified: bool,
    gpus: usize,
    /// The engine says what contexts take.
    has_figures: bool,
    /// What the fleet has said that it remembers.
    remembered: History,
    /// How the GPU is.
    gpu: Option<DeviceState>,
    /// How it was when it answered last.
    seen: DeviceState,
    /// Since when it does not answer.
    asked_at: Option<Moment>,
    /// When the devices are read next.
    reads_at: Option<Moment>,
    /// They are read once a second until then.
    watches_until: Moment,
    /// What others take of each device, and since when they were seen to have too little of the host, and of each GPU.
    others: u64,
    low_since: Vec<Option<Moment>>,
    now: Moment,
    rng: Rng,
    /// What is going to happen, by time and order.
    ahead: BTreeMap<(Moment, u64), Event>,
    next: u64,
    workers: BTreeMap<WorkerId, Worker>,
    open: BTreeMap<Ticket, Moment>,
    /// Those of them that are for another context, and of which model.
    asked: BTreeMap<Ticket, String>,
    /// Those of them that want a model loaded, and which.
    wanting: BTreeMap<Ticket, String>,
    /// Those of these that came while it was on its way out: what ends it is not for them.
    afterwards: BTreeMap<Ticket, String>,
    /// How often workers of each model have died since it was given up, or unloaded.
    crashes: BTreeMap<String, u32>,
    /// Models that requests do not have loaded.
    given_up: BTreeSet<String>,
    /// Models that were unloaded or evicted since somebody had them loaded.
    sent_away: BTreeSet<String>,
    resolved: BTreeSet<Ticket>,
    is_stopping: bool,
    stops: usize,
    /// Models that go to come back otherwise.
    replaced: BTreeSet<String>,
    /// The shortest time that each was ever to stay unused.
    said: BTreeMap<String, KeepAlive>,
    /// Models that go because nobody has asked them anything for long.
    unused: BTreeSet<String>,
    script: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let deadlines = Deadlines::new(START, LOAD, ROOM);
        let is_on_gpu = seed.is_multiple_of(2);
        let mut world = Self {
            fleet: Fleet::new(deadlines, Usual::default(), !is_on_gpu, Some(LIMIT)),
            is_on_gpu,
            is_unified: is_on_gpu && seed / 4 % 4 == 3,
            gpus: [1, 2, 8, 1][(seed / 4 % 4) as usize],
            has_figures: seed % 4 < 2,
            remembered: History::default(),
            gpu: Some(DeviceState::Ok),
            seen: DeviceState::Ok,
            asked_at: None,
            reads_at: None,
            watches_until: Moment::default(),
            others: 0,
            low_since: vec![None; 9],
            now: Moment::default(),
            rng: Rng::with_seed(seed),
            ahead: BTreeMap::new(),
            next: 0,
            workers: BTreeMap::new(),
            open: BTreeMap::new(),
            asked: BTreeMap::new(),
            wanting: BTreeMap::new(),
            afterwards: BTreeMap::new(),
            crashes: BTreeMap::new(),
            given_up: BTreeSet::new(),
            sent_away: BTreeSet::new(),
            resolved: BTreeSet::new(),
            is_stopping: false,
            stops: 0,
            replaced: BTreeSet::new(),
            said: BTreeMap::new(),
            unused: BTreeSet::new(),
            script: Vec::new(),
        };
        world.read();
        world
    }

    /// The devices as they are now.
    fn read(&mut self) {
        let Some(state) = self.gpu else {
            self.asked_at.get_or_insert(self.now);
            return self.handle(Event::ReadingBegan);
        };
        (self.seen, self.asked_at) = (state, None);
        let taken = |worker: &Worker| worker.takes_until.is_none_or(|until| self.now < until);
        let is_seen =
            |pid: WorkerId, worker: &Worker| worker.takes > 0 && !worker.has_died && !pid.is_multiple_of(4);
        let seen = |(&pid, worker): (&WorkerId, &Worker)| {
            let bytes = if self.is_unified { worker.takes_as()[0] } else { worker.takes_of_each() };
            is_seen(pid, worker).then_some(ProcessUse { pid: pid as u32, bytes })
        };
        let of_host = |(&pid, worker): (&WorkerId, &Worker)| {
            let bytes = if self.is_unified { worker.takes_as()[1] } else { worker.takes };
            is_seen(pid, worker).then_some(ProcessUse { pid: pid as u32, bytes })
        };
        let others = HOST_FREE * self.others / 100;
        let shared = self.workers.values().filter(|it| self.is_unified && taken(it)).map(|it| it.takes);
        let host = Device {
            index: 0,
            name: "host".into(),
            bus_id: None,
            uuid: None,
            total_bytes: 64 * GIB,
            free_bytes: (HOST_FREE - others).saturating_sub(shared.sum()),
            kind: DeviceKind::Host,
            processes: if self.is_on_gpu && !self.is_unified {
                Vec::new()
            } else {
                self.workers.iter().filter_map(of_host).collect()
            },
            state: DeviceState::Ok,
            look: None,
        };
        // The state is that of the first.
        let gpu = |gpu: usize| {
            let here = |worker: &Worker| worker.gpus.contains(&gpu);
            let taken = self.workers.values().filter(|worker| here(worker) && taken(worker));
            let taken = taken.map(Worker::takes_of_each).sum::<u64>() + GPU * self.others / 100;
            let state = if gpu == 0 { state } else { DeviceState::Ok };
            Device {
                index: gpu as u32,
                name: format!("GPU {gpu}"),
                bus_id: Some(bus_id(gpu)),
                free_bytes: if state == DeviceState::Ok { GPU.saturating_sub(taken) } else { 0 },
                kind: if self.is_unified { DeviceKind::Unified } else { DeviceKind::Gpu },
                processes: self.workers.iter().filter(|(_, worker)| here(worker)).filter_map(seen).collect(),
                state,
                ..host.clone()
            }
        };
        let gpus = (0..self.gpus).filter(|_| self.is_on_gpu).map(gpu);
        let devices: Vec<Device> = gpus.chain([host.clone()]).collect();
        for device in devices.iter().filter(|device| device.kind != DeviceKind::Unified) {
            let is_gpu = device.kind == DeviceKind::Gpu;
            let low = if is_gpu { LOW[0] } else { LOW[1] };
            let is_low = device.state == DeviceState::Ok && device.free_bytes < low;
            let since = &mut self.low_since[if is_gpu { 1 + device.index as usize } else { 0 }];
            *since = since.or(Some(self.now)).filter(|_| is_low);
        }
        self.handle(Event::Reading(Reading { began: self.now, devices, is_whole: true }));
    }

    fn later(&mut self, milliseconds: u64, event: Event) {
        self.next += 1;
        self.ahead.insert((self.now + Duration::from_millis(milliseconds), self.next), event);
    }

    fn carry_out(&mut self, order: &Order) {
        let name = |model: usize| format!("m{model}");
        match order.clone() {
            Order::Use { model, milliseconds } => {
                let until = self.now + Duration::from_millis(milliseconds);
                let is_it = |worker: &Worker| {
                    worker.model_id == name(model) && worker.is_open && !worker.is_draining && !worker.is_gone
                };
                let found = self.workers.iter().filter(|(_, worker)| is_it(worker)).map(|(id, _)| *id);
                let Some(worker) = self.rng.choice(found.collect::<Vec<_>>()) else { return };
                let it = self.worker(worker);
                if it.busy_until.replace(until).is_none() {
                    self.later(milliseconds, Event::Used { worker, requests: 0, idle_since: Some(until) });
                    self.handle(Event::Used { worker, requests: 1, idle_since: None });
                }
            }
            Order::Load { model, context_length, threads, pin, keep_alive, replicas, tokens, devices } => {
                let ticket = self.ticket();
                self.wanting.insert(ticket, name(model));
                if self.is_leaving(&name(model)) {
                    self.afterwards.insert(ticket, name(model));
                }
                if context_length.is_some() || tokens > 0 {
                    self.asked.insert(ticket, name(model));
                }
                let keep_alive = keep_alive.map(|seconds| KeepAlive(seconds.into()));
                self.is_to_stay(name(model), keep_alive);
                let wishes = ModelOptions {
                    context_length,
                    threads,
                    pin,
                    keep_alive,
                    replicas,
                    devices,
                    ..ModelOptions::default()
                };
                let for_request = self.rng.u8(..100) < 50;
                let instead = (self.rng.u8(..100) < 90)
                    .then(|| Box::new(Foreseen { memory: vec![self.uses(0)], ..Foreseen::default() }));
                self.handle(Event::Load {
                    ticket,
                    model_id: name(model),
                    wishes,
                    format: None,
                    instead,
                    for_request,
                    tokens,
                });
            }
            Order::Configure { model, pin, keep_alive } => {
                let keep_alive = keep_alive.map(|seconds| KeepAlive(seconds.into()));
                self.is_to_stay(name(model), keep_alive);
                let own = ModelOptions { pin, keep_alive, ..ModelOptions::default() };
                self.handle(Event::Configured(Usual {
                    models: [(name(model), own)].into(),
                    ..Usual::default()
                }));
            }
            Order::Unload { model, seconds } => {
                let (ticket, timeout) = (self.ticket(), Duration::from_secs(seconds));
                self.sent_away.insert(name(model));
                if !self.is_leaving(&name(model)) || self.is_replaced(&name(model)) {
                    // What they have had loaded since, or wait for in its place.
                    self.afterwards.retain(|_, wanted| *wanted != name(model));
                }
                self.handle(Event::Unload { ticket, model_id: name(model), timeout });
            }
            Order::Crash { model } => {
                let is_it =
                    |worker: &Worker| worker.model_id == name(model) && worker.has_process && !worker.is_gone;
                let found = self.workers.iter().filter(|(_, worker)| is_it(worker)).map(|(id, _)| *id);
                if let Some(worker) = self.rng.choice(found.collect::<Vec<_>>()) {
                    self.dies(worker);
                }
            }
            Order::Insist { model, times } => {
                for _ in 0..times {
                    self.asks(&name(model));
                    self.pass(self.now + Duration::from_secs(30));
                    self.carry_out(&Order::Crash { model });
                }
            }
            Order::Gpu { state } if self.is_on_gpu => {
                self.gpu = state;
                self.read();
            }
            Order::Gpu { .. } => {}
            Order::Others { percent } => {
                let is_loading = |it: &&mut Worker| it.granted > 0 && !it.is_open;
                for worker in self.workers.values_mut().filter(is_loading) {
                    worker.grew |= percent > self.others;
                }
                self.others = percent;
                self.watches_until = self.now + Duration::from_secs(15);
                self.read();
            }
            Order::Pass { milliseconds } => self.pass(self.now + Duration::from_millis(milliseconds)),
            Order::Stop { seconds } => {
                self.is_stopping = true;
                self.handle(Event::Stopping { by: self.now + Duration::from_secs(seconds) });
            }
        }
    }

    /// A request for a model, which is loaded for it.
    fn asks(&mut self, model_id: &str) {
        let ticket = self.ticket();
        self.wanting.insert(ticket, model_id.to_owned());
        if self.is_leaving(model_id) {
            self.afterwards.insert(ticket, model_id.to_owned());
        }
        let (model_id, wishes, format, instead) = (model_id.to_owned(), ModelOptions::default(), None, None);
        let (for_request, tokens) = (true, 0);
        self.handle(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens });
    }

    fn is_leaving(&mut self, model_id: &str) -> bool {
        self.fleet.view().models.get(model_id).is_some_and(|model| model.is_leaving)
    }

    fn is_replaced(&mut self, model_id: &str) -> bool {
        self.fleet.view().models.get(model_id).is_some_and(|model| model.is_being_replaced)
    }

    fn is_to_stay(&mut self, model_id: String, keep_alive: Option<KeepAlive>) {
        if let Some(said) = keep_alive {
            let shortest = self.said.entry(model_id).or_insert(said);
            if said.duration() < shortest.duration() {
                *shortest = said;
            }
        }
    }

    fn ticket(&mut self) -> Ticket {
        self.next += 1;
        self.open.insert(self.next, self.now);
        self.next
    }

    fn dies(&mut self, worker: WorkerId) {
        // All that it would have said is never said.
        self.ahead.retain(|_, event| {
            of(event) != Some(worker) || matches!(event, Event::NotStarted { .. } | Event::Started { .. })
        });
        let is_known = self.rng.u8(..) < 30;
        let (ending, call) = ("signal 11 (SIGSEGV)".to_owned(), "step".to_owned());
        let death = Death { ending, signal: Some(11), call, message: "died".into() };
        self.handle(Event::Died { worker, death, is_known });
    }

    /// Lets all happen until then.
    fn pass(&mut self, until: Moment) {
        loop {
            if self.reads_at.is_none() {
                let soon = |milliseconds| Some(self.now + Duration::from_millis(milliseconds));
                let is_wanted = self.is_on_gpu && self.fleet.is_anybody_waiting_for_room();
                self.reads_at = match (self.is_on_gpu && self.fleet.wants_a_reading(), is_wanted) {
                    (true, _) => soon(50),
                    (false, true) => soon(1000),
                    (false, false) if self.now < self.watches_until => soon(1000),
                    (false, false) => None,
                };
            }
            let event_at = self.ahead.keys().next().map(|(at, _)| *at);
            let next = event_at.into_iter().chain(self.fleet.next_deadline()).chain(self.reads_at).min();
            let Some(next) = next.filter(|next| *next <= until) else { break };
            self.now = self.now.max(next);
            if self.reads_at.is_some_and(|at| at <= self.now) {
                self.reads_at = None;
                self.read();
                continue;
            }
            match event_at.filter(|at| *at <= self.now) {
                Some(_) => {
                    let (_, event) = self.ahead.pop_first().unwrap();
                    match event {
                        Event::Died { worker, .. } => self.dies(worker),
                        event => self.handle(event),
                    }
                }
                None => self.handle(Event::Time),
            }
        }
        self.now = self.now.max(until);
    }

    fn handle(&mut self, event: Event) {
        self.script.push(format!("{:?} {event:?}", self.now.0));
        match &event {
            Event::Started { worker, .. } => {
                let worker = self.worker(*worker);
                worker.has_process = true;
                worker.is_gone |= worker.has_died;
            }
            Event::NotStarted { worker, .. } => self.worker(*worker).is_gone = true,
            Event::Used { worker, idle_since: Some(since), .. } => {
                let worker = self.worker(*worker);
                (worker.busy_until, worker.idle_since) = (None, *since);
            }
            Event::Died { worker, .. } => {
                let now = self.now;
                let late = Duration::from_millis(self.rng.u64(0..7000));
                let worker = self.worker(*worker);
                // Who is being started is told of by who starts it.
                worker.has_died = true;
                worker.takes_until = Some(now + late);
                worker.is_gone |= worker.has_process || worker.is_being_killed;
            }
            _ => {}
        }
        let before = self.fleet.view().models;
        // With an order to load or unload it all begins anew.
        let anew = match &event {
            Event::Load { model_id, for_request: false, .. } | Event::Unload { model_id, .. } => {
                self.given_up.take(model_id)
            }
            _ => None,
        };
        let usual = if let Event::Configured(usual) = &event { Some(usual.clone()) } else { None };
        // A worker that was made larger for an order has what that said from now on.
        let is_order = matches!(event, Event::Load { .. } | Event::Reshaped { .. });
        let effects = self.fleet.handle(self.now, event);
        self.script.push(format!("  {effects:?}"));
        for effect in &effects {
            if let Effect::Tell(incident) = effect
                && incident.kind == IncidentKind::Unused
            {
                let model_id = &incident.model_id;
                self.is_unused(model_id, &before[model_id], usual.as_ref(), is_order);
            }
        }
        // Else the order was refused.
        if let Some(model_id) = anew
            && !matches!(self.fleet.view().models.get(&model_id), Some(it) if is_given_up(it))
        {
            self.crashes.remove(&model_id);
        }
        for effect in effects {
            self.take(effect);
        }
        self.look();
    }

    /// A model goes because nobody has asked it anything for as long as it was to stay: is that so? `before`: as it
    /// was, `usual`: what is said of all from now on.
    fn is_unused(&self, model_id: &str, before: &ModelView, usual: Option<&Usual>, is_order: bool) {
        let said = before.options.as_ref().expect("what it was loaded with");
        let (mut pin, mut keep_alive) = (said.pin, said.keep_alive);
        if let (Some(usual), Some(setup)) = (usual, &before.setup) {
            let own = usual.models.get(model_id).cloned().unwrap_or_default();
            pin = setup.asked.pin.or(own.pin);
            keep_alive = setup.asked.keep_alive.or(own.keep_alive);
        }
        let answers = |worker: &&Worker| {
            worker.model_id == model_id && worker.is_open && !worker.is_draining && !worker.is_gone
        };
        let workers: Vec<&Worker> = self.workers.values().filter(answers).collect();
        if before.is_being_replaced || is_order {
            // It has just become another, for which what was said meanwhile holds; or this is what is said of it now.
            (pin, keep_alive) = (None, self.said.get(model_id).copied());
        }
        assert!(pin != Some(true), "who is pinned stays");
        let stays = keep_alive.and_then(KeepAlive::duration).expect("who is to stay for ever does not go");
        assert!(!workers.is_empty() && workers.iter().all(|worker| worker.busy_until.is_none()));
        let since = workers.iter().map(|worker| worker.idle_since).max();
        assert!(since.is_some_and(|since| self.now.since(since) >= stays.max(BETWEEN_REQUESTS)));
    }

    fn worker(&mut self, worker: WorkerId) -> &mut Worker {
        self.workers.get_mut(&worker).expect("a worker that the fleet has named")
    }

    /// One that an order may be given to.
    fn living(&mut self, worker: WorkerId) -> &mut Worker {
        let worker = self.worker(worker);
        assert!(!worker.is_gone, "an order to one that is gone");
        worker
    }

    fn take(&mut self, effect: Effect) {
        let delay = self.rng.u64(0..20_000);
        let luck = self.rng.u8(..100);
        match effect {
            Effect::Find { worker, model_id, setup, .. } => {
                let asked = (setup.asked.threads, setup.replicas());
                let is_replaced = self.replaced.contains(&model_id);
                let is_there = |other: &&Worker| {
                    let is_it = other.model_id == model_id && other.asked == asked;
                    let may_stay = is_replaced && other.is_draining;
                    is_it && other.is_spawned && !other.is_gone && !may_stay
                };
                let others: Vec<&Worker> = self.workers.values().filter(is_there).collect();
                let most = setup.replicas() + usize::from(is_replaced);
                assert!(others.len() < most, "as many workers as there are to be");
                let answers = |other: &&Worker| other.is_open && !other.is_draining;
                assert!(others.is_empty() || others.iter().any(answers), "the first comes first");
                self.comes_by_order(&model_id);
                assert!(!self.given_up.contains(&model_id), "{model_id}: no request loads what was given up");
                let setup = Some(setup);
                self.workers.insert(worker, Worker { model_id, asked, setup, ..Worker::default() });
                let fault = Fault::new(ErrorCode::EngineNotFound, "none");
                match luck {
                    0..4 => self.later(delay, Event::Found { worker, found: Err(fault), files: Vec::new() }),
                    4..6 => {}
                    _ => {
                        let found = self.found(worker);
                        self.later(delay, Event::Found { worker, found: Ok(found), files: Vec::new() });
                    }
                }
            }
            Effect::Spawn { worker, place, figures } => {
                self.is_well_placed(worker, &place);
                let it = self.living(worker);
                it.is_spawned = true;
                it.gpus = place.iter().map(|gpu| gpu.index as usize).collect();
                if figures.is_none() {
                    // What such a load took on another number of GPUs says nothing.
                    it.granted = 0;
                }
                let fault = Fault::new(ErrorCode::Internal, "no process");
                match luck {
                    0..4 => self.later(delay, Event::NotStarted { worker, fault }),
                    4..6 => {}
                    6..10 => {
                        // It dies before it is known that it has started.
                        self.later(delay, died(worker));
                        self.later(delay + 1, Event::Started { worker, pid: worker as u32 });
                    }
                    _ => {
                        self.later(delay, Event::Started { worker, pid: worker as u32 });
                        let is_asked = self.worker(worker).granted == 0;
                        let estimate = if self.has_figures {
                            Estimate { uses: None, figures: self.figures(worker) }
                        } else {
                            let uses = (is_asked && luck < 90).then(|| self.uses_of(worker));
                            Estimate { uses, figures: Figures::default() }
                        };
                        self.later(delay + 1, Event::Estimated { worker, estimate });
                    }
                }
            }
            Effect::Proceed { worker, shape } => {
                // Where its size was asked for, it had its room before.
                let gpus = self.worker(worker).gpus.clone();
                assert!(gpus.iter().all(|gpu| self.is_gpu_heard(*gpu)) || self.has_figures);
                self.living(worker).shape = shape;
                for account in self.accounts(worker) {
                    let held = account.reserved_bytes + account.settling_bytes;
                    assert!(held <= account.limit_bytes, "a load begins within the limits");
                }
                let (held, of_each) = self.held(worker);
                let it = self.living(worker);
                let is_as_before = shape.is_none();
                assert!(
                    it.granted <= held || !is_as_before,
                    "what such a load took before is reserved for it"
                );
                (it.granted, it.granted_of_each) = (held, of_each);
                self.worker(worker).takes = held / 4 * self.rng.u64(2..9);
                let fault = Fault::new(ErrorCode::LoadFailed, "broken");
                match luck {
                    0..10 => {
                        self.later(delay, Event::Failed { worker, fault });
                        self.later(delay + 100, died(worker));
                    }
                    10..15 => self.later(delay, died(worker)),
                    15..20 => {}
                    _ => {
                        let memory = self.takes(worker, shape);
                        let it = self.worker(worker);
                        (it.says, it.says_as) = (memory.iter().map(MemoryUse::total).sum(), parts(&memory));
                        let source = if luck < 30 { "stream" } else { "batch" };
                        let facts = facts(memory, shape.map_or(1, |shape| shape.context_length), source);
                        self.later(delay, Event::Ready { worker, facts });
                    }
                }
            }
            Effect::Size { worker, sizing } => {
                let it = self.living(worker);
                assert!(it.is_open || (it.has_process && sizing.shape.is_some()));
                let fault = Fault::new(ErrorCode::InvalidRequest, "too long");
                match luck {
                    0..10 => self.later(delay, Event::Sized { worker, uses: Err(fault) }),
                    10..15 => self.later(delay, died(worker)),
                    15..20 => {}
                    20..30 => self.later(delay, Event::Sized { worker, uses: Ok(None) }),
                    _ => {
                        let uses = Ok(Some(self.takes(worker, sizing.shape)));
                        self.later(delay, Event::Sized { worker, uses });
                    }
                }
            }
            Effect::Reshape { worker, sizing } => {
                let it = self.living(worker);
                assert!(it.is_open && !it.is_draining, "who goes is not changed");
                let (held, of_each) = self.held(worker);
                let it = self.living(worker);
                let is_smaller =
                    matches!((sizing.shape, it.shape), (Some(new), Some(old)) if new.cells() < old.cells());
                let (it_is, is_idle) = (it.model_id.clone(), it.busy_until.is_none());
                assert!(is_idle || !is_smaller, "who answers keeps what it has");
                if !is_smaller && !self.asked.values().any(|model_id| *model_id == it_is) {
                    assert!(is_idle && self.fleet.view().line.is_empty(), "who needs it comes first");
                }
                let it = self.living(worker);
                // Nothing is reserved for what takes less.
                if !is_smaller {
                    (it.granted, it.granted_of_each) = (held, of_each);
                }
                it.shape = sizing.shape;
                let fault = Fault::new(ErrorCode::OomRam, "no memory");
                match luck {
                    0..10 => self.later(delay, Event::Reshaped { worker, facts: Err(fault) }),
                    10..15 => self.later(delay, died(worker)),
                    15..20 => {}
                    _ => {
                        let chosen = sizing.shape.map(|shape| shape.context_length);
                        let length = chosen.or(sizing.size.context_length).expect("a length that stays");
                        let memory = self.takes(worker, sizing.shape);
                        let it = self.worker(worker);
                        // Until it is smaller, it is what it was.
                        let new = parts(&memory);
                        it.says_as = if is_smaller { [0, 1].map(|i| it.says_as[i].max(new[i])) } else { new };
                        it.says = memory.iter().map(MemoryUse::total).sum::<u64>().max(if is_smaller {
                            it.says
                        } else {
                            0
                        });
                        let facts = Ok(facts(memory, length, "batch"));
                        self.later(delay, Event::Reshaped { worker, facts });
                    }
                }
            }
            Effect::Open { worker, model_id } => {
                self.unused.remove(&model_id);
                self.comes_by_order(&model_id);
                let now = self.now;
                let worker = self.living(worker);
                assert!(!worker.is_open);
                worker.is_open = true;
                (worker.ready_at, worker.idle_since) = (now, now);
            }
            Effect::Drain { worker } => {
                let (now, view) = (self.now, self.fleet.view());
                let model_id = self.living(worker).model_id.clone();
                let is_replaced = self.replaced.contains(&model_id);
                let is_unused = self.unused.contains(&model_id);
                // A model goes as a whole.
                let of_model = self.workers.iter().filter(|(_, it)| it.model_id == model_id && !it.is_gone);
                let is_pressed = of_model.map(|(worker, _)| *worker).any(|it| self.is_pressed(it));
                let it = self.living(worker);
                assert!(it.is_open && !it.is_draining);
                it.is_draining = true;
                let answers =
                    |it: &Worker| it.model_id == model_id && it.is_open && !it.is_draining && !it.is_gone;
                if !self.workers.values().any(answers) {
                    self.sent_away.insert(model_id);
                }
                let it = self.living(worker);
                let model = &view.models[&it.model_id];
                if is_replaced {
                    let rest = it.busy_until.map_or(0, |until| until.since(now).as_millis() as u64);
                    self.later(rest + delay / 100, Event::Drained { worker });
                } else if let Status::Draining { is_retired: true } = model.status {
                    assert!(!model.is_pinned);
                    // For another's sake, or because nobody has asked it anything for long, or others need the memory.
                    let goes_idle = it.busy_until.is_none() && (is_unused || is_pressed);
                    assert!(!view.line.is_empty() || goes_idle);
                    assert!(it.busy_until.is_none() || now.since(it.ready_at) >= SHORTEST_TURN);
                    // It answers what it has, or is ended by itself where it hangs.
                    let rest = it.busy_until.map_or(0, |until| until.since(now).as_millis() as u64);
                    let event = if luck < 90 { Event::Drained { worker } } else { died(worker) };
                    self.later(rest + delay / 100, event);
                } else if luck < 80 {
                    self.later(delay, Event::Drained { worker });
                }
            }
            Effect::Stop { worker } => {
                assert!(self.living(worker).has_process);
                self.living(worker).is_ending = true;
                if luck < 80 {
                    self.later(delay / 10, died(worker));
                }
            }
            Effect::GiveUp { worker, .. } => {
                assert_eq!(self.seen, DeviceState::Lost);
                self.later(delay / 10, died(worker));
            }
            Effect::Kill { worker } => {
                let it = self.living(worker);
                (it.is_being_killed, it.is_ending) = (true, true);
                if luck < 95 {
                    self.later(delay / 10, died(worker));
                } else if luck < 98 && !self.worker(worker).has_process {
                    let fault = Fault::new(ErrorCode::Internal, "no process");
                    self.later(delay / 10, Event::NotStarted { worker, fault });
                }
            }
            Effect::EndRequests { worker, .. } => {
                let now = self.now;
                let worker = self.worker(worker);
                worker.is_open = false;
                worker.is_gone = true;
                worker.takes_until.get_or_insert(now);
            }
            Effect::Record { key, figures, time } => self.remembered.learn(key, figures, time),
            Effect::Resolve { ticket, outcome } => {
                let asked = self.open.remove(&ticket).expect("an order that is open");
                let is_sent_away = outcome.is_err_and(|fault| fault.code == ErrorCode::ShuttingDown);
                let came_afterwards = self.afterwards.remove(&ticket).is_some();
                assert!(
                    !(is_sent_away && came_afterwards) || self.is_stopping,
                    "an unload is for what was there"
                );
                self.asked.remove(&ticket);
                self.wanting.remove(&ticket);
                assert!(self.now.since(asked) < LONGEST_WAIT);
                assert!(self.resolved.insert(ticket));
            }
            Effect::Stopped => self.stops += 1,
            Effect::Tell(incident) if incident.kind == IncidentKind::Replaced => {
                self.replaced.insert(incident.model_id);
            }
            Effect::Tell(incident) if incident.kind == IncidentKind::Crashed => {
                *self.crashes.entry(incident.model_id).or_default() += 1;
            }
            Effect::Tell(incident) if incident.kind == IncidentKind::Unused => {
                self.unused.insert(incident.model_id);
            }
            Effect::Pardon { .. } | Effect::Tell(_) => {}
        }
    }

    /// A model that was sent away is not loaded before somebody wants that, nor goes on being loaded.
    fn comes_by_order(&mut self, model_id: &String) {
        let is_wanted = self.wanting.values().any(|wanted| wanted == model_id);
        let was_sent_away = self.sent_away.remove(model_id);
        assert!(is_wanted || !was_sent_away, "{model_id}: who was sent away comes when asked for");
    }

    /// Have others had too little for long of where it lies?
    fn is_pressed(&self, worker: WorkerId) -> bool {
        let gpus = if self.is_unified { &Vec::new() } else { &self.workers[&worker].gpus };
        let lasts = |since: &Option<Moment>| since.is_some_and(|since| self.now.since(since) >= LASTS);
        (gpus.is_empty() && lasts(&self.low_since[0]))
            || gpus.iter().any(|gpu| lasts(&self.low_since[1 + gpu]))
    }

    /// Else nothing may get room there.
    fn is_gpu_heard(&self, gpu: usize) -> bool {
        let unheard = self.asked_at.map_or(Duration::ZERO, |since| self.now.since(since));
        let is_ok = gpu > 0 || self.seen == DeviceState::Ok;
        let is_heard = is_ok && unheard < Deadlines::new(START, LOAD, ROOM).read;
        is_heard || !self.is_on_gpu
    }

    /// As many as were asked for, those that were named, and none that another worker of the model has.
    fn is_well_placed(&self, worker: WorkerId, place: &[GpuAddress]) {
        let it = &self.workers[&worker];
        assert_eq!(!place.is_empty(), self.is_on_gpu);
        let gpus: BTreeSet<usize> = place.iter().map(|gpu| gpu.index as usize).collect();
        assert!(gpus.len() == place.len() && gpus.iter().all(|gpu| *gpu < self.gpus));
        let others = self.workers.values().filter(|other| other.model_id == it.model_id && !other.is_gone);
        let setup = it.setup.as_ref().unwrap();
        let (devices, replicas) = (setup.devices(), setup.replicas());
        let is_apart = others.flat_map(|other| &other.gpus).all(|gpu| !gpus.contains(gpu));
        assert!(replicas == 1 || is_apart || self.replaced.contains(&it.model_id));
        match devices.filter(|_| self.is_on_gpu) {
            Some(Devices::Count(count)) => assert_eq!(place.len() * replicas, *count as usize),
            Some(Devices::Named(names)) => {
                assert_eq!(place.len() * replicas, names.len());
                assert!(place.iter().all(|gpu| names.iter().any(|name| name.is_of(gpu))));
            }
            None => assert!(place.len() <= 1 || replicas == 1),
        }
    }

    fn uses(&mut self, gpu: usize) -> MemoryUse {
        let bus_id = self.is_on_gpu.then(|| bus_id(gpu));
        let weights = self.rng.u64(1..5) * GIB;
        MemoryUse { is_host: !self.is_on_gpu, bus_id, weights, ..MemoryUse::default() }
    }

    fn uses_of(&mut self, worker: WorkerId) -> Vec<MemoryUse> {
        let large = if self.is_large(worker) { 7 * GIB } else { 0 };
        let gpus = self.worker(worker).gpus.clone();
        let Some(first) = gpus.first() else { return vec![self.uses(0)] };
        let all = self.uses(*first);
        let weights = (all.weights + large) / gpus.len() as u64;
        let on = |gpu: &usize| MemoryUse { bus_id: Some(bus_id(*gpu)), weights, ..all.clone() };
        self.shared(gpus.iter().map(on).collect())
    }

    /// Of what lies on a GPU that shares the host's memory a part is not the GPU's.
    fn shared(&self, mut uses: Vec<MemoryUse>) -> Vec<MemoryUse> {
        if self.is_unified {
            let weights = uses[0].weights / HOST_PART;
            uses[0].weights -= weights;
            uses.push(MemoryUse { is_host: true, weights, ..MemoryUse::default() });
        }
        uses
    }

    fn is_large(&self, worker: WorkerId) -> bool {
        self.is_on_gpu && self.workers[&worker].model_id == LARGE
    }

    /// Of a model that takes 64 KiB for each of 32,768 tokens, on each of its GPUs an equal part.
    fn figures(&self, worker: WorkerId) -> Figures {
        let gpus = &self.workers[&worker].gpus;
        let parts = gpus.len().max(1) as u64;
        let weights = if self.is_large(worker) { 8 * GIB } else { GIB };
        let one = |bus_id: Option<String>| MemoryUse {
            is_host: bus_id.is_none(),
            bus_id,
            weights: weights / parts,
            compute: GIB / 4,
            cache: 2 * GIB / parts,
            cache_per_token: (64 << 10) / parts,
            ..MemoryUse::default()
        };
        let on_gpus = gpus.iter().map(|gpu| one(Some(bus_id(*gpu))));
        let one = if gpus.is_empty() { vec![one(None)] } else { self.shared(on_gpus.collect()) };
        Figures { one, draft: Vec::new() }
    }

    /// With a context of that size: now and then another thing than the figures say.
    fn takes(&mut self, worker: WorkerId, shape: Option<Shape>) -> Vec<MemoryUse> {
        let Some(shape) = shape else { return self.uses_of(worker) };
        let mut takes = shape.by_sums(&self.figures(worker).one);
        if self.rng.u8(..100) < 30 {
            takes[0].compute = self.rng.u64(0..GIB);
        }
        takes
    }

    /// The accounts of the devices that it lies on.
    fn accounts(&mut self, worker: WorkerId) -> Vec<Account> {
        let (accounts, it) = (self.fleet.view().accounts, &self.workers[&worker]);
        let is_here = |device: &Device| match device.kind {
            DeviceKind::Gpu => it.gpus.contains(&(device.index as usize)),
            DeviceKind::Host => !self.is_on_gpu || self.is_unified,
            DeviceKind::Unified => false,
        };
        accounts.into_iter().filter(|account| is_here(&account.device)).collect()
    }

    /// What is reserved for it, and on each of its devices at least.
    fn held(&mut self, worker: WorkerId) -> (u64, u64) {
        let of = |account: Account| {
            let holder = account.holders.into_iter().find(|holder| holder.worker == worker);
            holder.expect("nothing without room").bytes
        };
        let held: Vec<u64> = self.accounts(worker).into_iter().map(of).collect();
        (held.iter().sum(), held.into_iter().min().unwrap_or(0))
    }

    fn found(&mut self, worker: WorkerId) -> FoundModel {
        let is_large = self.is_large(worker);
        let it = self.worker(worker);
        let key = LoadKey { build: "e".into(), model: it.model_id.clone() };
        let known = self.fleet.view().history.known(&key);
        if let Some(known) = &known {
            let it = self.worker(worker);
            it.granted = known.uses.iter().map(MemoryUse::total).sum();
        }
        FoundModel {
            engine: ChosenEngine { id: "e".into(), version: "1".into(), gpu_backend: "cpu".into() },
            size_bytes: if is_large { 8 * GIB } else { GIB },
            format: "gguf".into(),
            architecture: None,
            quantization: None,
            key,
            known,
        }
    }

    /// What must hold at any time.
    fn look(&mut self) {
        let view = self.fleet.view();
        for account in &view.accounts {
            let is_more = |worker: &Worker| {
                let is_uneven = if self.is_unified {
                    let counts =
                        worker.takes_as().into_iter().zip(worker.says_as).map(|(one, other)| one.max(other));
                    counts.sum::<u64>() > worker.granted
                } else {
                    worker.takes_of_each() > worker.granted_of_each
                };
                !worker.is_gone
                    && (worker.grew || is_uneven || worker.takes.max(worker.says) > worker.granted)
            };
            let is_measured = self.workers.values().any(is_more);
            if account.device.kind == DeviceKind::Unified {
                assert_eq!((&*account.account, account.limit_bytes, account.reserved_bytes), ("host", 0, 0));
                assert!(account.holders.is_empty(), "what lies there is the host's");
            }
            assert!(account.reserved_bytes <= account.limit_bytes || is_measured);
            for holder in &account.holders {
                assert!(
                    !view.models[&holder.model_id].workers.is_empty(),
                    "what is held is held by a worker"
                );
            }
        }
        self.replaced.retain(|model_id| {
            let going = |worker: &WorkerView| matches!(worker.status, Status::Draining { .. });
            let model = view.models.get(model_id);
            model.is_some_and(|it| it.is_being_replaced || it.workers.iter().any(going))
        });
        let mut is_waiting = false;
        for (model_id, model) in &view.models {
            let staying = |worker: &&WorkerView| {
                !matches!(worker.status, Status::Draining { .. }) && !self.workers[&worker.id].is_ending
            };
            let replicas = model.options.as_ref().and_then(|options| options.replicas).unwrap_or(1);
            // One takes the place of another.
            let most = replicas as usize + usize::from(model.is_being_replaced);
            let staying = model.workers.iter().filter(staying).count();
            assert!(staying <= most, "{model_id}: {staying} workers, and {most} at most");
            let with_deadline = Status::Draining { is_retired: false };
            is_waiting |= [Status::Loading, Status::Waiting, with_deadline].contains(&model.status);
            match model.ready(model_id, self.now) {
                Ok(workers) => {
                    let takes =
                        |worker: &WorkerId| self.workers[worker].is_open && !self.workers[worker].is_gone;
                    assert!(workers.iter().all(takes));
                }
                Err(fault) => assert_ne!(fault.code, ErrorCode::ShuttingDown, "who asks has it loaded"),
            }
        }
        for model_id in &self.given_up {
            assert!(is_given_up(&view.models[model_id]), "{model_id}: no time makes it better");
        }
        for (model_id, model) in view.models.iter().filter(|(_, model)| is_given_up(model)) {
            assert!(
                model.workers.is_empty() && model.waiting == 0,
                "{model_id}: nobody waits for what was given up"
            );
            let fault = model.ready(model_id, self.now).unwrap_err();
            assert_eq!(fault.code, ErrorCode::EngineCrashed, "who asks is told at once");
            if self.given_up.insert(model_id.clone()) {
                assert!(
                    self.crashes[model_id] >= 6,
                    "{model_id}: nobody is given up for fewer crashes than six"
                );
            }
        }
        for model in view.models.values() {
            if let Status::Cooling { until, .. } = model.status {
                assert!(until <= self.now + LONGEST_COOLING, "who cools longer was to be given up");
            }
        }
        for place in &view.line {
            let is_there = |name: &String| view.models.get(name).is_some_and(|it| !it.workers.is_empty());
            assert!(is_there(&place.model_id) && place.waits_for.iter().all(is_there));
            assert!(place.needs_bytes > 0 && !place.waits_for.contains(&place.model_id));
            let is_heard = (0..self.gpus).all(|gpu| self.is_gpu_heard(gpu));
            assert!(place.expected <= self.now + ROOM || !is_heard, "who waits too long is told so at once");
        }
        assert!(!is_waiting || self.fleet.next_deadline().is_some(), "what is waited for has a deadline");
        assert!(self.fleet.next_deadline().is_none_or(|by| by > self.now), "nothing is overdue");
        if self.stops > 0 {
            assert!(self.is_stopping && view.models.values().all(|model| model.workers.is_empty()));
            assert!(view.accounts.iter().all(|account| account.reserved_bytes == 0) && self.open.is_empty());
        }
        assert_eq!(*view.history, self.remembered, "what is learned is told");
    }

    /// Everybody waits until nothing more happens.
    fn settle(&mut self) {
        self.pass(self.now + LONGEST_WAIT);
        assert!(self.open.is_empty(), "nobody waits for ever: {:?}", self.open);
        let view = self.fleet.view();
        assert!(view.accounts.iter().all(|account| account.settling_bytes == 0), "nothing settles for ever");
        for model in view.models.values().filter(|model| model.status == Status::Loaded) {
            let keep_alive = model.options.as_ref().and_then(|options| options.keep_alive);
            let goes = keep_alive.is_some_and(|it| it.duration().is_some());
            assert!(!goes || model.is_pinned || model.is_being_replaced, "who is not used goes");
        }
    }
}

fn is_given_up(model: &ModelView) -> bool {
    matches!(model.status, Status::GivenUp(_))
}

/// What is the GPU's of it, and what the host's.
fn parts(uses: &[MemoryUse]) -> [u64; 2] {
    let part = |is_host| uses.iter().filter(|it| it.is_host == is_host).map(MemoryUse::total).sum();
    [part(false), part(true)]
}

fn bus_id(gpu: usize) -> String {
    format!("0000:0{}:00.0", gpu + 1)
}

fn of(event: &Event) -> Option<WorkerId> {
    match event {
        Event::Found { worker, .. }
        | Event::Started { worker, .. }
        | Event::NotStarted { worker, .. }
        | Event::Estimated { worker, .. }
        | Event::Ready { worker, .. }
        | Event::Failed { worker, .. }
        | Event::Used { worker, .. }
        | Event::Sized { worker, .. }
        | Event::Reshaped { worker, .. }
        | Event::Drained { worker }
        | Event::Died { worker, .. } => Some(*worker),
        _ => None,
    }
}

fn facts(memory: Vec<MemoryUse>, context_length: u32, source: &str) -> ModelFacts {
    ModelFacts { memory, context_length, max_sequences: 1, source: source.into(), ..ModelFacts::default() }
}

fn died(worker: WorkerId) -> Event {
    let death = Death { ending: String::new(), signal: None, call: String::new(), message: "died".into() };
    Event::Died { worker, death, is_known: false }
}

fn played(seed: u64, orders: &[Order]) -> World {
    let mut world = World::new(seed);
    for order in orders {
        world.carry_out(order);
    }
    world.settle();
    world
}

proptest! {
    #[test]
    fn whatever_happens_the_rules_hold(seed: u64, orders in prop::collection::vec(order(), 1..80)) {
        let mut world = played(seed, &orders);
        world.carry_out(&Order::Stop { seconds: 1 });
        world.settle();
        prop_assert!(world.stops >= 1, "a shutdown ends");
    }

    #[test]
    fn the_same_again_is_the_same(seed: u64, orders in prop::collection::vec(order(), 1..40)) {
        prop_assert_eq!(played(seed, &orders).script, played(seed, &orders).script);
    }
}
