//! What a client asks for, in neutral words.
//!
//! API families translate their own shapes into [`Request`]; the worker, which knows the model,
//! turns it into a `ValidRequest`. No word of any API family stands here.

use std::{collections::HashSet, sync::Arc};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    chat::{
        conversation::{Conversation, Format, Thinking},
        model::ModelChat,
        parse::Watch,
    },
    constrain::Prototype,
    engine::{Limits, Token, Tokenizer, Vocabulary, attribute},
    error::{ErrorCode, Fault},
    event::Finish,
    schedule::keeping::ThinkingBudget,
    text::{answer::AnswerText, control::Rendered, infill::Infill},
};

/// Stop strings per request. Each costs a look at every piece of text.
pub const MAX_STOP_STRINGS: usize = 64;
/// Bytes per stop string.
pub const MAX_STOP_LENGTH: usize = 1024;
/// A bias of this or less forbids a token altogether. JSON has no infinity.
pub const FORBIDS: f32 = -1e30;
/// Alternatives per token beside its log-probability.
pub const MAX_LOGPROBS: u32 = 128;

/// Who a request comes from, as far as its turn in the queue goes: the same number, the same source.
pub type Source = u64;

/// What a request weighs in the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Weight {
    /// Tokens of its prompt.
    pub prompt: usize,
    /// Tokens that it may generate.
    pub answer: u32,
}

/// One answer wanted from one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What the model is to go on from.
    pub prompt: Prompt,
    /// Most tokens to generate, as far as the context has room for them; `None`: as many as it has.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// How a token is picked from the logits.
    #[serde(default)]
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Go on after an end-of-generation token (benchmarks).
    #[serde(default)]
    pub ignore_eos: bool,
    /// Log-probabilities of each token, with so many alternatives beside it.
    #[serde(default)]
    pub logprobs: Option<u32>,
    /// What the text of the answer must look like.
    #[serde(default)]
    pub format: Format,
    /// Whose it is: where requests wait, sources take turns.
    #[serde(default)]
    pub source: Source,
}

/// What the model is to go on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Prompt {
    /// Plain text. BOS is added as the model wants it, and the texts of special tokens are these tokens.
    Text(String),
    /// The same, where the texts of special tokens are only letters.
    Literal(String),
    /// Tokens, exactly.
    Tokens(Vec<Token>),
    /// A conversation, rendered by the model's chat template.
    Chat(Conversation),
    /// A gap in a text, which the answer fills.
    Infill(Infill),
}

/// How a token is picked. The defaults leave the model's own distribution alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0: greedy. Range 0 to 2 in the public API; any value >= 0 here.
    pub temperature: f32,
    /// The `top_k` best stay; 0: off.
    pub top_k: u32,
    /// The fewest, best first, that add up to this stay; 1: off.
    pub top_p: f32,
    /// Those with this times the best one's probability stay; 0: off.
    pub min_p: f32,
    /// A logit above 0 is divided by it, another multiplied; 1: off.
    pub repeat_penalty: f32,
    /// Subtracted once per occurrence in prompt and answer.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in prompt and answer.
    pub presence_penalty: f32,
    /// Equal seeds give equal answers; `None`: the worker draws one.
    pub seed: Option<u64>,
    /// Added to the logit of a token; [`FORBIDS`] or less (-100 in the public API) forbids it.
    pub bias: Vec<(Token, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            bias: Vec::new(),
        }
    }
}

impl Request {
    /// Was it promised that its answer keeps to something? Gives the public name of what asks for it.
    pub fn promises(&self) -> Option<&'static str> {
        if self.format != Format::Text {
            return Some("format");
        }
        let Prompt::Chat(conversation) = &self.prompt else { return None };
        let strict = conversation.offered().iter().any(|it| it.strict);
        if conversation.choice.is_forced() { Some("tool_choice") } else { strict.then_some("tools") }
    }

    /// Checks all that can be checked without the model; [`ValidRequest::new`] does it, too. For
    /// engines that take text and give text.
    pub fn check(&self) -> Result<(), Fault> {
        self.sampling.check()?;
        if self.stop.len() > MAX_STOP_STRINGS {
            return Err(invalid("stop", format!("at most {MAX_STOP_STRINGS} stop strings are allowed")));
        }
        if self.stop.iter().any(String::is_empty) {
            return Err(invalid("stop", "a stop string must not be empty"));
        }
        if self.stop.iter().any(|it| it.len() > MAX_STOP_LENGTH) {
            return Err(invalid("stop", format!("a stop string has at most {MAX_STOP_LENGTH} bytes")));
        }
        if self.logprobs.is_some_and(|it| it > MAX_LOGPROBS) {
            return Err(invalid("logprobs", format!("logprobs must be at most {MAX_LOGPROBS}")));
        }
        if self.ignore_eos && self.promises().is_some() {
            let message = "an answer that keeps to something ends where that does: leave out ignore_eos";
            return Err(invalid("ignore_eos", message));
        }
        let empty = match &self.prompt {
            Prompt::Text(text) | Prompt::Literal(text) => text.is_empty(),
            Prompt::Tokens(tokens) => tokens.is_empty(),
            // Between nothing and nothing there may be anything.
            Prompt::Infill(_) => false,
            Prompt::Chat(conversation) => {
                conversation.check()?;
                false
            }
        };
        if empty { Err(invalid(self.prompt.param(), "the prompt must not be empty")) } else { Ok(()) }
    }
}

