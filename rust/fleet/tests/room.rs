//! Who makes room for whom, in a world in which all goes well: loads take no time, and answers as long as a test
//! says.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a world that is not as it should be fails its test"
)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Estimate, Figures, MemoryUse},
    options::{KeepAlive, ModelOptions},
    shape::{Shape, Sizing},
};
use llm_node_fleet::{
    ChosenEngine, Deadlines, Device, DeviceKind, Effect, Event, Fleet, Foreseen, FoundModel, History, Holder,
    IncidentKind, KeptBy, Leaver, LoadKey, Moment, Need, Place, Planned, Reading, Setup, Severity, Status,
    Ticket, Usual, Verdict, Won, WorkerId,
};
use serde_json::{Value, json};
use support::{Play, death, device, foreseen};

const GIB: u64 = 1 << 30;
const ROOM: Duration = Duration::from_mins(2);

/// 8 GiB for models. The figure in a model's name is what it takes.
struct World {
    fleet: Fleet,
    now: Moment,
    workers: BTreeMap<WorkerId, String>,
    busy: BTreeSet<WorkerId>,
    draining: BTreeSet<WorkerId>,
    outcomes: BTreeMap<Ticket, Result<(), Fault>>,
    evicted: Vec<String>,
    ticket: Ticket,
    /// Whether what is loaded can have another context, of which 100 tokens are a GiB. Each has one of 100.
    in_steps: bool,
    /// A context of another size cannot be made.
    is_stiff: bool,
    /// Loads do not end before [`World::go_on`].
    is_slow: bool,
    held: Vec<Event>,
    /// The next worker does not start.
    broken: Option<ErrorCode>,
    /// All lies on a GPU, and its engine says what contexts take: 64 KiB a token, and models go to 128 Ki tokens.
    has_figures: bool,
    /// The same without a GPU: all lies in the host's memory.
    has_no_gpu: bool,
    /// What was said to be remembered, and how often an engine was asked what a context takes.
    history: History,
    asked: usize,
    /// What others than models take beside what they take anyway, and what was told when it was too much.
    foreign: u64,
    pressure: Vec<String>,
}

fn world(room: Duration) -> World {
    let deadlines = Deadlines::new(Duration::from_secs(30), Duration::from_mins(1), room);
    let mut world = World {
        fleet: Fleet::new(deadlines, Usual::default(), true, Some(8 * GIB)),
        now: Moment::default(),
        workers: BTreeMap::new(),
        busy: BTreeSet::new(),
        draining: BTreeSet::new(),
        outcomes: BTreeMap::new(),
        evicted: Vec::new(),
        ticket: 0,
        in_steps: false,
        is_stiff: false,
        is_slow: false,
        held: Vec::new(),
        broken: None,
        has_figures: false,
        has_no_gpu: false,
        history: History::default(),
        asked: 0,
        foreign: 0,
        pressure: Vec::new(),
    };
    world.read();
    world
}

fn world_with_figures(room: Duration) -> World {
    let deadlines = Deadlines::new(Duration::from_secs(30), Duration::from_mins(1), room);
    let fleet = Fleet::new(deadlines, Usual::default(), false, Some(8 * GIB));
    let mut world = World { fleet, has_figures: true, in_steps: true, ..world(room) };
    world.read();
    world
}

impl Play for World {
    fn clock(&mut self) -> (&mut Fleet, &mut Moment) {
        (&mut self.fleet, &mut self.now)
    }

    fn reading(&self) -> Event {
        let host =
            Device { name: "host".into(), ..device(DeviceKind::Host, 0, 64 * GIB, 32 * GIB - self.foreign) };
        let mut devices = vec![host.clone()];
        if self.has_figures && !self.has_no_gpu {
            devices.push(Device { kind: DeviceKind::Gpu, name: "GPU".into(), ..host });
        }
        Event::Reading(Reading { began: self.now, devices, is_whole: true })
    }

    fn carry_out(&mut self, effect: Effect, ahead: &mut VecDeque<Event>) {
        match effect {
            Effect::Find { worker, model_id, .. } => {
                let key = LoadKey { build: "e".into(), model: model_id.clone() };
                self.workers.insert(worker, model_id);
                let engine = ChosenEngine { id: "e".into(), version: "1".into(), gpu_backend: "cpu".into() };
                let found = FoundModel {
                    engine,
                    size_bytes: GIB,
                    format: "gguf".into(),
                    architecture: None,
                    quantization: None,
                    known: self.history.known(&key),
                    key,
                };
                ahead.push_back(Event::Found { worker, found: Ok(found), files: Vec::new() });
            }
            Effect::Spawn { worker, .. } if self.broken.is_some() => {
                let fault = Fault::new(self.broken.take().unwrap(), "broken");
                ahead.push_back(Event::NotStarted { worker, fault });
            }
            Effect::Spawn { worker, .. } => {
                let model = &self.workers[&worker];
                let figures = self.figures(model);
                let uses = (!self.has_figures).then(|| vec![takes(model)]);
                ahead.push_back(Event::Started { worker, pid: worker as u32 });
                ahead.push_back(self.reading());
                let estimate = Estimate { uses, figures };
                ahead.push_back(Event::Estimated { worker, estimate });
            }
            Effect::Proceed { worker, shape } => {
                let facts = shape.map_or_else(|| self.facts(worker, 100), |shape| self.shaped(worker, shape));
                if self.is_slow {
                    return self.held.push(Event::Ready { worker, facts });
                }
                ahead.push_back(Event::Ready { worker, facts });
                ahead.push_back(self.reading());
            }
            Effect::Size { worker, sizing: Sizing { shape: Some(shape), .. } } => {
                self.asked += 1;
                let memory = self.shaped(worker, shape).memory;
                ahead.push_back(Event::Sized { worker, uses: Ok(Some(memory)) });
            }
            Effect::Size { worker, sizing } => {
                let memory = self.facts(worker, sizing.size.context_length.unwrap()).memory;
                ahead.push_back(Event::Sized { worker, uses: Ok(Some(memory)) });
            }
            Effect::Reshape { worker, .. } if self.is_stiff => {
                let fault = Fault::new(ErrorCode::OomRam, "no memory for that");
                ahead.push_back(Event::Reshaped { worker, facts: Err(fault) });
            }
            Effect::Reshape { worker, sizing: Sizing { shape: Some(shape), .. } } => {
                let facts = self.shaped(worker, shape);
                ahead.push_back(Event::Reshaped { worker, facts: Ok(facts) });
            }
            Effect::Reshape { worker, sizing } => {
                let facts = self.facts(worker, sizing.size.context_length.unwrap());
                ahead.push_back(Event::Reshaped { worker, facts: Ok(facts) });
            }
            Effect::Drain { worker } if self.busy.contains(&worker) => drop(self.draining.insert(worker)),
            Effect::Drain { worker } => ahead.push_back(Event::Drained { worker }),
            Effect::Stop { worker } | Effect::Kill { worker } => {
                assert!(!self.busy.contains(&worker), "no answer is cut");
                ahead.push_back(Event::Died { worker, death: death("died"), is_known: false });
            }
            Effect::EndRequests { worker, .. } => drop(self.workers.remove(&worker)),
            Effect::Resolve { ticket, outcome } => {
                let loaded = |won| assert!(matches!(won, Won::Loaded(_) | Won::Unloaded));
                assert!(self.outcomes.insert(ticket, outcome.map(loaded)).is_none());
            }
            Effect::Record { key, figures, time } => self.history.learn(key, figures, time),
            Effect::Tell(incident) if incident.kind == IncidentKind::Evicted => {
                self.evicted.push(incident.model_id);
            }
            Effect::Tell(incident) if incident.kind == IncidentKind::Pressure => {
                assert_eq!(incident.severity, Severity::Warning);
                self.pressure.push(incident.message);
            }
            _ => {}
        }
    }
}

