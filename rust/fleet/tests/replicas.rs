//! On which GPUs models lie, those with several workers too, in a world in which all goes well.
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
    memory::{Estimate, Figures, GpuAddress, MemoryUse},
    options::{DeviceName, Devices, ModelOptions},
};
use llm_node_fleet::{
    ChosenEngine, Deadlines, Device, DeviceKind, DeviceState, Effect, Event, Fleet, Foreseen, FoundModel,
    LoadKey, Moment, Reading, Setup, Status, Ticket, Usual, Verdict, Won, WorkerId,
};
use support::{Play, death, device, foreseen};

const GIB: u64 = 1 << 30;

/// A fleet with some GPUs of 8 GiB. The figure in a model's name is what it takes, else that is 5; of several GPUs each
/// an equal part.
struct World {
    fleet: Fleet,
    gpus: u32,
    now: Moment,
    places: BTreeMap<WorkerId, Vec<GpuAddress>>,
    models: BTreeMap<WorkerId, String>,
    /// Those that take memory.
    loaded: BTreeSet<WorkerId>,
    outcomes: BTreeMap<Ticket, Result<(), Fault>>,
    /// So few of "m" have answered at some time.
    least: Option<usize>,
    /// The next worker cannot load.
    is_broken: bool,
    /// Its driver has given this one up.
    lost: Option<u32>,
}

impl Play for World {
    fn clock(&mut self) -> (&mut Fleet, &mut Moment) {
        (&mut self.fleet, &mut self.now)
    }

    fn reading(&self) -> Event {
        let taken = |gpu| {
            let uses = self.loaded.iter().flat_map(|worker| self.takes(*worker));
            uses.filter(|use_| use_.bus_id == Some(bus_id(gpu))).map(|use_| use_.weights).sum()
        };
        let gpu = |index: u32| Device {
            bus_id: Some(bus_id(index)),
            state: if self.lost == Some(index) { DeviceState::Lost } else { DeviceState::Ok },
            ..device(DeviceKind::Gpu, index, 8 * GIB, (8 * GIB).saturating_sub(taken(index)))
        };
        let host = device(DeviceKind::Host, 0, 8 * GIB, (8 * GIB).saturating_sub(taken(0)));
        let devices = (0..self.gpus).map(gpu).chain([host]).collect();
        Event::Reading(Reading { began: self.now, devices, is_whole: true })
    }

    fn before(&mut self, event: &Event) {
        if let Some(least) = self.least {
            self.least = Some(self.serving("m").len().min(least));
        }
        if let Event::Died { worker, .. } = event {
            self.loaded.remove(worker);
        }
    }

    fn carry_out(&mut self, effect: Effect, ahead: &mut VecDeque<Event>) {
        match effect {
            Effect::Find { worker, model_id, .. } => {
                self.models.insert(worker, model_id.clone());
                let found = FoundModel {
                    engine: ChosenEngine::default(),
                    size_bytes: GIB,
                    format: String::new(),
                    architecture: None,
                    quantization: None,
                    key: LoadKey { build: String::new(), model: model_id },
                    known: None,
                };
                ahead.push_back(Event::Found { worker, found: Ok(found), files: Vec::new() });
            }
            Effect::Spawn { worker, .. } if self.is_broken => {
                let fault = Fault::new(ErrorCode::Internal, "broken");
                ahead.push_back(Event::NotStarted { worker, fault });
            }
            Effect::Spawn { worker, place, .. } => {
                self.places.insert(worker, place);
                ahead.push_back(Event::Started { worker, pid: worker as u32 });
                let estimate = Estimate { uses: Some(self.takes(worker)), figures: Figures::default() };
                ahead.push_back(Event::Estimated { worker, estimate });
            }
            Effect::Proceed { worker, .. } => {
                self.loaded.insert(worker);
                let source = "batch".to_owned();
                let (memory, context_length, max_sequences) = (self.takes(worker), 100, 1);
                let facts =
                    ModelFacts { memory, context_length, max_sequences, source, ..ModelFacts::default() };
                ahead.push_back(Event::Ready { worker, facts });
            }
            Effect::Size { worker, .. } => {
                let uses = Ok(Some(self.takes(worker)));
                ahead.push_back(Event::Sized { worker, uses });
            }
            Effect::Reshape { worker, sizing } => {
                let context_length = sizing.size.context_length.unwrap();
                let (memory, source) = (self.takes(worker), "batch".to_owned());
                let facts = Ok(ModelFacts { memory, context_length, source, ..ModelFacts::default() });
                ahead.push_back(Event::Reshaped { worker, facts });
            }
            Effect::Drain { worker } => ahead.push_back(Event::Drained { worker }),
            Effect::Stop { worker } | Effect::Kill { worker } => {
                ahead.push_back(Event::Died { worker, death: death(""), is_known: false });
            }
            Effect::Resolve { ticket, outcome } => drop(self.outcomes.insert(ticket, outcome.map(drop))),
            _ => {}
        }
    }
}