impl Prompt {
    /// The public name of the field that it came in.
    fn param(&self) -> &'static str {
        match self {
            Prompt::Text(_) | Prompt::Literal(_) | Prompt::Tokens(_) | Prompt::Infill(_) => "prompt",
            Prompt::Chat(_) => "messages",
        }
    }
}

impl Sampling {
    fn check(&self) -> Result<(), Fault> {
        let rules = [
            ("temperature", self.temperature, self.temperature >= 0.0, "at least 0"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1"),
            ("repeat_penalty", self.repeat_penalty, self.repeat_penalty > 0.0, "above 0"),
            ("frequency_penalty", self.frequency_penalty, true, "finite"),
            ("presence_penalty", self.presence_penalty, true, "finite"),
        ];
        for (name, value, in_range, expected) in rules {
            if !value.is_finite() || !in_range {
                return Err(invalid(name, format!("{name} must be a number {expected}, not {value}")));
            }
        }
        for &(token, bias) in &self.bias {
            if bias.is_nan() || bias == f32::INFINITY {
                return Err(invalid("logit_bias", format!("the bias of token {token} is not a number")));
            }
        }
        Ok(())
    }
}

/// A request that was checked against a model: tokens in range, parameters in range, and room for
/// prompt and answer in the context. It cannot be made in any other way.
#[derive(Clone, Debug)]
pub struct ValidRequest {
    prompt: Vec<Token>,
    max_tokens: u32,
    limit: Finish,
    sampling: Sampling,
    seed: u64,
    stop: Vec<String>,
    answer: AnswerText,
    ignore_eos: bool,
    logprobs: Option<u32>,
    kept: Option<Arc<Prototype>>,
    thinks: Option<Token>,
    thinking_budget: Option<ThinkingBudget>,
    relaxed: Vec<String>,
    source: Source,
}

impl ValidRequest {
    /// Checks a request, renders its conversation and tokenises it. Its format is for the caller to compile:
    /// see [`Self::constrained`].
    ///
    /// `chat` is the model's template, if it has one. `seed` counts where the request has none, and
    /// `unix_seconds` is the time that a template may ask for.
    pub fn new(
        request: Request,
        tokenizer: &dyn Tokenizer,
        chat: Option<&ModelChat>,
        limits: &Limits,
        seed: u64,
        unix_seconds: i64,
    ) -> Result<Self, Fault> {
        request.check()?;
        let Request { prompt, max_tokens, mut sampling, stop, ignore_eos, logprobs, source, .. } = request;
        let param = prompt.param();
        let vocabulary = tokenizer.vocabulary();
        let n_tokens = if vocabulary.is_empty() { limits.n_vocab as usize } else { vocabulary.len() };
        let known = |token: Token| usize::try_from(token).is_ok_and(|it| it < n_tokens);

        let given = matches!(prompt, Prompt::Tokens(_));
        // Tokenising takes long where a text is long, and refusing is quick.
        let fits = |text: &str| {
            may_fit(vocabulary.least_tokens(text), max_tokens, limits).map_err(|fault| fault.param(param))
        };
        let (mut watch, mut begun, mut thinks) = (Watch::default(), String::new(), None);
        let mut thinking_budget = None;
        let mut relaxed = Vec::new();
        let prompt = match prompt {
            Prompt::Text(text) => {
                fits(&text)?;
                tokenizer.tokenize(&text, true, true)?
            }
            Prompt::Literal(text) => {
                fits(&text)?;
                tokenizer.tokenize(&text, true, false)?
            }
            Prompt::Tokens(tokens) => tokens,
            Prompt::Infill(infill) => {
                fits(&infill.prefix)?;
                fits(&infill.suffix)?;
                let context = longest(limits);
                // Clients send large ceilings by habit: they shall not cost what stands around the gap.
                let answer = max_tokens.map_or(u64::MAX, u64::from).min(context / 4);
                let (tokens, is_whole) = infill.tokens(tokenizer, context - answer)?;
                relaxed.extend((!is_whole).then(|| "extra".to_owned()));
                tokens
            }
            Prompt::Chat(conversation) => {
                let chat = chat.ok_or_else(|| {
                    let message = "This model has no chat template, so it cannot take messages. \
                                   Send a prompt to /v1/completions instead.";
                    Fault::new(ErrorCode::UnsupportedFeature, message).param(param)
                })?;
                let asked = chat.render(&conversation, unix_seconds)?;
                (watch, begun) = (asked.watch, asked.begun);
                relaxed = asked.unseen;
                let reasoning = watch.reasoning.as_ref().filter(|_| conversation.thinking != Thinking::Off);
                thinks = reasoning.and_then(|it| it.open.token(vocabulary));
                if let (Some(reasoning), Thinking::On { budget: Some(tokens), .. }) =
                    (reasoning, conversation.thinking)
                {
                    let close = tokenizer.tokenize(reasoning.close.text().trim_end(), false, true)?;
                    thinking_budget = Some(ThinkingBudget { tokens, close });
                }
                fits(asked.prompt.text())?;
                prompt_tokens(&asked.prompt, tokenizer)?
            }
        };
        if prompt.is_empty() {
            return Err(invalid(param, "the prompt is empty"));
        }
        if let Some(token) = prompt.iter().find(|&&it| !known(it)) {
            return Err(if given {
                invalid(param, format!("token {token} is outside the vocabulary of {n_tokens} tokens"))
            } else {
                Fault::new(
                    ErrorCode::EngineFault,
                    format!("tokenizer.tokenize: token {token} is outside the vocabulary of {n_tokens}"),
                )
            });
        }
        if let Some((token, _)) = sampling.bias.iter().find(|it| !known(it.0)) {
            return Err(invalid(
                "logit_bias",
                format!("token {token} is outside the vocabulary of {n_tokens} tokens"),
            ));
        }
        for (_, bias) in sampling.bias.iter_mut().filter(|it| it.1 <= FORBIDS) {
            *bias = f32::NEG_INFINITY;
        }
        if forbids_all(&sampling, vocabulary, n_tokens) {
            return Err(nothing_allowed("the model could generate"));
        }
        sampling.seed = Some(sampling.seed.unwrap_or(seed));
        let (max_tokens, limit) =
            room(prompt.len(), max_tokens, limits).map_err(|fault| fault.param(param))?;
        Ok(Self {
            prompt,
            max_tokens,
            limit,
            seed: sampling.seed.unwrap_or(seed),
            sampling,
            answer: AnswerText::new(&stop, vocabulary.control_tokens(), watch, &begun),
            stop,
            ignore_eos,
            logprobs,
            kept: None,
            thinks,
            thinking_budget,
            relaxed,
            source,
        })
    }

