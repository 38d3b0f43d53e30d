//! What a load asks for and what it comes to before there is a process: model, engine, plan.

use std::{fs, path::Path, sync::Arc, time::UNIX_EPOCH};

use llm_node_core::{
    chat::{builtin, model::SyntaxChoice},
    engine::Vocabulary,
    error::{ErrorCode, Fault},
    memory::{Estimate, MemoryUse, length_of},
    options::{self, ModelOptions},
    shape::{ContextSize, Shape, Sizing},
    text::template::ChatTemplate,
};
use llm_node_fleet::{
    Account, Basis, Changed, ChosenEngine, Device, DeviceKind, DeviceState, Event, Files, Foreseen,
    FoundModel, LoadKey, ProcessUse, Setup, Status, guessed,
};
use llm_node_wire::message::{EngineAddress, LoadPlan, Scheduling, Speculation};
use serde::Serialize;
use serde_json::{Map, Value};

use super::{Inner, environment::Sight, inflight::Reply, process::Process, said::Look, written};
use crate::{choose::choose, host_memory, models::Model, registry::verdict::Candidate};

/// What a client may say of a load.
#[derive(Clone, Debug, Default)]
pub struct LoadRequest {
    /// Which model.
    pub model_id: String,
    /// The format that the client expects.
    pub format: Option<String>,
    /// As what. A draft model by its name.
    pub options: ModelOptions,
    /// A request comes as soon as it is loaded.
    pub for_request: bool,
    /// Of so many tokens at least, which the context was too short for; 0: nobody knows.
    pub tokens: u32,
}

impl LoadRequest {
    /// Reads one JSON object: `model_id`, `format`, `for_request`, `tokens` and the fields of [`ModelOptions`].
    pub fn parse(text: &str) -> serde_json::Result<Self> {
        let mut fields: Map<String, Value> = serde_json::from_str(text)?;
        let model_id = fields.remove("model_id").unwrap_or_default();
        let format = fields.remove("format").unwrap_or_default();
        let for_request = fields.remove("for_request").is_some_and(|it| it == true);
        let tokens = fields.remove("tokens").map(serde_json::from_value).transpose()?.unwrap_or(0);
        Ok(Self {
            model_id: serde_json::from_value(model_id)?,
            format: serde_json::from_value(format)?,
            options: serde_json::from_value(Value::Object(fields))?,
            for_request,
            tokens,
        })
    }
}

/// Looks at what is asked for, and hands it to the fleet.
pub(super) fn load(inner: &Inner, request: LoadRequest, reply: Reply) {
    match prepare(inner, &request).and_then(|(model_id, wishes)| {
        let instead = instead(inner, &model_id, &wishes, request.format.as_deref())?;
        Ok((model_id, wishes, instead))
    }) {
        Ok((model_id, wishes, instead)) => {
            let LoadRequest { format, for_request, tokens, .. } = request;
            inner.fleet.order(reply, |ticket| Event::Load {
                ticket,
                model_id,
                wishes,
                format,
                instead,
                for_request,
                tokens,
            });
        }
        Err(fault) => reply.send(Err(fault)),
    }
}

/// What a model that is loaded otherwise would come to as it is wanted now. A model that answers goes for nothing that
/// cannot be.
fn instead(
    inner: &Inner,
    model_id: &str,
    wishes: &ModelOptions,
    format: Option<&str>,
) -> Result<Option<Box<Foreseen>>, Fault> {
    let view = inner.fleet.view();
    let Some(model) = view.models.get(model_id).filter(|model| model.status == Status::Loaded) else {
        return Ok(None);
    };
    match model.changed(model_id, wishes, &inner.usual.lock().clone()) {
        Some(Changed::Replaced(setup)) => Ok(Some(Box::new(foresee(inner, model_id, &setup, format)?.0))),
        Some(Changed::Grown(_)) | None => Ok(None),
    }
}

