//! The supervisor: registry, models, memory and workers of one node, behind calls that any thread may
//! make.
//!
//! Owns the life of every worker: none outlives it. Refuses to know any API family; requests and
//! events pass through as they are.

mod affinity;
mod asking;
mod clock;
mod drive;
mod engine_devices;
mod environment;
mod errands;
mod incidents;
mod inflight;
mod load;
mod meters;
mod minding;
mod outlets;
mod output;
mod planning;
mod process;
mod remembered;
mod report;
mod said;
mod silence;
mod suspects;
mod would_fit;

use std::{
    collections::HashMap,
    mem,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    request::Request,
};
use llm_node_fleet::{
    Account, Deadlines, Device, DeviceKind, Event, Fleet, FleetView, Moment, Reading, Status, Usual,
    WorkerId, not_loaded,
};
use llm_node_wire::message::{Question, ToWorker};
use parking_lot::Mutex;
use serde::Serialize;

use self::{
    affinity::Beginning,
    asking::ProcessProbe,
    drive::Drive,
    engine_devices::EngineDevices,
    errands::Errands,
    inflight::{Link, Traffic},
    load::{measure_host, measure_host_and_workers},
    process::{Processes, shutting_down},
    remembered::Remembered,
    report::{ModelRow, SystemRow},
    said::Said,
    suspects::Fingerprint,
};
pub use self::{
    inflight::{Form, Waker},
    load::{Estimated, LoadRequest},
    outlets::{ClientId, Delivery, MAX_UNSENT, Outcome, Told, Waiting, What},
};
use crate::{
    choose::{Wish, choose},
    config::NodeConfig,
    models::{Catalog, Model, Readable},
    platform,
    registry::{
        Registry,
        surroundings::Surroundings,
        verdict::{Candidate, EngineRow},
    },
};

/// Names a stream within the node.
pub type StreamId = u64;

/// Names something that was asked for, and whose [`Outcome`] comes by [`Supervisor::drain`].
pub type Ticket = u64;

/// How long an answer to a question may take: embeddings of a large batch on a slow machine.
const QUESTION_SECONDS: u32 = 600;
/// A model of which nothing was heard for so long stands still, whatever `--step-timeout` says.
const STANDSTILL_SECONDS: u32 = 30;
/// How long a process that is left over may take to end at the very end.
const KILL_DEADLINE: Duration = Duration::from_secs(2);
/// Beyond what a shutdown's workers are given, before it is left to itself.
const LAST_RESORT: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Debug)]
pub struct Supervisor {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: NodeConfig,
    registry: Registry,
    catalog: Catalog,
    fleet: Drive,
    processes: Arc<Processes>,
    traffic: Arc<Traffic>,
    remembered: Arc<Remembered>,
    /// What the configuration says of loads.
    usual: Mutex<Usual>,
    /// The models that were meant by names so far.
    names: Mutex<HashMap<String, String>>,
    /// Requests that wait for loads, by what they call their model.
    parked: Mutex<HashMap<String, usize>>,
    engine_devices: EngineDevices,
    said: Said,
    /// Loads and unloads.
    changes: Errands,
    /// Looks at what there is.
    reports: Errands,
}

/// A limit that counts for no device is no mistake where one is not there today.
fn warn_of_strangers(config: &NodeConfig, accounts: &[Account]) {
    let on_cpu = config.gpu_backend.as_deref() == Some("cpu");
    let counting = accounts.iter().filter(|account| (account.device.kind == DeviceKind::Host) == on_cpu);
    let devices: Vec<_> = counting.map(|account| account.device.address()).collect();
    let ids: Vec<_> = devices.iter().map(|device| device.id.as_str()).collect();
    for name in config.vram_limit_bytes.strangers(&devices) {
        log::warn!("vram_limit: nothing is limited by '{name}', for models go to: {}", ids.join(", "));
    }
}

