//! How a model comes to be served: choose, spawn, estimate, reserve, proceed, ready.
//!
//! And how an engine is looked at: the same beginning, in a process that is thrown away.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use llm_node_core::error::{ErrorCode, Fault};
use llm_node_wire::message::{
    ContextSize, EngineAddress, EngineFacts, FromWorker, LoadPlan, MemoryUse, ModelFacts, Scheduling,
    Speculation, ToWorker,
};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Inner,
    inflight::Reply,
    minding::{Control, Death},
    process::{Launch, Process, shutting_down},
    slot::{Begin, Loaded, Running, Slot, Waiter},
    wishes::{Setup, Wishes},
};
use crate::{
    choose::choose,
    config::{self, OptionValue},
    devices::Room,
    models::Model,
    registry::{
        Probe,
        verdict::{Candidate, Refusal},
    },
};

/// How long a worker may take to end after it has said its last word.
const END_DEADLINE: Duration = Duration::from_secs(3);

/// What a client may say of a load.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoadRequest {
    /// Which model.
    pub model_id: String,
    /// The format that the client expects.
    #[serde(default)]
    pub format: Option<String>,
    /// Id of an engine; `None`: the first that fits.
    #[serde(default)]
    pub engine: Option<String>,
    /// Longest sequence in tokens.
    #[serde(default)]
    pub context_length: Option<u32>,
    /// Sequences at once.
    #[serde(default)]
    pub max_sequences: Option<u32>,
    /// KV cache for all sequences together, in tokens.
    #[serde(default)]
    pub cache_tokens: Option<u64>,
    /// Layers on the devices; negative or absent: all.
    #[serde(default)]
    pub gpu_layers: Option<i32>,
    /// CPU threads; 0: the engine's own choice.
    #[serde(default)]
    pub threads: Option<u32>,
    /// Whether tokens are guessed ahead; `None`, without a draft model: as the configuration says.
    #[serde(default)]
    pub speculation: Option<config::Speculation>,
    /// Name of a model that guesses them.
    #[serde(default)]
    pub draft_model: Option<String>,
    /// How the model writes calls: a family's name, or "off"; `None`: as the configuration says.
    #[serde(default)]
    pub tool_syntax: Option<String>,
    /// The source of its chat template, or the name of one that is built in; `None`: as the configuration says,
    /// or else the model's own.
    #[serde(default)]
    pub chat_template: Option<String>,
    /// Settings for the engine, over those of the configuration.
    #[serde(default)]
    pub options: Option<BTreeMap<String, OptionValue>>,
}

/// Why a load came to nothing, and how the engine died of it, if it did.
type Failure = Box<(Fault, Option<Death>)>;

fn plainly(fault: Fault) -> Failure {
    Box::new((fault, None))
}

/// Loads a model, or lets the asker wait for a load under way. The thread of the one that loads is busy until
/// it has ended; all others are free at once.
pub(super) fn load(inner: &Arc<Inner>, request: LoadRequest, reply: Reply) {
    let (slot, model, wishes) = match prepare(inner, &request) {
        Ok(prepared) => prepared,
        Err(fault) => return reply.send(Err(fault)),
    };
    let format = request.format.clone();
    let setup = Setup::new(&wishes, &inner.config, &model.id);
    match slot.begin(Waiter { request, reply }, &wishes, setup.clone()) {
        Begin::Waits => {}
        Begin::Known(reply, known) => reply.send(known.and_then(|loaded| written(&loaded))),
        Begin::Load => {
            let guard = LoadGuard(inner, &slot);
            let result = run(inner, &slot, &model, setup, format.as_deref()).map_err(|failure| {
                // Whatever else it looks like, the shutdown is why it failed.
                if inner.processes.is_closed() { plainly(shutting_down()) } else { failure }
            });
            std::mem::forget(guard);
            end(inner, &slot, result);
            if let Ok(running) = slot.ready() {
                // It may have died before the slot knew it as its own.
                inner.notice_early_death(&slot, &running);
            }
        }
    }
}