impl World {
    fn load(&mut self, model: &str) -> Ticket {
        self.load_with(model, ModelOptions::default())
    }

    fn load_with(&mut self, model: &str, wishes: ModelOptions) -> Ticket {
        self.ticket += 1;
        let (ticket, model_id) = (self.ticket, model.to_owned());
        let instead = Some(Box::new(self.foreseen(model, &wishes)));
        self.tell(Event::Load {
            ticket,
            model_id,
            wishes,
            format: None,
            instead,
            for_request: false,
            tokens: 0,
        });
        ticket
    }

    /// A request comes again that the model's context was too short for.
    fn too_long(&mut self, model: &str, tokens: u32) -> Ticket {
        self.ticket += 1;
        let (ticket, model_id, wishes) = (self.ticket, model.to_owned(), ModelOptions::default());
        let (format, instead, for_request) = (None, None, true);
        self.tell(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens });
        ticket
    }

    fn unload(&mut self, model: &str) {
        self.ticket += 1;
        let (ticket, model_id, timeout) = (self.ticket, model.to_owned(), Duration::ZERO);
        self.tell(Event::Unload { ticket, model_id, timeout });
    }

    fn go_on(&mut self) {
        self.is_slow = false;
        for event in std::mem::take(&mut self.held) {
            self.tell(event);
            self.read();
        }
    }

    /// Its workers that a new request may go to.
    fn serving(&mut self, model: &str) -> Vec<WorkerId> {
        self.fleet.view().models[model].ready(model, self.now).unwrap()
    }

    fn worker(&self, model: &str) -> WorkerId {
        *self.workers.iter().find(|(_, name)| *name == model).expect("a model with a worker").0
    }

    fn foreseen(&self, model: &str, wishes: &ModelOptions) -> Foreseen {
        Foreseen {
            engine: "e".into(),
            memory: vec![takes(model)],
            figures: self.figures(model),
            setup: Some(Box::new(Setup::new(model, wishes.clone(), &Usual::default()))),
            ..Foreseen::default()
        }
    }

    fn plan(&mut self, model: &str, wishes: ModelOptions) -> Planned {
        self.ticket += 1;
        let ticket = self.ticket;
        let foreseen = self.foreseen(model, &wishes);
        let event = Event::Plan { ticket, model_id: model.to_owned(), wishes, foreseen: Some(foreseen) };
        let mut effects = self.fleet.handle(self.now, event);
        let Some(Effect::Resolve { outcome: Ok(Won::Planned(planned)), .. }) = effects.pop() else {
            panic!("a plan comes at once")
        };
        assert!(effects.is_empty(), "{effects:?}");
        *planned
    }

    /// It gets something to answer.
    fn ask(&mut self, model: &str) {
        let worker = self.worker(model);
        self.busy.insert(worker);
        self.tell(Event::Used { worker, requests: 1, idle_since: None });
    }

    /// It has answered.
    fn answer(&mut self, model: &str) {
        let worker = self.worker(model);
        self.busy.remove(&worker);
        let idle_since = Some(self.now);
        self.tell(Event::Used { worker, requests: 0, idle_since });
        if self.draining.remove(&worker) {
            self.tell(Event::Drained { worker });
        }
    }

    /// Its worker dies by itself.
    fn crash(&mut self, model: &str) {
        let worker = self.worker(model);
        self.tell(Event::Died { worker, death: death("died"), is_known: false });
    }

    /// Of a model with a context of that length.
    fn facts(&self, worker: WorkerId, context_length: u32) -> ModelFacts {
        if !self.in_steps {
            return ModelFacts::default();
        }
        let cache = (u64::from(context_length) * GIB).saturating_sub(100 * GIB) / 100;
        let memory = vec![MemoryUse { cache, ..takes(&self.workers[&worker]) }];
        ModelFacts {
            memory,
            context_length,
            max_sequences: 1,
            source: "batch".into(),
            ..ModelFacts::default()
        }
    }

    /// Of a model with a context of that size.
    fn shaped(&self, worker: WorkerId, shape: Shape) -> ModelFacts {
        ModelFacts {
            memory: shape.of_figures(&self.figures(&self.workers[&worker])),
            context_length: shape.context_length,
            max_sequences: shape.max_sequences,
            source: "batch".into(),
            ..ModelFacts::default()
        }
    }

    fn figures(&self, model: &str) -> Figures {
        if !self.has_figures {
            return Figures::default();
        }
        let one = MemoryUse {
            device: if self.has_no_gpu { "host" } else { "GPU" }.into(),
            is_host: self.has_no_gpu,
            cache: 8 * GIB,
            cache_per_token: 64 << 10,
            ..takes(model)
        };
        Figures { one: vec![one], draft: Vec::new() }
    }

    /// Context length and sequences of a model that is loaded.
    fn size(&mut self, model: &str) -> (u32, u32) {
        let (_, loaded) = self.fleet.view().models[model].loaded().cloned().expect("a model that is loaded");
        (loaded.facts.context_length, loaded.facts.max_sequences)
    }

    fn longer(&mut self, model: &str, context_length: u32) -> Ticket {
        let wishes = ModelOptions { context_length: Some(context_length), ..ModelOptions::default() };
        self.load_with(model, wishes)
    }

    fn reserved(&mut self) -> u64 {
        self.fleet.view().accounts[0].reserved_bytes / GIB
    }

    fn loaded(&mut self) -> Vec<String> {
        let models = self.fleet.view().models;
        let loaded = models.into_iter().filter(|(_, model)| matches!(model.status, Status::Loaded));
        loaded.map(|(model_id, _)| model_id).collect()
    }

    /// Those who wait for room.
    fn line(&mut self) -> Vec<String> {
        self.fleet.view().line.into_iter().map(|place| place.model_id).collect()
    }

    /// Of each of them: who is in its way, and how long it waits still.
    fn expected(&mut self) -> Vec<(String, Vec<String>, f64)> {
        let line = self.fleet.view().line;
        let seconds = |place: &Place| place.expected.since(self.now).as_secs_f64();
        line.iter().map(|it| (it.model_id.clone(), it.waits_for.clone(), seconds(it))).collect()
    }

    /// Time passes, and the devices are looked at once a second.
    fn watch(&mut self, seconds: u32) {
        for _ in 0..seconds {
            self.pass(1.0);
            self.read();
        }
    }

    /// It takes long to load, and is in use: to have it back would cost four seconds.
    fn load_dear(&mut self, model: &str) -> Ticket {
        let ticket = self.load_slowly(model, 10.0);
        self.ask(model);
        self.answer(model);
        ticket
    }

    /// It is loaded, which takes so long.
    fn load_slowly(&mut self, model: &str, seconds: f64) -> Ticket {
        self.is_slow = true;
        let ticket = self.load(model);
        self.pass(seconds);
        self.go_on();
        ticket
    }

    /// What a refusal says of those who hold the memory.
    fn kept_by(&self, ticket: Ticket) -> Vec<(String, Value)> {
        let details: Value = serde_json::from_str(self.fault(ticket).details.as_ref().unwrap()).unwrap();
        let holders = details["holders"].as_array().unwrap();
        let of = |it: &Value| (it["model_id"].as_str().unwrap().to_owned(), it["kept_by"].clone());
        holders.iter().map(of).collect()
    }

    fn fault(&self, ticket: Ticket) -> &Fault {
        self.outcomes[&ticket].as_ref().unwrap_err()
    }
}

