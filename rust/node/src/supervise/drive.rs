//! The one thread that owns the fleet: it takes orders and events, and carries out what follows from them.
//!
//! It waits for nothing but the next of these. What takes long is done by threads of its own, each of which ends
//! in an event. What others see of the fleet is published before anybody hears what has happened.

use std::{
    any::Any,
    collections::HashMap,
    panic::{self, AssertUnwindSafe},
    sync::{Arc, Weak, mpsc},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_fleet::{
    Device, Effect, Event, Files, Fleet, FleetView, FoundModel, Incident, IncidentKind, Moment, Planned,
    Reading, Setup, Severity, Ticket, Won, WorkerId,
};
use llm_node_wire::message::{FromWorker, LoadPlan, ToWorker};
use parking_lot::{Condvar, Mutex};

use super::{
    Inner,
    environment::Sight,
    incidents::Incidents,
    inflight::Reply,
    load,
    minding::{Control, Death, GivenUp},
    process::{Launch, shutting_down},
    report,
};
use crate::platform::Ending;

/// Readings of devices are no closer than this, however urgent they are.
const BETWEEN_READINGS: Duration = Duration::from_millis(50);

/// What the thread is told.
enum Message {
    Event(Event),
    /// Somebody waits for the outcome.
    Order(Ticket, Event, Waiter),
    /// A model and its engine were found, and how they are loaded.
    Found(WorkerId, Files, Result<(FoundModel, Box<LoadPlan>), Fault>),
    /// A worker has died, and these are the last lines of its log.
    Died(Event, Vec<String>),
}

/// Somebody who waits for what comes of an order.
enum Waiter {
    /// Outside.
    Client(Reply),
    /// An errand, which goes on with what a load would come to.
    Errand(mpsc::Sender<Result<Planned, Fault>>),
}

/// The way to the thread, and what it has published.
#[derive(Debug)]
pub(super) struct Drive {
    begun: Instant,
    messages: mpsc::Sender<Message>,
    view: Mutex<Arc<FleetView>>,
    incidents: Mutex<Incidents>,
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    /// Who is told where a defect ends the node; `None`: it has.
    hear_of_defect: Mutex<Option<Vec<Reply>>>,
    readings: Mutex<Readings>,
    wanted: Condvar,
}

/// Who reads the devices asks this what to do next.
#[derive(Debug, Default)]
struct Readings {
    /// When the last one began.
    began: Moment,
    /// When the last one that has ended did.
    read: Moment,
    /// When that which the view has began.
    shown: Moment,
    is_wanted: bool,
    /// Somebody waits for one that begins after this.
    is_asked: bool,
    is_over: bool,
}

/// What the thread begins with.
pub(super) struct Start {
    fleet: Fleet,
    messages: mpsc::Receiver<Message>,
}

impl Drive {
    /// The way to a thread that is still to be started.
    pub(super) fn new(mut fleet: Fleet) -> (Self, Start) {
        let (sender, messages) = mpsc::channel();
        let this = Self {
            begun: Instant::now(),
            messages: sender,
            view: Mutex::new(Arc::new(fleet.view())),
            incidents: Mutex::default(),
            is_stopped: Mutex::new(false),
            stopped: Condvar::new(),
            hear_of_defect: Mutex::new(Some(Vec::new())),
            readings: Mutex::default(),
            wanted: Condvar::new(),
        };
        (this, Start { fleet, messages })
    }

    /// The time, as the fleet counts it.
    pub(super) fn now(&self) -> Moment {
        Moment(self.begun.elapsed())
    }

    /// Seconds since 1970.
    pub(super) fn date_of(&self, moment: Moment) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        now.saturating_sub(self.now().since(moment)).as_secs()
    }

    /// The fleet as it was after the last event.
    pub(super) fn view(&self) -> Arc<FleetView> {
        Arc::clone(&self.view.lock())
    }

    /// What has happened lately.
    pub(super) fn incidents(&self) -> Incidents {
        self.incidents.lock().clone()
    }

    /// Waits until the devices are to be read: after so long, as long as that is free, or sooner where somebody wants to
    /// know. `false`: never again.
    pub(super) fn next_reading(&self, interval: Duration, is_free: impl Fn() -> bool) -> bool {
        let mut readings = self.readings.lock();
        let last = self.begun + readings.began.0;
        loop {
            if readings.is_over {
                return false;
            }
            let is_wanted = readings.is_wanted || readings.is_asked;
            let pause = if is_wanted { BETWEEN_READINGS.min(interval) } else { interval };
            let waited = last.elapsed();
            if waited >= pause && (is_wanted || is_free()) {
                readings.is_asked = false;
                readings.began = self.now();
                self.tell(Event::ReadingBegan);
                return true;
            }
            let rest = pause.checked_sub(waited).unwrap_or(interval);
            self.wanted.wait_for(&mut readings, rest);
        }
    }

    /// This one hears of a defect that ends the node.
    pub(super) fn tell_of_defect(&self, reply: Reply) {
        match self.hear_of_defect.lock().as_mut() {
            Some(hear) => hear.push(reply),
            None => reply.send(Err(defect())),
        }
    }

    fn tell_stopped(&self) {
        *self.is_stopped.lock() = true;
        self.stopped.notify_all();
    }

    /// How old the last whole reading of the devices is.
    pub(super) fn age_of_reading(&self) -> Duration {
        self.now().since(self.readings.lock().read)
    }

    /// What the devices are like, as whoever asked [`Self::next_reading`] has found.
    pub(super) fn read(&self, devices: Vec<Device>) {
        let began = {
            let mut readings = self.readings.lock();
            readings.read = self.now();
            readings.began
        };
        self.tell(Event::Reading(Reading { began, devices, is_whole: true }));
    }

    /// A reading that began then is in the view.
    fn show(&self, began: Moment) {
        self.readings.lock().shown = began;
        self.wanted.notify_all();
    }

    /// Has the devices read soon.
    pub(super) fn ask_for_reading(&self) {
        self.readings.lock().is_asked = true;
        self.wanted.notify_all();
    }

    /// Has the devices read, and waits for that.
    pub(super) fn read_anew(&self, deadline: Instant) {
        let mut readings = self.readings.lock();
        let now = self.now();
        while readings.shown < now && !readings.is_over {
            readings.is_asked |= readings.began < now;
            self.wanted.notify_all();
            if self.wanted.wait_until(&mut readings, deadline).timed_out() {
                return;
            }
        }
    }

    /// Does the fleet wait for the next reading?
    fn wants_a_reading(&self, is_wanted: bool) {
        let mut readings = self.readings.lock();
        let is_news = is_wanted && !readings.is_wanted;
        readings.is_wanted = is_wanted;
        if is_news {
            self.wanted.notify_all();
        }
    }

    /// Nobody needs another reading.
    pub(super) fn stop_reading(&self) {
        self.readings.lock().is_over = true;
        self.wanted.notify_all();
    }

    /// Something has happened.
    pub(super) fn tell(&self, event: Event) {
        // The thread is there for as long as this is.
        let _ = self.messages.send(Message::Event(event));
    }

    /// Somebody orders something and waits for the outcome.
    pub(super) fn order(&self, reply: Reply, event: impl FnOnce(Ticket) -> Event) {
        let Some(ticket) = reply.ticket() else { return };
        let _ = self.messages.send(Message::Order(ticket, event(ticket), Waiter::Client(reply)));
    }

    /// What a load would come to: what is told of an [`Event::Plan`] with that ticket. Waits for the thread alone.
    pub(super) fn plan(&self, ticket: Ticket, event: Event) -> Result<Planned, Fault> {
        let (waits, planned) = mpsc::channel();
        let _ = self.messages.send(Message::Order(ticket, event, Waiter::Errand(waits)));
        planned.recv().unwrap_or_else(|_| Err(defect()))
    }

    /// For who notices whether a worker has something to answer: [`run`] looks at that before anything else.
    pub(super) fn hears_of_use(&self) -> impl Fn() + Send + use<> {
        let messages = self.messages.clone();
        move || {
            let _ = messages.send(Message::Event(Event::Time));
        }
    }

    fn moment_of(&self, instant: Instant) -> Moment {
        Moment(instant.saturating_duration_since(self.begun))
    }

    /// Waits until all workers have ended, after [`Event::Stopping`].
    pub(super) fn wait_until_stopped(&self, deadline: Instant) {
        let mut is_stopped = self.is_stopped.lock();
        while !*is_stopped && !self.stopped.wait_until(&mut is_stopped, deadline).timed_out() {}
    }
}