impl Supervisor {
    /// Starts nothing yet: engines are probed when somebody asks.
    pub fn new(config: NodeConfig) -> Self {
        for folder in config.engines_dirs.iter().chain([&config.models_dir]) {
            if !folder.is_dir() {
                log::info!("{}: no such folder, so nothing is found there", folder.display());
            }
        }
        let mut fleet = Fleet::new(
            Deadlines::new(config.start_timeout(), config.load_timeout(), config.max_wait()),
            config.usual(),
            config.gpu_backend.as_deref() == Some("cpu"),
            config.vram_limit_bytes.clone(),
        )
        .reserving(config.vram_reserve_bytes);
        let remembered = Arc::new(Remembered::new(config.home.as_deref()));
        let date = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        fleet = fleet.remembering(remembered.read(), date.as_secs());
        let devices = config.devices.iter().cloned().chain([measure_host()]).collect();
        fleet.handle(
            Moment::default(),
            Event::Reading(Reading { began: Moment::default(), devices, is_whole: true }),
        );
        warn_of_strangers(&config, &fleet.view().accounts);
        let (drive, start) = Drive::new(fleet);
        let this = Self {
            inner: Arc::new(Inner {
                registry: Registry::new(config.surroundings()),
                catalog: Catalog::new(
                    config.models_dir.clone(),
                    config.demo_model.clone(),
                    config.caches.clone(),
                    config.aliases.clone(),
                ),
                fleet: drive,
                processes: Arc::new(Processes::default()),
                traffic: Arc::new(Traffic::default()),
                remembered,
                usual: Mutex::new(config.usual()),
                names: Mutex::default(),
                parked: Mutex::default(),
                engine_devices: EngineDevices::default(),
                said: Said::default(),
                changes: Errands::default(),
                reports: Errands::default(),
                config,
            }),
        };
        if this.inner.is_told_of_gpus() {
            this.inner.fleet.ask_for_reading();
        }
        this.inner.traffic.set_hears_of_use(this.inner.fleet.hears_of_use());
        let inner = Arc::downgrade(&this.inner);
        process::spawn_thread("fleet", move || drive::run(&inner, start));
        let inner = Arc::downgrade(&this.inner);
        process::spawn_thread("clock", move || clock::keep(&inner));
        this
    }

    /// Takes over what may change while a node runs: how models are loaded, and their further names. Those that
    /// are loaded stay as they are, but for how long they stay.
    pub fn reconfigure(&self, config: NodeConfig) {
        let inner = &self.inner;
        let usual = config.usual();
        inner.catalog.name(config.aliases);
        inner.names.lock().clear();
        inner.usual.lock().clone_from(&usual);
        inner.fleet.tell(Event::Configured(usual));
    }

    /// Looks for engines in these folders from now on, in this order.
    pub fn search_in(&self, surroundings: Surroundings) {
        self.inner.registry.search_in(surroundings);
    }

    /// Every candidate with its verdict: [`EngineRow`]s. Comes once all are probed. `refresh`: each is looked at anew, and
    /// models whose engine has changed are loaded anew.
    pub fn engines(&self, refresh: bool) -> Ticket {
        self.inner.reports.run(&self.inner, "engines", move |inner, reply| {
            let candidates = inner.candidates(refresh);
            reply.send(written(&candidates.iter().map(EngineRow::from).collect::<Vec<_>>()));
            if refresh {
                load::renew(inner);
            }
        })
    }

    /// Every model found, with its state: `available`, `loading`, `loaded` or `failed`. Waits for no worker.
    pub fn models(&self) -> Ticket {
        self.report("models", Inner::models)
    }

    /// The model that is meant by a name, as [`Supervisor::models`] has it. Waits for no worker.
    pub fn model(&self, name: &str) -> Ticket {
        let name = name.to_owned();
        self.report("model", move |inner| inner.model(&name))
    }