/// By its name.
fn takes(model: &str) -> MemoryUse {
    let size: u64 = model.trim_start_matches(char::is_alphabetic).parse().unwrap();
    MemoryUse { is_host: true, weights: size * GIB, ..MemoryUse::default() }
}

#[test]
fn who_was_used_least_lately_goes_and_nobody_in_vain() {
    let mut world = world(ROOM);
    for model in ["a3", "b1", "c3"] {
        world.load(model);
        world.pass(10.0);
    }
    for model in ["a3", "c3"] {
        world.ask(model);
        world.pass(1.0);
        world.answer(model);
        world.pass(1.0);
    }
    // b1 was used least lately, a3 next; b1 alone is not enough, and with a3 it is not needed.
    let ticket = world.load("d4");
    assert_eq!(world.outcomes[&ticket], Ok(()));
    assert_eq!(world.evicted, ["a3"]);
    assert_eq!(world.loaded(), ["b1", "c3", "d4"]);
}

#[test]
fn who_has_just_had_a_load_or_an_answer_may_be_about_to_ask() {
    let mut world = world(ROOM);
    world.load("a5");
    let ticket = world.load("b5");
    world.pass(0.4);
    assert_eq!((world.loaded(), world.line()), (vec!["a5".to_owned()], vec!["b5".to_owned()]));
    world.ask("a5");
    world.pass(5.0);
    world.answer("a5");
    world.pass(0.4);
    assert_eq!(world.loaded(), ["a5"]);
    world.pass(0.2);
    assert_eq!((world.loaded(), &world.outcomes[&ticket]), (vec!["b5".to_owned()], &Ok(())));
}

#[test]
fn who_answers_has_its_turn_and_no_answer_is_cut() {
    let mut world = world(ROOM);
    world.load("a5");
    world.ask("a5");
    let ticket = world.load("b5");
    world.pass(29.0);
    assert_eq!(world.loaded(), ["a5"]);
    world.pass(2.0);
    // It takes nothing new; what comes for it has it loaded again once the other has had its turn.
    assert_eq!((world.loaded().len(), world.outcomes.contains_key(&ticket)), (0, false));
    let again = world.load("a5");
    world.pass(20.0);
    assert!(!world.outcomes.contains_key(&ticket));
    world.answer("a5");
    assert_eq!((world.loaded(), &world.outcomes[&ticket]), (vec!["b5".to_owned()], &Ok(())));
    world.ask("b5");
    world.pass(31.0);
    world.answer("b5");
    assert_eq!((world.loaded(), &world.outcomes[&again]), (vec!["a5".to_owned()], &Ok(())));
}