/// The thread's body. Ends with the supervisor, or by a defect, which ends the node.
pub(super) fn run(inner: &Weak<Inner>, start: Start) {
    let Start { mut fleet, messages } = start;
    watched(inner, &messages, |waiters| decide(inner, &mut fleet, &messages, waiters));
}

fn watched(
    inner: &Weak<Inner>,
    messages: &mpsc::Receiver<Message>,
    decide: impl FnOnce(&mut HashMap<Ticket, Waiter>),
) {
    let mut waiters = HashMap::new();
    let decided = panic::catch_unwind(AssertUnwindSafe(|| decide(&mut waiters)));
    if let (Err(panic), Some(inner)) = (decided, inner.upgrade()) {
        end_by_defect(&inner, panic.as_ref(), waiters, messages);
    }
}

/// Nothing is decided any more, and what was decided may be wrong: whatever waits fails, and no worker goes on.
fn end_by_defect(
    inner: &Inner,
    panic: &(dyn Any + Send),
    waiters: HashMap<Ticket, Waiter>,
    messages: &mpsc::Receiver<Message>,
) {
    let words = panic.downcast_ref::<&str>().copied();
    let words = words.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no words");
    log::error!(
        "a defect in what decides over models has ended this node, and all that was under way has failed: {words}"
    );
    let fault = defect();
    inner.processes.close(fault.clone());
    inner.fleet.stop_reading();
    inner.traffic.end_all(&fault);
    for process in inner.processes.all() {
        process.kill();
    }
    let ordered = messages.try_iter().filter_map(|message| match message {
        Message::Order(_, _, waiter) => Some(waiter),
        _ => None,
    });
    for waiter in waiters.into_values().chain(ordered) {
        match waiter {
            Waiter::Client(reply) => reply.send(Err(fault.clone())),
            Waiter::Errand(waits) => drop(waits.send(Err(fault.clone()))),
        }
    }
    let hear = inner.fleet.hear_of_defect.lock().take();
    for reply in hear.into_iter().flatten() {
        reply.send(Err(fault.clone()));
    }
    inner.fleet.tell_stopped();
}

