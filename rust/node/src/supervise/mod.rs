//! The supervisor: registry, models, memory and workers of one node, behind calls that any thread may
//! make.
//!
//! Owns the life of every worker: none outlives it. Refuses to know any API family; requests and
//! events pass through as they are.

mod clock;
mod environment;
mod errands;
mod inflight;
mod load;
mod minding;
mod outlets;
mod output;
mod process;
mod silence;
mod slot;
mod suspects;
mod wishes;

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    request::Request,
};
use llm_node_wire::message::{FromWorker, PROTOCOL_VERSION, Question, ToWorker};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Value, json};

use self::{
    errands::Errands,
    inflight::Traffic,
    load::ProcessProbe,
    minding::Control,
    process::{Process, Processes, shutting_down},
    slot::{Running, Slot, Unload, Waiter, not_loaded, to_be_loaded},
    suspects::Fingerprint,
};
pub use self::{
    inflight::{Form, Waker},
    load::{LoadRequest, Planned},
    outlets::{ClientId, Delivery, MAX_UNSENT, Outcome, Told, Waiting, What},
    slot::Loaded,
};
use crate::{
    choose::{Wish, choose},
    config::{Device, NodeConfig},
    devices::Devices,
    models::{Catalog, Model},
    platform,
    registry::{
        Registry,
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
/// How long an engine may take to shut down once its requests have ended.
const STOP_DEADLINE: Duration = Duration::from_secs(5);
/// How long a worker that is told to stop may take in a shutdown before it is ended.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

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
    devices: Devices,
    processes: Arc<Processes>,
    traffic: Arc<Traffic>,
    slots: Mutex<Slots>,
    /// Loads and unloads.
    changes: Errands,
    /// Looks at what there is.
    reports: Errands,
}

#[derive(Debug, Default)]
struct Slots {
    by_id: HashMap<String, Arc<Slot>>,
    /// Other names that led to a model before: `NAME:QUANT` for `NAME`.
    aliases: HashMap<String, String>,
}

impl Supervisor {
    /// Starts nothing yet: engines are probed when somebody asks.
    pub fn new(config: NodeConfig) -> Self {
        for folder in config.engines_dirs.iter().chain([&config.models_dir]) {
            if !folder.is_dir() {
                log::info!("{}: no such folder, so nothing is found there", folder.display());
            }
        }
        let this = Self {
            inner: Arc::new(Inner {
                registry: Registry::new(config.engines_dirs.clone()),
                catalog: Catalog::new(
                    config.models_dir.clone(),
                    config.demo_model.clone(),
                    config.caches.clone(),
                    config.aliases.clone(),
                ),
                devices: Devices::new(
                    &config.devices,
                    config.gpu_backend.as_deref(),
                    config.vram_limit_bytes,
                ),
                processes: Arc::new(Processes::default()),
                traffic: Arc::new(Traffic::default()),
                slots: Mutex::default(),
                changes: Errands::default(),
                reports: Errands::default(),
                config,
            }),
        };
        let inner = Arc::downgrade(&this.inner);
        process::spawn_thread("clock", move || clock::keep(&inner));
        this
    }

    /// Looks for engines in these folders from now on, in this order.
    pub fn search_in(&self, engines_dirs: Vec<PathBuf>) {
        self.inner.registry.search_in(engines_dirs);
    }

    /// Every candidate with its verdict: [`EngineRow`]s. Comes once all are probed.
    pub fn engines(&self, refresh: bool) -> Ticket {
        self.report("engines", move |inner| {
            Ok(inner.candidates(refresh).iter().map(EngineRow::from).collect::<Vec<_>>())
        })
    }

    /// Every model found, with its state: `available`, `loading`, `loaded` or `failed`. Waits for no worker.
    pub fn models(&self) -> Ticket {
        self.report("models", |inner| Ok(inner.models()))
    }

    /// The model that is meant by a name, as [`Supervisor::models`] has it. Waits for no worker.
    pub fn model(&self, name: &str) -> Ticket {
        let name = name.to_owned();
        self.report("model", move |inner| inner.model(&name))
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
            Ok(models.iter().filter_map(obstacle).collect::<HashMap<_, _>>())
        })
    }

    /// Devices, ledger, workers, versions. Waits for no worker.
    pub fn system(&self) -> Ticket {
        self.report("system", |inner| Ok(inner.system()))
    }

    fn report<T: Serialize>(
        &self,
        name: &'static str,
        look: impl FnOnce(&Arc<Inner>) -> Result<T, Fault> + Send + 'static,
    ) -> Ticket {
        self.inner.reports.run(&self.inner, name, |inner, reply| {
            reply.send(look(inner).and_then(|report| {
                serde_json::to_string(&report).map_err(|error| {
                    Fault::new(ErrorCode::Internal, format!("a report cannot be written: {error}"))
                })
            }));
        })
    }

    /// What the model in a file would take, by its engine's own estimate, which needs the header alone: the
    /// file may be a hole behind it. What comes is [`Planned`]. Reserves nothing.
    pub fn plan(&self, path: PathBuf, context_length: Option<u32>) -> Ticket {
        self.report("plan", move |inner| load::plan_file(inner, &path, context_length))
    }

    /// Loads a model, or joins a load under way. What comes is [`Loaded`].
    pub fn load(&self, request: LoadRequest) -> Ticket {
        self.inner.changes.run(&self.inner, "load", |inner, reply| load::load(inner, request, reply))
    }

    /// Drains, stops, waits for the process to end. What comes is null.
    pub fn unload(&self, model_id: &str, timeout: Duration) -> Ticket {
        let model_id = model_id.to_owned();
        self.inner.changes.run(&self.inner, "unload", move |inner, reply| {
            reply.send(inner.unload(&model_id, timeout).map(|()| "null".to_owned()));
        })
    }

    /// Why a model answers nothing although it is loaded, if there is one. Never blocks.
    pub fn standstill(&self) -> Option<String> {
        let limit = match self.inner.config.step_timeout_seconds {
            0 => STANDSTILL_SECONDS,
            limit => limit.min(STANDSTILL_SECONDS),
        };
        let slots: Vec<Arc<Slot>> = self.inner.slots.lock().by_id.values().cloned().collect();
        slots.iter().find_map(|slot| slot.stands_still(limit))
    }

    /// New figures of the devices.
    pub fn update_devices(&self, devices: &[Device]) {
        self.inner.devices.update(devices);
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
        let slot = self.known(model_id)?;
        // Another seed does not make it another request.
        let seed = request.sampling.seed.take();
        let asked = Fingerprint::of(&slot.model_id, &request);
        request.sampling.seed = seed;
        let traffic = &self.inner.traffic;
        traffic.acquit(asked, &slot.model_id)?;
        let running = slot.ready()?;
        let send = |id| ToWorker::Generate { id, request };
        traffic.submit(&running.process.link, client, form, asked, send).ok_or_else(|| died(model_id))
    }

    /// Asks a model that is ready. Never blocks. What comes is an `Answer`.
    pub fn ask(&self, model_id: &str, question: Question) -> Result<Ticket, Fault> {
        let slot = self.known(model_id)?;
        let asked = Fingerprint::of(&slot.model_id, &question);
        let traffic = &self.inner.traffic;
        traffic.acquit(asked, &slot.model_id)?;
        let running = slot.ready()?;
        let send = |id| ToWorker::Ask { id, question };
        traffic.ask(&running.process.link, asked, send).ok_or_else(|| died(model_id))
    }

    /// Nobody waits for the answer to a question any more.
    pub fn forget(&self, ticket: Ticket) {
        self.inner.traffic.forget_question(ticket);
    }

    fn known(&self, model_id: &str) -> Result<Arc<Slot>, Fault> {
        if self.inner.processes.is_closed() {
            return Err(shutting_down());
        }
        self.inner.known_slot(model_id).ok_or_else(|| to_be_loaded(model_id))
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
        let begun = Instant::now();
        inner.processes.close();
        let slots: Vec<Arc<Slot>> = inner.slots.lock().by_id.values().cloned().collect();
        let farewell = KILL_DEADLINE.min(limit);
        let mut loaded: Vec<(Arc<Slot>, Arc<Running>)> = Vec::new();
        for slot in slots {
            match slot.begin_unload() {
                Ok(Unload::Drain(running)) => {
                    running.process.link.send(ToWorker::Drain);
                    loaded.push((slot, running));
                }
                Ok(Unload::Wait(waiting)) => {
                    for Waiter { reply, .. } in waiting {
                        reply.send(Err(shutting_down()));
                    }
                }
                Ok(Unload::Done) | Err(_) => {}
            }
        }
        // Probes and loads under way have nothing to drain.
        let serving: Vec<u64> = loaded.iter().map(|(_, running)| running.process.link.worker).collect();
        for process in inner.processes.all() {
            if !serving.contains(&process.link.worker) {
                process.kill();
            }
        }
        thread::scope(|scope| {
            for (_, running) in &loaded {
                scope.spawn(|| {
                    drain(running, begun + limit);
                    end(running, Instant::now() + farewell);
                });
            }
        });
        for (slot, _) in &loaded {
            for Waiter { reply, .. } in slot.end_unload() {
                reply.send(Err(shutting_down()));
            }
        }
        let rest: Vec<Arc<Process>> = inner.processes.all();
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

    fn models(&self) -> Vec<Value> {
        let models = self.catalog.models(&self.registry.readable());
        let slots = self.slots.lock().by_id.clone();
        let mut rows: Vec<Value> = models
            .iter()
            .map(|model| self.model_row(model, slots.get(&model.id).map(AsRef::as_ref)))
            .collect();
        // A loaded model whose file has gone is still served.
        for (id, slot) in slots {
            if !models.iter().any(|model| model.id == id) {
                rows.extend(self.row_without_file(&slot));
            }
        }
        rows
    }

    fn model(&self, name: &str) -> Result<Value, Fault> {
        match self.catalog.find(name, &self.registry.readable()) {
            Ok(model) => Ok(self.model_row(&model, self.known_slot(&model.id).as_deref())),
            Err(fault) => self.known_slot(name).and_then(|slot| self.row_without_file(&slot)).ok_or(fault),
        }
    }

    fn row_without_file(&self, slot: &Slot) -> Option<Value> {
        let (status, fields) = slot.report(&self.traffic);
        (status == "loaded" || status == "loading")
            .then(|| merge(json!({ "id": slot.model_id, "status": status }), fields))
    }

    fn model_row(&self, model: &Model, slot: Option<&Slot>) -> Value {
        let row = json!({
            "id": model.id,
            "format": model.format,
            "architecture": model.architecture,
            "name": model.name,
            "quantization": model.quantization,
            "task": model.task,
            "size_bytes": model.size_bytes,
            "context_length": model.context_length,
            "origin": model.origin,
            "path": model.path.display().to_string(),
            "files": shown(&model.parts),
            "also": shown(&model.also),
            "modified": modified(&model.path),
        });
        let (status, fields) = slot.map_or(("available", json!({})), |slot| slot.report(&self.traffic));
        match &model.problem {
            Some(problem) if status == "available" => merge(
                row,
                json!({
                    "status": "failed",
                    "error": { "code": problem.code, "message": problem.message },
                }),
            ),
            _ => merge(merge(row, json!({ "status": status })), fields),
        }
    }

    fn system(&self) -> Value {
        let slots: Vec<Arc<Slot>> = self.slots.lock().by_id.values().cloned().collect();
        let workers: Vec<Value> = slots
            .iter()
            .filter_map(|slot| {
                let (status, fields) = slot.report(&self.traffic);
                (status != "available")
                    .then(|| merge(json!({ "model_id": slot.model_id, "status": status }), fields))
            })
            .collect();
        json!({
            "gpu_backend": self.config.gpu_backend,
            "vram_limit_bytes": self.config.vram_limit_bytes,
            "devices": self.devices.rows(),
            "workers": workers,
            "versions": {
                "llm_node": env!("CARGO_PKG_VERSION"),
                "abi": llm_node_abi::ENGINE_ABI_VERSION,
                "protocol": PROTOCOL_VERSION,
            },
        })
    }

    fn unload(self: &Arc<Self>, model_id: &str, timeout: Duration) -> Result<(), Fault> {
        let slot = match self.known_slot(model_id) {
            Some(slot) => slot,
            // Under another name than it was asked for so far?
            None => match self.catalog.find(model_id, &self.registry.readable())?.id {
                id if self.known_slot(&id).is_some() => self.slot(model_id, &id),
                id => return Err(not_loaded(&id)),
            },
        };
        let deadline = Instant::now() + timeout;
        match slot.begin_unload()? {
            Unload::Drain(running) => {
                drain(&running, deadline);
                end(&running, Instant::now() + STOP_DEADLINE);
                let waiting = slot.end_unload();
                log::info!("'{}' is unloaded", slot.model_id);
                self.load_again(waiting);
            }
            Unload::Wait(waiting) => {
                for Waiter { reply, .. } in waiting {
                    reply.send(Err(slot.unloaded()));
                }
                if !slot.wait_until_gone(deadline + STOP_DEADLINE * 2) {
                    let message = format!("Model '{}' was not unloaded in time", slot.model_id);
                    return Err(Fault::new(ErrorCode::Timeout, message));
                }
            }
            Unload::Done => {}
        }
        self.traffic.forget_suspects(&slot.model_id);
        Ok(())
    }

    /// These came while the model was being unloaded.
    fn load_again(self: &Arc<Self>, waiting: Vec<Waiter>) {
        for Waiter { request, reply } in waiting {
            self.changes.run_for(self, "load", reply, |inner, reply| load::load(inner, request, reply));
        }
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

    fn slot(&self, asked: &str, model_id: &str) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        if asked != model_id {
            slots.aliases.insert(asked.to_owned(), model_id.to_owned());
        }
        let slot = slots
            .by_id
            .entry(model_id.to_owned())
            .or_insert_with(|| Arc::new(Slot::new(model_id.to_owned())));
        Arc::clone(slot)
    }

    fn known_slot(&self, asked: &str) -> Option<Arc<Slot>> {
        let slots = self.slots.lock();
        let id = slots.aliases.get(asked).map_or(asked, String::as_str);
        slots.by_id.get(id).cloned()
    }

    fn notice_early_death(&self, slot: &Slot, running: &Running) {
        let worker = running.process.link.worker;
        if let Some(death) = running.process.death() {
            let fault = slot.worker_died(worker, &death, false);
            self.traffic.end_of_worker(worker, &fault);
        }
    }
}

