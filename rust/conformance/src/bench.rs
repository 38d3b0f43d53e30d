//! What every check begins with: the engine opened, initialised, with a model, with a context.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fastrand::Rng;
use llm_node_core::engine::{EngineFaultKind, StepEngine, Token, Tokenizer};
use llm_node_host::{
    Context, ContextParams, EngineError, InitConfig, LoadError, LoadedEngine, Model, ModelParams,
    ModelTokenizer, Observer, OpenedEngine,
};

use crate::Subject;
use crate::check::Stop;
use crate::run::Trail;

/// Tokens of the longest sequence that a check makes, where the model can have that many.
pub(crate) const LONGEST: u32 = 96;

/// The engine on the bench.
pub(crate) struct Bench<'a> {
    pub(crate) subject: &'a Subject,
    pub(crate) trail: Trail,
    /// Files that this process's outputs go to.
    pub(crate) stdout: PathBuf,
    pub(crate) stderr: PathBuf,
}

impl<'a> Bench<'a> {
    pub(crate) fn new(subject: &'a Subject, trail: Trail, stdout: PathBuf, stderr: PathBuf) -> Self {
        Self { subject, trail, stdout, stderr }
    }

    /// `many` repetitions, or `few` where it is to be quick.
    pub(crate) const fn times(&self, few: usize, many: usize) -> usize {
        if self.subject.quick { few } else { many }
    }

    /// Begins the random numbers of something that is made up, `number` of many.
    pub(crate) fn rng(&self, number: u64) -> Rng {
        // So far apart that no run has what another one had.
        Rng::with_seed(self.subject.seed.wrapping_mul(1 << 32).wrapping_add(number))
    }

    fn observer(&self) -> Observer {
        let trail = self.trail.clone();
        Arc::new(move |call| trail.call(call))
    }

    pub(crate) fn open(&self) -> Result<OpenedEngine, LoadError> {
        let Subject { library, libraries, id, version, .. } = self.subject;
        llm_node_host::preload(libraries);
        OpenedEngine::open(library, id, version, self.observer())
    }

    pub(crate) fn config(&self) -> InitConfig {
        InitConfig {
            n_threads: 2,
            engine_dir: self.subject.library.parent().map(Path::to_owned).unwrap_or_default(),
            gpu_backend: self.subject.gpu_backend.clone(),
            max_tokens: 32,
            options: self.subject.options.clone(),
            ..InitConfig::default()
        }
    }

    pub(crate) fn init(&self) -> Result<Arc<LoadedEngine>, Stop> {
        Ok(Arc::new(self.open()?.init(&self.config())?))
    }

    /// The engine for oneself, for tier 0.
    pub(crate) fn init_alone(&self) -> Result<LoadedEngine, Stop> {
        Ok(self.open()?.init(&self.config())?)
    }

    pub(crate) fn model_path(&self) -> Result<&Path, Stop> {
        self.subject.model.as_deref().ok_or_else(|| Stop::skip("it needs a model: name one with --model"))
    }

    /// As [`offered`], for the extension that it is about.
    pub(crate) fn engine_with(&self, extension: &'static str) -> Result<Arc<LoadedEngine>, Stop> {
        let engine = self.init()?;
        if engine.offers(extension) { Ok(engine) } else { Err(not_offered(extension)) }
    }

    pub(crate) fn load(&self, engine: &Arc<LoadedEngine>) -> Result<Arc<Model>, Stop> {
        if !engine.offers("engine.models/1") {
            return Err(not_offered("engine.models/1"));
        }
        Ok(Model::load(engine, &ModelParams::new(self.model_path()?), None)?)
    }

    /// The model, on an engine that offers the extension.
    pub(crate) fn model_with(&self, extension: &'static str) -> Result<Arc<Model>, Stop> {
        self.model_path()?;
        self.load(&self.engine_with(extension)?)
    }

    pub(crate) fn tokenizer(&self) -> Result<ModelTokenizer, Stop> {
        Ok(ModelTokenizer::new(&self.model_with("engine.tokenizer/1")?)?)
    }
}

pub(crate) fn not_offered(extension: &str) -> Stop {
    Stop::skip(format!("{extension} is not offered"))
}

/// A context for `sequences` at once, or for fewer where the engine takes no more.
pub(crate) fn context(model: &Arc<Model>, sequences: u32) -> Result<Context, Stop> {
    if !model.info().generates {
        return Err(Stop::skip("the model does not generate"));
    }
    let length = model.info().n_context;
    let mut params = ContextParams {
        max_sequences: sequences,
        context_length: if length == 0 { LONGEST } else { length.min(LONGEST) },
        max_rows: sequences * 4,
        rollback: 8,
        ..ContextParams::default()
    };
    loop {
        match Context::create(model, &params) {
            Err(error @ EngineError::Failed { .. }) if params.max_sequences > 1 && is_refusal(&error) => {
                params.max_sequences /= 2;
                params.max_rows = params.max_sequences;
            }
            other => return Ok(other?),
        }
    }
}

/// As [`context`], for checks that say nothing about fewer than `least` sequences.
pub(crate) fn context_for(model: &Arc<Model>, sequences: u32, least: u32) -> Result<Context, Stop> {
    let context = context(model, sequences)?;
    if context.limits().max_sequences < least {
        return Err(Stop::skip("the engine has one sequence at a time"));
    }
    Ok(context)
}

fn is_refusal(error: &EngineError) -> bool {
    matches!(
        error.kind(),
        EngineFaultKind::InvalidInput | EngineFaultKind::InvalidArgument | EngineFaultKind::Unsupported
    )
}

/// Tokens that a text may be made of: no control tokens, and none that must not be generated. All of them
/// where there is no tokenizer.
pub(crate) fn plain_tokens(model: &Arc<Model>) -> Result<Vec<Token>, Stop> {
    let all = 0..i32::try_from(model.info().n_vocab).unwrap_or(i32::MAX);
    if !model.engine().offers("engine.tokenizer/1") {
        return Ok(all.collect());
    }
    let tokenizer = ModelTokenizer::new(model)?;
    let attributes = &tokenizer.vocabulary().attributes;
    let is_plain = |token: &Token| attributes.get(*token as usize).is_some_and(|bits| bits & 0b1011 == 0);
    let plain: Vec<Token> = all.clone().filter(is_plain).collect();
    Ok(if plain.len() < 2 { all.collect() } else { plain })
}