/// Models that are loaded by an engine that has been built anew since are loaded anew with that.
pub(super) fn renew(inner: &Inner) {
    let view = inner.fleet.view();
    let usual = inner.usual.lock().clone();
    for (model_id, model) in view.models.iter().filter(|(_, model)| model.status == Status::Loaded) {
        let Some(setup) = model.renewed(model_id, &usual) else { continue };
        let engine = model.loaded().map(|(_, loaded)| &loaded.engine.id);
        let is_other = |found: &FoundModel| {
            Some(&found.engine.id) == engine && Some(&found.key.build) != model.build.as_ref()
        };
        let found = find(inner, model_id, &setup, None);
        if !found.is_ok_and(|(found, _)| is_other(&found)) {
            continue;
        }
        match foresee(inner, model_id, &setup, None) {
            Ok((foreseen, _)) => {
                let (model_id, instead) = (model_id.clone(), Box::new(foreseen));
                inner.fleet.tell(Event::Renew { model_id, instead });
            }
            Err(fault) => log::warn!("'{model_id}' goes on with what its engine was: {fault}"),
        }
    }
}

pub(super) fn prepare(inner: &Inner, request: &LoadRequest) -> Result<(String, ModelOptions), Fault> {
    let model = inner.find(&request.model_id)?;
    let wishes = wishes(inner, &request.options)?;
    if wishes.engine.is_some() || request.format.is_some() {
        // What cannot be had is said, also where the model is loaded in another way already.
        choose(
            inner.wish(&model, wishes.engine.as_deref(), request.format.as_deref()),
            &inner.candidates(false),
        )?;
    }
    inner.names.lock().insert(request.model_id.clone(), model.id.clone());
    Ok((model.id, wishes))
}

/// The same, with the file of the draft model in place of its name. What can be told to be wrong without the model is
/// refused.
fn wishes(inner: &Inner, options: &ModelOptions) -> Result<ModelOptions, Fault> {
    options.tool_syntax.as_deref().map_or(Ok(SyntaxChoice::Found), SyntaxChoice::of)?;
    if let Some(given) = &options.chat_template {
        // Which words are tokens of the model is not asked here.
        ChatTemplate::compile(builtin::source_of(given)?, &Vocabulary::default())
            .map_err(|fault| Fault::new(ErrorCode::InvalidRequest, fault.message).param("chat_template"))?;
    }
    let mut wishes = options.clone();
    let Some(draft) = &options.draft_model else { return Ok(wishes) };
    if options.speculation.is_some() {
        return Err(Fault::new(
            ErrorCode::InvalidRequest,
            "speculation and draft_model exclude each other: a load that names a draft model uses it",
        )
        .param("draft_model"));
    }
    let draft = inner.find(&draft.to_string_lossy()).map_err(|fault| fault.param("draft_model"))?;
    if let Some(problem) = draft.problem {
        return Err(problem.param("draft_model"));
    }
    wishes.draft_model = Some(draft.path);
    Ok(wishes)
}

/// The model, the engine that loads it, and how. Blocks while engines that are new are looked at.
pub(super) fn find(
    inner: &Inner,
    model_id: &str,
    setup: &Setup,
    format: Option<&str>,
) -> Result<(FoundModel, Box<LoadPlan>), Fault> {
    inner.processes.refuse_if_closed()?;
    inner.look_at_devices();
    let model = inner.find(model_id)?;
    if let (Some(problem), Some(_)) = (&model.problem, &inner.config.gpu_backend) {
        // Known before any engine is asked.
        return Err(problem.clone());
    }
    let candidates = inner.candidates(false);
    let candidate = choose(inner.wish(&model, setup.engine(), format), &candidates)?;
    can_be_placed(candidate, setup)?;
    let plan = plan(inner, &model, candidate, setup)?;
    let draft = match &plan.speculation {
        Speculation::Model(path) => fs::metadata(path).map_or(0, |file| file.len()),
        Speculation::Off | Speculation::Lookup => 0,
    };
    let EngineAddress { id, version, gpu_backend, .. } = plan.engine.clone();
    let key = key(inner, &model, &plan)?;
    let known = inner.fleet.view().history.known(&key);
    let found = FoundModel {
        engine: ChosenEngine { id, version, gpu_backend },
        size_bytes: model.size_bytes.saturating_add(draft),
        format: model.format,
        architecture: model.architecture,
        quantization: model.quantization,
        key,
        known,
    };
    Ok((found, Box::new(plan)))
}

