//! What follows from each event.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Estimate, GpuAddress, MemoryUse},
    options::ModelOptions,
    shape::Shape,
};

use crate::{
    Basis, Deadlines, Death, Effect, Event, FleetView, FoundModel, History, Incident, IncidentKind, Loaded,
    ModelView, Moment, Setup, Severity, Ticket, Time, Usual, Won, WorkerId,
    ledger::{Commitment, Ledger},
    life::{
        Because, HEALTHY_AFTER, LONGEST_PAUSE, Leaving, ModelLife, Stage, Trouble, Waiting, Worker,
        not_loaded, retry_after, shutting_down, unloaded,
    },
    wishes::{Fit, names_a_size},
};

/// All models of a node, their workers, and the memory that these hold.
#[derive(Debug)]
pub struct Fleet {
    pub(crate) deadlines: Deadlines,
    pub(crate) usual: Usual,
    pub(crate) models: BTreeMap<String, ModelLife>,
    /// The view of each, until something happens to it.
    views: BTreeMap<String, Arc<ModelView>>,
    pub(crate) ledger: Ledger,
    /// What loads came to before. Shared with views.
    pub(crate) history: Arc<History>,
    /// Seconds since 1970 at the first moment.
    epoch: u64,
    last_worker: WorkerId,
    /// Set while the node is going down.
    stopping: Option<Stopping>,
    /// While somebody waits for room: when it is looked for again.
    pub(crate) look_again: Option<Moment>,
    /// Since when somebody looks at the devices who has not said yet what is there.
    pub(crate) reading_since: Option<Moment>,
    pub(crate) effects: Vec<Effect>,
}

#[derive(Clone, Copy, Debug)]
struct Stopping {
    /// For so long a worker may take to stop.
    farewell: Duration,
    is_told: bool,
}

impl Fleet {
    /// Without models and devices. `on_cpu`: the host's memory is the device that `memory_limit`, bytes on each
    /// device, counts for.
    pub fn new(deadlines: Deadlines, usual: Usual, on_cpu: bool, memory_limit: Option<u64>) -> Self {
        Self {
            deadlines,
            usual,
            models: BTreeMap::new(),
            views: BTreeMap::new(),
            // Where nobody makes room, others have what is left.
            ledger: Ledger::new(on_cpu, memory_limit).in_parts(if deadlines.room.is_zero() { 2 } else { 1 }),
            history: Arc::default(),
            epoch: 0,
            last_worker: 0,
            stopping: None,
            look_again: None,
            reading_since: None,
            effects: Vec::new(),
        }
    }

    /// So many bytes of each device that `memory_limit` counts for are left to others; `None`: a part of each.
    #[must_use]
    pub fn reserving(self, reserve: Option<u64>) -> Self {
        Self { ledger: self.ledger.reserving(reserve), ..self }
    }

    /// With what loads came to before. `epoch`: the date of the first moment, in seconds since 1970.
    #[must_use]
    pub fn remembering(self, history: History, epoch: u64) -> Self {
        Self { history: Arc::new(history), epoch, ..self }
    }

    /// What is to be done about an event, and about all that is overdue by now.
    pub fn handle(&mut self, now: Moment, event: Event) -> Vec<Effect> {
        match event {
            Event::Load { ticket, model_id, wishes, format, instead, for_request } => {
                let (is_met, former) = (false, None);
                let waiting = Waiting { ticket, wishes, format, instead, is_met, former, for_request };
                self.load(now, &model_id, waiting);
            }
            Event::Plan { ticket, model_id, wishes, foreseen } => {
                let planned = self.plan(now, &model_id, &wishes, foreseen);
                self.resolve(ticket, planned.map(|planned| Won::Planned(Box::new(planned))));
            }
            Event::Unload { ticket, model_id, timeout } => self.unload(now, ticket, &model_id, timeout),
            Event::Stopping { by } => self.stop(now, by),
            Event::Found { worker, found } => self.found(now, worker, found),
            Event::Started { worker, pid } => self.started(now, worker, pid),
            Event::NotStarted { worker, fault } => self.not_started(now, worker, fault),
            Event::Estimated { worker, estimate } => self.estimated(now, worker, estimate),
            Event::Ready { worker, facts } => self.ready(now, worker, facts),
            Event::Failed { worker, fault } => self.failed(now, worker, fault),
            Event::Used { worker, idle_since } => self.used(worker, idle_since),
            Event::Sized { worker, uses } => self.sized(now, worker, uses),
            Event::Reshaped { worker, facts } => self.reshaped(now, worker, facts),
            Event::Drained { worker } => self.drained(now, worker),
            Event::Died { worker, death, is_known } => self.died(now, worker, death, is_known),
            Event::Configured(usual) => self.configured(usual),
            Event::ReadingBegan => self.reading_began(now),
            Event::Reading(reading) => self.read(now, reading),
            Event::Time => {}
        }
        self.seat(now);
        self.overdue(now);
        self.retire_unused(now);
        self.fill(now);
        self.tell_stopped();
        mem::take(&mut self.effects)
    }

