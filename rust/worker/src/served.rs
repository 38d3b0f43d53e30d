//! What a running model makes of a request or a question. Nothing waits here: who calls when, and on which
//! thread, is for `intake.rs` to say.

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use llm_node_core::{
    chat::{conversation::Conversation, model::ModelChat},
    constrain::{Prototype, Wanted},
    engine::{Limits, Tokenizer},
    error::{ErrorCode, Fault},
    event::Event,
    facts::ModelFacts,
    memory::MemoryUse,
    request::{Prompt, Request, ValidRequest, prompt_tokens},
    session::Occupancy,
    shape::Sizing,
    text::{
        beginnings::Beginnings,
        control::Rendered,
        pair::{self, Joining},
    },
};
use llm_node_host::{EngineError, Model, ModelTokenizer, Pooling};
use llm_node_wire::message::{Answer, EmbedInput, EngineDevice, Question, RequestId};

use crate::{
    engine::{gpus_of, memory_use},
    grammar::Grammars,
    report::{self, Report, Reporter},
    reshape::Reshaper,
    source::{Prepared, batch::BatchSource, blocking::BlockingSource, lost, stopped, text},
};

/// Most inputs and tokens that go into one call for embeddings, unless a single input is longer. A call is
/// as long as these, whatever a client sends, so that a long one is a call that hangs.
const INPUTS_AT_ONCE: usize = 64;
const TOKENS_AT_ONCE: usize = 16 << 10;

/// The name of the template that joins a query and a document.
const PAIR_TEMPLATE: &str = "rerank";
/// Key of GGUF: does a separator stand between two texts, beside the end of the first?
const ADDS_SEPARATOR: &str = "tokenizer.ggml.add_sep_token";

/// Who runs requests.
pub(crate) enum Source {
    Batch {
        source: BatchSource,
        grammars: Grammars,
        reshaper: Arc<Reshaper>,
    },
    Stream(BlockingSource),
    Tier0(BlockingSource),
    /// It does not generate.
    None,
}

/// A model that runs.
pub(crate) struct Served {
    // First, so that nothing runs any more when the rest goes.
    pub(crate) source: Source,
    pub(crate) tokenizer: Option<Arc<ModelTokenizer>>,
    pub(crate) beginnings: Beginnings,
    pub(crate) chat: Option<Result<ModelChat, Fault>>,
    /// The model, and its draft model.
    pub(crate) models: Vec<Arc<Model>>,
    pub(crate) facts: ModelFacts,
    pub(crate) reporter: Reporter,
}

/// What an answer has to keep to.
pub(crate) enum Kept {
    Nothing,
    Compiled(Arc<Prototype>),
    /// It takes compiling.
    Wanted(Box<Wanted>),
}

/// A request that its source takes as it is.
pub(crate) enum Ready {
    Batch(Box<ValidRequest>),
    Blocking(Box<Prepared>),
}

/// The rest of an answer: calls of the engine that take their time.
pub(crate) type Work = Box<dyn FnOnce() + Send>;

impl Served {
    /// What the answer to a request has to keep to, as far as that is known without waiting.
    pub(crate) fn kept(&self, request: &Request) -> Kept {
        let Source::Batch { grammars, .. } = &self.source else { return Kept::Nothing };
        let wanted = self.wanted(request);
        if wanted.is_anything() {
            return Kept::Nothing;
        }
        grammars.find(&wanted).map_or_else(|| Kept::Wanted(Box::new(wanted)), Kept::Compiled)
    }

    /// Compiles what the answer to a request has to keep to. Waits for that. `None`: it need not, and cannot.
    pub(crate) fn compile(
        &self,
        request: &Request,
        wanted: &Wanted,
    ) -> Result<Option<Arc<Prototype>>, Fault> {
        let Source::Batch { grammars, .. } = &self.source else { return Ok(None) };
        request.check()?;
        match grammars.compile(wanted) {
            Err(fault) if wanted.is_optional() && fault.code == ErrorCode::UnsupportedFeature => Ok(None),
            compiled => compiled.map(Some),
        }
    }

    /// Checks, renders and tokenises a request, whose answer has to keep to something.
    pub(crate) fn prepare(&self, request: Request, kept: Option<Arc<Prototype>>) -> Result<Ready, Fault> {
        match &self.source {
            Source::Batch { reshaper, .. } => {
                let valid = self.valid(request, &reshaper.limits())?;
                Ok(Ready::Batch(Box::new(match kept {
                    Some(kept) => valid.constrained(kept),
                    None => valid,
                })))
            }
            Source::Stream(_) => self.streamable(request).map(Box::new).map(Ready::Blocking),
            Source::Tier0(_) => {
                text::prepare(request, text::Honours::Nothing, seed()).map(Box::new).map(Ready::Blocking)
            }
            Source::None => Err(self.mute()),
        }
    }