    /// The same, whose answer has to keep to something.
    #[must_use]
    pub fn constrained(mut self, kept: Arc<Prototype>) -> Self {
        self.relaxed.extend_from_slice(kept.relaxed());
        self.kept = Some(kept);
        self
    }

    /// What the answer has to keep to.
    pub fn kept(&self) -> Option<&Arc<Prototype>> {
        self.kept.as_ref()
    }

    /// The control token with which the model may begin to think, whatever its answer has to keep to.
    pub fn thinks(&self) -> Option<Token> {
        self.thinks
    }

    /// How long the model may think.
    pub fn thinking_budget(&self) -> Option<&ThinkingBudget> {
        self.thinking_budget.as_ref()
    }

    /// What was asked for and is not so: JSON pointers to what is not enforced of its schemas, and fields that
    /// nothing comes of.
    pub fn relaxed(&self) -> &[String] {
        &self.relaxed
    }

    /// The tokens of the prompt: at least one.
    pub fn prompt(&self) -> &[Token] {
        &self.prompt
    }

    /// Most tokens to generate. Prompt and answer together fit the context.
    pub fn max_tokens(&self) -> u32 {
        self.max_tokens
    }

    /// Why an answer of so many tokens ends: they were asked for, or the context is full.
    pub fn limit(&self) -> Finish {
        self.limit
    }

    /// How a token is picked; the seed is set.
    pub fn sampling(&self) -> &Sampling {
        &self.sampling
    }

    /// What the draws depend on, beside the position.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The answer ends before the first of these; none is empty.
    pub fn stop(&self) -> &[String] {
        &self.stop
    }

    /// The text of the answer, in which nothing stands yet.
    pub fn answer(&self) -> AnswerText {
        self.answer.clone()
    }

    /// Go on after an end-of-generation token?
    pub fn ignore_eos(&self) -> bool {
        self.ignore_eos
    }

    /// How many alternatives are wanted beside each token's log-probability, if that is wanted.
    pub fn logprobs(&self) -> Option<u32> {
        self.logprobs
    }