    /// When something is overdue next. Then `handle` wants [`Event::Time`].
    pub fn next_deadline(&self) -> Option<Moment> {
        let of_models = self.models.values().flat_map(|life| {
            let next_replica = life.lacks().map(|(_, from)| from).filter(|_| self.stopping.is_none());
            [life.deadline(), life.unused_from(), next_replica]
        });
        of_models.flatten().chain(self.look_again).chain(self.ledger.settles_by()).min()
    }

    /// Does something wait for what devices say next? Then it is to be told soon.
    pub fn wants_a_reading(&self) -> bool {
        self.ledger.settles_by().is_some() || self.workers().any(|(_, worker)| worker.is_measured())
    }

    /// What there is now.
    pub fn view(&mut self) -> FleetView {
        for (model_id, life) in &self.models {
            if !self.views.contains_key(model_id) {
                self.views.insert(model_id.clone(), Arc::new(ModelView::of(life)));
            }
        }
        let line = self.line().into_iter().map(|(model_id, _)| model_id).collect();
        let history = Arc::clone(&self.history);
        let reading = self.reading_since.map(|since| (since, since + self.deadlines.read));
        FleetView { models: self.views.clone(), accounts: self.ledger.accounts(), line, history, reading }
    }

    // ---- orders ----------------------------------------------------------------------------------

    pub(crate) fn load(&mut self, now: Moment, model_id: &str, mut waiting: Waiting) {
        if self.stopping.is_some() {
            return self.refuse(waiting.ticket, shutting_down());
        }
        let life = self.life(model_id);
        if life.workers.is_empty() {
            if let Some(fault) = life.cooling(now) {
                return self.refuse(waiting.ticket, fault);
            }
            if life.cools_until(now).is_some() {
                life.waiting.push(waiting);
                return;
            }
            let setup = Setup::new(model_id, waiting.wishes.clone(), &self.usual);
            if let Err(fault) = self.has_places(model_id, &setup) {
                return self.refuse(waiting.ticket, fault);
            }
            let life = self.life(model_id);
            life.next_replica = now;
            self.begin(now, model_id, setup, waiting.format.clone(), waiting.former.take());
            waiting.is_met = true;
            self.life(model_id).waiting.push(waiting);
            return;
        }
        if !life.is_wanted() {
            life.waiting.push(waiting);
            return;
        }
        let (mut differs, mut grows, mut is_growing) = (None, false, false);
        for worker in life.wanted() {
            let state = if worker.loaded.is_some() { "is loaded" } else { "is being loaded" };
            match worker.setup.fits(&waiting.wishes, model_id, state) {
                Fit::Joins => is_growing |= worker.growing.is_some(),
                Fit::Grows(_) if worker.loaded.is_none() || worker.is_in_steps() => grows = true,
                Fit::Grows(fault) | Fit::Differs(fault) => differs = Some(fault),
            }
        }
        if let Some(fault) = differs {
            return self.replace(now, model_id, waiting, fault);
        }
        if grows {
            return self.grow(now, model_id, waiting);
        }
        if is_growing && names_a_size(&waiting.wishes) {
            // What it will be is not known yet.
            life.waiting.push(waiting);
            return;
        }
        let loaded = life.lead().and_then(|worker| worker.loaded.clone());
        let mut pins = Vec::new();
        for worker in life.workers.iter_mut().filter(|worker| worker.is_wanted()) {
            worker.setup.also(&waiting.wishes);
            // Whoever wants it loaded is about to ask.
            worker.idle_since = worker.idle_since.map(|_| now);
            worker.is_awaited = worker.idle_since.is_some();
            worker.is_expected |= loaded.is_some() && waiting.for_request;
            pins.push((worker.id, worker.setup.is_pinned()));
        }
        for (worker, is_pinned) in pins {
            self.ledger.pin(worker, is_pinned);
        }
        match loaded {
            Some(loaded) => self.resolve(waiting.ticket, Ok(Won::Loaded(loaded))),
            None => self.life(model_id).waiting.push(waiting),
        }
    }

    /// Those who wait are looked at again.
    pub(crate) fn load_waiting(&mut self, now: Moment, model_id: &str) {
        for waiting in mem::take(&mut self.life(model_id).waiting) {
            self.load(now, model_id, waiting);
        }
    }

    fn begin(
        &mut self,
        now: Moment,
        model_id: &str,
        mut setup: Setup,
        format: Option<String>,
        former: Option<ModelOptions>,
    ) {
        self.last_worker += 1;
        setup.place = self.free_place(model_id).filter(|_| setup.replicas() > 1);
        let worker = Worker { former, ..Worker::new(self.last_worker, setup, now, &self.deadlines) };
        self.effects.push(Effect::Find {
            worker: worker.id,
            model_id: model_id.to_owned(),
            setup: Box::new(worker.setup.clone()),
            format,
        });
        let life = self.life(model_id);
        life.trouble = None;
        life.workers.push(worker);
    }