    /// What the answer to a request has to keep to.
    fn wanted(&self, request: &Request) -> Wanted {
        let format = request.format.clone();
        match (&request.prompt, &self.chat) {
            (Prompt::Chat(conversation), Some(Ok(chat))) => {
                match chat.answers(!conversation.offered().is_empty()) {
                    Some(syntax) => Wanted::of(format, conversation, syntax),
                    // Tools are refused, where there are any.
                    None => format.into(),
                }
            }
            _ => format.into(),
        }
    }

    /// Gives a request to its source, or its fault to the client. Does not wait.
    pub(crate) fn begin(&self, id: RequestId, prepared: Result<Ready, Fault>) {
        match (prepared, &self.source) {
            (Ok(Ready::Batch(request)), Source::Batch { source, .. }) => {
                source.submit(id, request, &self.reporter);
            }
            (Ok(Ready::Blocking(request)), Source::Stream(source) | Source::Tier0(source)) => {
                source.submit(id, *request);
            }
            (Ok(_), _) => self.reporter.event(id, Event::Failed(self.mute())),
            (Err(fault), _) => {
                report::note(&fault);
                self.reporter.event(id, Event::Failed(fault));
            }
        }
    }

    /// See [`crate::RunningModel::estimate`].
    pub(crate) fn estimate(&self, sizing: Sizing) -> Result<Option<Vec<MemoryUse>>, Fault> {
        match &self.source {
            Source::Batch { reshaper, .. } => reshaper.estimate(sizing),
            _ => Err(fixed()),
        }
    }

    /// See [`crate::RunningModel::devices`].
    pub(crate) fn devices(&self) -> Vec<EngineDevice> {
        let told = self.models.first().map(|model| gpus_of(model.engine()));
        told.and_then(|gpus| gpus.inspect_err(|error| log::warn!("the devices are not told: {error}")).ok())
            .unwrap_or_default()
    }

    /// See [`crate::RunningModel::reshape`].
    pub(crate) fn reshape(
        &self,
        sizing: Sizing,
        is_making: impl Fn(bool) + Send + 'static,
        reply: impl FnOnce(Result<ModelFacts, Fault>) + Send + 'static,
    ) {
        let Source::Batch { source, reshaper, .. } = &self.source else { return reply(Err(fixed())) };
        let (reshaper, facts) = (Arc::clone(reshaper), self.facts.clone());
        source.reshape(Box::new(move |session, events| {
            is_making(true);
            let mut outcome = Err(stopped());
            let remade = session.reshape(events, |context| {
                let (remade, facts) = reshaper.remake(context, sizing, &facts)?;
                outcome = facts;
                Ok(remade)
            });
            is_making(false);
            reply(remade.map_err(lost).and(outcome));
        }));
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        match &self.source {
            Source::Batch { source, .. } => source.occupancy(),
            Source::Stream(source) | Source::Tier0(source) => source.occupancy(),
            Source::None => Occupancy::default(),
        }
    }

    pub(crate) fn cancel(&self, id: RequestId) {
        match &self.source {
            Source::Batch { source, .. } => source.cancel(id),
            Source::Stream(source) | Source::Tier0(source) => source.cancel(id),
            Source::None => {}
        }
    }

    pub(crate) fn drain(&self) {
        match &self.source {
            Source::Batch { source, .. } => source.drain(),
            Source::Stream(source) | Source::Tier0(source) => source.drain(),
            Source::None => self.reporter.tell(Report::Drained),
        }
    }

    pub(crate) fn stop(&self) {
        match &self.source {
            Source::Batch { source, .. } => source.stop(),
            Source::Stream(source) | Source::Tier0(source) => source.stop(),
            Source::None => {}
        }
    }

    /// Answers a question; or gives what is left to be done for it, where the scheduler does not do it.
    pub(crate) fn ask(&self, question: Question, reply: Reply) -> Option<Work> {
        match question {
            Question::Embed { inputs } => self.embed(inputs, reply),
            Question::Rerank { query, documents } => self.rerank(&query, &documents, reply),
            question => {
                reply.send(self.answer(question));
                None
            }
        }
    }