impl World {
    fn new(gpus: u32) -> Self {
        let seconds = Duration::from_secs;
        let deadlines = Deadlines::new(seconds(30), seconds(60), seconds(120));
        let fleet = Fleet::new(deadlines, Usual::default(), gpus == 0, None);
        let mut world = Self {
            fleet,
            gpus,
            now: Moment::default(),
            places: BTreeMap::new(),
            models: BTreeMap::new(),
            loaded: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            least: None,
            is_broken: false,
            lost: None,
        };
        world.read();
        world
    }

    fn load(&mut self, ticket: Ticket, model: &str, replicas: u32) -> Result<(), Fault> {
        self.load_with(ticket, model, replicated(replicas))
    }

    fn load_with(&mut self, ticket: Ticket, model: &str, wishes: ModelOptions) -> Result<(), Fault> {
        let uses = MemoryUse { bus_id: Some(bus_id(0)), weights: size(model), ..MemoryUse::default() };
        let (model_id, instead) = (model.to_owned(), Some(foreseen(uses)));
        let (format, for_request, tokens) = (None, false, 0);
        self.read();
        self.tell(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens });
        self.pass(20.0);
        self.outcomes[&ticket].clone()
    }

    fn crash(&mut self, worker: WorkerId) {
        self.tell(Event::Died { worker, death: death(""), is_known: false });
    }

    /// On its GPUs, or on the host.
    fn takes(&self, worker: WorkerId) -> Vec<MemoryUse> {
        let (place, all) = (&self.places[&worker], size(&self.models[&worker]));
        let weights = all / place.len().max(1) as u64;
        let on = |bus_id| MemoryUse { is_host: self.gpus == 0, bus_id, weights, ..MemoryUse::default() };
        if place.is_empty() {
            return vec![on(None)];
        }
        place.iter().map(|gpu| on(gpu.bus_id.clone())).collect()
    }

    /// The workers that answer, with the number of the GPU of each.
    fn serving(&mut self, model: &str) -> BTreeMap<WorkerId, Option<u32>> {
        let workers = self.fleet.view().models.get(model).map(|it| it.workers.clone()).unwrap_or_default();
        let serving = workers.into_iter().filter(|worker| worker.status == Status::Loaded);
        serving.map(|it| (it.id, self.places[&it.id].first().map(|place| place.index))).collect()
    }

    /// Those of its only worker.
    fn lies_on(&mut self, model: &str) -> Vec<u32> {
        let workers: Vec<WorkerId> = self.serving(model).into_keys().collect();
        let [worker] = workers[..] else { return Vec::new() };
        self.places[&worker].iter().map(|gpu| gpu.index).collect()
    }

    fn gpus_of(&mut self, model: &str) -> Vec<Option<u32>> {
        let mut gpus: Vec<_> = self.serving(model).into_values().collect();
        gpus.sort_unstable();
        gpus
    }
}

fn replicated(replicas: u32) -> ModelOptions {
    ModelOptions { replicas: Some(replicas), ..ModelOptions::default() }
}

/// In bytes.
fn size(model: &str) -> u64 {
    model.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(5) * GIB
}

fn bus_id(gpu: u32) -> String {
    format!("0000:0{}:00.0", gpu + 1)
}