    /// From now on `alias` is a further name of the model that is meant by `name`, which is what comes, as
    /// [`Supervisor::model`] has it.
    pub fn alias(&self, alias: &str, name: &str) -> Ticket {
        let (alias, name) = (alias.to_owned(), name.to_owned());
        self.report("alias", move |inner| {
            let model = inner.catalog.alias(&alias, &name, &inner.registry.readable())?;
            inner.names.lock().remove(&alias);
            inner.model(&model.id)
        })
    }

    /// The files that are not listed as models, each with the reason. Opens no engine.
    pub fn unlisted(&self) -> Ticket {
        self.report("unlisted", |inner| written(&inner.catalog.unlisted(&inner.registry.readable())))
    }

    /// The models that cannot be loaded, with code and message of what is in the way: a defect of their own, or
    /// that there is no engine for them. Comes once all candidates are probed.
    pub fn obstacles(&self) -> Ticket {
        self.report("obstacles", |inner| {
            let candidates = inner.candidates(false);
            let obstacle = |model: &Model| {
                let gpu_backend = inner.config.gpu_backend.as_deref();
                let wish = Wish { model, gpu_backend, engine: None, format: None };
                let fault = model.problem.clone().or_else(|| choose(wish, &candidates).err())?;
                Some((model.id.clone(), (fault.code, fault.message)))
            };
            let models = inner.catalog.models(&inner.registry.readable());
            written(&models.iter().filter_map(obstacle).collect::<HashMap<_, _>>())
        })
    }

    /// Devices, ledger, workers, versions. Waits for no worker.
    /// `is_fresh`: with the devices as they are now, also where nobody reads them as long as nothing is loaded.
    pub fn system(&self, is_fresh: bool) -> Ticket {
        self.report("system", move |inner| {
            if is_fresh {
                inner.look_at_devices();
            }
            SystemRow::written(inner)
        })
    }

    /// What has happened lately: failed loads, crashes, refusals. Waits for no worker.
    pub fn incidents(&self) -> Ticket {
        self.report("incidents", |inner| written(inner.fleet.incidents().last()))
    }

    /// What all requests and all loads took so far, by model. Waits for no worker.
    pub fn meters(&self) -> Ticket {
        self.report("meters", |inner| {
            let view = inner.fleet.view();
            let is_there =
                |model_id: &str| view.models.get(model_id).is_some_and(|it| !it.workers.is_empty());
            written(&inner.traffic.meters(is_there))
        })
    }

    fn report(
        &self,
        name: &'static str,
        look: impl FnOnce(&Inner) -> Result<String, Fault> + Send + 'static,
    ) -> Ticket {
        self.inner.reports.run(&self.inner, name, |inner, reply| reply.send(look(inner)))
    }

    /// What the model in a file would take, by its engine's own estimate, which needs the header alone: the
    /// file may be a hole behind it. What comes is [`Estimated`]. Reserves nothing.
    pub fn plan(&self, path: PathBuf, context_length: Option<u32>) -> Ticket {
        self.report("plan", move |inner| written(&load::plan_file(inner, &path, context_length)?))
    }

    /// What a load would come to. Loads nothing, and reserves nothing.
    pub fn plan_load(&self, request: LoadRequest) -> Ticket {
        self.inner
            .reports
            .run(&self.inner, "plan", move |inner, reply| planning::answer(inner, &request, reply))
    }

    /// Loads a model, or joins a load under way. What comes is what the load came to.
    pub fn load(&self, request: LoadRequest) -> Ticket {
        self.inner.changes.run(&self.inner, "load", |inner, reply| load::load(inner, request, reply))
    }

    /// Drains, stops, waits for the process to end. What comes is null.
    pub fn unload(&self, model_id: &str, timeout: Duration) -> Ticket {
        let model_id = model_id.to_owned();
        self.inner.changes.run(&self.inner, "unload", move |inner, reply| match inner.loaded_as(&model_id) {
            Ok(model_id) => inner.fleet.order(reply, |ticket| Event::Unload { ticket, model_id, timeout }),
            Err(fault) => reply.send(Err(fault)),
        })
    }