    /// Why a model without a source refuses to generate.
    fn mute(&self) -> Fault {
        let info = self.models.first().map(|model| model.info());
        let message = match info {
            Some(info) if info.ranks => "the model does not generate; it ranks pairs of texts",
            Some(info) if info.embeds => "the model does not generate; it makes embeddings",
            _ => "the model does not generate text token by token",
        };
        Fault::new(ErrorCode::UnsupportedFeature, message)
    }

    fn valid(&self, request: Request, limits: &Limits) -> Result<ValidRequest, Fault> {
        let tokenizer = self.beginnings.of(self.tokenizer()?);
        let chat = match (&request.prompt, &self.chat) {
            (Prompt::Chat(_), Some(Err(fault))) => return Err(fault.clone()),
            (_, Some(Ok(chat))) => Some(chat),
            _ => None,
        };
        ValidRequest::new(request, &tokenizer, chat, limits, seed(), unix_seconds())
    }

    fn streamable(&self, request: Request) -> Result<Prepared, Fault> {
        let (Some(_), Some(model)) = (&self.tokenizer, self.models.first()) else {
            return text::prepare(request, text::Honours::Sampling, seed());
        };
        if let Some(name) = text::not_honoured(&request, text::Honours::Sampling) {
            return Err(text::unsupported(name));
        }
        text::without_format(&request)?;
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
            Question::Pieces { tokens } => {
                let vocabulary = self.known(&tokens)?.vocabulary();
                Ok(Answer::Pieces(tokens.iter().map(|&it| vocabulary.token_bytes(it).to_vec()).collect()))
            }
            Question::ChatTemplate => {
                let source = self.chat.as_ref().and_then(|it| it.as_ref().ok()).map(ModelChat::source);
                Ok(Answer::ChatTemplate(source.map(str::to_owned)))
            }
            Question::ApplyTemplate(conversation) => {
                self.render(&conversation).map(|rendered| Answer::Text(rendered.into_text()))
            }
            Question::CountTokens(conversation) => {
                let tokenizer = self.beginnings.of(self.tokenizer()?);
                let tokens = prompt_tokens(&self.render(&conversation)?, &tokenizer)?;
                Ok(Answer::Count(tokens.len() as u64))
            }
            Question::MemoryUse => {
                if self.models.is_empty() {
                    return Err(lacks("says what memory it takes"));
                }
                Ok(Answer::MemoryUse(memory_use(&self.models)?))
            }
            Question::Embed { .. } | Question::Rerank { .. } => Err(lacks("answers this here")),
        }
    }

    fn detokenize(&self, tokens: &[i32]) -> Result<Answer, Fault> {
        let bytes = self.known(tokens)?.detokenize(tokens)?;
        Ok(Answer::Text(String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The tokenizer, if its vocabulary has all these tokens.
    fn known(&self, tokens: &[i32]) -> Result<&ModelTokenizer, Fault> {
        let tokenizer = self.tokenizer()?;
        let n_tokens = tokenizer.vocabulary().len();
        if let Some(token) = unknown(tokens, n_tokens) {
            let message = format!("token {token} is outside the vocabulary of {n_tokens} tokens");
            return Err(Fault::new(ErrorCode::InvalidRequest, message).param("tokens"));
        }
        Ok(tokenizer)
    }

    fn render(&self, conversation: &Conversation) -> Result<Rendered, Fault> {
        conversation.check()?;
        match &self.chat {
            Some(Ok(chat)) => Ok(chat.render(conversation, unix_seconds())?.prompt),
            Some(Err(fault)) => Err(fault.clone()),
            None => Err(Fault::new(ErrorCode::UnsupportedFeature, "the model has no chat template")),
        }
    }

    fn embed(&self, inputs: Vec<EmbedInput>, reply: Reply) -> Option<Work> {
        let (model, inputs) = match self.embeddable(inputs) {
            Ok(ready) => ready,
            Err(fault) => {
                reply.send(Err(fault));
                return None;
            }
        };
        self.aside(Box::new(move || {
            let tokens = lengths(&inputs);
            let vectors = embeddings(&model, &inputs, Pooling::Model).map_err(Fault::from);
            reply.send(vectors.map(|vectors| Answer::Embeddings { vectors, tokens }));
        }))
    }

    fn rerank(&self, query: &str, documents: &[String], reply: Reply) -> Option<Work> {
        let (model, pairs) = match self.rankable(query, documents) {
            Ok(ready) => ready,
            Err(fault) => {
                reply.send(Err(fault));
                return None;
            }
        };
        self.aside(Box::new(move || {
            let tokens = lengths(&pairs);
            let results = embeddings(&model, &pairs, Pooling::Rank).map_err(Fault::from);
            let scores = results.map(|results| results.iter().map(|it| pair::relevance(it)).collect());
            reply.send(scores.map(|scores| Answer::Scores { scores, tokens }));
        }))
    }

    /// Where the work on vectors is done: not beside a step, which the engine need not bear.
    fn aside(&self, work: Work) -> Option<Work> {
        match &self.source {
            Source::Batch { source, .. } => source.between(work),
            _ => return Some(work),
        }
        None
    }

    fn rankable(&self, query: &str, documents: &[String]) -> Result<(Arc<Model>, Vec<Vec<i32>>), Fault> {
        let model = self.models.first().filter(|_| self.facts.ranks);
        let model = model.ok_or_else(|| {
            let message = "the model does not rank: that takes a model whose file says that it does";
            Fault::new(ErrorCode::UnsupportedFeature, message)
        })?;
        let tokenizer = self.tokenizer()?;
        let vocabulary = tokenizer.vocabulary();
        let longest = u64::from(model.info().n_context);
        let joining = joining(model, tokenizer)?;
        let pairs = documents.iter().enumerate().map(|(n, document)| {
            let too_long = |tokens: &str| {
                let message =
                    format!("document {n} has {tokens} tokens with the query; the model takes {longest}");
                Fault::new(ErrorCode::ContextLengthExceeded, message).param("documents")
            };
            // Tokenising takes long where a text is long, and refusing is quick.
            let least = vocabulary.least_tokens(query) + vocabulary.least_tokens(document);
            if least > longest {
                return Err(too_long(&format!("at least {least}")));
            }
            let tokens = joining.tokens(query, document, tokenizer)?;
            if tokens.len() as u64 > longest { Err(too_long(&tokens.len().to_string())) } else { Ok(tokens) }
        });
        Ok((Arc::clone(model), pairs.collect::<Result<_, _>>()?))
    }

    fn embeddable(&self, inputs: Vec<EmbedInput>) -> Result<(Arc<Model>, Vec<Vec<i32>>), Fault> {
        if self.models.first().is_some_and(|model| model.info().ranks) {
            let message = "the model ranks: it scores pairs of texts, and makes no embeddings";
            return Err(Fault::new(ErrorCode::UnsupportedFeature, message));
        }
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
pub(crate) struct Reply(Option<TakeAnswer>);

type TakeAnswer = Box<dyn FnOnce(Result<Answer, Fault>) + Send>;

impl Reply {
    pub(crate) fn new(take: impl FnOnce(Result<Answer, Fault>) + Send + 'static) -> Self {
        Self(Some(Box::new(take)))
    }

    pub(crate) fn send(mut self, answer: Result<Answer, Fault>) {
        if let Err(fault) = &answer {
            report::note(fault);
        }
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

/// One vector for each input, in calls of bounded length.
fn embeddings(
    model: &Model,
    mut inputs: &[Vec<i32>],
    pooling: Pooling,
) -> Result<Vec<Vec<f32>>, EngineError> {
    let mut vectors = Vec::with_capacity(inputs.len());
    while !inputs.is_empty() {
        let mut tokens = 0;
        let fits = |input: &&Vec<i32>| {
            tokens += input.len();
            tokens <= TOKENS_AT_ONCE
        };
        let count = inputs.iter().take(INPUTS_AT_ONCE).take_while(fits).count().max(1);
        let (now, later) = inputs.split_at(count);
        vectors.extend(model.embed(now, pooling)?);
        inputs = later;
    }
    Ok(vectors)
}

/// Tokens of each input.
fn lengths(inputs: &[Vec<i32>]) -> Vec<u32> {
    inputs.iter().map(|input| input.len() as u32).collect()
}

/// How a model that ranks wants a query and a document joined, by what its file says.
fn joining(model: &Model, tokenizer: &ModelTokenizer) -> Result<Joining, Fault> {
    // An engine that knows no metadata says no more of it than one whose files have none.
    let metadata = model.metadata().unwrap_or_default();
    let separated = metadata.iter().any(|(key, value)| key == ADDS_SEPARATOR && value == "true");
    Ok(Joining { template: tokenizer.named_chat_template(PAIR_TEMPLATE)?, separated })
}

/// The first that is none of a vocabulary's tokens.
fn unknown(tokens: &[i32], n_tokens: usize) -> Option<i32> {
    let known = |&token: &i32| usize::try_from(token).is_ok_and(|token| token < n_tokens);
    tokens.iter().copied().find(|token| !known(token))
}

fn fixed() -> Fault {
    let message = "the engine does not run the model in steps: its context stays as it was loaded";
    Fault::new(ErrorCode::UnsupportedFeature, message)
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

fn unix_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