/// Waits until the worker has nothing under way, at most until the deadline.
fn drain(running: &Running, deadline: Instant) {
    running.process.link.send(ToWorker::Drain);
    let controls = running.controls.lock();
    loop {
        match controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Control::Message(FromWorker::Drained) | Control::Died(_))
            | Err(mpsc::RecvTimeoutError::Disconnected) => return,
            Ok(Control::Message(_)) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                log::warn!("'{}': requests were still under way at the deadline", running.loaded.model_id);
                return;
            }
        }
    }
}

/// Ends the worker. Its memory is given back when the process is gone, and not before.
fn end(running: &Running, deadline: Instant) {
    running.process.stop(deadline);
    *running.room.lock() = None;
}

fn died(model_id: &str) -> Fault {
    Fault::new(ErrorCode::EngineCrashed, format!("The worker of model '{model_id}' has just died"))
        .details(json!({ "retry_after": 1 }).to_string())
}

fn shown(paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| path.display().to_string()).collect()
}

/// When a file was written last, in seconds since 1970; 0: nobody knows.
fn modified(path: &Path) -> u64 {
    let written = fs::metadata(path).and_then(|file| file.modified());
    written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map_or(0, |since| since.as_secs())
}

fn merge(mut into: Value, from: Value) -> Value {
    if let (Value::Object(into), Value::Object(from)) = (&mut into, from) {
        into.extend(from);
    }
    into
}