    /// Why a model answers nothing although it is loaded, if there is a reason. Never blocks.
    pub fn standstill(&self) -> Option<String> {
        let limit = match self.inner.config.step_timeout_seconds {
            0 => STANDSTILL_SECONDS,
            limit => limit.min(STANDSTILL_SECONDS),
        };
        let view = self.inner.fleet.view();
        view.models.iter().find_map(|(model_id, model)| {
            model.workers.iter().find_map(|worker| {
                let process = self.inner.processes.get(worker.id).filter(|_| worker.status == Status::Loaded)?;
                let seconds = process.silence.seconds();
                let stage = process.output.stage();
                (seconds > limit).then(|| {
                    format!(
                        "Model '{model_id}' stands still in {stage}: nothing was heard of its worker for {seconds} s"
                    )
                })
            })
        })
    }

    /// For how many seconds the devices have not answered, where they should have. Never blocks.
    pub fn blind_seconds(&self) -> Option<u64> {
        let (since, by) = self.inner.fleet.view().reading?;
        let now = self.inner.fleet.now();
        (now >= by).then(|| now.since(since).as_secs())
    }

    /// Waits until figures of the devices are wanted: after so long, or sooner where something waits for them.
    /// `false`: no more are. One thread alone may ask, and brings them by [`Self::update_devices`].
    pub fn next_reading(&self, interval: Duration) -> bool {
        // Where a process would be started for it, they are read when somebody wants to know.
        let is_free = || !self.inner.is_told_of_gpus() || self.inner.has_who_tells();
        self.inner.fleet.next_reading(interval, is_free)
    }

    /// New figures of the devices, beside those of the host's memory.
    pub fn update_devices(&self, devices: Vec<Device>) {
        let mut gpus: Vec<Device> =
            devices.into_iter().filter(|device| device.kind != DeviceKind::Host).collect();
        if self.inner.is_told_of_gpus() {
            gpus.extend(self.inner.told_gpus());
        }
        let devices = gpus.into_iter().chain([measure_host_and_workers(&self.inner)]).collect();
        self.inner.fleet.read(devices);
    }

    /// What comes is an error, where a defect ends the node by itself: whatever was under way has failed by then,
    /// its workers are killed, and all that is asked of it is refused.
    pub fn await_defect(&self) -> Ticket {
        let (ticket, reply) = self.inner.traffic.ticket();
        self.inner.fleet.tell_of_defect(reply);
        ticket
    }

    /// A new stream on a model that is ready. Never blocks.
    ///
    /// `client` is the caller's name for the one who gets it, and may have several streams.
    pub fn submit(
        &self,
        model_id: &str,
        mut request: Request,
        client: ClientId,
        form: Form,
    ) -> Result<StreamId, Fault> {
        let (model_id, view) = self.known(model_id)?;
        // Neither another seed nor another client makes it another request.
        let (seed, source) = (request.sampling.seed.take(), mem::take(&mut request.source));
        let asked = Fingerprint::of(&model_id, &request);
        (request.sampling.seed, request.source) = (seed, source);
        let traffic = &self.inner.traffic;
        traffic.acquit(asked, &model_id)?;
        let links = self.links(&view.ready(&model_id, self.inner.fleet.now())?);
        // Where there is no choice, nobody needs it.
        let beginning = if links.len() > 1 { Beginning::of(&request.prompt) } else { Beginning::default() };
        let send = |id| ToWorker::Generate { id, request };
        let submitted = traffic.submit(&links, &beginning, client, form, asked, send);
        submitted.ok_or_else(|| self.inner.gone(&model_id))
    }

    /// Asks a model that is ready. Never blocks. What comes is an `Answer`.
    pub fn ask(&self, model_id: &str, question: Question) -> Result<Ticket, Fault> {
        let (model_id, view) = self.known(model_id)?;
        let asked = Fingerprint::of(&model_id, &question);
        let traffic = &self.inner.traffic;
        traffic.acquit(asked, &model_id)?;
        let links = self.links(&view.ready(&model_id, self.inner.fleet.now())?);
        let send = |id| ToWorker::Ask { id, question };
        traffic.ask(&links, asked, send).ok_or_else(|| self.inner.gone(&model_id))
    }