fn prepare(inner: &Inner, request: &LoadRequest) -> Result<(Arc<Slot>, Model, Wishes), Fault> {
    if inner.processes.is_closed() {
        return Err(shutting_down());
    }
    let model = inner.find(&request.model_id)?;
    let wishes = wishes(inner, request)?;
    if request.engine.is_some() || request.format.is_some() {
        // What cannot be had is said, also where the model is loaded in another way already.
        choose(
            inner.wish(&model, request.engine.as_deref(), request.format.as_deref()),
            &inner.candidates(false),
        )?;
    }
    Ok((inner.slot(&request.model_id, &model.id), model, wishes))
}

/// Tells all who waited what came of it.
fn end(inner: &Arc<Inner>, slot: &Arc<Slot>, result: Result<Arc<Running>, Failure>) {
    let (outcome, waiting, is_given_up) = slot.end_load(result);
    match &outcome {
        Ok(loaded) => log::info!("{}", in_words(loaded)),
        Err(fault) if is_given_up || fault.code == ErrorCode::ShuttingDown => log::info!("{fault}"),
        Err(fault) => log::error!("'{}' could not be loaded: {fault}", slot.model_id),
    }
    if is_given_up {
        return inner.load_again(waiting);
    }
    let outcome = outcome.and_then(|loaded| written(&loaded));
    for Waiter { reply, .. } in waiting {
        reply.send(outcome.clone());
    }
}

fn in_words(loaded: &Loaded) -> String {
    let Loaded { model_id, engine, engine_version, load_ms, facts, .. } = loaded;
    let bytes = facts.memory.iter().fold(0, |sum, use_| use_.total().saturating_add(sum));
    format!(
        "'{model_id}' is loaded with {engine} {engine_version}, in {load_ms} ms: context {} tokens, {} sequences, \
         {} MiB",
        facts.context_length,
        facts.max_sequences,
        bytes.div_ceil(1 << 20)
    )
}

fn written(loaded: &Loaded) -> Result<String, Fault> {
    serde_json::to_string(loaded)
        .map_err(|error| Fault::new(ErrorCode::Internal, format!("a report cannot be written: {error}")))
}

/// A load that panics must not leave its slot waiting for ever.
struct LoadGuard<'a>(&'a Arc<Inner>, &'a Arc<Slot>);

impl Drop for LoadGuard<'_> {
    fn drop(&mut self) {
        end(self.0, self.1, Err(plainly(Fault::new(ErrorCode::Internal, "The load ended without a result"))));
    }
}

fn run(
    inner: &Arc<Inner>,
    slot: &Arc<Slot>,
    model: &Model,
    mut setup: Setup,
    format: Option<&str>,
) -> Result<Arc<Running>, Failure> {
    let begun = Instant::now();
    if let (Some(problem), Some(_)) = (&model.problem, &inner.config.gpu_backend) {
        // Known before any engine is asked.
        return Err(plainly(problem.clone()));
    }
    let candidates = inner.candidates(false);
    let candidate = choose(inner.wish(model, setup.engine(), format), &candidates).map_err(plainly)?;
    setup.chosen(&candidate.id);
    slot.chosen(&candidate.id);
    let plan = plan(inner, model, candidate, &setup).map_err(plainly)?;
    log::info!("loading '{}' with {} {}", model.id, plan.engine.id, plan.engine.version);
    let dying = Arc::downgrade(slot);
    let traffic = Arc::downgrade(&inner.traffic);
    let number = Arc::new(Mutex::new(0));
    let own = Arc::clone(&number);
    let started = inner.processes.start(
        Launch {
            command: &inner.config.worker_command,
            engine_env: &inner.config.engine_env,
            start_timeout: inner.config.start_timeout(),
            engine: plan.engine.id.clone(),
            model: Some(model.id.clone()),
            on_death: Box::new(move |death| match (dying.upgrade(), traffic.upgrade()) {
                (Some(slot), Some(traffic)) => {
                    let worker = *own.lock();
                    let is_known = !death.expected && traffic.suspect(worker, &slot.model_id);
                    slot.worker_died(worker, death, is_known)
                }
                _ => shutting_down(),
            }),
        },
        &inner.traffic,
    );
    let (process, controls) = started.map_err(plainly)?;
    *number.lock() = process.link.worker;
    let flight = Flight { inner, slot, process: &process, controls: &controls, plan: &plan };
    if !slot.loading(&process) {
        process.kill();
        return Err(plainly(slot.unloaded()));
    }
    let result = flight.fly(model);
    match result {
        Ok((facts, mut room)) => {
            room.settle(&facts.memory, &model.id);
            inner.traffic.open(process.link.worker);
            setup.came_to(&facts);
            let loaded = loaded(model, candidate, facts, begun.elapsed());
            Ok(Arc::new(Running {
                process,
                loaded,
                setup,
                room: Mutex::new(Some(room)),
                controls: Mutex::new(controls),
                since: Instant::now(),
            }))
        }
        Err(failure) => {
            // The model's memory is free only when the process is gone.
            process.stop(Instant::now() + END_DEADLINE);
            Err(failure)
        }
    }
}