    /// A model one of whose workers answers gets those that it lacks.
    fn fill(&mut self, now: Moment) {
        let is_due = |life: &ModelLife| life.lacks().is_some_and(|(_, from)| from <= now);
        let lacking = self.models.iter().filter(|(_, life)| self.stopping.is_none() && is_due(life));
        for model_id in lacking.map(|(model_id, _)| model_id.clone()).collect::<Vec<_>>() {
            while let Some((setup, _)) = self.life(&model_id).lacks() {
                if self.free_place(&model_id).is_none() {
                    self.life(&model_id).next_replica = now + LONGEST_PAUSE;
                    break;
                }
                self.begin(now, &model_id, setup, None, None);
            }
        }
    }

    /// The GPU for one more worker of a model: the one with most room of those on which it has none.
    fn free_place(&self, model_id: &str) -> Option<GpuAddress> {
        let workers = self.models.get(model_id).map(|life| &life.workers[..]).unwrap_or_default();
        let is_taken = |place: &GpuAddress| workers.iter().any(|it| it.setup.place.as_ref() == Some(place));
        self.ledger.gpus_by_room().into_iter().find(|place| !is_taken(place))
    }

    /// Are there as many GPUs as it is to have workers?
    pub(crate) fn has_places(&self, model_id: &str, setup: &Setup) -> Result<(), Fault> {
        let (wanted, places) = (setup.replicas(), self.ledger.gpus_by_room().len());
        if wanted <= 1.max(places) {
            return Ok(());
        }
        let there = match (self.ledger.is_on_cpu(), places) {
            (true, _) => {
                "this node computes on the CPU, all of which one worker uses: max_sequences is how many answers it \
                 gives at once"
                    .to_owned()
            }
            (_, 0) => "this node has none whose memory it can see".to_owned(),
            (_, places) => format!("this node has {places}"),
        };
        let message = format!("Model '{model_id}': replicas = {wanted} needs as many GPUs, and {there}");
        Err(Fault::new(ErrorCode::InvalidRequest, message).param("replicas"))
    }

    fn unload(&mut self, now: Moment, ticket: Ticket, model_id: &str, timeout: Duration) {
        let leaving = Leaving { ticket, by: now + timeout.saturating_add(self.deadlines.end()) };
        let life = self.life(model_id);
        if life.workers.is_empty() {
            life.crashes = 0;
            if life.trouble.take().is_none() {
                self.tidy(model_id);
                return self.refuse(ticket, not_loaded(model_id));
            }
            self.dismiss_waiting(model_id);
            self.tidy(model_id);
            return self.gone_for(ticket, model_id);
        }
        life.leaving.push(leaving);
        if life.is_wanted() {
            // They wait for what is dismissed. Who came while it was on its way out already waits for what comes then.
            self.dismiss_waiting(model_id);
        }
        for worker in self.life(model_id).ids() {
            self.dismiss(now, worker, now + timeout);
        }
    }

    /// Lets a worker go: what it has under way may go on until then.
    fn dismiss(&mut self, now: Moment, worker: WorkerId, by: Moment) {
        let Some((_, it)) = self.worker(worker) else { return };
        match &mut it.stage {
            Stage::Serving => self.drain(now, worker, by),
            Stage::Finding { .. } => self.gone(now, worker, Because::Dismissed),
            Stage::Starting { .. } | Stage::Loading { .. } | Stage::Waiting { .. } => {
                self.kill(now, worker, Because::Dismissed);
            }
            Stage::Ending { because, .. } => *because = Because::Dismissed,
            Stage::Draining { by: before, .. } => drop(before.get_or_insert(by)),
        }
    }

    fn stop(&mut self, now: Moment, by: Moment) {
        let farewell = self.deadlines.farewell.min(by.since(now));
        self.stopping = Some(Stopping { farewell, is_told: false });
        for model_id in self.models.keys().cloned().collect::<Vec<_>>() {
            let life = self.life(&model_id);
            for waiting in mem::take(&mut life.waiting) {
                self.refuse(waiting.ticket, shutting_down());
            }
            for worker in self.life(&model_id).ids() {
                let Some((_, it)) = self.worker(worker) else { continue };
                match &mut it.stage {
                    Stage::Draining { by: before, .. } => {
                        *before = Some(before.map_or(by, |before| by.min(before)));
                    }
                    // It is overdue from now on where nobody is to wait any longer.
                    Stage::Ending { by, is_killed: false, .. } => *by = (*by).min(now + farewell),
                    Stage::Ending { .. } => {}
                    _ => self.dismiss(now, worker, by),
                }
            }
        }
    }

    /// Models that are loaded stay as they are, but for how long they stay.
    fn configured(&mut self, usual: Usual) {
        self.usual = usual;
        for model_id in self.models.keys().cloned().collect::<Vec<_>>() {
            let usual = self.usual.of(&model_id);
            for worker in self.life(&model_id).ids() {
                let Some((_, it)) = self.worker(worker) else { continue };
                it.setup.usually(&usual);
                let is_pinned = it.setup.is_pinned();
                self.ledger.pin(worker, is_pinned);
            }
        }
    }