    /// So many requests more wait until the model is loaded.
    pub fn park(&self, model_id: &str, requests: usize) {
        *self.inner.parked.lock().entry(model_id.to_owned()).or_default() += requests;
    }

    /// So many of these do not any more.
    pub fn unpark(&self, model_id: &str, requests: usize) {
        let mut parked = self.inner.parked.lock();
        if let Some(count) = parked.get_mut(model_id) {
            *count = count.saturating_sub(requests);
        }
        parked.retain(|_, count| *count > 0);
    }

    /// Nobody waits for the answer to a question any more.
    pub fn forget(&self, ticket: Ticket) {
        self.inner.traffic.forget_question(ticket);
    }

    /// The model that was meant by a name so far, and the fleet.
    fn known(&self, name: &str) -> Result<(String, Arc<FleetView>), Fault> {
        self.inner.processes.refuse_if_closed()?;
        Ok((self.inner.own_name(name), self.inner.fleet.view()))
    }

    /// The ways to those of the workers that have a process.
    fn links(&self, workers: &[WorkerId]) -> Vec<Link> {
        let processes = workers.iter().filter_map(|worker| self.inner.processes.get(*worker));
        processes.map(|process| process.link.clone()).collect()
    }

    /// The client's connection has so many bytes that it cannot send now, or is about to be written to. Its
    /// text is collected until [`Self::release`]; with more than [`MAX_UNSENT`] it comes to
    /// [`What::Overflow`]. Gives how often its socket was written to.
    pub fn hold(&self, client: ClientId, unsent: usize) -> u64 {
        self.inner.traffic.hold(client, unsent)
    }

    /// The client's connection has sent everything. With the number of its `socket`, its text is written
    /// there without the caller's help, until the next [`Delivery`] for it or [`Self::hold`].
    pub fn release(&self, client: ClientId, socket: Option<i64>) {
        self.inner.traffic.release(client, || {
            let socket = platform::socket(socket?).ok()?;
            Some(Box::new(socket))
        });
    }

    /// Whatever still comes for the client, its socket is no longer written to.
    pub fn disconnect(&self, client: ClientId) {
        self.inner.traffic.disconnect(client);
    }

    /// The client of a stream has left. Its ending still comes.
    pub fn cancel(&self, stream: StreamId) {
        self.inner.traffic.cancel(stream);
    }

    /// Whom to call when something waits for [`Supervisor::drain`]. Called once per drain, from any
    /// thread; it must not block.
    pub fn set_waker(&self, waker: Option<Waker>) {
        self.inner.traffic.set_waker(waker);
    }

    /// Everything since the last call.
    pub fn drain(&self) -> Waiting {
        self.inner.traffic.drain()
    }

    /// Refuses new work, lets what is under way go on for at most `limit`, then ends all workers, which takes
    /// a little more where an engine does not stop. Another call meanwhile ends all workers at once.
    pub fn shutdown(&self, limit: Duration) {
        let inner = &self.inner;
        inner.processes.close(shutting_down());
        inner.fleet.stop_reading();
        inner.fleet.tell(Event::Stopping { by: inner.fleet.now() + limit });
        // Those that only look at engines have nothing to end.
        for process in inner.processes.all().iter().filter(|process| process.is_probe()) {
            process.kill();
        }
        inner.fleet.wait_until_stopped(Instant::now() + limit.saturating_add(LAST_RESORT));
        let rest = inner.processes.all();
        for process in &rest {
            process.kill();
        }
        for process in rest {
            process.wait(Instant::now() + KILL_DEADLINE);
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.shutdown(Duration::ZERO);
    }
}

impl Inner {
    fn candidates(&self, refresh: bool) -> Vec<Candidate> {
        self.registry.candidates(&ProcessProbe(self), refresh)
    }