/// One load, once its process runs.
struct Flight<'a> {
    inner: &'a Inner,
    slot: &'a Slot,
    process: &'a Process,
    controls: &'a mpsc::Receiver<Control>,
    plan: &'a LoadPlan,
}

impl Flight<'_> {
    fn fly(&self, model: &Model) -> Result<(ModelFacts, Room), Failure> {
        let timeout = self.inner.config.load_timeout();
        let deadline = Instant::now() + timeout;
        self.process.link.send(ToWorker::Load(self.plan.clone()));
        let mut room: Option<Room> = None;
        let mut estimate = Vec::new();
        loop {
            match self.controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Control::Message(FromWorker::Estimated(uses))) if room.is_none() => {
                    estimate = self.estimate(model, uses);
                    room = Some(self.inner.devices.reserve(&estimate, &model.id).map_err(plainly)?);
                    self.process.link.send(ToWorker::Proceed);
                }
                Ok(Control::Message(FromWorker::Ready(facts))) => {
                    return match room {
                        Some(room) => Ok((complete(facts, model, estimate), room)),
                        None => Err(plainly(Fault::new(
                            ErrorCode::Internal,
                            "The worker loaded the model before there was room for it",
                        ))),
                    };
                }
                Ok(Control::Message(FromWorker::LoadFailed(fault))) => return Err(plainly(fault)),
                Ok(Control::Message(_)) => {}
                Ok(Control::Died(death)) => return Err(self.died(death)),
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(plainly(Fault::new(ErrorCode::Internal, "The worker's thread is gone")));
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    self.process.kill();
                    let message = timed_out(&self.process.output.stage(), timeout);
                    return Err(plainly(Fault::new(
                        ErrorCode::Timeout,
                        format!("Model '{}' with engine '{}': {message}", model.id, self.plan.engine.id),
                    )));
                }
            }
        }
    }

    fn estimate(&self, model: &Model, uses: Option<Vec<MemoryUse>>) -> Vec<MemoryUse> {
        uses.filter(|uses| uses.iter().any(|use_| use_.total() > 0)).unwrap_or_else(|| {
            let draft = match &self.plan.speculation {
                Speculation::Model(path) => std::fs::metadata(path).map_or(0, |file| file.len()),
                Speculation::Off | Speculation::Lookup => 0,
            };
            vec![self.inner.devices.weights(model.size_bytes.saturating_add(draft))]
        })
    }

    fn died(&self, death: Death) -> Failure {
        if self.slot.is_given_up() {
            return plainly(self.slot.unloaded());
        }
        Box::new((Fault::new(ErrorCode::EngineCrashed, death.describe()), Some(death)))
    }
}

fn plan(inner: &Inner, model: &Model, candidate: &Candidate, setup: &Setup) -> Result<LoadPlan, Fault> {
    let config = &inner.config;
    let plan = LoadPlan {
        engine: address(candidate)?,
        model: model.path.clone(),
        model_id: model.id.clone(),
        size: ContextSize::default(),
        usual_size: ContextSize::default(),
        gpu_layers: -1,
        threads: 0,
        vram_limit_bytes: config.vram_limit_bytes.unwrap_or(0),
        scheduling: Scheduling {
            queue_limit: config.queue_limit,
            target_step_ms: config.target_step_ms,
            keep_prefixes: config.keep_prefixes,
        },
        step_timeout_seconds: config.step_timeout_seconds,
        speculation: Speculation::Off,
        tool_syntax: None,
        chat_template: None,
        options: Vec::new(),
    };
    let plan = setup.laid_into(plan);
    if let (Some(asked), Some(longest)) = (plan.size.context_length, model.context_length)
        && u64::from(asked) > longest
    {
        // An engine would first find out what so long a context takes.
        let message = format!("a context of {asked} tokens was asked for; the model takes 1 to {longest}");
        return Err(Fault::new(ErrorCode::InvalidRequest, message).param("context_length"));
    }
    Ok(plan)
}

