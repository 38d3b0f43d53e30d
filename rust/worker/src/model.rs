//! A model, from loaded to running: its parts, and who runs them.

use std::{
    fmt, io,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant},
};

use llm_node_core::{
    chat::model::ModelChat,
    engine::{StepEngine, Tokenizer},
    error::Fault,
    facts::ModelFacts,
    memory::MemoryUse,
    request::Request,
    session::{Occupancy, Session, SessionOptions},
    shape::Sizing,
    speculate::{Drafter, Speller},
    text::beginnings::Beginnings,
};
use llm_node_cpu::Crew;
use llm_node_host::{Context, LoadedEngine, Model, ModelTokenizer};
use llm_node_wire::message::{Answer, EngineDevice, Question, RequestId, Scheduling};

use crate::{
    grammar::Grammars,
    intake::Intake,
    report::Reporter,
    reshape::{Reshaper, Shaping},
    served::{Reply, Served, Source},
    source::{batch::BatchSource, blocking::BlockingSource, stream::StreamGenerator, tier0::Tier0Generator},
};

/// Prompt tokens per step while answers are under way, until it was measured how long they take. On the
/// CPU a prompt's tokens cost as much as answers', and each holds all answers up; a device takes many at
/// once.
const PREFILL_ON_CPU: u32 = 64;
const PREFILL_ON_DEVICE: u32 = 2048;

/// See [`PREFILL_ON_CPU`].
pub(crate) const fn prefill_tokens(on_device: bool) -> u32 {
    if on_device { PREFILL_ON_DEVICE } else { PREFILL_ON_CPU }
}

/// How a model speaks.
pub(crate) enum Voice {
    Batch {
        context: Box<Context>,
        on_device: bool,
        /// Who guesses tokens ahead.
        drafter: Option<Box<dyn Drafter>>,
        /// How the context was made.
        shaping: Box<Shaping>,
    },
    Stream,
    Tier0(Arc<Mutex<LoadedEngine>>),
    /// It does not generate.
    Mute,
}

impl Voice {
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Voice::Batch { .. } => "batch",
            Voice::Stream => "stream",
            Voice::Tier0(_) => "tier0",
            Voice::Mute => "none",
        }
    }
}

/// What a model consists of. Dropped in this order: the context before the model, the model before its
/// engine, which each of them holds.
pub(crate) struct Parts {
    pub(crate) voice: Voice,
    pub(crate) tokenizer: Option<Arc<ModelTokenizer>>,
    /// `Err`: the model has one that cannot be used.
    pub(crate) chat: Option<Result<ModelChat, Fault>>,
    /// The model, and its draft model; none where the engine has no handles.
    pub(crate) models: Vec<Arc<Model>>,
}

/// A model that is loaded and not yet asked anything.
pub struct LoadedModel {
    facts: ModelFacts,
    parts: Parts,
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl LoadedModel {
    pub(crate) fn new(facts: ModelFacts, parts: Parts) -> Self {
        Self { facts, parts }
    }

    /// What it is.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// The engine call that is to blame if the process dies while requests run.
    pub fn serving_stage(&self) -> &'static str {
        match self.parts.voice {
            Voice::Batch { .. } => "engine.batch/1 step",
            Voice::Stream => "engine.stream/1 generate",
            Voice::Tier0(_) => "engine_generate",
            Voice::Mute => "engine.embed/1 embed",
        }
    }