#[test]
fn each_worker_has_a_gpu_of_its_own_and_one_that_dies_is_replaced() {
    let mut world = World::new(3);
    assert_eq!(world.load(1, "m", 2), Ok(()));
    let before = world.serving("m");
    assert_eq!(before.len(), 2);
    assert_eq!(world.gpus_of("m"), [Some(0), Some(1)]);
    let dead = *before.keys().next().unwrap();
    world.crash(dead);
    assert_eq!(
        (world.serving("m").len(), world.fleet.view().models["m"].status.clone()),
        (1, Status::Loaded)
    );
    assert_eq!(world.load(2, "m", 2), Ok(()), "whoever asks is served by the other");
    world.pass(3.0);
    let after = world.serving("m");
    assert!(after.len() == 2 && !after.contains_key(&dead));
    assert_eq!(world.gpus_of("m"), [Some(0), Some(1)], "on the GPU that is free");
    // Where all have died, the model cools as any.
    for worker in after.into_keys() {
        world.crash(worker);
    }
    assert!(matches!(world.fleet.view().models["m"].status, Status::Cooling { .. }));
    world.pass(100.0);
    assert!(world.serving("m").is_empty(), "nobody asks for it");
}

#[test]
fn what_is_asked_for_must_be_there() {
    for (gpus, replicas, words) in [
        (2, 3, "replicas = 3 needs as many GPUs, and this node has 2"),
        (
            0,
            2,
            "replicas = 2 needs as many GPUs, and this node computes on the CPU, all of which one worker uses",
        ),
    ] {
        let mut world = World::new(gpus);
        let fault = world.load(1, "m", replicas).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("replicas")));
        assert!(fault.message.contains(words), "{}", fault.message);
        assert_eq!(world.load(2, "m", 1), Ok(()));
        assert!(world.load(3, "m", replicas).is_err(), "it goes for nothing that cannot be");
        assert_eq!((world.serving("m").len(), world.gpus_of("m")), (1, vec![(gpus > 0).then_some(0)]));
    }
}

#[test]
fn a_longer_context_is_made_in_each_of_them_and_another_number_is_a_load_anew() {
    let mut world = World::new(2);
    assert_eq!(world.load(1, "m", 2), Ok(()));
    let before = world.serving("m");
    let wishes = ModelOptions { context_length: Some(300), ..ModelOptions::default() };
    let model_id = "m".to_owned();
    world.tell(Event::Load {
        ticket: 2,
        model_id,
        wishes,
        format: None,
        instead: None,
        for_request: false,
        tokens: 0,
    });
    world.pass(20.0);
    assert_eq!((world.outcomes[&2].clone(), world.serving("m")), (Ok(()), before));
    for worker in &world.fleet.view().models["m"].workers {
        assert_eq!(worker.loaded.as_ref().unwrap().1.facts.context_length, 300);
    }
    assert_eq!(world.load(3, "m", 1), Ok(()));
    assert_eq!(world.gpus_of("m"), [Some(0)]);
    assert_eq!(world.load(4, "m", 2), Ok(()));
    assert_eq!(world.gpus_of("m"), [Some(0), Some(1)]);
    world.tell(Event::Unload { ticket: 5, model_id: "m".into(), timeout: Duration::from_secs(1) });
    assert_eq!((world.outcomes[&5].clone(), world.serving("m").len()), (Ok(()), 0));
    assert!(world.fleet.view().accounts.iter().all(|account| account.reserved_bytes == 0));
}

#[test]
fn one_that_cannot_be_loaded_leaves_the_others_alone_and_is_tried_again() {
    let mut world = World::new(2);
    assert_eq!(world.load(1, "m", 2), Ok(()));
    let dead = *world.serving("m").keys().next().unwrap();
    world.is_broken = true;
    world.crash(dead);
    world.pass(30.0);
    assert_eq!(world.serving("m").len(), 1);
    world.is_broken = false;
    world.pass(60.0);
    assert_eq!(world.gpus_of("m"), [Some(0), Some(1)]);
}