    // ---- what happens to a worker ----------------------------------------------------------------

    fn found(&mut self, now: Moment, worker: WorkerId, found: Result<FoundModel, Fault>) {
        let start = self.deadlines.start.saturating_add(self.deadlines.end());
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Finding { .. } = it.stage else { return };
        match found {
            Ok(found) => {
                it.setup.chosen(&found.engine.id);
                it.found = Some(found);
                it.stage = Stage::Starting { by: now + start, died: None };
                self.effects.push(Effect::Spawn { worker });
            }
            Err(fault) => self.gone(now, worker, Because::Failed(fault)),
        }
    }

    fn started(&mut self, now: Moment, worker: WorkerId, pid: u32) {
        let load = self.deadlines.load;
        let Some((_, it)) = self.worker(worker) else { return };
        it.pid = Some(pid);
        let Stage::Starting { died, .. } = &mut it.stage else { return };
        let died = died.take();
        it.stage = Stage::Loading { by: now + load };
        if let Some((death, is_known)) = died {
            self.died(now, worker, death, is_known);
        }
    }

    fn not_started(&mut self, now: Moment, worker: WorkerId, fault: Fault) {
        let Some((_, it)) = self.worker(worker) else { return };
        match mem::replace(&mut it.stage, Stage::Serving) {
            Stage::Starting { .. } => self.gone(now, worker, Because::Failed(fault)),
            Stage::Ending { because, .. } => self.gone(now, worker, because),
            stage => it.stage = stage,
        }
    }

    fn estimated(&mut self, now: Moment, worker: WorkerId, estimate: Estimate) {
        if self.ledger.holds(worker) {
            return;
        }
        let by = now + self.deadlines.room;
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Loading { .. } = it.stage else { return };
        // `seat` finds room for it, now or later.
        it.stage = Stage::Waiting { by };
        it.figures = estimate.figures;
        if it.is_open() {
            return self.wait_for_the_least(now, worker);
        }
        let Some(found) = &it.found else { return };
        let (key, known, bytes) = (found.key.clone(), found.known.clone(), found.size_bytes);
        let place = it.setup.place.clone();
        let uses = estimate.uses.filter(|uses| uses.iter().any(|use_| use_.total() > 0));
        let (said, estimate, basis) = match (known, uses) {
            (Some(known), _) => (known.estimated, known.uses, Basis::Measured),
            (None, Some(uses)) => (uses.clone(), self.history.corrected(&key, uses), Basis::Engine),
            (None, None) => {
                let guess = vec![self.ledger.guess(bytes, place.as_ref())];
                (guess.clone(), self.history.corrected(&key, guess), Basis::FileSize)
            }
        };
        if let Some((_, it)) = self.worker(worker) {
            (it.said, it.estimate, it.basis) = (said, estimate, basis);
        }
    }

    fn ready(&mut self, now: Moment, worker: WorkerId, facts: ModelFacts) {
        let holds = self.ledger.holds(worker);
        let is_on_gpu = self.ledger.is_on_gpu(worker);
        let measure = self.deadlines.measure;
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Loading { .. } = it.stage else { return };
        if !holds {
            let fault =
                Fault::new(ErrorCode::Internal, "The worker loaded the model before there was room for it");
            return self.end(now, worker, Because::Failed(fault));
        }
        if it.answers.is_none() && is_on_gpu {
            it.answers = Some(Box::new(facts));
            it.since = now;
            it.stage = Stage::Loading { by: now + measure };
            return;
        }
        self.serve(now, worker, facts);
    }

    /// Of loads that are done a GPU says what they came to.
    pub(crate) fn measured(&mut self, now: Moment, began: Moment) {
        let is_it = |worker: &Worker| worker.is_measured() && worker.since <= began;
        let done: Vec<WorkerId> =
            self.workers().filter(|(_, worker)| is_it(worker)).map(|(_, worker)| worker.id).collect();
        for worker in done {
            let facts = self.worker(worker).and_then(|(_, it)| it.answers.take());
            if let Some(facts) = facts {
                self.serve(now, worker, *facts);
            }
        }
    }

