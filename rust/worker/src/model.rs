//! A model that answers: requests are checked here, on the caller's thread, and run elsewhere.

use std::{
    fmt, io,
    sync::{Arc, Mutex, OnceLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use llm_node_core::{
    engine::{Limits, StepEngine, Tokenizer},
    error::{ErrorCode, Fault},
    event::Event,
    request::{Chat, Request, ValidRequest},
    session::{Session, SessionOptions},
    speculate::Drafter,
    text::template::ChatTemplate,
};
use llm_node_cpu::Crew;
use llm_node_host::{Context, LoadedEngine, Model, ModelTokenizer, Pooling};
use llm_node_wire::message::{Answer, EmbedInput, ModelFacts, Question, RequestId, Scheduling};

use crate::{
    engine::{fault, memory_use},
    report::{Report, Reporter},
    source::{
        Prepared, batch::BatchSource, blocking::BlockingSource, stopped, stream::StreamGenerator, text,
        tier0::Tier0Generator,
    },
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
    pub(crate) template: Option<Result<ChatTemplate, Fault>>,
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
        let Parts { voice, tokenizer, template, models } = self.parts;
        let queue_limit = scheduling.queue_limit;
        let source = match (voice, &tokenizer, models.first()) {
            (Voice::Batch { context, on_device, drafter }, Some(tokenizer), _) => {
                let options = SessionOptions {
                    queue_limit: scheduling.queue_limit as usize,
                    target_step: Duration::from_millis(scheduling.target_step_ms.into()),
                    keep_prefixes: scheduling.keep_prefixes,
                    max_running: self.facts.max_sequences,
                    prefill_tokens: prefill_tokens(on_device),
                    clock,
                    ..SessionOptions::default()
                };
                let limits = context.limits().clone();
                let vocabulary = Arc::new(tokenizer.vocabulary().clone());
                let crew = Crew::new(Crew::usual_size(), "sample")?;
                let mut session = Session::new(*context, vocabulary, options).with_crew(crew);
                if let Some(drafter) = drafter {
                    session = session.with_drafter(drafter);
                }
                Source::Batch { limits, source: BatchSource::start(session, reporter.clone())? }
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
        Ok(RunningModel { source, tokenizer, template, models, facts: self.facts, reporter })
    }
}

enum Source {
    Batch { limits: Limits, source: BatchSource },
    Stream(BlockingSource),
    Tier0(BlockingSource),
    None,
}

/// A model that answers requests. All methods may be called from any thread; dropping it stops it.
pub struct RunningModel {
    // First, so that nothing runs any more when the rest goes.
    source: Source,
    tokenizer: Option<Arc<ModelTokenizer>>,
    template: Option<Result<ChatTemplate, Fault>>,
    /// The model, and its draft model.
    models: Vec<Arc<Model>>,
    facts: ModelFacts,
    reporter: Reporter,
}

impl fmt::Debug for RunningModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RunningModel").field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl RunningModel {
    /// What it is.
    pub fn facts(&self) -> &ModelFacts {
        &self.facts
    }

    /// Checks a request, renders and tokenises it here, and queues it. Whatever comes of it, an error
    /// included, is reported as events of `id`, which must be unique among the requests under way.
    pub fn submit(&self, id: RequestId, request: Request) {
        let submitted = match &self.source {
            Source::Batch { limits, source } => {
                self.valid(request, limits).map(|request| source.submit(id, request, &self.reporter))
            }
            Source::Stream(source) => self.streamable(request).map(|request| source.submit(id, request)),
            Source::Tier0(source) => text::prepare(request, text::Honours::Nothing, seed())
                .map(|request| source.submit(id, request)),
            Source::None => {
                let message = "the model does not generate; it makes embeddings";
                Err(Fault::new(ErrorCode::UnsupportedFeature, message))
            }
        };
        if let Err(fault) = submitted {
            self.reporter.event(id, Event::Failed(fault));
        }
    }

    /// For how long the engine's step under way has been running, where the host does the stepping.
    pub fn stepping_for(&self) -> Option<Duration> {
        match &self.source {
            Source::Batch { source, .. } => source.stepping_for(),
            Source::Stream(_) | Source::Tier0(_) | Source::None => None,
        }
    }

    /// The client has left: the request ends soon, with [`llm_node_core::event::Finish::Cancelled`].
    /// Unknown ids are ignored.
    pub fn cancel(&self, id: RequestId) {
        match &self.source {
            Source::Batch { source, .. } => source.cancel(id),
            Source::Stream(source) | Source::Tier0(source) => source.cancel(id),
            Source::None => {}
        }
    }

    /// Answers a question that is not generation, mostly at once and on this thread. `reply` is called
    /// exactly once, from any thread.
    pub fn ask(&self, question: Question, reply: impl FnOnce(Result<Answer, Fault>) + Send + 'static) {
        let reply = Reply(Some(Box::new(reply)));
        match question {
            Question::Embed { inputs } => self.embed(inputs, reply),
            question => reply.send(self.answer(question)),
        }
    }

    /// Refuses new requests and finishes those under way; then reports [`Report::Drained`].
    pub fn drain(&self) {
        match &self.source {
            Source::Batch { source, .. } => source.drain(),
            Source::Stream(source) | Source::Tier0(source) => source.drain(),
            Source::None => self.reporter.tell(Report::Drained),
        }
    }

    /// Ends all requests, each with an event, and waits for the engine call under way. An engine that
    /// cannot be interrupted takes its time.
    pub fn stop(&self) {
        match &self.source {
            Source::Batch { source, .. } => source.stop(),
            Source::Stream(source) | Source::Tier0(source) => source.stop(),
            Source::None => {}
        }
    }

    fn valid(&self, request: Request, limits: &Limits) -> Result<ValidRequest, Fault> {
        let tokenizer = self.tokenizer()?;
        let template = match (&request.prompt, &self.template) {
            (llm_node_core::request::Prompt::Chat(_), Some(Err(fault))) => return Err(fault.clone()),
            (_, Some(Ok(template))) => Some(template),
            _ => None,
        };
        ValidRequest::new(request, tokenizer, template, limits, seed(), unix_seconds())
    }

    fn streamable(&self, request: Request) -> Result<Prepared, Fault> {
        let (Some(_), Some(model)) = (&self.tokenizer, self.models.first()) else {
            return text::prepare(request, text::Honours::Sampling, seed());
        };
        if let Some(name) = text::not_honoured(&request, text::Honours::Sampling) {
            return Err(text::unsupported(name));
        }
        let info = model.info();
        let limits = Limits {
            max_sequences: 1,
            context_length: info.n_context,
            max_batch_tokens: info.n_context,
            max_rows: 1,
            cache_tokens: u64::from(info.n_context),
            cache_page: 1,
            max_rollback: 0,
            shares_prefixes: false,
            saves: false,
            max_candidates: 0,
            fetches: false,
            n_vocab: info.n_vocab,
        };
        self.valid(request, &limits).map(Prepared::from)
    }

    fn answer(&self, question: Question) -> Result<Answer, Fault> {
        match question {
            Question::Tokenize { text, add_special, parse_special } => {
                Ok(Answer::Tokens(self.tokenizer()?.tokenize(&text, add_special, parse_special)?))
            }
            Question::Detokenize { tokens } => self.detokenize(&tokens),
            Question::ApplyTemplate(chat) => self.render(&chat).map(Answer::Text),
            Question::MemoryUse => {
                if self.models.is_empty() {
                    return Err(lacks("says what memory it takes"));
                }
                Ok(Answer::MemoryUse(memory_use(&self.models).map_err(fault)?))
            }
            Question::Embed { .. } => Err(lacks("answers this here")),
        }
    }

    fn detokenize(&self, tokens: &[i32]) -> Result<Answer, Fault> {
        let tokenizer = self.tokenizer()?;
        let n_tokens = tokenizer.vocabulary().len();
        if let Some(token) = unknown(tokens, n_tokens) {
            let message = format!("token {token} is outside the vocabulary of {n_tokens} tokens");
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("tokens"));
        }
        let bytes = tokenizer.detokenize(tokens)?;
        Ok(Answer::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    fn render(&self, chat: &Chat) -> Result<String, Fault> {
        match &self.template {
            Some(Ok(template)) => Ok(template.render(chat, unix_seconds())?.into_text()),
            Some(Err(fault)) => Err(fault.clone()),
            None => Err(Fault::new(ErrorCode::UnsupportedFeature, "the model has no chat template")),
        }
    }

    fn embed(&self, inputs: Vec<EmbedInput>, reply: Reply) {
        let (model, inputs) = match self.embeddable(inputs) {
            Ok(ready) => ready,
            Err(fault) => return reply.send(Err(fault)),
        };
        let work = move || {
            let tokens = inputs.iter().map(|input| input.len() as u32).collect();
            let vectors = model.embed(&inputs, Pooling::Model).map_err(fault);
            reply.send(vectors.map(|vectors| Answer::Embeddings { vectors, tokens }));
        };
        match &self.source {
            // The engine need not bear an embedding during a step.
            Source::Batch { source, .. } => source.between(Box::new(work)),
            _ => work(),
        }
    }

    fn embeddable(&self, inputs: Vec<EmbedInput>) -> Result<(Arc<Model>, Vec<Vec<i32>>), Fault> {
        let model = self.models.first().filter(|_| self.facts.n_embedding > 0);
        let model = model.ok_or_else(|| lacks("makes embeddings"))?;
        let tokenizer = self.tokenizer()?;
        let vocabulary = tokenizer.vocabulary();
        let longest = u64::from(model.info().n_context);
        let inputs = inputs.into_iter().enumerate().map(|(n, input)| {
            let refused = |code, message| Fault::new(code, format!("input {n} {message}")).param("input");
            let too_long = |tokens: &str| {
                let message = format!("has {tokens} tokens; the model takes {longest}");
                refused(ErrorCode::ContextLengthExceeded, message)
            };
            let tokens = match input {
                EmbedInput::Text(text) => {
                    // Tokenising takes long where a text is long, and refusing is quick.
                    let least = vocabulary.least_tokens(&text);
                    if least > longest {
                        return Err(too_long(&format!("at least {least}")));
                    }
                    tokenizer.tokenize(&text, true, false)?
                }
                EmbedInput::Tokens(tokens) => tokens,
            };
            if tokens.is_empty() {
                return Err(refused(ErrorCode::InvalidRequest, "is empty".into()));
            }
            if let Some(token) = unknown(&tokens, vocabulary.len()) {
                let n_tokens = vocabulary.len();
                let message = format!("holds token {token}, outside the vocabulary of {n_tokens} tokens");
                return Err(refused(ErrorCode::InvalidRequest, message));
            }
            if tokens.len() as u64 > longest {
                return Err(too_long(&tokens.len().to_string()));
            }
            Ok(tokens)
        });
        Ok((Arc::clone(model), inputs.collect::<Result<_, _>>()?))
    }

    fn tokenizer(&self) -> Result<&ModelTokenizer, Fault> {
        self.tokenizer.as_deref().ok_or_else(|| lacks("has a tokenizer"))
    }
}

/// The one answer to a question; whoever loses it answers as well.
struct Reply(Option<TakeAnswer>);

type TakeAnswer = Box<dyn FnOnce(Result<Answer, Fault>) + Send>;

impl Reply {
    fn send(mut self, answer: Result<Answer, Fault>) {
        if let Some(reply) = self.0.take() {
            reply(answer);
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(reply) = self.0.take() {
            reply(Err(stopped()));
        }
    }
}

/// The first that is none of a vocabulary's tokens.
fn unknown(tokens: &[i32], n_tokens: usize) -> Option<i32> {
    let known = |&token: &i32| usize::try_from(token).is_ok_and(|token| token < n_tokens);
    tokens.iter().copied().find(|token| !known(token))
}

fn lacks(what: &str) -> Fault {
    Fault::new(ErrorCode::UnsupportedFeature, format!("no part of the model's engine {what}"))
}

fn seed() -> u64 {
    // Without a source of randomness the clock still tells requests apart.
    getrandom::u64().unwrap_or_else(|_| {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64)
    })
}

/// Time since the first call.
fn clock() -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    BEGAN.get_or_init(Instant::now).elapsed()
}

fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