fn defect() -> Fault {
    let message =
        "A defect in what decides over models has ended this node, and its log says more: start another";
    Fault::new(ErrorCode::Internal, message)
}

fn decide(
    inner: &Weak<Inner>,
    fleet: &mut Fleet,
    messages: &mpsc::Receiver<Message>,
    waiters: &mut HashMap<Ticket, Waiter>,
) {
    loop {
        let waited = match (fleet.next_deadline(), inner.upgrade()) {
            (_, None) => return,
            (Some(by), Some(inner)) => {
                let rest = by.since(inner.fleet.now());
                drop(inner);
                messages.recv_timeout(rest)
            }
            (None, Some(inner)) => {
                drop(inner);
                messages.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected)
            }
        };
        let mut plan = None;
        let mut last_lines = Vec::new();
        let event = match waited {
            Ok(Message::Event(event)) => event,
            Ok(Message::Order(ticket, event, waiter)) => {
                waiters.insert(ticket, waiter);
                event
            }
            Ok(Message::Found(worker, files, found)) => {
                let found = found.map(|(found, its_plan)| {
                    plan = Some(its_plan);
                    found
                });
                Event::Found { worker, found, files }
            }
            Ok(Message::Died(event, lines)) => {
                last_lines = lines;
                event
            }
            Err(mpsc::RecvTimeoutError::Timeout) => Event::Time,
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        };
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.fleet.now();
        let mut effects = Vec::new();
        for (worker, requests, idle_since) in inner.traffic.take_uses() {
            let idle_since = idle_since.map(|instant| inner.fleet.moment_of(instant));
            effects.extend(fleet.handle(now, Event::Used { worker, requests, idle_since }));
        }
        if matches!(event, Event::Estimated { .. } | Event::Ready { .. } | Event::Plan { .. })
            || matches!(event, Event::Sized { .. } | Event::Reshaped { .. })
            || fleet.is_room_looked_for(now)
        {
            // Whether there is room, and what a load came to, is decided on what there is now.
            let devices = vec![load::measure_host_and_workers(&inner)];
            effects
                .extend(fleet.handle(now, Event::Reading(Reading { began: now, devices, is_whole: false })));
        }
        let shown = if let Event::Reading(reading) = &event { Some(reading.began) } else { None };
        effects.extend(fleet.handle(now, event));
        inner.fleet.wants_a_reading(fleet.wants_a_reading());
        inner.traffic.await_use(fleet.is_anybody_waiting_for_room());
        for effect in &effects {
            if let Effect::Open { worker, model_id } = effect {
                inner.traffic.open(*worker, model_id);
            }
        }
        *inner.fleet.view.lock() = Arc::new(fleet.view());
        if let Some(began) = shown {
            inner.fleet.show(began);
        }
        for effect in effects {
            match effect {
                Effect::Tell(incident) => tell(&inner, incident, &last_lines),
                effect => carry_out(&inner, effect, waiters, &mut plan),
            }
        }
    }
}