/// Refuses what says where a model lies, of an engine that neither sees what the node chooses nor is told.
fn can_be_placed(candidate: &Candidate, setup: &Setup) -> Result<(), Fault> {
    let param = match (setup.devices(), setup.replicas()) {
        (Some(_), _) => "devices",
        (None, 2..) => "replicas",
        (None, _) => return Ok(()),
    };
    let extensions = candidate.verdict.as_ref().map(|facts| &facts.extensions[..]).unwrap_or_default();
    let is_told =
        ["engine.models/1", "engine.memory/1"].iter().all(|id| extensions.iter().any(|it| it == id));
    let backend = candidate.manifest.as_ref().map_or("", |manifest| &manifest.gpu_backend);
    // That there is none on the CPU, the fleet says.
    if is_told || backend == "cpu" || Sight::can_be_narrowed(backend) {
        return Ok(());
    }
    let message = format!("engine '{}' for {backend} puts a model on whichever GPUs it likes", candidate.id);
    Err(Fault::new(ErrorCode::InvalidRequest, message).param(param))
}

/// What tells this load from others: whatever decides what it takes.
fn key(inner: &Inner, model: &Model, plan: &LoadPlan) -> Result<LoadKey, Fault> {
    let view = inner.fleet.view();
    let known = inner.config.devices.iter();
    let told = view.accounts.iter().map(|account| &account.device);
    let told = told.filter(|device| inner.is_told_of_gpus() && device.kind != DeviceKind::Host);
    let devices: Vec<_> = known.chain(told).map(|device| (device.name.clone(), device.total_bytes)).collect();
    let EngineAddress { id, version, gpu_backend, binary, .. } = &plan.engine;
    let draft = match &plan.speculation {
        Speculation::Model(path) => Some(file(path)),
        Speculation::Off | Speculation::Lookup => None,
    };
    let parts: Vec<_> = model.parts.iter().map(|path| file(path)).collect();
    // Wherever it lies.
    let LoadPlan { size, usual_size, gpu_layers, threads, vram_limit_bytes, options, .. } = plan;
    Ok(LoadKey {
        build: written(&(id, version, gpu_backend, file(binary), devices, &inner.config.cuda_driver))?,
        model: written(&(
            (file(&model.path), parts, &plan.speculation, draft),
            (size, usual_size, gpu_layers, threads, vram_limit_bytes, options),
        ))?,
    })
}

/// Its files as they are now.
pub(super) fn files(model: &Model) -> Files {
    let paths = std::iter::once(&model.path).chain(&model.parts);
    paths.map(|path| file(path)).collect()
}

/// Are files as they were?
pub(super) fn are_unchanged(files: &Files) -> bool {
    files.iter().all(|known| file(Path::new(&known.0)) == *known)
}

/// Path, size, and when it was written last, in nanoseconds.
fn file(path: &Path) -> (String, u64, u64) {
    let metadata = fs::metadata(path).ok();
    let written = metadata.as_ref().and_then(|file| file.modified().ok());
    let since = written.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
    (
        path.display().to_string(),
        metadata.map_or(0, |file| file.len()),
        u64::try_from(since.as_nanos()).unwrap_or(0),
    )
}