fn wishes(inner: &Inner, request: &LoadRequest) -> Result<Wishes, Fault> {
    let speculation = match (request.speculation, &request.draft_model) {
        (Some(_), Some(_)) => {
            return Err(Fault::new(
                ErrorCode::InvalidRequest,
                "speculation and draft_model exclude each other: a load that names a draft model uses it",
            )
            .param("draft_model"));
        }
        (None, Some(id)) => {
            let draft = inner.find(id).map_err(|fault| fault.param("draft_model"))?;
            match draft.problem {
                Some(problem) => return Err(problem.param("draft_model")),
                None => Some(Speculation::Model(draft.path)),
            }
        }
        (Some(config::Speculation::Off), None) => Some(Speculation::Off),
        (Some(config::Speculation::Lookup), None) => Some(Speculation::Lookup),
        (None, None) => None,
    };
    let text = |(name, value): (&String, &OptionValue)| (name.clone(), value.to_text());
    Ok(Wishes {
        engine: request.engine.clone(),
        size: ContextSize {
            context_length: request.context_length,
            max_sequences: request.max_sequences,
            cache_tokens: request.cache_tokens,
        },
        gpu_layers: request.gpu_layers,
        threads: request.threads,
        speculation,
        tool_syntax: request.tool_syntax.clone(),
        chat_template: request.chat_template.clone(),
        options: request.options.as_ref().map(|options| options.iter().map(text).collect()),
    })
}

fn address(candidate: &Candidate) -> Result<EngineAddress, Fault> {
    let manifest = candidate.manifest.as_ref().ok_or_else(|| {
        Fault::new(ErrorCode::Internal, format!("engine '{}' was chosen without a manifest", candidate.id))
    })?;
    Ok(EngineAddress {
        id: manifest.id.clone(),
        version: manifest.version.clone(),
        gpu_backend: manifest.gpu_backend.clone(),
        directory: candidate.directory.clone(),
        binary: candidate.directory.join(&manifest.binary),
    })
}

fn loaded(model: &Model, candidate: &Candidate, facts: ModelFacts, took: Duration) -> Loaded {
    let memory: Vec<Value> = facts
        .memory
        .iter()
        .map(|use_| {
            json!({
                "device": use_.device,
                "bus_id": use_.bus_id,
                "is_host": use_.is_host,
                "weights_bytes": use_.weights,
                "cache_bytes": use_.cache,
                "compute_bytes": use_.compute,
                "total_bytes": use_.total(),
            })
        })
        .collect();
    Loaded {
        model_id: model.id.clone(),
        status: "loaded",
        engine: candidate.id.clone(),
        engine_version: candidate
            .manifest
            .as_ref()
            .map(|manifest| manifest.version.clone())
            .unwrap_or_default(),
        gpu_backend: candidate.gpu_backend.clone(),
        devices: facts.memory.iter().map(|use_| use_.device.clone()).collect(),
        memory,
        load_ms: took.as_millis() as u64,
        facts,
    }
}

/// What an engine does not say of its model, as far as it is known without it.
fn complete(mut facts: ModelFacts, model: &Model, estimate: Vec<MemoryUse>) -> ModelFacts {
    if facts.architecture.is_empty() {
        facts.architecture = model.architecture.clone().unwrap_or_default();
    }
    if facts.format.is_empty() {
        facts.format.clone_from(&model.format);
    }
    if facts.memory.iter().all(|use_| use_.total() == 0) {
        facts.memory = estimate;
    }
    facts.quantization = facts.quantization.or_else(|| model.quantization.clone());
    facts
}

fn timed_out(stage: &str, timeout: Duration) -> String {
    let stage = if stage.is_empty() { "the worker" } else { stage };
    format!("{stage} did not return within {} s", timeout.as_secs_f64())
}

/// What a model would take.
#[derive(Debug, Serialize)]
pub struct Planned {
    /// Id of the engine that would load it.
    pub engine: String,
    /// Of each device, for one sequence.
    pub memory: Vec<MemoryUse>,
}