fn carry_out(
    inner: &Arc<Inner>,
    effect: Effect,
    waiters: &mut HashMap<Ticket, Waiter>,
    plan: &mut Option<Box<LoadPlan>>,
) {
    let process = |worker| inner.processes.get(worker);
    match effect {
        Effect::Find { worker, model_id, setup, format } => find(inner, worker, model_id, setup, format),
        Effect::Spawn { worker, place, figures } => {
            // It stands behind the `Found` that came with its plan.
            if let Some(plan) = plan.take() {
                inner.processes.expect(worker);
                let vram_limit_bytes = inner.config.vram_limit_bytes.of_all(&place);
                spawn(inner, worker, Box::new(LoadPlan { place, figures, vram_limit_bytes, ..*plan }));
            }
        }
        Effect::Proceed { worker, shape } => {
            if let Some(process) = process(worker) {
                process.link.send(ToWorker::Proceed(shape));
            }
        }
        Effect::Size { worker, sizing } => {
            if let Some(process) = process(worker) {
                process.link.send(ToWorker::Size(sizing));
            }
        }
        Effect::Reshape { worker, sizing } => {
            if let Some(process) = process(worker) {
                process.link.send(ToWorker::Reshape(sizing));
            }
        }
        // Done by who calls this.
        Effect::Open { .. } | Effect::Tell(_) => {}
        Effect::Drain { worker } => {
            // Whoever comes to it from now on finds what was published before.
            inner.traffic.close(worker);
            if let Some(process) = process(worker) {
                process.link.send(ToWorker::Drain);
            }
        }
        Effect::Stop { worker } => {
            if let Some(process) = process(worker) {
                process.stop();
            }
        }
        Effect::Kill { worker } => inner.processes.kill(worker),
        Effect::GiveUp { worker, device } => {
            if let Some(process) = process(worker) {
                process.give_up(GivenUp::DeviceLost(device));
            }
        }
        Effect::EndRequests { worker, fault } => inner.traffic.end_of_worker(worker, &fault),
        Effect::Pardon { model_id } => inner.traffic.forget_suspects(&model_id),
        Effect::Resolve { ticket, outcome } => match (waiters.remove(&ticket), outcome) {
            (Some(Waiter::Client(reply)), outcome) => reply.send(outcome.and_then(|won| match won {
                Won::Loaded(loaded) => report::loaded(&loaded),
                Won::Unloaded => Ok("null".to_owned()),
                Won::Planned(planned) => report::plan::planned(inner.fleet.now(), &planned, None),
            })),
            (Some(Waiter::Errand(waits)), outcome) => {
                let planned = outcome.and_then(|won| match won {
                    Won::Planned(planned) => Ok(*planned),
                    Won::Loaded(_) | Won::Unloaded => Err(shutting_down()),
                });
                let _ = waits.send(planned);
            }
            (None, _) => {}
        },
        Effect::Record { key, figures, time } => inner.remembered.add(key, figures, time),
        Effect::Stopped => inner.fleet.tell_stopped(),
    }
}

/// `last_lines`: of the log of the worker that has died just now.
fn tell(inner: &Inner, incident: Incident, last_lines: &[String]) {
    let level = match incident.severity {
        Severity::Info => log::Level::Info,
        Severity::Warning => log::Level::Warn,
        Severity::Error => log::Level::Error,
    };
    log::log!(level, "{}", incident.message);
    if incident.kind == IncidentKind::Loaded
        && let Some(model) = inner.fleet.view().models.get(&incident.model_id)
        && let Some((_, newest)) =
            model.workers.iter().filter_map(|worker| worker.loaded.as_ref()).max_by_key(|(since, _)| *since)
    {
        inner.traffic.loaded(&incident.model_id, newest.took);
    }
    let at = inner.fleet.date_of(inner.fleet.now());
    // What else follows from one worker's end is no fault of its.
    let is_of_worker = matches!(incident.kind, IncidentKind::Crashed | IncidentKind::LoadFailed);
    let log = if is_of_worker { last_lines.to_vec() } else { Vec::new() };
    inner.fleet.incidents.lock().add(at, incident, log);
}

