//! An engine from its address to a loaded model: opening, estimating, loading, and the size of the
//! context.

use std::{
    ops::ControlFlow,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use llm_node_core::{
    chat::{
        builtin,
        model::{ModelChat, SyntaxChoice},
    },
    engine::{EngineFaultKind, Tokenizer},
    error::{ErrorCode, Fault},
    facts::{ChatFacts, ModelFacts},
    memory::{Estimate, Figures, MemoryUse, add, among, length_of},
    session::MOST_DRAFTED,
    shape::{ContextSize, Shape, Wish},
    text::template::ChatTemplate,
};
use llm_node_host::{
    Context, ContextParams, DeviceKind, ENGINE_ABI_VERSION, EngineError, InitConfig, LoadError,
    LoadErrorKind, LoadedEngine, Model, ModelParams, ModelTokenizer, OpenedEngine,
};
pub use llm_node_host::{Observer, unobserved};
use llm_node_wire::message::{
    EngineAddress, EngineDevice, EngineFacts, EngineRefusal, LoadPlan, Speculation,
};

use crate::{
    draft,
    model::{LoadedModel, Parts, Voice},
    places::places,
    reshape::Shaping,
};

/// Rows of a step that verify drafts, beside the one of each sequence. They are shared: while many
/// sequences take part, a step has enough to do, and drafts do not pay.
const DRAFT_ROWS: u32 = 32;
/// Tokens of a cache. An engine may make a table of them for an estimate: llama.cpp takes 150 bytes for each.
const MOST_ESTIMATED: u64 = 1 << 22;

/// What an engine is told when it starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineSettings {
    /// CPU threads; 0: the engine's own choice.
    pub threads: u32,
    /// Device memory, in bytes; 0: no limit.
    pub vram_limit_bytes: u64,
    /// Longest sequence in tokens, for engines that are told at their start or never.
    pub context_length: Option<u32>,
    /// Settings for the engine, as they stand in the configuration.
    pub options: Vec<(String, String)>,
}

impl From<&LoadPlan> for EngineSettings {
    fn from(plan: &LoadPlan) -> Self {
        Self {
            threads: plan.threads,
            vram_limit_bytes: plan.vram_limit_bytes,
            context_length: plan.size.context_length.or(plan.usual_size.context_length),
            options: plan.options.clone(),
        }
    }
}

/// An engine that runs in this process. It shuts down when it and all its models are dropped.
#[derive(Debug)]
pub struct Engine {
    home: Home,
    /// The last estimate, which the load that follows it needs again.
    figures: Mutex<Option<(LoadPlan, Figures)>>,
}

#[derive(Debug)]
enum Home {
    /// Models are handles; any number.
    Shared(Arc<LoadedEngine>),
    /// Tier 0: one model, and one call at a time.
    Alone(Arc<Mutex<LoadedEngine>>),
}

impl Engine {
    /// Opens an engine and looks at it. Its library stays mapped, and nothing of it was started.
    pub fn inspect(address: &EngineAddress, observer: Observer) -> Result<EngineFacts, EngineRefusal> {
        let opened = open(address, observer).map_err(refusal)?;
        Ok(facts(opened.extensions()))
    }

    /// Opens an engine and starts it. `observer` is told each call that may take long, before it is
    /// made; the engine's log goes to the `log` crate, under `engine::ID`.
    pub fn open(
        address: &EngineAddress,
        settings: &EngineSettings,
        observer: Observer,
    ) -> Result<Self, EngineRefusal> {
        let opened = open(address, observer).map_err(refusal)?;
        let config = InitConfig {
            n_threads: settings.threads,
            engine_dir: address.directory.clone(),
            gpu_backend: address.gpu_backend.clone(),
            vram_limit_bytes: settings.vram_limit_bytes,
            ram_limit_bytes: 0,
            context_length: settings.context_length.unwrap_or(0),
            max_tokens: 0,
            options: settings.options.clone(),
        };
        let loaded = opened.init(&config).map_err(refusal)?;
        let handles = loaded.offers("engine.models/1")
            && (generates_in_steps(&loaded)
                || loaded.offers("engine.stream/1")
                || loaded.offers("engine.embed/1"));
        let home =
            if handles { Home::Shared(Arc::new(loaded)) } else { Home::Alone(Arc::new(Mutex::new(loaded))) };
        Ok(Self { home, figures: Mutex::default() })
    }