#[test]
fn a_model_makes_room_with_all_its_workers() {
    let mut world = World::new(2);
    assert_eq!(world.load(1, "m", 2), Ok(()));
    assert_eq!(world.load(2, "n", 1), Ok(()));
    assert_eq!((world.serving("m").len(), world.gpus_of("n")), (0, vec![Some(0)]));
    assert_eq!(world.load(3, "m", 2), Ok(()));
    assert_eq!((world.serving("n").len(), world.gpus_of("m")), (0, vec![Some(0), Some(1)]));
}

/// The models' workers are 5 GiB: two of them have no room on one GPU.
#[test]
fn of_several_workers_one_is_replaced_after_the_other_and_one_always_answers() {
    for gpus in [2, 3] {
        let mut world = World::new(gpus);
        assert_eq!(world.load(1, "m", 2), Ok(()));
        let before = world.serving("m");
        world.least = Some(usize::MAX);
        let wishes = ModelOptions { threads: Some(2), ..ModelOptions::default() };
        let uses = MemoryUse { bus_id: Some(bus_id(0)), weights: 5 * GIB, ..MemoryUse::default() };
        let (model_id, instead) = ("m".to_owned(), Some(foreseen(uses)));
        let (format, for_request, tokens) = (None, false, 0);
        world.tell(Event::Load { ticket: 2, model_id, wishes, format, instead, for_request, tokens });
        world.pass(60.0);
        let after = world.serving("m");
        assert_eq!((world.outcomes[&2].clone(), after.len()), (Ok(()), 2));
        assert!(after.keys().all(|worker| !before.contains_key(worker)));
        // With a GPU to spare the new one comes first.
        assert_eq!(world.least, Some(gpus as usize - 1));
        let taken: u64 = world.fleet.view().accounts.iter().map(|account| account.reserved_bytes).sum();
        assert_eq!(taken, 10 * GIB);
    }
}

#[test]
fn a_model_can_be_unloaded_between_its_old_worker_and_the_next() {
    let mut world = World::new(1);
    world.load(1, "m5", 1).unwrap();
    let uses = MemoryUse { bus_id: Some(bus_id(0)), weights: size("m5"), ..MemoryUse::default() };
    let wishes = ModelOptions { threads: Some(2), ..ModelOptions::default() };
    let (model_id, format, instead) = ("m5".to_owned(), None, Some(foreseen(uses)));
    // What the old one had does not show as free before the next reading.
    let (ticket, for_request, tokens) = (2, false, 0);
    world.tell(Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens });
    assert!(world.serving("m5").is_empty() && !world.outcomes.contains_key(&2));
    world.tell(Event::Unload { ticket: 3, model_id: "m5".to_owned(), timeout: Duration::ZERO });
    assert_eq!(world.outcomes[&2].as_ref().unwrap_err().code, ErrorCode::ShuttingDown);
    assert_eq!(world.outcomes[&3], Ok(()));
    world.pass(20.0);
    assert!(world.serving("m5").is_empty());
}

#[test]
fn a_plan_of_several_workers_is_of_all_of_them() {
    let mut world = World::new(2);
    for is_loaded in [false, true] {
        let setup = Setup::new("m", replicated(2), &Usual::default());
        let uses = MemoryUse { bus_id: Some(bus_id(0)), weights: 5 * GIB, ..MemoryUse::default() };
        let foreseen = Foreseen { memory: vec![uses], setup: Some(Box::new(setup)), ..Foreseen::default() };
        let (ticket, model_id, wishes, foreseen) = (9, "m".to_owned(), replicated(2), Some(foreseen));
        let mut effects = world.fleet.handle(world.now, Event::Plan { ticket, model_id, wishes, foreseen });
        let Some(Effect::Resolve { outcome: Ok(Won::Planned(planned)), .. }) = effects.pop() else {
            panic!()
        };
        let expected = if is_loaded { Verdict::Loaded } else { Verdict::Fits };
        let needs: Vec<_> = planned.needs.iter().map(|need| (&*need.device, need.required_bytes)).collect();
        assert_eq!((planned.verdict, needs), (expected, vec![("Gpu 0", 5 * GIB), ("Gpu 1", 5 * GIB)]));
        assert_eq!(world.load(1, "m", 2), Ok(()));
    }
}

