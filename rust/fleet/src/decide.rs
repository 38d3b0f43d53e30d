//! What follows from each event: each rule has a file of its own.

use std::{collections::BTreeMap, mem, sync::Arc, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    options::MemoryLimit,
};

use crate::{
    Deadlines, Death, Effect, Event, FleetView, History, Incident, IncidentKind, ModelView, Moment, Place,
    Severity, Ticket, Usual, Won, WorkerId,
    ledger::Ledger,
    life::{ModelLife, Waiting, Worker},
    use_rate::UseRates,
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
    pub(crate) use_rates: Arc<UseRates>,
    /// What loads came to before. Shared with views.
    pub(crate) history: Arc<History>,
    /// Seconds since 1970 at the first moment.
    pub(crate) epoch: u64,
    pub(crate) last_worker: WorkerId,
    /// Set while the node is going down.
    pub(crate) stopping: Option<Stopping>,
    /// While somebody waits for room: when it is looked for again.
    pub(crate) look_again: Option<Moment>,
    /// Those who wait for room, in their order.
    pub(crate) places: Vec<Place>,
    /// Since when somebody looks at the devices who has not said yet what is there.
    pub(crate) reading_since: Option<Moment>,
    pub(crate) effects: Vec<Effect>,
}

/// The node is going down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stopping {
    /// For so long a worker may take to stop.
    pub(crate) farewell: Duration,
    pub(crate) is_told: bool,
}

impl Fleet {
    /// Without models and devices. `on_cpu`: the host's memory is the device that `memory_limit`, bytes on each
    /// device, counts for.
    pub fn new(
        deadlines: Deadlines,
        usual: Usual,
        on_cpu: bool,
        memory_limit: impl Into<MemoryLimit>,
    ) -> Self {
        Self {
            deadlines,
            usual,
            models: BTreeMap::new(),
            views: BTreeMap::new(),
            // Where nobody makes room, others have what is left.
            ledger: Ledger::new(on_cpu, memory_limit.into()).in_parts(if deadlines.room.is_zero() {
                2
            } else {
                1
            }),
            use_rates: Arc::default(),
            history: Arc::default(),
            epoch: 0,
            last_worker: 0,
            stopping: None,
            look_again: None,
            places: Vec::new(),
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
            Event::Load { ticket, model_id, wishes, format, instead, for_request, tokens } => {
                let is_met = false;
                let waiting = Waiting { ticket, wishes, format, instead, is_met, for_request, tokens };
                self.load(now, &model_id, waiting);
            }
            Event::Renew { model_id, instead } => self.renew(now, &model_id, instead),
            Event::Plan { ticket, model_id, wishes, foreseen } => {
                let planned = self.plan(now, &model_id, &wishes, foreseen);
                self.resolve(ticket, planned.map(|planned| Won::Planned(Box::new(planned))));
            }
            Event::Unload { ticket, model_id, timeout } => self.unload(now, ticket, &model_id, timeout),
            Event::Stopping { by } => self.stop(now, by),
            Event::Found { worker, found, files } => self.found(now, worker, found, files),
            Event::Started { worker, pid } => self.started(now, worker, pid),
            Event::NotStarted { worker, fault } => self.not_started(now, worker, fault),
            Event::Estimated { worker, estimate } => self.estimated(now, worker, estimate),
            Event::Ready { worker, facts } => self.ready(now, worker, facts),
            Event::Failed { worker, fault } => self.failed(now, worker, fault),
            Event::Used { worker, requests, idle_since } => self.used(now, worker, requests, idle_since),
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
        self.go_on_replacing(now);
        self.fill(now);
        self.give_back(now);
        self.turn_away(now);
        self.tell_stopped();
        mem::take(&mut self.effects)
    }

    /// When something is overdue next. Then `handle` wants [`Event::Time`].
    pub fn next_deadline(&self) -> Option<Moment> {
        let of_models = self.models.values().flat_map(|life| {
            let next_replica = life.lacks().map(|(_, from)| from).filter(|_| self.stopping.is_none());
            let again = life.replacement.as_ref().and_then(|it| it.not_before);
            [life.deadline(), life.unused_from(), next_replica, again]
        });
        let back = self.workers().filter_map(|(_, worker)| worker.has_back_from());
        let back = back.filter(|_| self.stopping.is_none());
        of_models.flatten().chain(back).chain(self.look_again).chain(self.ledger.settles_by()).min()
    }

    /// Does something wait for what devices say next? Then it is to be told soon.
    pub fn wants_a_reading(&self) -> bool {
        self.ledger.settles_by().is_some() || self.workers().any(|(_, worker)| worker.is_measured())
    }

    /// What there is now.
    pub fn view(&mut self) -> FleetView {
        for (model_id, life) in &self.models {
            if !self.views.contains_key(model_id) {
                let view = ModelView::of(life, self.deadlines.room);
                self.views.insert(model_id.clone(), Arc::new(view));
            }
        }
        let history = Arc::clone(&self.history);
        let reading = self.reading_since.map(|since| (since, since + self.deadlines.read));
        let (accounts, gpus) = (self.ledger.accounts(), self.ledger.gpus_by_room());
        let (models, line) = (self.views.clone(), self.places.clone());
        let use_rates = Arc::clone(&self.use_rates);
        FleetView { models, accounts, gpus, line, history, use_rates, reading }
    }

    fn used(&mut self, now: Moment, worker: WorkerId, requests: u32, idle_since: Option<Moment>) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        it.idle_since = idle_since;
        (it.is_awaited, it.is_expected) = (false, false);
        let rates = Arc::make_mut(&mut self.use_rates);
        rates.used(now, &model_id, requests);
        let idle_since = self.models.get(&model_id).and_then(ModelLife::idle_since);
        let pause = rates.asked(now, &model_id, idle_since);
        for worker in &mut self.life(&model_id).workers {
            worker.pause = pause;
        }
    }

    /// The model's life, which is about to change.
    pub(crate) fn life(&mut self, model_id: &str) -> &mut ModelLife {
        self.views.remove(model_id);
        self.models.entry(model_id.to_owned()).or_default()
    }

    /// Forgets a model that nothing is to be said of.
    pub(crate) fn tidy(&mut self, model_id: &str) {
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

    pub(crate) fn resolve(&mut self, ticket: Ticket, outcome: Result<Won, Fault>) {
        self.effects.push(Effect::Resolve { ticket, outcome });
    }

    pub(crate) fn refuse(&mut self, ticket: Ticket, fault: Fault) {
        self.resolve(ticket, Err(fault));
    }

    pub(crate) fn gone_for(&mut self, ticket: Ticket, model_id: &str) {
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