    /// Where nobody looks at the devices as long as nothing is loaded, they are looked at now.
    fn look_at_devices(&self) {
        if self.is_told_of_gpus() && !self.has_who_tells() {
            self.fleet.read_anew(Instant::now() + self.config.probe_timeout());
        }
    }

    fn models(&self) -> Result<String, Fault> {
        let readable = self.registry.readable();
        let models: Vec<Model> =
            self.catalog.models(&readable).into_iter().map(|model| with_obstacle(model, &readable)).collect();
        let view = self.fleet.view();
        let mut rows: Vec<ModelRow<'_>> =
            models.iter().map(|model| ModelRow::of(self, model, &view)).collect();
        // A loaded model whose file has gone is still served.
        for id in view.models.keys() {
            if !models.iter().any(|model| model.id == *id) {
                rows.extend(ModelRow::without_file(self, id, &view));
            }
        }
        written(&rows)
    }

    fn model(&self, name: &str) -> Result<String, Fault> {
        let view = self.fleet.view();
        let readable = self.registry.readable();
        match self.catalog.find(name, &readable) {
            Ok(model) => {
                let model = with_obstacle(model, &readable);
                written(&ModelRow::of(self, &model, &view))
            }
            Err(fault) => {
                let id = self.own_name(name);
                let row = ModelRow::without_file(self, &id, &view);
                row.map_or(Err(fault), |row| written(&row))
            }
        }
    }

    /// The model that is meant by who wants it to be gone: one that something is known of.
    fn loaded_as(&self, name: &str) -> Result<String, Fault> {
        let own = self.own_name(name);
        if self.fleet.view().models.contains_key(&own) {
            return Ok(own);
        }
        // Under another name than it was asked for so far?
        let id = self.catalog.find(name, &self.registry.readable())?.id;
        if self.fleet.view().models.contains_key(&id) { Ok(id) } else { Err(not_loaded(&id)) }
    }

    /// Requests that wait until it is loaded, by whatever name.
    fn parked_for(&self, model_id: &str) -> usize {
        let parked = self.parked.lock();
        let its = parked.iter().filter(|(name, _)| self.own_name(name) == model_id);
        its.map(|(_, count)| count).sum()
    }

    /// What is known of a name without a look at the disk.
    fn own_name(&self, name: &str) -> String {
        self.names.lock().get(name).cloned().unwrap_or_else(|| name.to_owned())
    }

    /// Why the worker that was there a moment ago takes nothing: what was published before it was closed, or else
    /// its death.
    fn gone(&self, model_id: &str) -> Fault {
        self.fleet.view().ready(model_id, self.fleet.now()).err().unwrap_or_else(|| died(model_id))
    }

    fn find(&self, model_id: &str) -> Result<Model, Fault> {
        match self.catalog.find(model_id, &self.registry.readable()) {
            // Without a device there is nothing to choose, whatever the model.
            Err(fault) if self.config.gpu_backend.is_none() => {
                let wish = Wish { model: &Model::default(), gpu_backend: None, engine: None, format: None };
                Err(choose(wish, &[]).err().unwrap_or(fault))
            }
            found => found,
        }
    }

    fn wish<'a>(&'a self, model: &'a Model, engine: Option<&'a str>, format: Option<&'a str>) -> Wish<'a> {
        Wish { model, gpu_backend: self.config.gpu_backend.as_deref(), engine, format }
    }
}

/// The model, with what its engines' manifests say against it where it has no defect of its own.
fn with_obstacle(model: Model, readable: &Readable) -> Model {
    let problem = model.problem.clone().or_else(|| readable.obstacle(&model));
    Model { problem, ..model }
}

/// The fleet hears of it in a moment; whoever wants the model has it loaded again.
fn died(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelLoading, format!("The worker of model '{model_id}' has just died"))
}

fn written<T: Serialize>(report: &T) -> Result<String, Fault> {
    serde_json::to_string(report)
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("a report cannot be written: {error}")))
}