fn plan(inner: &Inner, model: &Model, candidate: &Candidate, setup: &Setup) -> Result<LoadPlan, Fault> {
    let config = &inner.config;
    if let (Some(asked), Some(longest)) = (setup.asked.context_length, model.context_length)
        && u64::from(asked) > longest
    {
        // An engine would first find out what so long a context takes.
        let message = format!("a context of {asked} tokens was asked for; the model takes 1 to {longest}");
        return Err(Fault::new(ErrorCode::InvalidRequest, message).param("context_length"));
    }
    let options = setup.whole();
    if let Some(manifest) = &candidate.manifest {
        // Those of the settings are for all engines.
        manifest.knows(setup.asked.options.iter().flat_map(|all| all.keys()))?;
    }
    Ok(LoadPlan {
        engine: address(candidate)?,
        model: model.path.clone(),
        model_id: model.id.clone(),
        size: ContextSize::from(&setup.asked),
        usual_size: ContextSize::from(&setup.usual),
        gpu_layers: options.gpu_layers.unwrap_or(-1),
        place: Vec::new(),
        threads: options.threads.unwrap_or(0),
        vram_limit_bytes: config.vram_limit_bytes.of_all(&[]),
        scheduling: Scheduling {
            queue_limit: config.queue_limit,
            target_step_ms: config.target_step_ms,
            keep_prefixes: config.keep_prefixes,
        },
        step_timeout_seconds: config.step_timeout_seconds,
        speculation: Speculation::from(&options),
        tool_syntax: options.tool_syntax.clone(),
        chat_template: options.chat_template.clone().or_else(|| model.template_beside()),
        options: options.options_as_text().into_iter().collect(),
        figures: None,
    })
}

/// The host's memory as it is now.
pub(super) fn measure_host() -> Device {
    let memory = host_memory::read();
    Device {
        index: 0,
        name: "host".to_owned(),
        bus_id: None,
        uuid: None,
        total_bytes: memory.total,
        free_bytes: memory.available,
        kind: DeviceKind::Host,
        processes: Vec::new(),
        state: DeviceState::Ok,
        look: None,
    }
}

/// The same, with what workers are seen to take.
pub(super) fn measure_host_and_workers(inner: &Inner) -> Device {
    let all = inner.processes.all();
    let seen = |process: &Arc<Process>| {
        let pid = process.pid();
        Some(ProcessUse { pid, bytes: host_memory::private_bytes(pid)? })
    };
    let processes = all.iter().filter(|process| !process.is_probe()).filter_map(seen).collect();
    Device { processes, ..measure_host() }
}

pub(super) fn address(candidate: &Candidate) -> Result<EngineAddress, Fault> {
    let manifest = candidate.manifest.as_ref().ok_or_else(|| {
        Fault::new(ErrorCode::Internal, format!("engine '{}' was chosen without a manifest", candidate.id))
    })?;
    Ok(EngineAddress {
        id: manifest.id.clone(),
        version: manifest.version.clone(),
        gpu_backend: manifest.gpu_backend.clone(),
        directory: candidate.directory.clone(),
        binary: candidate.directory.join(&manifest.binary),
        libraries: candidate.libraries.clone(),
    })
}

/// What a model in a file would take.
#[derive(Debug, Serialize)]
pub struct Estimated {
    /// Id of the engine that would load it.
    pub engine: String,
    /// Of each device, for one sequence.
    pub memory: Vec<MemoryUse>,
}

/// As what it would be loaded, or loaded anew; `None`: it is that, or will be.
pub(super) fn to_be(inner: &Inner, model_id: &str, wishes: &ModelOptions) -> Option<Setup> {
    let view = inner.fleet.view();
    let usual = inner.usual.lock().clone();
    let model = view.models.get(model_id).filter(|model| !model.is_leaving);
    match model.map(|model| &model.status) {
        Some(Status::Loading | Status::Waiting) => None,
        Some(Status::Loaded) => match model?.changed(model_id, wishes, &usual)? {
            Changed::Grown(setup) | Changed::Replaced(setup) => Some(setup),
        },
        _ => Some(Setup::new(model_id, wishes.clone(), &usual)),
    }
}