    /// A model that is loaded takes what it takes: that is learned, and it answers if there is room for it.
    fn serve(&mut self, now: Moment, worker: WorkerId, facts: ModelFacts) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let says_nothing = facts.memory.iter().all(|use_| use_.total() == 0);
        let uses = if says_nothing { it.estimate.clone() } else { facts.memory.clone() };
        let commitment = self.settle(worker, &model_id, &uses);
        let Some((_, it)) = self.worker(worker) else { return };
        let took = now.since(it.begun);
        let time = Time {
            date: 0,
            seconds: took.saturating_sub(it.waited).as_secs_f64(),
            shape: it.shape,
            estimated: it.said.clone(),
            measured: commitment.measured.clone(),
        };
        self.learn(now, worker, time, &commitment);
        if let Some(fault) = commitment.shortage {
            return self.kill(now, worker, Because::Failed(fault));
        }
        let Some((_, it)) = self.worker(worker) else { return };
        let engine = it.found.as_ref().map(|found| found.engine.clone()).unwrap_or_default();
        let mut loaded = Loaded { model_id: model_id.clone(), engine, took, facts };
        it.complete(&mut loaded);
        let loaded = Arc::new(loaded);
        it.setup.came_to(loaded.facts.context_length, loaded.facts.max_sequences);
        it.setup.has_cells(it.shape.map(Shape::cells));
        it.loaded = Some(Arc::clone(&loaded));
        it.stage = Stage::Serving;
        it.former = None;
        it.since = now;
        it.idle_since = Some(now);
        self.effects.push(Effect::Open { worker, model_id: model_id.clone() });
        self.tell(Severity::Info, IncidentKind::Loaded, &model_id, in_words(&loaded), None);
        for waiting in mem::take(&mut self.life(&model_id).waiting) {
            if waiting.is_met {
                if let Some((_, it)) = self.worker(worker) {
                    it.is_expected |= waiting.for_request;
                }
                self.resolve(waiting.ticket, Ok(Won::Loaded(Arc::clone(&loaded))));
            } else {
                self.load(now, &model_id, waiting);
            }
        }
    }

    /// What was reserved is what is taken. Where that is much more, it is said.
    pub(crate) fn settle(&mut self, worker: WorkerId, model_id: &str, uses: &[MemoryUse]) -> Commitment {
        let commitment = self.ledger.commit(worker, uses);
        if let Some(words) = &commitment.excess {
            let message = format!("model '{model_id}' takes more than its engine estimated: {words}");
            self.tell(Severity::Warning, IncidentKind::Overrun, model_id, message, None);
        }
        commitment
    }

    /// What a load came to, for the next one. Beside another it says little, unless it went beyond all bounds.
    fn learn(&mut self, now: Moment, worker: WorkerId, time: Time, commitment: &Commitment) {
        let Some((_, it)) = self.worker(worker) else { return };
        let Some(found) = &it.found else { return };
        if commitment.is_disturbed && commitment.excess.is_none() {
            return;
        }
        let (key, figures) = (found.key.clone(), it.figures.clone());
        let time = Time { date: self.epoch.saturating_add(now.0.as_secs()), ..time };
        Arc::make_mut(&mut self.history).learn(key.clone(), figures.clone(), time.clone());
        self.effects.push(Effect::Record { key, figures, time });
    }

    fn failed(&mut self, now: Moment, worker: WorkerId, fault: Fault) {
        let Some((_, it)) = self.worker(worker) else { return };
        if let Stage::Loading { .. } | Stage::Waiting { .. } = it.stage {
            self.end(now, worker, Because::Failed(fault));
        }
    }

    fn used(&mut self, worker: WorkerId, idle_since: Option<Moment>) {
        if let Some((_, it)) = self.worker(worker) {
            it.idle_since = idle_since;
            (it.is_awaited, it.is_expected) = (false, false);
        }
    }

    fn drained(&mut self, now: Moment, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        if let Stage::Draining { is_retired, .. } = it.stage {
            let because = if is_retired { Because::Retired } else { Because::Dismissed };
            self.end(now, worker, because);
        }
    }

    fn died(&mut self, now: Moment, worker: WorkerId, death: Death, is_known: bool) {
        let stopping = self.stopping.is_some();
        let Some((model_id, it)) = self.worker(worker) else { return };
        let crashed = Fault::new(ErrorCode::EngineCrashed, death.message.clone());
        match &mut it.stage {
            Stage::Finding { .. } => {}
            Stage::Starting { died, .. } => *died = Some((death, is_known)),
            Stage::Loading { .. } | Stage::Waiting { .. } => {
                let message = format!("'{model_id}' could not be loaded: {}", death.message);
                self.crashed(now, worker, death, is_known, |_| message);
            }
            Stage::Serving => {
                if now.since(it.since) >= HEALTHY_AFTER {
                    self.life(&model_id).crashes = 0;
                }
                let words = death.message.clone();
                let fault = self.crashed(now, worker, death, is_known, |pause| {
                    format!("{words}; it may be loaded again in {} s", pause.as_secs())
                });
                self.effects.push(Effect::EndRequests { worker, fault });
            }
            Stage::Draining { is_retired, .. } => {
                let because = if *is_retired { Because::Retired } else { Because::Dismissed };
                let message = death.message.clone();
                self.tell(Severity::Error, IncidentKind::Crashed, &model_id, message, Some(death));
                self.effects.push(Effect::EndRequests { worker, fault: crashed });
                self.gone(now, worker, because);
            }
            Stage::Ending { because, .. } => {
                let because = match mem::replace(because, Because::Dismissed) {
                    Because::Late => Because::Failed(self.late(worker, &death.call)),
                    because => because,
                };
                let fault = match &because {
                    _ if stopping => shutting_down(),
                    Because::Failed(fault) => fault.clone(),
                    _ => unloaded(&model_id),
                };
                self.effects.push(Effect::EndRequests { worker, fault });
                self.gone(now, worker, because);
            }
        }
    }

    // ---- time ------------------------------------------------------------------------------------

    /// Whoever has stayed unused for as long as it may begins to go.
    fn retire_unused(&mut self, now: Moment) {
        let is_over = |life: &ModelLife| life.unused_from().is_some_and(|from| from <= now);
        let unused: Vec<String> = self
            .models
            .iter()
            .filter(|(_, life)| is_over(life))
            .map(|(model_id, _)| model_id.clone())
            .collect();
        for model_id in unused {
            let idle = self.life(&model_id).idle_since();
            let seconds = now.since(idle.unwrap_or(now)).as_secs_f64();
            let message = format!("'{model_id}' goes: unused for {seconds:.1} s");
            self.retire(now, &model_id, IncidentKind::Unused, message);
        }
    }

    fn overdue(&mut self, now: Moment) {
        for (model_id, words) in self.ledger.given_up(now) {
            let seconds = self.deadlines.settle.as_secs_f64();
            let message = format!("'{model_id}' ended {seconds} s ago, and {words} do not show as free");
            self.tell(Severity::Warning, IncidentKind::Kept, &model_id, message, None);
        }
        while let Some(model_id) = self
            .models
            .iter()
            .find(|(_, life)| life.deadline().is_some_and(|by| by <= now))
            .map(|(id, _)| id.clone())
        {
            let life = self.life(&model_id);
            let (late, in_time) =
                mem::take(&mut life.leaving).into_iter().partition(|leaving| leaving.by <= now);
            life.leaving = in_time;
            let late: Vec<Leaving> = late;
            for Leaving { ticket, .. } in late {
                let message = format!("Model '{model_id}' was not unloaded in time");
                self.refuse(ticket, Fault::new(ErrorCode::Timeout, message));
            }
            let overdue = |worker: &Worker| worker.deadline().is_some_and(|by| by <= now);
            let life = self.life(&model_id);
            if let Some(worker) = life.workers.iter().find(|worker| overdue(worker)) {
                let worker = worker.id;
                self.worker_is_late(now, worker);
            } else if life.is_waited_out() && life.cools_until(now).is_none() {
                self.load_waiting(now, &model_id);
            }
        }
    }

    fn worker_is_late(&mut self, now: Moment, worker: WorkerId) {
        let kill = self.deadlines.kill;
        let start = self.deadlines.start;
        let stopping = self.stopping.is_some();
        let Some((model_id, it)) = self.worker(worker) else { return };
        match &mut it.stage {
            Stage::Serving => self.growth_is_late(now, worker),
            Stage::Finding { .. } => {
                let message = format!("Looking for model '{model_id}' and its engine took too long");
                self.gone(now, worker, Because::Failed(Fault::new(ErrorCode::Timeout, message)));
            }
            Stage::Starting { .. } => {
                let message = format!("A worker process did not start within {} s", start.as_secs_f64());
                self.kill(now, worker, Because::Failed(Fault::new(ErrorCode::Timeout, message)));
            }
            Stage::Loading { .. } => match it.answers.take() {
                // No device says anything: its engine's word has to do.
                Some(facts) => self.serve(now, worker, *facts),
                None => self.kill(now, worker, Because::Late),
            },
            Stage::Waiting { .. } => {
                let fault = self.no_room(now, &model_id, worker);
                self.end(now, worker, Because::Failed(fault));
            }
            Stage::Draining { .. } => {
                let message = format!("'{model_id}': requests were still under way at the deadline");
                self.tell(Severity::Warning, IncidentKind::Cut, &model_id, message, None);
                self.end(now, worker, Because::Dismissed);
            }
            Stage::Ending { by, is_killed: is_killed @ false, .. } => {
                *is_killed = true;
                *by = now + kill;
                self.effects.push(Effect::Kill { worker });
            }
            Stage::Ending { because, .. } => {
                // Stuck in the kernel: nobody shall wait for that.
                let because = match mem::replace(because, Because::Dismissed) {
                    Because::Late => Because::Failed(self.late(worker, "")),
                    because => because,
                };
                let message = format!("'{model_id}': its worker could not be ended, and is left to itself");
                self.tell(Severity::Error, IncidentKind::Abandoned, &model_id, message, None);
                let fault = if stopping { shutting_down() } else { unloaded(&model_id) };
                self.effects.push(Effect::EndRequests { worker, fault });
                self.gone(now, worker, because);
            }
        }
    }

    // ---- ends ------------------------------------------------------------------------------------

    /// Lets a worker end what is under way, until then.
    fn drain(&mut self, now: Moment, worker: WorkerId, by: Moment) {
        if by <= now {
            return self.end(now, worker, Because::Dismissed);
        }
        self.turn(worker, Stage::Draining { by: Some(by), is_retired: false }, Effect::Drain { worker });
    }

    /// Lets the model's workers end what is under way, and go, by no order.
    pub(crate) fn retire(&mut self, now: Moment, model_id: &str, kind: IncidentKind, message: String) {
        self.tell(Severity::Info, kind, model_id, message, None);
        for worker in self.life(model_id).ids() {
            let Some((_, it)) = self.worker(worker) else { continue };
            match it.stage {
                Stage::Serving => {
                    let stage = Stage::Draining { by: None, is_retired: true };
                    self.turn(worker, stage, Effect::Drain { worker });
                }
                Stage::Finding { .. } => self.gone(now, worker, Because::Retired),
                Stage::Starting { .. } | Stage::Loading { .. } | Stage::Waiting { .. } => {
                    self.kill(now, worker, Because::Retired);
                }
                Stage::Draining { .. } | Stage::Ending { .. } => {}
            }
        }
    }

    /// Asks a worker to end.
    pub(crate) fn end(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let by = now + self.stopping.map_or(self.deadlines.stop, |stopping| stopping.farewell);
        self.turn(worker, Stage::Ending { by, is_killed: false, because }, Effect::Stop { worker });
    }

    /// Ends a worker.
    pub(crate) fn kill(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let by = now + self.deadlines.kill;
        self.turn(worker, Stage::Ending { by, is_killed: true, because }, Effect::Kill { worker });
    }

    /// On its way out, whatever it was to become.
    fn turn(&mut self, worker: WorkerId, stage: Stage, effect: Effect) {
        if let Some((_, it)) = self.worker(worker) {
            it.growing = None;
            it.stage = stage;
            self.effects.push(effect);
        }
    }

    /// A worker is no more, and what waited for that goes on.
    fn gone(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let (engine, former) = (it.engine(), it.former.take());
        match because {
            Because::Failed(fault) if self.stopping.is_none() => {
                self.bury(now, &model_id, worker);
                self.not_loaded(now, &model_id, engine, former, &fault);
            }
            _ if self.life(&model_id).workers.len() > 1 => self.bury(now, &model_id, worker),
            _ => {
                let message = format!("'{model_id}' is unloaded");
                self.tell(Severity::Info, IncidentKind::Unloaded, &model_id, message, None);
                self.bury(now, &model_id, worker);
                let life = self.life(&model_id);
                life.crashes = 0;
                let (leaving, waiting) = (mem::take(&mut life.leaving), mem::take(&mut life.waiting));
                self.tidy(&model_id);
                for Leaving { ticket, .. } in leaving {
                    self.gone_for(ticket, &model_id);
                }
                // These came while the model was on its way out.
                for waiting in waiting {
                    self.load(now, &model_id, waiting);
                }
            }
        }
    }

    /// A load has come to nothing. `former`: as what the model comes back.
    fn not_loaded(
        &mut self,
        now: Moment,
        model_id: &str,
        engine: String,
        former: Option<ModelOptions>,
        fault: &Fault,
    ) {
        let kind = match fault.code {
            ErrorCode::OomVram | ErrorCode::OomRam | ErrorCode::ModelLoading => IncidentKind::Refused,
            _ => IncidentKind::LoadFailed,
        };
        self.effects.push(Effect::Tell(Incident {
            severity: Severity::Error,
            kind,
            model_id: model_id.to_owned(),
            engine: Some(engine).filter(|engine| !engine.is_empty()),
            code: Some(fault.code),
            death: None,
            message: format!("'{model_id}' could not be loaded: {fault}"),
        }));
        let life = self.life(model_id);
        if life.is_wanted() {
            // Others answer, or will.
            life.next_replica = now + LONGEST_PAUSE;
            return self.load_waiting(now, model_id);
        }
        // What was wrong with the order is not the model's state.
        let is_of_model = fault.code != ErrorCode::InvalidRequest;
        life.trouble = is_of_model.then(|| Trouble::Failed(fault.clone()));
        for waiting in mem::take(&mut life.waiting) {
            if waiting.is_met || former.is_none() {
                self.refuse(waiting.ticket, fault.clone());
            } else {
                self.life(model_id).waiting.push(waiting);
            }
        }
        if let Some(former) = former {
            let setup = Setup::new(model_id, former, &self.usual);
            self.begin(now, model_id, setup, None, None);
        }
        self.tidy(model_id);
    }

    fn bury(&mut self, now: Moment, model_id: &str, worker: WorkerId) {
        self.ledger.release(now, worker, self.deadlines.settle);
        self.life(model_id).workers.retain(|it| it.id != worker);
    }

    /// A worker has died by itself. Those who waited for it hear that, and its model cools; `message`: what people are
    /// told, by the length of the pause. Gives what its clients are told.
    fn crashed(
        &mut self,
        now: Moment,
        worker: WorkerId,
        death: Death,
        is_known: bool,
        message: impl FnOnce(Duration) -> String,
    ) -> Fault {
        let crashed = Fault::new(ErrorCode::EngineCrashed, death.message.clone());
        let Some((model_id, it)) = self.worker(worker) else { return crashed };
        let engine = it.engine();
        let life = self.life(&model_id);
        let pause = life.crashed(now, engine, death.clone(), is_known);
        self.tell(Severity::Error, IncidentKind::Crashed, &model_id, message(pause), Some(death));
        self.bury(now, &model_id, worker);
        let life = self.life(&model_id);
        if life.is_wanted() {
            // Others answer, or will.
            life.next_replica = now + pause;
            self.load_waiting(now, &model_id);
            return retry_after(crashed, Duration::ZERO);
        }
        life.trouble = Some(Trouble::Cooling { until: now + pause, fault: crashed.clone() });
        let fault = retry_after(crashed, pause);
        for waiting in mem::take(&mut self.life(&model_id).waiting) {
            self.refuse(waiting.ticket, fault.clone());
        }
        fault
    }

    fn late(&mut self, worker: WorkerId, call: &str) -> Fault {
        let seconds = self.deadlines.load.as_secs_f64();
        let (model_id, engine) =
            self.worker(worker).map(|(model_id, it)| (model_id, it.engine())).unwrap_or_default();
        let call = if call.is_empty() { "the worker" } else { call };
        let message =
            format!("Model '{model_id}' with engine '{engine}': {call} did not return within {seconds} s");
        Fault::new(ErrorCode::Timeout, message)
    }

    /// Those who wait for the load are told that somebody unloaded it.
    fn dismiss_waiting(&mut self, model_id: &str) {
        for waiting in mem::take(&mut self.life(model_id).waiting) {
            self.refuse(waiting.ticket, unloaded(model_id));
        }
    }

    fn tell_stopped(&mut self) {
        let is_empty = self.workers().next().is_none();
        if let Some(stopping) = &mut self.stopping
            && is_empty
            && !mem::replace(&mut stopping.is_told, true)
        {
            self.effects.push(Effect::Stopped);
        }
    }

    // ---- small things ----------------------------------------------------------------------------

    /// The model's life, which is about to change.
    pub(crate) fn life(&mut self, model_id: &str) -> &mut ModelLife {
        self.views.remove(model_id);
        self.models.entry(model_id.to_owned()).or_default()
    }

    /// Forgets a model that nothing is to be said of.
    fn tidy(&mut self, model_id: &str) {
        if self.models.get(model_id).is_some_and(ModelLife::is_plain) {
            self.models.remove(model_id);
            self.views.remove(model_id);
        }
    }

    fn home_of(&self, worker: WorkerId) -> Option<String> {
        let is_it = |life: &ModelLife| life.workers.iter().any(|it| it.id == worker);
        self.models.iter().find(|(_, life)| is_it(life)).map(|(model_id, _)| model_id.clone())
    }

    /// A worker that is there, and whose it is.
    pub(crate) fn worker(&mut self, worker: WorkerId) -> Option<(String, &mut Worker)> {
        let model_id = self.home_of(worker)?;
        let worker = self.life(&model_id).workers.iter_mut().find(|it| it.id == worker)?;
        Some((model_id, worker))
    }

    fn resolve(&mut self, ticket: Ticket, outcome: Result<Won, Fault>) {
        self.effects.push(Effect::Resolve { ticket, outcome });
    }

    pub(crate) fn refuse(&mut self, ticket: Ticket, fault: Fault) {
        self.resolve(ticket, Err(fault));
    }

    fn gone_for(&mut self, ticket: Ticket, model_id: &str) {
        self.effects.push(Effect::Pardon { model_id: model_id.to_owned() });
        self.resolve(ticket, Ok(Won::Unloaded));
    }

    pub(crate) fn tell(
        &mut self,
        severity: Severity,
        kind: IncidentKind,
        model_id: &str,
        message: String,
        death: Option<Death>,
    ) {
        let engine = self.models.get(model_id).and_then(ModelLife::lead).map(Worker::engine);
        self.effects.push(Effect::Tell(Incident {
            severity,
            kind,
            model_id: model_id.to_owned(),
            engine: engine.filter(|engine| !engine.is_empty()),
            code: death.is_some().then_some(ErrorCode::EngineCrashed),
            death,
            message,
        }));
    }
}

/// "'m' is loaded with e 1.0, in 80 ms: context 2048 tokens, 64 sequences, 8 MiB"
fn in_words(loaded: &Loaded) -> String {
    let Loaded { model_id, engine, took, facts } = loaded;
    let bytes = facts.memory.iter().fold(0, |sum, use_| use_.total().saturating_add(sum));
    format!(
        "'{model_id}' is loaded with {} {}, in {} ms: context {} tokens, {} sequences, {} MiB",
        engine.id,
        engine.version,
        took.as_millis(),
        facts.context_length,
        facts.max_sequences,
        bytes.div_ceil(1 << 20)
    )
}