/// Has the engine of a file's model estimate it, in a process that is thrown away.
pub(super) fn plan_file(inner: &Inner, path: &Path, context_length: Option<u32>) -> Result<Planned, Fault> {
    let model = inner.catalog.at(path);
    if let Some(problem) = &model.problem {
        return Err(problem.clone());
    }
    let candidates = inner.candidates(false);
    let candidate = choose(inner.wish(&model, None, None), &candidates)?;
    let wishes = Wishes {
        size: ContextSize { context_length, max_sequences: Some(1), ..ContextSize::default() },
        speculation: Some(Speculation::Off),
        ..Wishes::default()
    };
    let plan = plan(inner, &model, candidate, &Setup::new(&wishes, &inner.config, &model.id))?;
    let launch = Launch {
        command: &inner.config.worker_command,
        engine_env: &inner.config.engine_env,
        start_timeout: inner.config.start_timeout(),
        engine: candidate.id.clone(),
        model: None,
        on_death: Box::new(|_| shutting_down()),
    };
    let (process, controls) = inner.processes.start(launch, &inner.traffic)?;
    let deadline = Instant::now() + inner.config.load_timeout();
    process.link.send(ToWorker::Load(plan));
    let memory = loop {
        match controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(Control::Message(FromWorker::Estimated(uses))) => {
                let known = uses.filter(|uses| uses.iter().any(|use_| use_.total() > 0));
                break Ok(known.unwrap_or_else(|| vec![inner.devices.weights(model.size_bytes)]));
            }
            Ok(Control::Message(FromWorker::LoadFailed(fault))) => break Err(fault),
            Ok(Control::Message(_)) => {}
            Ok(Control::Died(death)) => {
                break Err(Fault::new(ErrorCode::EngineCrashed, death.describe()));
            }
            Err(_) => {
                break Err(Fault::new(ErrorCode::Timeout, "The engine's estimate did not come in time"));
            }
        }
    };
    process.stop(Instant::now() + END_DEADLINE);
    Ok(Planned { engine: candidate.id.clone(), memory: memory? })
}

/// Looks at engines in worker processes.
pub(super) struct ProcessProbe<'a>(pub(super) &'a Inner);

impl Probe for ProcessProbe<'_> {
    fn probe(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal> {
        self.look(address).inspect_err(|refusal| {
            if !self.0.processes.is_closed() {
                log::warn!("engine '{}' is of no use: {refusal}", address.id);
            }
        })
    }
}

impl ProcessProbe<'_> {
    fn look(&self, address: &EngineAddress) -> Result<EngineFacts, Refusal> {
        let inner = self.0;
        let (process, controls) = inner
            .processes
            .start(
                Launch {
                    command: &inner.config.worker_command,
                    engine_env: &inner.config.engine_env,
                    start_timeout: inner.config.start_timeout(),
                    engine: address.id.clone(),
                    model: None,
                    on_death: Box::new(|_| shutting_down()),
                },
                &inner.traffic,
            )
            .map_err(Refusal::NotProbed)?;
        let timeout = inner.config.probe_timeout();
        let deadline = Instant::now() + timeout;
        process.link.send(ToWorker::Probe(address.clone()));
        loop {
            match controls.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Control::Message(FromWorker::Verdict(verdict))) => {
                    // It ends by itself; one that hangs at its end does not get in the way.
                    process.stop(Instant::now() + END_DEADLINE);
                    return verdict.map_err(Refusal::Probed);
                }
                Ok(Control::Message(_)) => {}
                Ok(Control::Died(_)) if inner.processes.is_closed() => {
                    return Err(Refusal::NotProbed(shutting_down()));
                }
                Ok(Control::Died(death)) => {
                    return Err(Refusal::Crashed {
                        path: address.binary.clone(),
                        signal: death.ending,
                        during: if death.stage.is_empty() { "its start".to_owned() } else { death.stage },
                    });
                }
                Err(_) => {
                    process.kill();
                    let stage = process.output.stage();
                    return Err(Refusal::TimedOut {
                        path: address.binary.clone(),
                        during: if stage.is_empty() { "its start".to_owned() } else { stage },
                        seconds: timeout.as_secs_f64(),
                    });
                }
            }
        }
    }
}