#[test]
fn what_could_never_fit_is_refused_at_once_and_nobody_goes_for_it() {
    let mut world = world(ROOM);
    world.load("a3");
    world.pass(60.0);
    let ticket = world.load("b9");
    assert_eq!(world.fault(ticket).message, "Insufficient VRAM: required 9GB, available 8GB");
    let ticket = world.load_with("p2", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    assert_eq!(world.outcomes[&ticket], Ok(()));
    world.pass(60.0);
    let ticket = world.load("c7");
    assert_eq!(world.fault(ticket).message, "Insufficient VRAM: required 7GB, available 6GB");
    assert!(world.fault(ticket).details.as_ref().unwrap().contains(r#""kept_by":"pin""#));
    assert_eq!(world.loaded(), ["a3", "p2"]);
    // Whoever says that it need not stay.
    world.load_with("p2", ModelOptions { pin: Some(false), ..ModelOptions::default() });
    world.pass(1.0);
    let ticket = world.load("c7");
    assert_eq!((world.loaded(), &world.outcomes[&ticket]), (vec!["c7".to_owned()], &Ok(())));
}

#[test]
fn what_nobody_asks_goes_after_as_long_as_it_was_to_stay() {
    let keep_alive =
        |seconds| ModelOptions { keep_alive: Some(KeepAlive(seconds)), ..ModelOptions::default() };
    let mut world = world(ROOM);
    world.load_with("a1", keep_alive(60.0));
    world.load_with("b1", keep_alive(-1.0));
    world.load("c1");
    world.pass(59.0);
    world.ask("a1");
    world.pass(100.0);
    world.answer("a1");
    world.pass(59.0);
    assert_eq!(world.loaded(), ["a1", "b1", "c1"], "it counts from the last answer");
    world.load("a1");
    world.pass(59.0);
    assert_eq!(world.loaded(), ["a1", "b1", "c1"], "whoever wants it loaded is about to ask");
    world.pass(2.0);
    assert_eq!((world.loaded(), world.evicted.len()), (vec!["b1".to_owned(), "c1".to_owned()], 0));
    // It may be said of one that is loaded, and a pin counts for more.
    world.load_with("b1", ModelOptions { pin: Some(true), ..keep_alive(1.0) });
    world.load_with("c1", keep_alive(0.0));
    world.pass(9.0);
    assert_eq!(world.loaded(), ["b1", "c1"], "whoever had it loaded may take a while to ask");
    world.ask("c1");
    world.answer("c1");
    world.pass(0.4);
    assert_eq!(world.loaded(), ["b1", "c1"]);
    world.pass(0.2);
    assert_eq!(world.loaded(), ["b1"]);
}

#[test]
fn a_new_configuration_says_at_once_how_long_models_stay() {
    let of = |model: &str, own: ModelOptions| Usual {
        models: [(model.to_owned(), own)].into(),
        ..Usual::default()
    };
    let pinned = ModelOptions { pin: Some(true), context_length: Some(64), ..ModelOptions::default() };
    let brief = ModelOptions { keep_alive: Some(KeepAlive(20.0)), ..ModelOptions::default() };
    let mut world = world(ROOM);
    for model in ["a4", "b4"] {
        world.load(model);
    }
    world.tell(Event::Configured(of("a4", pinned)));
    world.pass(60.0);
    let view = world.fleet.view();
    let options = view.models["a4"].options.clone().unwrap();
    assert_eq!((view.models["a4"].is_pinned, options.context_length), (true, None), "it is what it is");
    world.load("c4");
    assert_eq!(world.loaded(), ["a4", "c4"]);
    world.tell(Event::Configured(of("a4", brief)));
    world.pass(1.0);
    assert_eq!(world.loaded(), ["c4"]);
    let ticket = world.load("a4");
    assert_eq!(world.outcomes[&ticket], Ok(()));
}

#[test]
fn a_plan_says_what_a_load_would_come_to_and_changes_nothing() {
    let mut world = world(ROOM);
    world.load_with("a3", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.load("b3");
    let plan = |world: &mut World, model: &str| world.plan(model, ModelOptions::default());
    assert_eq!(plan(&mut world, "a3").verdict, Verdict::Loaded);
    let fits = plan(&mut world, "c2");
    assert_eq!(fits.verdict, Verdict::Fits);
    let need = Need {
        id: "host".into(),
        device: "host".into(),
        required_bytes: 2 * GIB,
        available_bytes: 2 * GIB,
        limit_bytes: 8 * GIB,
        foreign_bytes: 26 * GIB,
    };
    assert_eq!((fits.needs, fits.holders.len()), (vec![need], 2));
    assert_eq!(plan(&mut world, "c4").verdict, Verdict::AfterWaiting, "who was loaded just now may ask");
    world.pass(1.0);
    let planned = plan(&mut world, "c4");
    let leaver = Leaver { model_id: "b3".into(), idle_since: Some(Moment::default()), reload_seconds: 0.0 };
    assert_eq!((planned.verdict, planned.unload), (Verdict::AfterUnloading, vec![leaver]));
    let Verdict::Refused(fault) = plan(&mut world, "c6").verdict else { panic!("a3 goes for nobody") };
    assert_eq!(fault.message, "Insufficient VRAM: required 6GB, available 5GB");
    let planned = world.plan("a3", ModelOptions { threads: Some(1), ..ModelOptions::default() });
    let leaver = Leaver { model_id: "a3".into(), idle_since: Some(Moment::default()), reload_seconds: 0.0 };
    assert_eq!((planned.verdict, planned.unload), (Verdict::AfterUnloading, vec![leaver]), "to come back");
    world.ask("b3");
    assert_eq!(plan(&mut world, "c4").verdict, Verdict::AfterWaiting);
    let waiting = world.load("c4");
    assert_eq!(plan(&mut world, "c4").verdict, Verdict::AfterWaiting);
    assert_eq!(plan(&mut world, "d2").verdict, Verdict::AfterWaiting, "c4 has its room first");
    assert_eq!(
        (world.loaded(), world.outcomes.contains_key(&waiting)),
        (vec!["a3".into(), "b3".into()], false)
    );
}

#[test]
fn nobody_waits_for_ever() {
    let mut world = world(ROOM);
    world.load("a5");
    world.ask("a5");
    let ticket = world.load("b5");
    world.pass(119.0);
    assert!(!world.outcomes.contains_key(&ticket));
    world.pass(2.0);
    let fault = world.fault(ticket);
    assert_eq!(fault.code, ErrorCode::ModelLoading);
    assert!(fault.message.contains("has waited 120 s for memory that 'a5' hold and use"), "{fault}");
}

#[test]
fn without_a_wait_nobody_makes_room() {
    let mut world = world(Duration::ZERO);
    world.load("a5");
    world.pass(60.0);
    let ticket = world.load("b5");
    assert_eq!(world.fault(ticket).message, "Insufficient VRAM: required 5GB, available 3GB");
    assert_eq!((world.evicted.len(), world.loaded()), (0, vec!["a5".to_owned()]));
}

#[test]
fn what_fits_passes_what_does_not_where_that_takes_nothing_from_it() {
    let mut world = world(ROOM);
    world.load("a5");
    world.ask("a5");
    let first = world.load("b6");
    let small = world.load("c2");
    let large = world.load("d3");
    assert_eq!(world.outcomes[&small], Ok(()), "b6 and c2 go together");
    assert!(!world.outcomes.contains_key(&large) && !world.outcomes.contains_key(&first));
    assert_eq!(world.line(), ["b6", "d3"]);
    world.answer("a5");
    world.pass(1.0);
    assert_eq!((world.loaded(), &world.outcomes[&first]), (vec!["b6".to_owned(), "c2".to_owned()], &Ok(())));
}

#[test]
fn a_longer_context_is_made_where_the_model_is_and_others_make_room_for_it() {
    let mut world = world(ROOM);
    world.in_steps = true;
    world.load("a3");
    world.load("b3");
    let worker = world.worker("a3");
    let ticket = world.longer("a3", 300);
    assert_eq!((world.outcomes[&ticket].clone(), world.reserved()), (Ok(()), 8));
    world.ask("a3");
    let (equal, less, plain) = (world.longer("a3", 300), world.longer("a3", 7), world.load("a3"));
    for joined in [equal, less, plain] {
        assert_eq!(world.outcomes[&joined], Ok(()));
    }
    let ticket = world.longer("a3", 600);
    assert!(!world.outcomes.contains_key(&ticket), "b3 may be asked something");
    assert_eq!(world.line(), ["a3"]);
    assert_eq!(world.fleet.view().models["a3"].status, Status::Loaded);
    let waiting = world.load("c4");
    assert!(!world.outcomes.contains_key(&waiting));
    world.pass(1.0);
    assert_eq!((world.outcomes[&ticket].clone(), world.reserved()), (Ok(()), 8));
    assert_eq!((world.evicted.clone(), world.worker("a3")), (vec!["b3".to_owned()], worker));
    let (_, loaded) = world.fleet.view().models["a3"].loaded().cloned().unwrap();
    assert_eq!(loaded.facts.context_length, 600);
    let shorter = world.longer("a3", 300);
    assert_eq!(
        (world.outcomes[&shorter].clone(), world.reserved()),
        (Ok(()), 8),
        "nobody loses what they asked for"
    );
}

#[test]
fn a_context_that_cannot_be_leaves_the_model_as_it_is() {
    let mut world = world(ROOM);
    world.in_steps = true;
    world.load_with("b3", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.load("a3");
    let too_long = world.longer("a3", 400);
    assert_eq!(world.fault(too_long).message, "Insufficient VRAM: required 6GB, available 5GB");
    world.is_stiff = true;
    let broken = world.longer("a3", 200);
    assert_eq!(world.fault(broken).message, "no memory for that");
    assert_eq!((world.loaded(), world.reserved()), (vec!["a3".to_owned(), "b3".to_owned()], 6));
    world.is_stiff = false;
    let ticket = world.longer("a3", 300);
    assert_eq!((world.outcomes[&ticket].clone(), world.reserved()), (Ok(()), 8));
    let planned = world.plan("a3", ModelOptions { context_length: Some(300), ..ModelOptions::default() });
    assert_eq!(planned.verdict, Verdict::Loaded);
    let planned = world.plan("a3", ModelOptions { context_length: Some(301), ..ModelOptions::default() });
    assert_eq!(planned.verdict, Verdict::Fits, "what it has is no hindrance: {planned:?}");
    assert!(world.evicted.is_empty());
}

#[test]
fn whoever_waits_for_a_longer_context_hears_when_the_model_is_unloaded() {
    let mut world = world(ROOM);
    world.in_steps = true;
    world.load("a3");
    world.load("b5");
    world.ask("b5");
    let ticket = world.longer("a3", 200);
    assert!(!world.outcomes.contains_key(&ticket));
    let (unload, model_id) = (1000, "a3".to_owned());
    world.tell(Event::Unload { ticket: unload, model_id, timeout: Duration::from_secs(1) });
    assert_eq!(world.fault(ticket).code, ErrorCode::ShuttingDown);
    assert_eq!(world.loaded(), ["b5"]);
}

#[test]
fn a_load_that_is_given_up_is_planned_as_one_that_begins() {
    let mut world = world(ROOM);
    world.load("b5");
    world.ask("b5");
    world.load("a6");
    assert!(!world.fleet.view().models["a6"].is_leaving, "it waits for room");
    let event = Event::Unload { ticket: 1000, model_id: "a6".to_owned(), timeout: Duration::from_secs(1) };
    let _ = world.fleet.handle(world.now, event);
    assert!(world.fleet.view().models["a6"].is_leaving, "until its worker has ended");
    assert_eq!(world.plan("a6", ModelOptions::default()).verdict, Verdict::AfterWaiting);
}

#[test]
fn who_wants_another_option_has_the_model_loaded_anew_and_no_answer_is_cut() {
    let mut world = world(ROOM);
    let wishes = |threads: u32| ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    let pinned = ModelOptions { pin: Some(true), max_sequences: Some(9), ..wishes(1) };
    world.load_with("a5", pinned);
    let worker = world.worker("a5");
    world.ask("a5");
    let other = world.load_with("a5", wishes(2));
    let plain = world.load("a5");
    assert!(!world.outcomes.contains_key(&other) && !world.outcomes.contains_key(&plain), "it answers");
    assert_eq!(world.fleet.view().models["a5"].status, Status::Draining { is_retired: true });
    world.answer("a5");
    assert_eq!((&world.outcomes[&other], &world.outcomes[&plain]), (&Ok(()), &Ok(())));
    assert_ne!(world.worker("a5"), worker);
    let options = world.fleet.view().models["a5"].options.clone().unwrap();
    assert_eq!((options.threads, options.max_sequences, options.pin), (Some(2), Some(9), Some(true)));
    let same = world.load_with("a5", wishes(2));
    assert_eq!(world.outcomes[&same], Ok(()));
    let (first, second) = (world.worker("a5"), world.reserved());
    assert_eq!((first, second), (world.worker("a5"), 5), "which changes nothing");
}

#[test]
fn where_both_have_room_the_new_one_is_loaded_beside_the_old_which_answers_until_then() {
    let mut world = world(ROOM);
    let wishes = |threads: u32| ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    world.load_with("a3", wishes(1));
    world.load("b2");
    let old = world.worker("a3");
    world.ask("a3");
    let planned = world.plan("a3", wishes(2));
    assert_eq!((planned.verdict, planned.unload), (Verdict::Fits, vec![]));
    world.is_slow = true;
    let other = world.load_with("a3", wishes(2));
    let (plain, third) = (world.load("a3"), world.load_with("a3", wishes(3)));
    assert!(!world.outcomes.contains_key(&other));
    assert_eq!(world.outcomes[&plain], Ok(()), "it answers as before");
    assert_eq!(world.fault(third).code, ErrorCode::ModelLoadedDifferently);
    assert_eq!(world.serving("a3"), [old]);
    world.go_on();
    let new = world.serving("a3");
    assert_eq!((&world.outcomes[&other], new.len(), new.contains(&old)), (&Ok(()), 1, false));
    assert_eq!((world.reserved(), world.draining.contains(&old)), (8, true), "no answer is cut");
    world.draining.remove(&old);
    world.busy.remove(&old);
    world.tell(Event::Drained { worker: old });
    let serving = world.serving("a3");
    assert_eq!((world.reserved(), serving, world.evicted.len()), (5, new, 0));
}

#[test]
fn what_cannot_be_loaded_beside_the_old_leaves_that_alone() {
    let mut world = world(ROOM);
    world.load("a3");
    let old = world.worker("a3");
    world.broken = Some(ErrorCode::EngineFault);
    let other = world.load_with("a3", ModelOptions { threads: Some(2), ..ModelOptions::default() });
    assert_eq!(world.fault(other).message, "broken");
    assert_eq!(world.serving("a3"), [old]);
    assert_eq!((world.reserved(), world.plan("a3", ModelOptions::default()).verdict), (3, Verdict::Loaded));
    world.pass(60.0);
    assert_eq!(world.serving("a3"), [old]);
}

#[test]
fn what_is_said_of_a_model_that_is_being_loaded_anew_holds_for_old_and_new() {
    let mut world = world(ROOM);
    let wishes = |threads: u32| ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    let held = |world: &mut World| -> Vec<bool> {
        world.fleet.view().accounts[0]
            .holders
            .iter()
            .map(|holder| holder.kept_by == Some(KeptBy::Pin))
            .collect()
    };
    world.load_with("a3", wishes(1));
    world.is_slow = true;
    world.load_with("a3", wishes(2));
    let joins = world.load_with("a3", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    assert_eq!((held(&mut world), &world.outcomes[&joins]), (vec![true, true], &Ok(())));
    world.go_on();
    let options = world.fleet.view().models["a3"].options.clone().unwrap();
    assert_eq!((options.threads, options.pin, held(&mut world)), (Some(2), Some(true), vec![true]));
}

#[test]
fn a_context_that_is_short_beside_the_old_one_is_made_longer_once_that_has_gone() {
    let mut world = world_with_figures(ROOM);
    world.load_with("c4", ModelOptions { cache_tokens: Some(2048), ..ModelOptions::default() });
    world.load("a1");
    let (old, before) = (world.worker("a1"), world.size("a1").0);
    world.unload("c4");
    world.pass(6.0);
    let wishes = ModelOptions { threads: Some(2), ..ModelOptions::default() };
    assert_eq!(world.plan("a1", wishes.clone()).verdict, Verdict::Fits);
    let ticket = world.load_with("a1", wishes.clone());
    world.pass(6.0);
    assert_eq!(world.outcomes[&ticket], Ok(()));
    assert!(!world.serving("a1").contains(&old));
    let beside = world.size("a1").0;
    assert!(before <= beside && beside < 64 << 10, "{before} {beside}");
    world.pass(40.0);
    assert_eq!(world.size("a1").0, 112 << 10);
    // Now there is no room for both.
    let planned = world.plan("a1", ModelOptions { threads: Some(3), ..wishes });
    let gone: Vec<String> = planned.unload.into_iter().map(|leaver| leaver.model_id).collect();
    assert_eq!((planned.verdict, gone), (Verdict::AfterUnloading, vec!["a1".to_owned()]));
}

#[test]
fn what_cannot_be_loaded_anew_stays_or_comes_back_as_it_was() {
    let mut world = world(ROOM);
    let wishes = |threads: u32| ModelOptions { threads: Some(threads), ..ModelOptions::default() };
    world.load_with("b3", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.load_with("a4", wishes(1));
    let worker = world.worker("a4");
    world.ticket += 1;
    let (ticket, model_id) = (world.ticket, "a4".to_owned());
    let instead = Some(foreseen(takes("a6")));
    world.tell(Event::Load {
        ticket,
        model_id,
        wishes: wishes(2),
        format: None,
        instead,
        for_request: false,
        tokens: 0,
    });
    assert_eq!(world.fault(ticket).message, "Insufficient VRAM: required 6GB, available 5GB");
    assert_eq!(world.worker("a4"), worker, "for what has no room it does not go");
    world.ticket += 1;
    let (ticket, model_id) = (world.ticket, "a4".to_owned());
    world.tell(Event::Load {
        ticket,
        model_id,
        wishes: wishes(2),
        format: None,
        instead: None,
        for_request: false,
        tokens: 0,
    });
    assert_eq!(world.fault(ticket).code, ErrorCode::ModelLoadedDifferently, "nor for what nobody knows");
    world.broken = Some(ErrorCode::EngineFault);
    world.ask("a4");
    let (broken, plain) = (world.load_with("a4", wishes(2)), world.load("a4"));
    world.answer("a4");
    assert_eq!((world.fault(broken).message.as_str(), &world.outcomes[&plain]), ("broken", &Ok(())));
    let options = world.fleet.view().models["a4"].options.clone().unwrap();
    assert_eq!((options.threads, world.loaded()), (Some(1), vec!["a4".to_owned(), "b3".to_owned()]));
}

#[test]
fn what_was_wrong_with_the_order_is_not_the_model_s_state() {
    let mut world = world(ROOM);
    for (code, is_told) in [(ErrorCode::InvalidRequest, false), (ErrorCode::EngineFault, true)] {
        world.broken = Some(code);
        let ticket = world.load("a4");
        assert_eq!(world.fault(ticket).code, code);
        let status = world.fleet.view().models.get("a4").map(|model| model.status.clone());
        assert_eq!(matches!(status, Some(Status::Failed(_))), is_told, "{status:?}");
    }
}

#[test]
fn nobody_takes_the_place_of_a_model_before_the_request_has_come_that_it_was_loaded_for() {
    let mut world = world(ROOM);
    for is_loaded in [false, true] {
        world.ticket += 1;
        let (ticket, model_id, wishes) = (world.ticket, "a5".to_owned(), ModelOptions::default());
        let (format, instead, for_request) = (None, None, true);
        world.tell(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens: 0 });
        assert_eq!(world.outcomes[&ticket], Ok(()), "loaded before: {is_loaded}");
    }
    let other = world.load("b5");
    world.pass(9.0);
    assert_eq!(
        (world.loaded(), world.evicted.len()),
        (vec!["a5".to_owned()], 0),
        "the request is on its way"
    );
    world.ask("a5");
    world.answer("a5");
    world.pass(1.0);
    assert_eq!((world.loaded(), &world.outcomes[&other]), (vec!["b5".to_owned()], &Ok(())));
    world.ticket += 1;
    let (ticket, model_id, wishes) = (world.ticket, "a5".to_owned(), ModelOptions::default());
    let (format, instead, for_request) = (None, None, true);
    world.tell(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens: 0 });
    world.pass(1.0);
    let other = world.load("b5");
    world.pass(20.0);
    assert_eq!(world.outcomes[&other], Ok(()), "who never comes keeps nobody waiting for long");
}

#[test]
fn a_request_that_is_too_long_for_the_model_is_not_waited_for() {
    let mut world = world(ROOM);
    world.in_steps = true;
    world.load("a5");
    world.ask("a5");
    world.answer("a5");
    let too_long = world.too_long("a5", 1000);
    assert_eq!(world.outcomes[&too_long], Ok(()), "it is what it was");
    world.load("b5");
    world.pass(1.0);
    assert_eq!(world.evicted, ["a5"]);
}

#[test]
fn whoever_comes_in_a_short_pause_after_a_crash_waits_for_its_end() {
    let mut world = world(ROOM);
    world.load("a3");
    for pause in [1.0, 2.0] {
        world.crash("a3");
        let tickets = [world.load("a3"), world.load("a3")];
        world.pass(pause - 0.1);
        assert!(world.loaded().is_empty() && !tickets.iter().any(|it| world.outcomes.contains_key(it)));
        world.pass(0.2);
        assert_eq!(tickets.map(|ticket| world.outcomes[&ticket].clone()), [Ok(()), Ok(())]);
    }
    world.crash("a3");
    let ticket = world.load("a3");
    let fault = world.fault(ticket).clone();
    let expected = (ErrorCode::EngineCrashed, Some(r#"{"retry_after":4}"#));
    assert_eq!((fault.code, fault.details.as_deref()), expected);
    world.pass(2.1);
    let ticket = world.load("a3");
    assert!(!world.outcomes.contains_key(&ticket), "the rest is short");
    world.ticket += 1;
    let unload = world.ticket;
    world.tell(Event::Unload { ticket: unload, model_id: "a3".into(), timeout: Duration::ZERO });
    assert_eq!(world.fault(ticket).code, ErrorCode::ShuttingDown);
    world.pass(10.0);
    assert!(world.loaded().is_empty() && world.outcomes[&unload].is_ok(), "it stays unloaded");
}

#[test]
fn a_model_gets_what_is_free_and_gives_up_what_it_can_do_without() {
    let mut world = world_with_figures(ROOM);
    let planned = world.plan("a1", ModelOptions::default());
    let all = Shape { context_length: 112 << 10, max_sequences: 28, cache_tokens: 112 << 10 };
    assert_eq!((planned.verdict, planned.shape), (Verdict::Fits, Some(all)));
    world.load_dear("a1");
    assert_eq!((world.size("a1"), world.asked), ((112 << 10, 28), 1));
    assert_eq!(world.plan("b1", ModelOptions::default()).verdict, Verdict::AfterWaiting, "it may be asked");
    world.pass(1.0);
    let planned = world.plan("b1", ModelOptions::default());
    assert_eq!(
        (planned.verdict, planned.shrink),
        (Verdict::AfterShrinking, vec![("a1".to_owned(), 5 * GIB)])
    );
    assert_eq!(planned.shape.map(|shape| shape.context_length), Some(64 << 10));
    let ticket = world.load_dear("b1");
    assert_eq!(world.outcomes[&ticket], Ok(()));
    assert_eq!((world.size("a1"), world.size("b1")), ((32 << 10, 8), (64 << 10, 16)));
    world.pass(1.0);
    // Less than enough is left for it, and nobody goes for more who would be missed.
    let ticket = world.load_dear("c1");
    assert_eq!((&world.outcomes[&ticket], world.evicted.len()), (&Ok(()), 0));
    assert_eq!((world.size("b1"), world.size("c1")), ((32 << 10, 8), (16 << 10, 4)));
    world.pass(1.0);
    let ticket = world.load("d1");
    world.pass(6.0);
    assert_eq!((&world.outcomes[&ticket], world.evicted.clone()), (&Ok(()), vec!["a1".to_owned()]));
    assert_eq!(world.size("d1").0, 32 << 10);
}

/// Its limit is all that it lacks room for, and the figures of the device are nothing to that.
#[test]
fn whoever_gets_less_than_enough_in_any_case_does_not_wait_for_figures_of_what_has_gone() {
    let mut world = World { has_figures: true, has_no_gpu: true, in_steps: true, ..world(ROOM) };
    for model in ["a7", "b7", "a7"] {
        let ticket = world.load(model);
        assert_eq!((world.size(model).0, &world.outcomes[&ticket]), (8 << 10, &Ok(())));
        world.pass(1.0);
    }
    assert_eq!(world.evicted, ["a7", "b7"]);
}

#[test]
fn what_was_given_up_comes_back_once_nobody_needs_it_and_later_each_time() {
    let mut world = world_with_figures(ROOM);
    world.load("a1");
    let (all, enough) = ((112 << 10, 28), (32 << 10, 8));
    for rest in [60.0, 120.0, 240.0] {
        world.pass(1.0);
        world.load("b1");
        assert_eq!(world.size("a1"), enough);
        world.unload("b1");
        world.pass(rest - 1.0);
        assert_eq!(world.size("a1"), enough, "somebody may need it again");
        world.pass(2.0);
        assert_eq!((world.size("a1"), world.reserved()), (all, 8));
    }
    assert!(world.evicted.is_empty());
}

#[test]
fn nothing_comes_back_while_the_model_answers_or_another_has_the_room() {
    let mut world = world_with_figures(ROOM);
    world.load("a1");
    world.pass(1.0);
    world.load("b1");
    let enough = world.size("a1");
    world.pass(600.0);
    assert_eq!((world.size("a1"), world.size("b1").0), (enough, 64 << 10));
    world.unload("b1");
    world.ask("a1");
    world.pass(600.0);
    assert_eq!(world.size("a1"), enough, "it would have to read again what it answers");
    world.answer("a1");
    world.pass(29.0);
    assert_eq!(world.size("a1"), enough, "its client may go on");
    world.pass(2.0);
    assert_eq!(world.size("a1").0, 112 << 10);
    // A part of it is worth the while where it is twice what there is.
    world.pass(1.0);
    world.load("b1");
    world.pass(1.0);
    let ticket = world.load_with("c1", ModelOptions { cache_tokens: Some(8192), ..ModelOptions::default() });
    assert_eq!((&world.outcomes[&ticket], world.evicted.clone()), (&Ok(()), vec![]));
    world.unload("b1");
    world.pass(600.0);
    assert_eq!(world.size("a1").0, 88 << 10);
}

#[test]
fn a_request_that_is_too_long_for_what_is_left_has_the_rest_back_at_once() {
    let mut world = world_with_figures(ROOM);
    world.load("a1");
    world.pass(1.0);
    world.load("b1");
    world.ask("a1");
    let enough = world.size("a1");
    let ticket = world.too_long("a1", 50_000);
    assert_eq!((world.size("a1"), &world.outcomes[&ticket]), (enough, &Ok(())), "another has the room");
    world.unload("b1");
    world.pass(6.0);
    for (tokens, size) in [(200_000, enough.0), (50_000, 112 << 10)] {
        let ticket = world.too_long("a1", tokens);
        assert_eq!((world.size("a1").0, &world.outcomes[&ticket]), (size, &Ok(())));
    }
}

#[test]
fn who_answers_keeps_its_context_and_who_is_pinned_shrinks_like_the_others() {
    let mut world = world_with_figures(ROOM);
    world.load_with("a1", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.ask("a1");
    let ticket = world.load("b1");
    world.pass(40.0);
    assert!(!world.outcomes.contains_key(&ticket));
    world.answer("a1");
    world.pass(1.0);
    assert_eq!((world.loaded().len(), &world.outcomes[&ticket]), (2, &Ok(())));
    let named = ModelOptions { cache_tokens: Some(65_536), ..ModelOptions::default() };
    let mut world = world_with_figures(ROOM);
    world.load_with("a1", ModelOptions { pin: Some(true), ..named });
    world.pass(1.0);
    let ticket = world.load("b4");
    let fault = world.fault(ticket);
    assert_eq!(
        fault.message, "Insufficient VRAM: required 4.2GB, available 3GB",
        "what was asked for is kept"
    );
}

#[test]
fn whoever_joins_by_name_loses_nothing_of_what_they_named() {
    let mut world = world_with_figures(ROOM);
    world.load("a1");
    let joined = world.longer("a1", 64 << 10);
    assert_eq!(world.outcomes[&joined], Ok(()));
    assert_eq!(world.size("a1").0, 112 << 10);
    world.pass(1.0);
    world.load("b1");
    assert_eq!((world.size("a1").0, world.size("b1").0), (64 << 10, 32 << 10));
}

#[test]
fn a_context_that_does_not_become_smaller_is_not_asked_again() {
    let mut world = world_with_figures(ROOM);
    world.is_stiff = true;
    world.load("a1");
    world.pass(1.0);
    let ticket = world.load("b1");
    world.pass(6.0);
    assert_eq!((&world.outcomes[&ticket], world.evicted.clone()), (&Ok(()), vec!["a1".to_owned()]));
}

#[test]
fn the_same_again_has_the_same_context_and_a_smaller_one_where_less_is_free() {
    let mut world = world_with_figures(ROOM);
    let unload = |world: &mut World, model: &str| {
        world.ticket += 1;
        let (ticket, model_id, timeout) = (world.ticket, model.to_owned(), Duration::ZERO);
        world.tell(Event::Unload { ticket, model_id, timeout });
        world.pass(10.0);
    };
    world.load("a1");
    let (size, asked) = (world.size("a1"), world.asked);
    unload(&mut world, "a1");
    world.load("a1");
    assert_eq!((world.size("a1"), world.asked), (size, asked), "its engine is not asked again");
    unload(&mut world, "a1");
    world.load_with("b1", ModelOptions { cache_tokens: Some(65_536), ..ModelOptions::default() });
    world.pass(1.0);
    let ticket = world.load("a1");
    assert_eq!((world.size("a1"), &world.outcomes[&ticket]), ((32 << 10, 8), &Ok(())));
    assert!(world.asked > asked);
}

#[test]
fn where_nobody_makes_room_half_of_it_stays_for_others() {
    let mut world = world_with_figures(Duration::ZERO);
    world.load("a1");
    let ticket = world.load("b1");
    assert_eq!((world.size("a1").0, &world.outcomes[&ticket]), (56 << 10, &Ok(())));
}

#[test]
fn whoever_waits_hears_for_how_long_and_who_would_wait_too_long_at_once() {
    let mut world = world(ROOM);
    for model in ["b5", "c5"] {
        world.load_slowly(model, 55.0);
        world.unload(model);
    }
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    world.load("a5");
    world.ask("a5");
    world.pass(10.0);
    let first = world.load("b5");
    assert_eq!(world.expected(), [("b5".into(), names(&["a5"]), 20.0)], "what is left of a turn of 30 s");
    world.pass(5.0);
    let planned = world.plan("c5", ModelOptions::default());
    let second = world.load("c5");
    // It goes once b5 has been loaded, and half a second later.
    let expected = [("b5".into(), names(&["a5"]), 15.0), ("c5".into(), names(&["b5"]), 70.5)];
    assert_eq!(world.expected(), expected);
    assert_eq!(planned.verdict, Verdict::AfterWaiting);
    let from = world.now + Duration::from_millis(70_500);
    assert_eq!(planned.room_from, Some(from), "a plan says the same");
    let planned = world.plan("d5", ModelOptions::default());
    let third = world.load("d5");
    let fault = world.fault(third).clone();
    assert_eq!(
        fault.message,
        "Model 'd5' would wait for about 126 s until 'c5' has made room, with 2 before it in line, and a load \
         waits for 120 s at most. Try again later"
    );
    let details: Value = serde_json::from_str(fault.details.as_ref().unwrap()).unwrap();
    assert_eq!((fault.code, &details["retry_after"]), (ErrorCode::ModelLoading, &json!(126)));
    assert_eq!((&details["place"], world.kept_by(third)), (&json!(3), vec![("a5".into(), json!("busy"))]));
    assert_eq!(planned.verdict, Verdict::Refused(fault));
    assert_eq!(world.line(), ["b5", "c5"], "the others wait as before");
    world.answer("a5");
    world.pass(1.0);
    assert_eq!(world.outcomes[&first], Ok(()));
    world.pass(3.0);
    assert_eq!(
        (world.line().len(), &world.outcomes[&second]),
        (0, &Ok(())),
        "sooner than was to be expected"
    );
}

#[test]
fn whoever_waits_for_loads_under_way_hears_when_these_are_done() {
    let mut world = world(ROOM);
    world.load_slowly("a5", 40.0);
    world.unload("a5");
    world.is_slow = true;
    world.load("a5");
    world.pass(30.0);
    world.load("b5");
    assert_eq!(world.expected(), [("b5".into(), vec!["a5".into()], 10.5)]);
    world.pass(20.0);
    assert_eq!(world.fleet.view().line[0].expected, world.now, "it takes longer than it should");
    world.load_with("p3", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.go_on();
    world.pass(1.0);
    assert_eq!(world.loaded(), ["b5", "p3"]);
}

#[test]
fn who_holds_memory_says_what_keeps_it() {
    let mut world = world(ROOM);
    world.load_with("a2", ModelOptions { pin: Some(true), ..ModelOptions::default() });
    world.load("b1");
    world.load("c1");
    world.ask("c1");
    world.is_slow = true;
    world.load("d1");
    let kept = |world: &mut World| {
        let planned = world.plan("e7", ModelOptions::default());
        let of = |it: Holder| it.kept_by;
        let holders: Vec<Option<KeptBy>> = planned.holders.into_iter().map(of).collect();
        (matches!(planned.verdict, Verdict::Refused(_)), holders)
    };
    let all = |residency| vec![Some(KeptBy::Pin), residency, Some(KeptBy::Busy), Some(KeptBy::Loading)];
    assert_eq!(kept(&mut world), (true, all(Some(KeptBy::Residency))), "b1 was loaded just now");
    world.pass(1.0);
    assert_eq!(kept(&mut world), (true, all(None)), "b1 may go");
    let view = world.fleet.view();
    let left = |model: &str| {
        let kept = view.models[model].kept.unwrap().at(world.now)?;
        Some((kept.by, kept.left(world.now).map(|left| left.as_secs_f64())))
    };
    assert_eq!((left("a2"), left("b1")), (Some((KeptBy::Pin, None)), None));
    assert_eq!((left("c1"), left("d1")), (Some((KeptBy::Busy, Some(29.0))), Some((KeptBy::Loading, None))));
    let ticket = world.load("e7");
    let said: Vec<Value> = world.kept_by(ticket).into_iter().map(|(_, kept_by)| kept_by).collect();
    assert_eq!(said, [json!("pin"), Value::Null, json!("busy"), json!("loading")]);
    assert_eq!(world.fault(ticket).message, "Insufficient VRAM: required 7GB, available 6GB");
    // Its turn is over: it is asked to go, and goes once it has answered.
    world.go_on();
    world.pass(40.0);
    world.load("f6");
    let view = world.fleet.view();
    let kept = view.models["c1"].kept.unwrap().at(world.now).unwrap();
    assert_eq!((kept.by, kept.left(world.now)), (KeptBy::Busy, None));
}

#[test]
fn for_enough_those_go_that_are_hardly_missed_and_nobody_for_more() {
    let mut world = world_with_figures(ROOM);
    world.load_dear("a1");
    world.pass(1.0);
    world.load("b1");
    world.pass(1.0);
    assert_eq!((world.size("a1").0, world.size("b1").0), (32 << 10, 64 << 10));
    // For the least it would do that b1 becomes smaller. Then c1 would have half of what is enough.
    let planned = world.plan("c1", ModelOptions::default());
    let gone: Vec<&str> = planned.unload.iter().map(|leaver| &*leaver.model_id).collect();
    let length = planned.shape.map(|shape| shape.context_length);
    assert_eq!(
        (&planned.verdict, gone, length),
        (&Verdict::AfterUnloading, vec!["b1"], Some(64 << 10)),
        "{planned:?}"
    );
    assert_eq!(planned.shrink, [], "who goes does not become smaller before");
    let ticket = world.load("c1");
    world.pass(6.0);
    assert_eq!((&world.outcomes[&ticket], world.evicted.clone()), (&Ok(()), vec!["b1".to_owned()]));
    assert_eq!((world.size("a1").0, world.size("c1").0), (32 << 10, 64 << 10));
    // What is enough is no longer than what was asked for.
    let short =
        ModelOptions { context_length: Some(2048), max_sequences: Some(1), ..ModelOptions::default() };
    let ticket = world.load_with("d1", short);
    world.pass(6.0);
    assert_eq!((&world.outcomes[&ticket], world.evicted.len()), (&Ok(()), 1));
    assert_eq!((world.size("c1").0, world.size("d1")), (32 << 10, (2048, 1)));
}

#[test]
fn nobody_goes_for_a_context_that_would_still_be_too_short() {
    let mut world = world_with_figures(ROOM);
    let of = |cells| ModelOptions { cache_tokens: Some(cells), ..ModelOptions::default() };
    world.load_with("p1", ModelOptions { pin: Some(true), ..of(68 << 10) });
    world.load_with("a1", of(4096));
    world.pass(1.0);
    // Half a GiB is free for its cache. With a1 gone there would be 1.75, where two are enough.
    let ticket = world.load("b1");
    world.pass(6.0);
    assert_eq!((&world.outcomes[&ticket], world.evicted.len()), (&Ok(()), 0));
    assert_eq!(world.size("b1").0, 8 << 10);
}

#[test]
fn where_others_take_too_much_of_a_device_who_answers_nothing_gives_some_back() {
    let mut world = world_with_figures(ROOM);
    let pinned = ModelOptions { pin: Some(true), cache_tokens: Some(16 << 10), ..ModelOptions::default() };
    world.load_with("p1", pinned);
    world.load("a1");
    world.ask("a1");
    assert_eq!(world.size("a1").0, 80 << 10);
    // Less than half of the 1.28 GiB that are to be left to others.
    world.foreign = 32 * GIB - GIB / 2;
    world.watch(10);
    assert_eq!(world.pressure, [] as [&str; 0], "who answers stays as it is");
    world.answer("a1");
    world.foreign = 0;
    world.watch(4);
    world.foreign = 32 * GIB - GIB / 2;
    world.watch(3);
    assert_eq!((world.pressure.len(), world.size("a1").0), (0, 80 << 10), "it may pass");
    world.watch(1);
    let words = "0.5GB of GPU are free, and 1.3GB are to be left to others, who take more";
    assert_eq!(world.pressure, [format!("'a1' gets a smaller context: {words}")]);
    assert_eq!((world.size("a1").0, world.loaded()), (32 << 10, vec!["a1".into(), "p1".into()]));
    world.watch(3);
    assert_eq!(world.pressure[1..], [format!("'a1' goes: {words}")]);
    assert_eq!(world.loaded(), ["p1"]);
    world.watch(20);
    assert_eq!((world.pressure.len(), world.loaded()), (2, vec!["p1".to_owned()]));
    assert!(world.evicted.is_empty());
}

#[test]
fn under_pressure_nobody_goes_who_is_missed_and_nobody_in_vain() {
    let mut world = world(ROOM);
    world.load_dear("a2");
    for model in ["b1", "c3", "d2"] {
        world.load(model);
        world.pass(1.0);
    }
    // 6.4 GiB of the host are to be left to others; with c3 gone as well as b1 there are more than these.
    world.foreign = 32 * GIB - 3 * GIB;
    world.watch(4);
    assert_eq!((world.loaded(), world.pressure.len()), (vec!["a2".to_owned(), "d2".to_owned()], 2));
    world.watch(10);
    assert_eq!((world.loaded(), world.pressure.len()), (vec!["a2".to_owned()], 3), "{:?}", world.pressure);
}

#[test]
fn whoever_asks_a_model_that_is_being_unloaded_has_it_loaded_anew() {
    let mut world = world(ROOM);
    world.load("a3");
    world.ask("a3");
    let (ticket, model_id, timeout) = (1000, "a3".to_owned(), Duration::from_secs(20));
    world.tell(Event::Unload { ticket, model_id, timeout });
    let view = world.fleet.view();
    let fault = view.ready("a3", world.now).unwrap_err();
    assert_eq!((fault.code, fault.details), (ErrorCode::ModelLoading, None), "a load would help");
    assert!(!world.outcomes.contains_key(&ticket), "its answer goes on");
    let again = world.load("a3");
    assert!(!world.outcomes.contains_key(&again));
    world.answer("a3");
    assert_eq!((&world.outcomes[&ticket], &world.outcomes[&again]), (&Ok(()), &Ok(())));
    assert!(world.fleet.view().ready("a3", world.now).is_ok());
}