#[test]
fn each_model_has_a_gpu_and_what_fits_on_none_lies_on_as_few_as_hold_it() {
    let mut world = World::new(4);
    for (ticket, model) in ["a5", "b5", "c3", "d2"].into_iter().enumerate() {
        assert_eq!(world.load(ticket as Ticket, model, 1), Ok(()));
    }
    assert_eq!(["a5", "b5", "c3", "d2"].map(|model| world.lies_on(model)), [[0], [1], [2], [3]]);
    // Nobody goes where there is room, and nobody is divided who need not be.
    assert_eq!((world.load(4, "e4", 1), world.lies_on("e4")), (Ok(()), vec![3]));
    assert_eq!((world.load(5, "f7", 1), world.lies_on("f7").len()), (Ok(()), 1));
    // By its files it fits on one; its engine says otherwise.
    assert_eq!((world.load(6, "g13", 1), world.lies_on("g13").len()), (Ok(()), 2));
    assert_eq!((world.load(7, "h18", 1), world.lies_on("h18").len()), (Ok(()), 3));
    let fault = world.load(8, "i40", 1).unwrap_err();
    assert_eq!(fault.message, "Insufficient VRAM: required 42GB, available 31GB");
    assert_eq!(world.lies_on("h18").len(), 3, "nobody goes for nothing");
}

#[test]
fn gpus_are_named_or_counted_and_another_place_is_a_load_anew() {
    let mut world = World::new(3);
    let wishes = |devices| ModelOptions { devices: Some(devices), ..ModelOptions::default() };
    let named = |numbers: &[u32]| Devices::Named(numbers.iter().map(|it| DeviceName::Number(*it)).collect());
    assert_eq!(world.load_with(1, "m", wishes(named(&[2]))), Ok(()));
    assert_eq!(world.lies_on("m"), [2]);
    let before = world.serving("m");
    for (ticket, devices) in [(2, Devices::Count(1)), (3, named(&[2]))] {
        assert_eq!(world.load_with(ticket, "m", wishes(devices)), Ok(()));
    }
    assert_eq!(world.serving("m"), before, "it lies there");
    assert_eq!(world.load_with(4, "m", wishes(Devices::Count(2))), Ok(()));
    assert_eq!(world.lies_on("m").len(), 2);
    assert_eq!(world.load_with(5, "m", wishes(named(&[1, 2]))), Ok(()));
    assert_eq!(world.lies_on("m"), [1, 2]);
    for (ticket, devices) in [Devices::Count(4), named(&[7]), named(&[1, 1])].into_iter().enumerate() {
        let fault = world.load_with(6 + ticket as Ticket, "m", wishes(devices)).unwrap_err();
        assert_eq!((fault.code, fault.param.as_deref()), (ErrorCode::InvalidRequest, Some("devices")));
    }
    assert_eq!(world.lies_on("m"), [1, 2]);
    // Two workers share them out.
    let wishes = ModelOptions { replicas: Some(2), ..wishes(named(&[0, 2])) };
    assert_eq!((world.load_with(9, "n2", wishes), world.gpus_of("n2")), (Ok(()), vec![Some(0), Some(2)]));
}

#[test]
fn who_answers_goes_for_no_gpu_that_is_lost() {
    let mut world = World::new(2);
    let on = |number| ModelOptions {
        devices: Some(Devices::Named(vec![DeviceName::Number(number)])),
        ..ModelOptions::default()
    };
    assert_eq!(world.load_with(1, "m", on(1)), Ok(()));
    let before = world.serving("m");
    (world.lost, world.least) = (Some(0), Some(1));
    let fault = world.load_with(2, "m", on(0)).unwrap_err();
    assert!(fault.code == ErrorCode::ModelLoading && fault.message.contains("is lost"), "{fault}");
    assert_eq!((world.serving("m"), world.least), (before, Some(1)));
    world.lost = None;
    assert_eq!((world.load_with(3, "m", on(0)), world.lies_on("m")), (Ok(()), vec![0]));
}