    /// Starts the threads. From now on requests are taken; what comes of them goes to `reporter`.
    pub fn start(self, scheduling: Scheduling, reporter: Reporter) -> io::Result<RunningModel> {
        let Parts { voice, tokenizer, chat, models } = self.parts;
        let queue_limit = scheduling.queue_limit;
        let source = match (voice, &tokenizer, models.first()) {
            (Voice::Batch { context, on_device, drafter, shaping }, Some(tokenizer), _) => {
                let options = SessionOptions {
                    queue_limit: scheduling.queue_limit as usize,
                    target_step: Duration::from_millis(scheduling.target_step_ms.into()),
                    keep_prefixes: scheduling.keep_prefixes,
                    max_running: self.facts.max_sequences,
                    prefill_tokens: prefill_tokens(on_device),
                    clock,
                    ..SessionOptions::default()
                };
                let reshaper = Arc::new(Reshaper::new(*shaping, context.limits().clone()));
                let vocabulary = Arc::new(tokenizer.vocabulary().clone());
                let crew = Crew::new(Crew::usual_size(), "sample")?;
                let grammars = Grammars::new(Arc::clone(&vocabulary));
                let mut session = Session::new(*context, vocabulary, options).with_crew(crew);
                if let Some(drafter) = drafter {
                    let speller = Speller::new(Arc::clone(tokenizer) as Arc<dyn Tokenizer>);
                    session = session.with_drafter(drafter).with_speller(speller);
                }
                let source = BatchSource::start(session, reporter.clone())?;
                Source::Batch { source, grammars, reshaper }
            }
            (Voice::Stream, tokenizer, Some(model)) => {
                let generator = StreamGenerator::new(Arc::clone(model), tokenizer.clone());
                // The host lets one call at a time into a model, however many the engine would take.
                Source::Stream(BlockingSource::start(Box::new(generator), 1, queue_limit, reporter.clone())?)
            }
            (Voice::Tier0(engine), _, _) => {
                let generator = Box::new(Tier0Generator::new(engine));
                Source::Tier0(BlockingSource::start(generator, 1, queue_limit, reporter.clone())?)
            }
            _ => Source::None,
        };
        let beginnings = Beginnings::default();
        let served = Served { source, tokenizer, beginnings, chat, models, facts: self.facts, reporter };
        Ok(RunningModel { intake: Intake::start(served, queue_limit as usize)? })
    }
}

/// A model that answers requests. All methods may be called from any thread; dropping it stops it.
pub struct RunningModel {
    intake: Intake,
}

impl fmt::Debug for RunningModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningModel").field("facts", self.facts()).finish_non_exhaustive()
    }
}

impl RunningModel {
    /// What it was loaded as.
    pub fn facts(&self) -> &ModelFacts {
        &self.intake.served().facts
    }

    /// The GPUs that its engine can use, as they are now; none, where it cannot say.
    pub fn devices(&self) -> Vec<EngineDevice> {
        self.intake.served().devices()
    }

    /// What the model would take with such a context, as [`crate::Engine::size`] has it. Loads nothing, and may be
    /// called while requests run.
    pub fn estimate(&self, sizing: Sizing) -> Result<Option<Vec<MemoryUse>>, Fault> {
        self.intake.served().estimate(sizing)
    }

    /// Makes the context anew, of that size: what is under way goes on in it. `is_making` is told when the engine
    /// begins and ends to; `reply` what the model is then, or why its context is what it was. Where even that
    /// cannot be made again the model is lost, which is reported as such.
    pub fn reshape(
        &self,
        sizing: Sizing,
        is_making: impl Fn(bool) + Send + 'static,
        reply: impl FnOnce(Result<ModelFacts, Fault>) + Send + 'static,
    ) {
        self.intake.served().reshape(sizing, is_making, reply);
    }

    /// Checks a request, renders and tokenises it, and queues it; where its text is short, on this thread.
    /// Whatever comes of it, an error included, is reported as events of `id`, which must be unique among
    /// the requests under way.
    pub fn submit(&self, id: RequestId, request: Request) {
        self.intake.submit(id, request);
    }

    /// The client has left: the request ends soon, with [`llm_node_core::event::Finish::Cancelled`].
    /// Unknown ids are ignored.
    pub fn cancel(&self, id: RequestId) {
        self.intake.cancel(id);
    }

    /// Answers a question that is not generation, mostly at once and on this thread. `reply` is called
    /// exactly once, from any thread.
    pub fn ask(&self, question: Question, reply: impl FnOnce(Result<Answer, Fault>) + Send + 'static) {
        self.intake.ask(question, Reply::new(reply));
    }

    /// What tells how busy it is, a tenth of a second ago at most while it has work.
    pub fn occupancy(&self) -> impl Fn() -> Occupancy + Send + 'static {
        self.intake.occupancy()
    }

    /// Refuses new requests and finishes those under way; then reports [`crate::Report::Drained`].
    pub fn drain(&self) {
        self.intake.drain();
    }

    /// Ends all requests, each with an event, and waits for the engine call under way. An engine that
    /// cannot be interrupted takes its time.
    pub fn stop(&self) {
        self.intake.stop();
    }
}

/// Time since the first call.
fn clock() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}