    /// Whose it is.
    pub fn source(&self) -> Source {
        self.source
    }

    /// What it asks for.
    pub fn weight(&self) -> Weight {
        Weight { prompt: self.prompt.len(), answer: self.max_tokens }
    }
}

/// The tokens of a rendered conversation. A template writes its special tokens itself, most of them
/// BOS as well: it must be there once, if the model wants it.
pub fn prompt_tokens(rendered: &Rendered, tokenizer: &dyn Tokenizer) -> Result<Vec<Token>, Fault> {
    let mut tokens = Vec::new();
    for (text, may_be_special) in rendered.parts() {
        if may_be_special {
            tokens.extend(tokenizer.tokenize(text, false, true)?);
        } else {
            literal_tokens(text, tokenizer, &mut tokens)?;
        }
    }
    let vocabulary = tokenizer.vocabulary();
    if let (true, Some(bos)) = (vocabulary.adds_bos, vocabulary.bos)
        && tokens.first() != Some(&bos)
    {
        tokens.insert(0, bos);
    }
    Ok(tokens)
}

/// The tokens of text in which no control token may be read. Some tokenizers put one together from its
/// letters all the same; what they do not see as a whole they cannot.
fn literal_tokens(text: &str, tokenizer: &dyn Tokenizer, into: &mut Vec<Token>) -> Result<(), Fault> {
    let vocabulary = tokenizer.vocabulary();
    let tokens = tokenizer.tokenize(text, false, false)?;
    let spelled = tokens.iter().filter(|&&it| vocabulary.has(it, attribute::CONTROL)).find_map(|&it| {
        let name = std::str::from_utf8(vocabulary.token_bytes(it)).ok()?;
        let inside = name.chars().next()?.len_utf8();
        // "Unknown" is a control token, too, and stands for other text.
        text.find(name).filter(|_| inside < name.len()).map(|begin| begin + inside)
    });
    if let Some(place) = spelled {
        literal_tokens(&text[..place], tokenizer, into)?;
        return literal_tokens(&text[place..], tokenizer, into);
    }
    into.extend(tokens);
    Ok(())
}

/// Tokens that prompt and answer may have together.
pub(crate) fn longest(limits: &Limits) -> u64 {
    let page = u64::from(limits.cache_page.max(1));
    u64::from(limits.context_length).min(limits.cache_tokens / page * page)
}

fn exceeded(context: u64, least: &str, prompt: u64) -> Fault {
    let message = format!(
        "This model's maximum context length is {context} tokens, but {least}{} are needed: \
         {least}{prompt} for the prompt and at least 1 for the answer.",
        prompt + 1
    );
    let details = json!({ "prompt_tokens": prompt, "context_length": context });
    Fault::new(ErrorCode::ContextLengthExceeded, message).details(details.to_string())
}

/// Refuses a prompt of at least so many tokens if these leave no room for an answer.
fn may_fit(prompt: u64, max_tokens: Option<u32>, limits: &Limits) -> Result<(), Fault> {
    let context = longest(limits);
    let answer = u64::from(max_tokens != Some(0));
    if prompt + answer <= context { Ok(()) } else { Err(exceeded(context, "at least ", prompt)) }
}

/// How many tokens may be generated, and why an answer of so many ends. What is asked for is a ceiling:
/// clients send large ones by habit.
fn room(prompt: usize, max_tokens: Option<u32>, limits: &Limits) -> Result<(u32, Finish), Fault> {
    let context = longest(limits);
    let prompt = prompt as u64;
    if prompt + u64::from(max_tokens != Some(0)) > context {
        return Err(exceeded(context, "", prompt));
    }
    let left = u32::try_from(context - prompt).unwrap_or(u32::MAX);
    Ok(match max_tokens {
        Some(max_tokens) if max_tokens <= left => (max_tokens, Finish::Length),
        _ => (left, Finish::Context),
    })
}

/// Does the bias leave nothing that may be generated?
fn forbids_all(sampling: &Sampling, vocabulary: &Vocabulary, n_tokens: usize) -> bool {
    let forbidden: HashSet<Token> =
        sampling.bias.iter().filter(|it| it.1 == f32::NEG_INFINITY).map(|it| it.0).collect();
    !forbidden.is_empty()
        && (0..n_tokens as Token).all(|it| forbidden.contains(&it) || vocabulary.has(it, attribute::UNUSED))
}

/// What is said of a bias that leaves no token. `which`: of which it leaves none.
pub fn nothing_allowed(which: &str) -> Fault {
    invalid("logit_bias", format!("logit_bias forbids every token that {which}; leave some out"))
}

fn invalid(param: &str, message: impl Into<String>) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, message).param(param)
}