/// What its engine says that it would take; and who may be asked more, where nothing is known of such a load.
pub(super) fn foresee(
    inner: &Inner,
    model_id: &str,
    setup: &Setup,
    format: Option<&str>,
) -> Result<(Foreseen, Option<Look>), Fault> {
    let (found, plan) = find(inner, model_id, setup, format)?;
    // What it takes does not depend on where that is.
    let place = setup.to_look_at(&inner.fleet.view().gpus);
    let setup = Some(Box::new(setup.clone()));
    let (engine, key, size_bytes) = (found.engine.id, found.key, found.size_bytes);
    if let Some(before) = found.known {
        let foreseen = Foreseen {
            engine,
            size_bytes,
            memory: before.uses.clone(),
            basis: Basis::Measured,
            seconds: Some(before.seconds),
            figures: before.figures.clone(),
            key,
            setup,
            before: Some(Box::new(before)),
            sized: Vec::new(),
        };
        return Ok((foreseen, None));
    }
    let look = inner.said.look(key.clone(), LoadPlan { place, ..*plan });
    let Estimate { uses, figures } = look.estimate(inner)?;
    let basis = if uses.is_some() || figures.are_of_contexts() { Basis::Engine } else { Basis::FileSize };
    let memory = uses.unwrap_or_default();
    let (seconds, before, sized) = (None, None, Vec::new());
    let foreseen =
        Foreseen { engine, size_bytes, memory, basis, seconds, figures, key, setup, before, sized };
    Ok((foreseen, Some(look)))
}

/// Has the engine of a file's model estimate it, for one sequence.
pub(super) fn plan_file(inner: &Inner, path: &Path, context_length: Option<u32>) -> Result<Estimated, Fault> {
    let model = inner.catalog.at(path);
    if let Some(problem) = &model.problem {
        return Err(problem.clone());
    }
    let candidates = inner.candidates(false);
    let candidate = choose(inner.wish(&model, None, None), &candidates)?;
    let wishes = ModelOptions {
        context_length,
        max_sequences: Some(1),
        speculation: Some(options::Speculation::Off),
        ..ModelOptions::default()
    };
    let setup = Setup::new(&model.id, wishes, &inner.usual.lock());
    let place = setup.to_look_at(&inner.fleet.view().gpus);
    let plan = LoadPlan { place, ..plan(inner, &model, candidate, &setup)? };
    let size = plan.size;
    let look = inner.said.look(key(inner, &model, &plan)?, plan);
    let estimate = look.estimate(inner)?;
    let memory = if estimate.figures.are_of_contexts() {
        let own = length_of(&estimate.figures.one);
        let context_length = size.context_length.unwrap_or(own);
        let shape = Shape { context_length, max_sequences: 1, cache_tokens: 0 };
        look.size(inner, Sizing { size, shape: Some(shape) })?
    } else {
        estimate.uses
    };
    let memory = memory.unwrap_or_else(|| vec![guess(inner, model.size_bytes)]);
    Ok(Estimated { engine: candidate.id.clone(), memory })
}

/// What stands for an estimate where the engine cannot say.
fn guess(inner: &Inner, bytes: u64) -> MemoryUse {
    let view = inner.fleet.view();
    let is_gpu = |account: &&Account| account.device.kind != DeviceKind::Host;
    let on_gpu = inner.config.gpu_backend.as_deref() != Some("cpu");
    let gpu = view.accounts.iter().find(is_gpu).filter(|_| on_gpu);
    let is_its = |it: &&Account| gpu.map_or(it.device.kind == DeviceKind::Host, |gpu| it.id == gpu.account);
    let most = view.accounts.iter().find(is_its).map_or(0, |it| it.limit_bytes);
    guessed(bytes, gpu.map(|it| &it.device), most)
}