    /// What the engine offers.
    pub fn facts(&self) -> EngineFacts {
        match &self.home {
            Home::Shared(loaded) => facts(loaded.extensions()),
            Home::Alone(loaded) => facts(loaded.lock().unwrap_or_else(PoisonError::into_inner).extensions()),
        }
    }

    /// The GPUs that it can use; none, where it cannot say.
    pub fn devices(&self) -> Result<Vec<EngineDevice>, Fault> {
        let of = |loaded: &LoadedEngine| gpus_of(loaded).map_err(Fault::from);
        match &self.home {
            Home::Shared(loaded) => of(loaded),
            Home::Alone(loaded) => of(&loaded.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    /// The figures from which the size of the model's context follows, for [`Self::size`]; where the engine has none,
    /// what the model would take. Only the model's headers are read, and not even these where the plan has figures.
    pub fn estimate(&self, plan: &LoadPlan) -> Result<Estimate, Fault> {
        if let Some(figures) = &plan.figures {
            return Ok(Estimate { uses: None, figures: figures.clone() });
        }
        let engine = match &self.home {
            Home::Shared(engine) => engine,
            Home::Alone(engine) => {
                return estimate_tier0(&engine.lock().unwrap_or_else(PoisonError::into_inner), plan);
            }
        };
        let Some(figures) = self.figures(engine, plan)? else { return Ok(Estimate::default()) };
        if figures.are_of_contexts() {
            plan.wish().check(length_of(&figures.one))?;
            return Ok(Estimate { uses: None, figures });
        }
        Ok(Estimate { uses: estimate(engine, plan, &figures, None, 0)?, figures })
    }

    /// What the model would take with such a context; `None`: its engine cannot say.
    pub fn size(&self, plan: &LoadPlan, shape: Option<Shape>) -> Result<Option<Vec<MemoryUse>>, Fault> {
        let Home::Shared(engine) = &self.home else { return Ok(None) };
        let Some(figures) = self.figures(engine, plan)? else { return Ok(None) };
        let length = if plan.size.context_length.is_some() { 0 } else { length_of(&figures.one) };
        estimate(engine, plan, &figures, shape, length)
    }

    /// The size of a context that follows from what is free, where the engine gives figures; `host_free`: of the host's
    /// memory, beside what is left to others, in bytes.
    pub fn shape(&self, plan: &LoadPlan, host_free: u64) -> Result<Option<Shape>, Fault> {
        let Home::Shared(engine) = &self.home else { return Ok(None) };
        let Some(figures) = self.figures(engine, plan)?.filter(Figures::are_of_contexts) else {
            return Ok(None);
        };
        let devices = engine.devices().unwrap_or_default();
        let mut uses = figures.one.clone();
        add(&mut uses, figures.draft.clone());
        let places = places(&uses, &devices, host_free);
        Shape::choose(plan.wish(), length_of(&figures.one), &places).map(Some)
    }

    /// Loads a model and makes its context; `shape`: as it was chosen, where there are figures. `progress` is told how
    /// far it is, from 0 to 1.
    pub fn load(
        &self,
        plan: &LoadPlan,
        shape: Option<Shape>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<LoadedModel, Fault> {
        match &self.home {
            Home::Shared(engine) => self.load_handle(engine, plan, shape, progress),
            Home::Alone(engine) => load_tier0(engine, plan),
        }
    }

    fn load_handle(
        &self,
        engine: &Arc<LoadedEngine>,
        plan: &LoadPlan,
        shape: Option<Shape>,
        progress: &mut dyn FnMut(f32),
    ) -> Result<LoadedModel, Fault> {
        let syntax = plan.tool_syntax.as_deref().map_or(Ok(SyntaxChoice::Found), SyntaxChoice::of)?;
        let given = plan.chat_template.as_deref().map(builtin::source_of).transpose()?;
        let figures = self.figures(engine, plan)?;
        let model = Model::load(
            engine,
            &model_params(engine, plan)?,
            Some(&mut |fraction| {
                progress(fraction);
                ControlFlow::Continue(())
            }),
        )?;
        let tokenizer =
            engine.offers("engine.tokenizer/1").then(|| ModelTokenizer::new(&model)).transpose()?;
        let tokenizer = tokenizer.map(Arc::new);
        let chat = tokenizer.as_deref().and_then(|it| model_chat(it, &syntax, given));
        if let (Some(_), Some(Err(fault))) = (given, &chat) {
            return Err(Fault::new(ErrorCode::InvalidRequest, fault.message.clone()).param("chat_template"));
        }
        let info = model.info();
        let figures = figures.unwrap_or_default();
        // What the model cannot be is refused, whichever way its requests take.
        plan.wish().check(info.n_context)?;
        let on_device = figures.one.iter().any(|one| !one.is_host && one.weights > 0);

        let mut models = vec![Arc::clone(&model)];
        let (voice, context_length, max_sequences) = if let (true, true, Some(tokenizer)) =
            (info.generates, generates_in_steps(engine), &tokenizer)
        {
            let (shape, context) = as_far_as_it_goes(plan, shape, info.n_context, |shape| {
                Context::create(&model, &context_params(plan, shape))
            })?;
            if let Speculation::Model(path) = &plan.speculation {
                models.push(draft::load(engine, &draft_params(engine, plan, path)?, tokenizer.vocabulary())?);
            }
            let shaping = Shaping {
                plan: plan.clone(),
                shape,
                figures,
                models: models.clone(),
                tokenizer: Arc::clone(tokenizer),
                on_device,
            };
            let drafter = shaping.drafter()?;
            let (length, sequences) = shaping.sizes(&context);
            let voice =
                Voice::Batch { context: Box::new(context), on_device, drafter, shaping: Box::new(shaping) };
            (voice, length, sequences)
        } else if let Speculation::Model(path) = &plan.speculation {
            return Err(draft::unusable(path, "is of no use: the engine does not run the model in steps"));
        } else if info.generates && engine.offers("engine.stream/1") {
            (Voice::Stream, info.n_context, 1)
        } else {
            (Voice::Mute, info.n_context, 1)
        };
        let embeds = engine.offers("engine.embed/1");
        let facts = ModelFacts {
            architecture: info.architecture.clone(),
            format: info.format.clone(),
            quantization: info.quantization.clone(),
            n_parameters: info.n_parameters,
            context_length,
            max_sequences,
            // A ranking model's is the width of a score.
            n_embedding: if embeds && !info.ranks { info.n_embedding } else { 0 },
            ranks: embeds && info.ranks,
            fills_gaps: tokenizer.as_deref().is_some_and(|it| it.vocabulary().fim_tokens().is_some()),
            generates: !matches!(voice, Voice::Mute),
            has_chat_template: matches!(chat, Some(Ok(_))),
            chat: chat.as_ref().and_then(|it| it.as_ref().ok()).map(chat_facts),
            memory: match memory_use(&models) {
                Err(error) if error.kind() == EngineFaultKind::Misbehaved => return Err(error.into()),
                uses => uses.unwrap_or_default(),
            },
            source: voice.name().to_owned(),
        };
        Ok(LoadedModel::new(facts, Parts { voice, tokenizer, chat, models }))
    }

    /// Those of the plan, or of the last estimate, if it was of the same load. `None`: the engine cannot say.
    fn figures(&self, engine: &LoadedEngine, plan: &LoadPlan) -> Result<Option<Figures>, Fault> {
        if let Some(figures) = &plan.figures {
            return Ok(Some(figures.clone()));
        }
        let mut last = self.figures.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, figures)) = &*last
            && of == plan
        {
            return Ok(Some(figures.clone()));
        }
        let own_length = Shape { context_length: 0, max_sequences: 1, cache_tokens: 0 };
        let params = model_params(engine, plan)?;
        let uses = match engine.estimate(&params, Some(&context_params(plan, own_length))) {
            Ok(uses) => uses,
            Err(error) if error.kind() == EngineFaultKind::Unsupported => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let draft = match &plan.speculation {
            Speculation::Model(path) => draft_estimate(engine, plan, path, own_length)?,
            Speculation::Off | Speculation::Lookup => Vec::new(),
        };
        let figures = Figures { one: named(engine, uses), draft };
        *last = Some((plan.clone(), figures.clone()));
        Ok(Some(figures))
    }
}

/// Of an engine without handles: the files alone, since no context is made for it.
fn estimate_tier0(engine: &LoadedEngine, plan: &LoadPlan) -> Result<Estimate, Fault> {
    let uses = match engine.estimate(&model_params(engine, plan)?, None) {
        Ok(uses) if has_no_weights(uses.iter().map(|it| it.weights), plan) => None,
        Ok(uses) => Some(named(engine, uses)),
        Err(error) if error.kind() == EngineFaultKind::Unsupported => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Estimate { uses, figures: Figures::default() })
}

/// Does an estimate leave the weights out? Then it is none, and that is said.
fn has_no_weights(weights: impl IntoIterator<Item = u64>, plan: &LoadPlan) -> bool {
    let has_none = weights.into_iter().all(|it| it == 0);
    if has_none {
        log::warn!(
            "the engine estimates no memory for the weights of {}: the size of its files is counted instead",
            plan.model.display()
        );
    }
    has_none
}

fn load_tier0(engine: &Arc<Mutex<LoadedEngine>>, plan: &LoadPlan) -> Result<LoadedModel, Fault> {
    if let Speculation::Model(path) = &plan.speculation {
        return Err(draft::unusable(path, "is of no use: the engine does not run models in steps"));
    }
    // Each tier-0 model holds the engine, which can hold but one model.
    if Arc::strong_count(engine) > 1 {
        let message = "the engine holds one model at a time; close the one before first";
        return Err(Fault::new(ErrorCode::LoadFailed, message));
    }
    engine.lock().unwrap_or_else(PoisonError::into_inner).tier0_load(&plan.model)?;
    let voice = Voice::Tier0(Arc::clone(engine));
    let facts = ModelFacts {
        // Tier 0 says nothing of its model.
        architecture: String::new(),
        format: String::new(),
        quantization: None,
        n_parameters: 0,
        context_length: plan.size.context_length.or(plan.usual_size.context_length).unwrap_or(0),
        max_sequences: 1,
        n_embedding: 0,
        ranks: false,
        fills_gaps: false,
        generates: true,
        has_chat_template: false,
        chat: None,
        memory: Vec::new(),
        source: voice.name().to_owned(),
    };
    Ok(LoadedModel::new(facts, Parts { voice, tokenizer: None, chat: None, models: Vec::new() }))
}

fn generates_in_steps(engine: &LoadedEngine) -> bool {
    engine.offers("engine.batch/1") && engine.offers("engine.tokenizer/1")
}

fn open(address: &EngineAddress, observer: Observer) -> Result<OpenedEngine, LoadError> {
    llm_node_host::preload(&address.libraries);
    OpenedEngine::open(&address.binary, &address.id, &address.version, observer)
}

fn facts(extensions: &[&'static str]) -> EngineFacts {
    EngineFacts {
        abi_version: ENGINE_ABI_VERSION,
        extensions: extensions.iter().map(|&id| id.to_owned()).collect(),
    }
}

/// A template that cannot be compiled costs the model its chat, not its life. One without a word is none.
/// `given`: in place of the model's own.
fn model_chat(
    tokenizer: &ModelTokenizer,
    syntax: &SyntaxChoice,
    given: Option<&str>,
) -> Option<Result<ModelChat, Fault>> {
    let source = given.or_else(|| tokenizer.chat_template()).filter(|it| !it.trim().is_empty())?;
    let vocabulary = tokenizer.vocabulary();
    let chat = ChatTemplate::compile(source, vocabulary).map(|it| ModelChat::of(it, vocabulary, syntax));
    match &chat {
        Err(fault) => log::warn!("{fault}"),
        Ok(chat) => {
            if let Err(why) = chat.calls() {
                log::info!("the model has no tools: {why}");
            }
        }
    }
    Some(chat)
}

fn chat_facts(chat: &ModelChat) -> ChatFacts {
    ChatFacts {
        tools: chat.has_tools(),
        thinking: chat.tells_thoughts(),
        syntax: chat.calls().ok().map(|it| it.family.as_str().to_owned()),
    }
}

/// What the model would take, with the context that it would get. `None`: the engine cannot say.
pub(crate) fn estimate(
    engine: &LoadedEngine,
    plan: &LoadPlan,
    figures: &Figures,
    shape: Option<Shape>,
    model_length: u32,
) -> Result<Option<Vec<MemoryUse>>, Fault> {
    let is_beyond_measure = |shape: Shape, one: &[MemoryUse]| {
        shape.cells() > MOST_ESTIMATED && one.iter().any(|it| it.cache_per_token > 0)
    };
    let params = model_params(engine, plan)?;
    let (shape, mut uses) = as_far_as_it_goes(plan, shape, model_length, |shape| {
        if is_beyond_measure(shape, &figures.one) {
            return Ok(shape.by_sums(&figures.one));
        }
        let uses = engine.estimate(&params, Some(&context_params(plan, shape)))?;
        Ok(named(engine, uses))
    })?;
    if has_no_weights(uses.iter().map(|it| it.weights), plan) {
        return Ok(None);
    }
    if let Speculation::Model(path) = &plan.speculation {
        let shape = shape.within(length_of(&figures.draft));
        let draft = if is_beyond_measure(shape, &figures.draft) {
            shape.by_sums(&figures.draft)
        } else {
            draft_estimate(engine, plan, path, shape)?
        };
        add(&mut uses, draft);
    }
    Ok(Some(uses))
}

/// Makes something of a shape, or of what follows from what was said where none was chosen. What the node names for
/// every model is a wish: where the engine refuses so many sequences, it gets its usual number of them.
pub(crate) fn as_far_as_it_goes<T>(
    plan: &LoadPlan,
    shape: Option<Shape>,
    model_length: u32,
    mut make: impl FnMut(Shape) -> Result<T, EngineError>,
) -> Result<(Shape, T), Fault> {
    let wish = plan.wish();
    wish.check(model_length)?;
    let choose = |wish| Shape::choose(wish, model_length, &[]);
    let chosen = shape.map_or_else(|| choose(wish), |shape| Ok(shape.within(model_length)))?;
    if let Some(usual) = wish.usual.context_length
        && wish.size.context_length.is_none()
        && chosen.context_length < usual
    {
        log::info!(
            "a context of {usual} tokens is the node's default; the model takes {}",
            chosen.context_length
        );
    }
    match make(chosen) {
        Err(error)
            if error.kind() == EngineFaultKind::InvalidInput
                && wish.size.max_sequences.is_none()
                && wish.usual.max_sequences.is_some() =>
        {
            log::info!("the node's default for max_sequences is left out: {error}");
            let usual = Wish { usual: ContextSize { max_sequences: None, ..wish.usual }, ..wish };
            let fewer = if shape.is_some() { chosen.for_fewer() } else { choose(usual)? };
            Ok((fewer, make(fewer)?))
        }
        made => Ok((chosen, made?)),
    }
}

fn model_params(engine: &LoadedEngine, plan: &LoadPlan) -> Result<ModelParams, Fault> {
    Ok(ModelParams {
        path: plan.model.clone(),
        gpu_layers: plan.gpu_layers,
        devices: devices_at(engine, plan)?,
        options: plan.options.clone(),
    })
}

/// The GPUs that an engine tells the memory of.
pub(crate) fn gpus_of(engine: &LoadedEngine) -> Result<Vec<EngineDevice>, EngineError> {
    let devices = match engine.devices() {
        Err(error) if error.kind() == EngineFaultKind::Unsupported => Vec::new(),
        devices => devices?,
    };
    let gpus = devices.into_iter().filter(|device| device.kind != DeviceKind::Cpu && device.total_bytes > 0);
    let told = gpus.map(|device| EngineDevice {
        name: if device.description.is_empty() { device.name } else { device.description },
        bus_id: device.bus_id,
        is_integrated: device.kind == DeviceKind::Integrated,
        total_bytes: device.total_bytes,
        free_bytes: device.free_bytes,
    });
    Ok(told.collect())
}

/// The engine's indices of the GPUs that a model is to lie on. Of an engine that names no devices, what it sees is its
/// choice.
fn devices_at(engine: &LoadedEngine, plan: &LoadPlan) -> Result<Vec<u32>, Fault> {
    let mut gpus = engine.devices().unwrap_or_default();
    gpus.retain(|device| device.kind != DeviceKind::Cpu);
    if gpus.is_empty() {
        return Ok(Vec::new());
    }
    let bus_ids: Vec<Option<&str>> = gpus.iter().map(|device| device.bus_id.as_deref()).collect();
    let found = among(&plan.place, &bus_ids).ok_or_else(|| {
        let wanted: Vec<String> =
            plan.place.iter().map(|gpu| format!("{} ({})", gpu.index, gpu.id)).collect();
        let message =
            format!("the engine does not find the model's place among its GPUs: {}", wanted.join(", "));
        Fault::new(ErrorCode::LoadFailed, message).param("devices")
    })?;
    Ok(found.into_iter().map(|at| gpus[at].index).collect())
}

pub(crate) fn context_params(plan: &LoadPlan, shape: Shape) -> ContextParams {
    ContextParams {
        max_sequences: shape.max_sequences,
        context_length: shape.context_length,
        cache_tokens: shape.cache_tokens,
        max_rows: match plan.speculation {
            Speculation::Off => 0,
            Speculation::Lookup | Speculation::Model(_) => {
                shape.max_sequences.saturating_add(DRAFT_ROWS.min(MOST_DRAFTED * shape.max_sequences))
            }
        },
        // Where it costs memory that tokens can be taken back, somebody has to want it.
        rollback: match plan.speculation {
            Speculation::Model(_) => MOST_DRAFTED,
            Speculation::Off | Speculation::Lookup => 0,
        },
        options: plan.options.clone(),
        ..ContextParams::default()
    }
}

fn draft_params(engine: &LoadedEngine, plan: &LoadPlan, path: &Path) -> Result<ModelParams, Fault> {
    Ok(ModelParams { path: path.to_owned(), ..model_params(engine, plan)? })
}

pub(crate) fn draft_context_params(plan: &LoadPlan, shape: Shape) -> ContextParams {
    ContextParams { max_rows: 0, ..context_params(plan, shape) }
}

fn draft_estimate(
    engine: &LoadedEngine,
    plan: &LoadPlan,
    path: &Path,
    shape: Shape,
) -> Result<Vec<MemoryUse>, Fault> {
    let params = draft_params(engine, plan, path)?;
    let uses = engine.estimate(&params, Some(&draft_context_params(plan, shape)));
    Ok(named(engine, uses.map_err(|error| draft::failed(path, error))?))
}

/// What the models of one load take together, on each device.
pub(crate) fn memory_use(models: &[Arc<Model>]) -> Result<Vec<MemoryUse>, EngineError> {
    let mut all: Vec<MemoryUse> = Vec::new();
    for model in models {
        add(&mut all, named(model.engine(), model.memory_use()?));
    }
    Ok(all)
}

/// The engine's figures with the names of its devices.
fn named(engine: &LoadedEngine, uses: Vec<llm_node_host::MemoryUse>) -> Vec<MemoryUse> {
    let devices = engine.devices().unwrap_or_default();
    let named = |one: llm_node_host::MemoryUse| {
        let device = one.device.and_then(|index| devices.iter().find(|device| device.index == index));
        MemoryUse {
            device: match (one.device, device) {
                (None, _) => "host".to_owned(),
                (Some(_), Some(device)) => device.name.clone(),
                (Some(index), None) => format!("device {index}"),
            },
            id: None,
            bus_id: device.and_then(|device| device.bus_id.clone()),
            is_host: one.device.is_none() || device.is_some_and(|device| device.kind == DeviceKind::Cpu),
            weights: one.weights,
            cache: one.cache,
            compute: one.compute,
            cache_per_token: one.cache_per_token,
            cache_per_sequence: one.cache_per_sequence,
        }
    };
    uses.into_iter().map(named).collect()
}

/// The verdict under the name that the catalogue of load errors gives it.
fn refusal(error: LoadError) -> EngineRefusal {
    let kind = match &error.kind {
        LoadErrorKind::AbiMismatch { .. } => "AbiMismatch",
        LoadErrorKind::BinaryNotFound => "BinaryNotFound",
        LoadErrorKind::BinaryUnreadable { .. } => "BinaryUnreadable",
        // No library, or one of another machine: either way not one that can run here.
        LoadErrorKind::NotALibrary { .. } | LoadErrorKind::WrongArch { .. } => "WrongArch",
        LoadErrorKind::LoadFailed { .. } => "LoadFailed",
        LoadErrorKind::MissingSymbol { .. } => "MissingSymbol",
        LoadErrorKind::NullInfo => "NullInfo",
        LoadErrorKind::InfoUnreadable { .. } => "InfoUnreadable",
        LoadErrorKind::IdMismatch { .. } => "IdMismatch",
        LoadErrorKind::VersionMismatch { .. } => "VersionMismatch",
        LoadErrorKind::ExtensionBroken { .. } => "ExtensionBroken",
        LoadErrorKind::AlreadyRunning => "AlreadyRunning",
        LoadErrorKind::InitFailed { .. } => "InitFailed",
        LoadErrorKind::UnusableSetting { .. } => "UnusableSetting",
    };
    let fault = match &error.kind {
        // Clients know this message to the letter, without a path before it.
        mismatch @ LoadErrorKind::AbiMismatch { .. } => {
            Fault::new(ErrorCode::AbiMismatch, mismatch.to_string())
        }
        _ => Fault::from(error),
    };
    EngineRefusal { kind: kind.to_owned(), fault }
}