/// In a thread of its own: looks for the model's file, and has new engines probed.
fn find(inner: &Arc<Inner>, worker: WorkerId, model_id: String, setup: Box<Setup>, format: Option<String>) {
    let finding = Arc::clone(inner);
    let found = thread::Builder::new().name("find".to_owned()).spawn(move || {
        let files = finding.find(&model_id).map(|model| load::files(&model)).unwrap_or_default();
        let found = load::find(&finding, &model_id, &setup, format.as_deref());
        let _ = finding.fleet.messages.send(Message::Found(worker, files, found));
    });
    if let Err(error) = found {
        inner.fleet.tell(Event::Found { worker, found: Err(no_thread(&error)), files: Files::new() });
    }
}

/// In a thread of its own: starts a process, and has it load.
fn spawn(inner: &Arc<Inner>, worker: WorkerId, plan: Box<LoadPlan>) {
    let starting = Arc::clone(inner);
    let spawned = thread::Builder::new().name("start".to_owned()).spawn(move || {
        let inner = starting;
        log::info!("loading '{}' with {} {}", plan.model_id, plan.engine.id, plan.engine.version);
        let launch = Launch {
            worker,
            command: &inner.config.worker_command,
            engine_env: &inner.config.engine_env,
            sight: Sight::of(&plan.engine.gpu_backend, &plan.place),
            start_timeout: inner.config.start_timeout(),
            engine: plan.engine.id.clone(),
            model: Some(plan.model_id.clone()),
            hear: {
                let (inner, model_id) = (Arc::downgrade(&inner), plan.model_id.clone());
                Arc::new(move |control| heard(&inner, worker, &model_id, control))
            },
        };
        match inner.processes.start(launch, &inner.traffic) {
            Ok(process) => {
                // Before anything can come of the plan.
                inner.fleet.tell(Event::Started { worker, pid: process.pid() });
                process.link.send(ToWorker::Load(*plan));
            }
            Err(fault) => inner.fleet.tell(Event::NotStarted { worker, fault }),
        }
    });
    if let Err(error) = spawned {
        inner.fleet.tell(Event::NotStarted { worker, fault: no_thread(&error) });
    }
}

fn heard(inner: &Weak<Inner>, worker: WorkerId, model_id: &str, control: Control) {
    let Some(inner) = inner.upgrade() else { return };
    inner.fleet.tell(match control {
        Control::Message(FromWorker::Estimated(estimate)) => Event::Estimated { worker, estimate },
        Control::Message(FromWorker::Ready(facts)) => Event::Ready { worker, facts },
        Control::Message(FromWorker::LoadFailed(fault)) => Event::Failed { worker, fault },
        Control::Message(FromWorker::Sized(uses)) => Event::Sized { worker, uses },
        Control::Message(FromWorker::Reshaped(facts)) => Event::Reshaped { worker, facts },
        Control::Message(FromWorker::Drained) => Event::Drained { worker },
        Control::Message(FromWorker::Devices { number, devices }) => {
            return inner.engine_devices.heard(number, devices);
        }
        Control::Message(_) => return,
        Control::Died(death) => {
            let is_known = !death.expected && inner.traffic.suspect(worker, model_id, death.is_by_fault());
            let event = Event::Died { worker, death: told(&death), is_known };
            let _ = inner.fleet.messages.send(Message::Died(event, death.last_lines));
            return;
        }
    });
}

fn told(death: &Death) -> llm_node_fleet::Death {
    llm_node_fleet::Death {
        ending: death.ending.to_string(),
        signal: match death.ending {
            Ending::Signal { number, .. } => Some(number),
            Ending::Code(_) | Ending::Unknown => None,
        },
        call: death.call().to_owned(),
        message: death.describe(),
    }
}

fn no_thread(error: &std::io::Error) -> Fault {
    Fault::new(ErrorCode::Internal, format!("no thread for a load: {error}"))
}

#[cfg(test)]
mod tests;
