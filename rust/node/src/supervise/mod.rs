//! The supervisor: registry, models, memory and workers of one node, behind calls that any thread may
//! make.
//!
//! Owns the life of every worker: none outlives it. Refuses to know any API family; requests and
//! events pass through as they are.

mod environment;
mod inflight;
mod load;
mod outlets;
mod process;
mod slot;

use std::{
    collections::HashMap,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use llm_node_core::{
    error::{ErrorCode, Fault},
    request::Request,
};
use llm_node_wire::message::{Answer, FromWorker, PROTOCOL_VERSION, Question, ToWorker};
use parking_lot::Mutex;
use serde_json::{Value, json};

use self::{
    inflight::Traffic,
    load::ProcessProbe,
    process::{Control, Process, Processes, shutting_down},
    slot::{Begin, Running, Slot, to_be_loaded},
};
pub use self::{
    inflight::{Form, Waker},
    load::LoadRequest,
    outlets::{ClientId, Delivery, MAX_UNSENT, What},
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

/// How long an answer to a question may take: embeddings of a large batch on a slow machine.
const ANSWER_DEADLINE: Duration = Duration::from_mins(10);
/// How long an engine may take to shut down once its requests have ended.
const FAREWELL: Duration = Duration::from_secs(5);
/// Of a shutdown's time, this much is kept for workers that do not stop by themselves.
const LAST_RESORT: Duration = Duration::from_secs(2);

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
        Self {
            inner: Arc::new(Inner {
                registry: Registry::new(config.engines_dirs.clone()),
                catalog: Catalog::new(config.models_dir.clone(), config.demo_model.clone()),
                devices: Devices::new(
                    &config.devices,
                    config.gpu_backend.as_deref(),
                    config.vram_limit_bytes,
                ),
                processes: Arc::new(Processes::default()),
                traffic: Arc::new(Traffic::default()),
                slots: Mutex::default(),
                config,
            }),
        }
    }

    /// Every candidate with its verdict. Blocks while candidates are probed.
    pub fn engines(&self, refresh: bool) -> Vec<EngineRow> {
        self.inner.candidates(refresh).iter().map(EngineRow::from).collect()
    }

    /// Every model found, with its state: `available`, `loading`, `loaded` or `failed`.
    pub fn models(&self) -> Vec<Value> {
        let formats = self.inner.registry.formats();
        let models = self.inner.catalog.models(&formats);
        let slots = self.inner.slots.lock().by_id.clone();
        let mut rows: Vec<Value> = models
            .iter()
            .map(|model| self.model_row(model, slots.get(&model.id).map(AsRef::as_ref)))
            .collect();
        // A loaded model whose file has gone is still served.
        for (id, slot) in slots {
            if !models.iter().any(|model| model.id == id) {
                let (status, fields) = slot.report(&self.inner.traffic);
                if status == "loaded" || status == "loading" {
                    rows.push(merge(json!({ "id": id, "status": status }), fields));
                }
            }
        }
        rows
    }

    fn model_row(&self, model: &Model, slot: Option<&Slot>) -> Value {
        let row = json!({
            "id": model.id,
            "format": model.format,
            "architecture": model.architecture,
            "name": model.name,
            "quantization": model.quantization,
            "size_bytes": model.size_bytes,
            "context_length": model.context_length,
            "path": model.path.display().to_string(),
        });
        let (status, fields) = slot.map_or(("available", json!({})), |slot| slot.report(&self.inner.traffic));
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

    /// Loads a model, or joins a load under way. Blocks until it is ready.
    pub fn load(&self, request: &LoadRequest) -> Result<Loaded, Fault> {
        let inner = &self.inner;
        if inner.processes.is_closed() {
            return Err(shutting_down());
        }
        let model = inner.find(&request.model_id)?;
        if request.engine.is_some() || request.format.is_some() {
            // What cannot be had is said, also where the model is loaded in another way already.
            choose(inner.wish(&model, request), &inner.candidates(false))?;
        }
        let slot = inner.slot(&request.model_id, &model.id);
        match slot.begin(inner.patience()) {
            Begin::Done(result) => match ((*result)?, &request.engine) {
                (loaded, Some(engine)) if *engine != loaded.engine => Err(Fault::new(
                    ErrorCode::InvalidRequest,
                    format!(
                        "Model '{}' is loaded with engine '{}'; unload it before it can be loaded with '{engine}'",
                        model.id, loaded.engine
                    ),
                )
                .param("engine")),
                (loaded, _) => Ok(loaded),
            },
            Begin::Load => {
                let guard = LoadGuard(&slot);
                let result = load::load(inner, &slot, &model, request).map_err(|failure| {
                    // Whatever else it looks like, the shutdown is why it failed.
                    if inner.processes.is_closed() { (shutting_down(), false) } else { failure }
                });
                std::mem::forget(guard);
                let loaded = slot.end_load(result);
                if let Ok(running) = slot.ready() {
                    // It may have died before the slot knew it as its own.
                    inner.notice_early_death(&slot, &running);
                }
                loaded
            }
        }
    }

    /// Drains, stops, waits for the process to end.
    pub fn unload(&self, model_id: &str, timeout: Duration) -> Result<(), Fault> {
        let inner = &self.inner;
        let Some(slot) = inner.known_slot(model_id) else {
            let model = inner.catalog.find(model_id, &inner.registry.formats())?;
            return Err(Fault::new(ErrorCode::ModelNotFound, format!("Model '{}' is not loaded", model.id))
                .param("model"));
        };
        let deadline = Instant::now() + timeout;
        if let Some(running) = slot.begin_unload()? {
            drain(&running, deadline);
            end(&running, Instant::now() + FAREWELL);
            slot.end_unload();
            log::info!("'{}' is unloaded", slot.model_id);
        } else if !slot.wait_until_gone(deadline + FAREWELL * 2) {
            return Err(Fault::new(
                ErrorCode::Timeout,
                format!("Model '{}' was not unloaded in time", slot.model_id),
            ));
        }
        Ok(())
    }

    /// Devices, ledger, workers, versions.
    pub fn system(&self) -> Value {
        let inner = &self.inner;
        let slots: Vec<Arc<Slot>> = inner.slots.lock().by_id.values().cloned().collect();
        let workers: Vec<Value> = slots
            .iter()
            .filter_map(|slot| {
                let (status, fields) = slot.report(&inner.traffic);
                (status != "available")
                    .then(|| merge(json!({ "model_id": slot.model_id, "status": status }), fields))
            })
            .collect();
        json!({
            "gpu_backend": inner.config.gpu_backend,
            "vram_limit_bytes": inner.config.vram_limit_bytes,
            "devices": inner.devices.rows(),
            "workers": workers,
            "versions": {
                "llm_node": env!("CARGO_PKG_VERSION"),
                "abi": llm_node_abi::ENGINE_ABI_VERSION,
                "protocol": PROTOCOL_VERSION,
            },
        })
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
        request: Request,
        client: ClientId,
        form: Form,
    ) -> Result<StreamId, Fault> {
        let running = self.ready(model_id)?;
        let send = |id| ToWorker::Generate { id, request };
        let traffic = &self.inner.traffic;
        traffic.submit(&running.process.link, client, form, send).ok_or_else(|| died(model_id))
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

    /// Asks a model that is ready. Blocks for the answer.
    pub fn ask(&self, model_id: &str, question: Question) -> Result<Answer, Fault> {
        let running = self.ready(model_id)?;
        let send = |id| ToWorker::Ask { id, question };
        let (id, answer) =
            self.inner.traffic.ask(&running.process.link, send).ok_or_else(|| died(model_id))?;
        answer.recv_timeout(ANSWER_DEADLINE).unwrap_or_else(|_| {
            self.inner.traffic.forget_question(id);
            Err(Fault::new(
                ErrorCode::Timeout,
                format!("Model '{model_id}' did not answer within {} s", ANSWER_DEADLINE.as_secs()),
            ))
        })
    }

    fn ready(&self, model_id: &str) -> Result<Arc<Running>, Fault> {
        if self.inner.processes.is_closed() {
            return Err(shutting_down());
        }
        match self.inner.known_slot(model_id) {
            Some(slot) => slot.ready(),
            None => Err(to_be_loaded(model_id)),
        }
    }

    /// Whom to call when something waits for [`Supervisor::drain`]. Called once per drain, from any
    /// thread; it must not block.
    pub fn set_waker(&self, waker: Option<Waker>) {
        self.inner.traffic.set_waker(waker);
    }

    /// Everything since the last call, in order.
    pub fn drain(&self) -> Vec<Delivery> {
        self.inner.traffic.drain()
    }

    /// Refuses new work, lets what is under way end, ends all workers. All of it takes no longer than
    /// `limit`, and a little more where a process is stuck in the kernel.
    pub fn shutdown(&self, limit: Duration) {
        let inner = &self.inner;
        let begun = Instant::now();
        inner.processes.close();
        let slots: Vec<Arc<Slot>> = inner.slots.lock().by_id.values().cloned().collect();
        let drained = begun + limit.saturating_sub(LAST_RESORT.min(limit / 2));
        let mut loaded: Vec<(Arc<Slot>, Arc<Running>)> = Vec::new();
        for slot in slots {
            if let Ok(Some(running)) = slot.begin_unload() {
                running.process.link.send(ToWorker::Drain);
                loaded.push((slot, running));
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
                    drain(running, drained);
                    end(running, begun + limit);
                });
            }
        });
        for (slot, _) in &loaded {
            slot.end_unload();
        }
        let rest: Vec<Arc<Process>> = inner.processes.all();
        for process in &rest {
            process.kill();
        }
        for process in rest {
            process.wait(Instant::now() + LAST_RESORT);
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

    fn find(&self, model_id: &str) -> Result<Model, Fault> {
        match self.catalog.find(model_id, &self.registry.formats()) {
            // Without a device there is nothing to choose, whatever the model.
            Err(fault) if self.config.gpu_backend.is_none() => {
                let wish = Wish { model: &Model::default(), gpu_backend: None, engine: None, format: None };
                Err(choose(wish, &[]).err().unwrap_or(fault))
            }
            found => found,
        }
    }

    fn wish<'a>(&'a self, model: &'a Model, request: &'a LoadRequest) -> Wish<'a> {
        Wish {
            model,
            gpu_backend: self.config.gpu_backend.as_deref(),
            engine: request.engine.as_deref(),
            format: request.format.as_deref(),
        }
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

    /// Beyond every deadline of a load: probes of all engines first, then start and load.
    fn patience(&self) -> Instant {
        let config = &self.config;
        let once = config.start_timeout() + config.probe_timeout();
        let whole =
            once.saturating_mul(20).saturating_add(config.load_timeout()).saturating_add(LAST_RESORT * 10);
        Instant::now() + whole.min(Duration::from_hours(24))
    }

    fn notice_early_death(&self, slot: &Slot, running: &Running) {
        let worker = running.process.link.worker;
        if let Some(death) = running.process.death() {
            let fault = slot.worker_died(worker, &death);
            self.traffic.end_of_worker(worker, &fault);
        }
    }
}

/// A load that panics must not leave its slot waiting for ever.
struct LoadGuard<'a>(&'a Slot);

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        let fault = Fault::new(ErrorCode::Internal, "The load ended without a result");
        let _ = self.0.end_load(Err((fault, false)));
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

fn merge(mut into: Value, from: Value) -> Value {
    if let (Value::Object(into), Value::Object(from)) = (&mut into, from) {
        into.extend(from);
    }
    into
}
