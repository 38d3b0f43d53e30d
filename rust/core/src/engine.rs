//! The port: what the scheduler and the text side ask of an engine.
//!
//! `llm-node-host` implements these traits over the C ABI, tests implement them with a toy. Nothing
//! here knows how an engine is opened or where its memory lies.

use std::{borrow::Cow, sync::OnceLock};

use crate::{
    error::{ErrorCode, Fault},
    text::{control::ControlTokens, density::Density, infill::FimTokens},
};

/// The number of a token in the model's vocabulary. Negative values are never tokens.
pub type Token = i32;

/// The number of a sequence in the engine's KV cache: `0..max_sequences`.
pub type SequenceId = u32;

/// Why an engine call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {message}")]
pub struct EngineFault {
    /// What kind of failure it is.
    pub kind: EngineFaultKind,
    /// The engine's own words, or the host's where the engine gave none.
    pub message: String,
    /// The ABI function that failed.
    pub call: &'static str,
}

/// The ERR_ codes of the ABI, reduced to what a caller can act upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EngineFaultKind {
    /// The step does not fit the KV cache now; nothing was changed.
    CacheFull,
    /// The call was cancelled.
    Cancelled,
    /// The engine or the model cannot do this.
    Unsupported,
    /// The arguments were wrong; nothing was changed.
    InvalidArgument,
    /// What the client sent, and the host only passed on, cannot be used: a text that cannot be tokenised.
    InvalidInput,
    /// There is no such thing (a chat template, say).
    NotFound,
    /// Device memory ran out.
    OomVram,
    /// Host memory ran out.
    OomRam,
    /// The model file is damaged.
    ModelCorrupt,
    /// The model could not be loaded.
    LoadFailed,
    /// A deadline inside the engine passed.
    Timeout,
    /// The device is gone for this process; only a restart helps.
    DeviceLost,
    /// The engine broke the contract: what it returned cannot be used.
    Misbehaved,
    /// Anything else.
    Internal,
}

impl EngineFaultKind {
    /// After these an engine cannot be used any more: its device is gone, or it has broken the
    /// contract, and what it holds cannot be relied upon.
    pub const fn ends_engine(self) -> bool {
        matches!(self, EngineFaultKind::DeviceLost | EngineFaultKind::Misbehaved)
    }
}

impl From<EngineFault> for Fault {
    fn from(fault: EngineFault) -> Self {
        let code = match fault.kind {
            EngineFaultKind::Cancelled => ErrorCode::Cancelled,
            EngineFaultKind::Unsupported => ErrorCode::UnsupportedFeature,
            EngineFaultKind::OomVram => ErrorCode::OomVram,
            EngineFaultKind::OomRam => ErrorCode::OomRam,
            EngineFaultKind::ModelCorrupt => ErrorCode::ModelCorrupt,
            // What is looked for and not found is a model, or a part of it.
            EngineFaultKind::LoadFailed | EngineFaultKind::NotFound => ErrorCode::LoadFailed,
            EngineFaultKind::Timeout => ErrorCode::Timeout,
            EngineFaultKind::InvalidInput => ErrorCode::InvalidRequest,
            // The scheduler gives the engine only what fits by the engine's own figures.
            EngineFaultKind::CacheFull
            | EngineFaultKind::DeviceLost
            | EngineFaultKind::Misbehaved
            | EngineFaultKind::Internal => ErrorCode::EngineFault,
            // What the host makes up by itself is for the host to get right.
            EngineFaultKind::InvalidArgument => ErrorCode::Internal,
        };
        // What a client sent or asked for is in its hands, and a function of the engine says nothing to it.
        let message = match fault.kind {
            EngineFaultKind::InvalidInput | EngineFaultKind::Unsupported => fault.message,
            _ => fault.to_string(),
        };
        Fault::new(code, message)
    }
}

/// What a context can take. All counts are tokens, sequences or rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Sequences that may exist at once.
    pub max_sequences: u32,
    /// Longest sequence.
    pub context_length: u32,
    /// Most tokens in one step.
    pub max_batch_tokens: u32,
    /// Most rows of logits in one step.
    pub max_rows: u32,
    /// Capacity of the KV cache over all sequences.
    pub cache_tokens: u64,
    /// Tokens per page of the cache; 1: no pages.
    pub cache_page: u32,
    /// Tokens that `seq_remove` may take back; `u32::MAX`: any number.
    pub max_rollback: u32,
    /// `seq_copy` shares memory.
    pub shares_prefixes: bool,
    /// [`StepEngine::save`] and [`StepEngine::restore`] are offered.
    pub saves: bool,
    /// Most candidates that a row can be cut down to; 0: rows always come whole.
    pub max_candidates: u32,
    /// [`StepEngine::fetch`] is offered.
    pub fetches: bool,
    /// Width of a row of logits.
    pub n_vocab: u32,
}

/// Consecutive tokens of one sequence, for one step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice<'a> {
    /// Which sequence.
    pub sequence: SequenceId,
    /// Position of `tokens[0]`: where the sequence ends now.
    pub position: u32,
    /// What to append.
    pub tokens: &'a [Token],
    /// Rows of logits wanted, for the last `rows` tokens.
    pub rows: u32,
    /// So many of the likeliest tokens suffice in each row; 0: rows must be whole. At most
    /// [`Limits::max_candidates`].
    pub candidates: u32,
}

/// Names a submitted step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(pub u64);

/// What the model says of the next token.
#[derive(Clone, Debug, PartialEq)]
pub enum Row<'a> {
    /// The logits of all tokens, [`Limits::n_vocab`] of them. Borrowed from the engine's memory wherever
    /// that is `f32`.
    Whole(Cow<'a, [f32]>),
    /// The likeliest tokens alone. Only where candidates suffice, and even there a row may come whole.
    Best(Best<'a>),
}

/// The likeliest tokens of a row: best first, and equal ones by lower id. No other token is likelier than
/// the last of them, or as likely and of lower id.
#[derive(Clone, Debug, PartialEq)]
pub struct Best<'a> {
    /// The tokens: at least 1, and at most as many as were asked for.
    pub ids: Cow<'a, [Token]>,
    /// Their logits.
    pub logits: Cow<'a, [f32]>,
    /// The logarithm of the sum of `exp(logit)` over the whole row; NaN: not computed.
    pub log_sum: f32,
    /// Logits of the whole row.
    pub n_vocab: usize,
}

impl Row<'_> {
    /// How many logits there are.
    pub fn len(&self) -> usize {
        match self {
            Row::Whole(logits) => logits.len(),
            Row::Best(best) => best.logits.len(),
        }
    }

    /// Is there none? No engine gives such a row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many logits the whole row has.
    pub fn n_vocab(&self) -> usize {
        match self {
            Row::Whole(logits) => logits.len(),
            Row::Best(best) => best.n_vocab,
        }
    }
}

/// One forward pass over a batch that the host schedules (`engine.batch/1`).
///
/// Each sequence takes part in a step at most once, and slices come in ascending sequence order:
/// engines run that layout fastest, and some run others three times slower.
pub trait StepEngine {
    /// What the context can take; constant for its life.
    fn limits(&self) -> &Limits;

    /// Submits one forward pass. `CacheFull` and `InvalidArgument`: nothing was changed.
    fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault>;

    /// Waits for that step and gives its rows in the order of the slices. They are valid until the
    /// next step, which the borrow says.
    fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault>;

    /// The whole of a row that came as candidates, counted over the rows of that step. It is valid as
    /// long as those are.
    ///
    /// # Errors
    ///
    /// `Unsupported` where [`Limits::fetches`] is false.
    fn fetch(&mut self, ticket: Ticket, row: usize) -> Result<Row<'_>, EngineFault> {
        let _ = (ticket, row);
        Err(not_offered("batch.fetch", "the engine does not fetch rows"))
    }

    /// Makes positions `0..end` of `from` the beginning of the empty sequence `to`.
    fn copy_prefix(&mut self, from: SequenceId, to: SequenceId, end: u32) -> Result<(), EngineFault>;

    /// Removes positions from `begin` on; 0 removes the sequence.
    fn truncate(&mut self, sequence: SequenceId, begin: u32) -> Result<(), EngineFault>;

    /// Positions `begin..end` that the sequence holds.
    fn range(&self, sequence: SequenceId) -> Result<(u32, u32), EngineFault>;

    /// Tokens that the cache can still take, whole pages counted as full.
    fn cache_free(&self) -> u64;

    /// What the cache holds of a sequence, as bytes that [`restore`](Self::restore) takes. The sequence
    /// stays as it is.
    ///
    /// # Errors
    ///
    /// `Unsupported` where [`Limits::saves`] is false, `InvalidArgument` for an empty sequence, `OomRam`.
    fn save(&mut self, sequence: SequenceId) -> Result<Vec<u8>, EngineFault> {
        let _ = sequence;
        Err(not_offered("batch.seq_save", SAVES_NOTHING))
    }

    /// Makes the empty sequence what was saved, on this context or one made alike: its range is again
    /// what it was, and it goes on as the saved one would have.
    ///
    /// # Errors
    ///
    /// `Unsupported` where [`Limits::saves`] is false, `CacheFull` where it does not fit now, and
    /// `InvalidArgument` where the sequence is not empty or the bytes are not of such a context: then
    /// nothing was changed. After any other failure the sequence is empty.
    fn restore(&mut self, sequence: SequenceId, state: &[u8]) -> Result<(), EngineFault> {
        let _ = (sequence, state);
        Err(not_offered("batch.seq_restore", SAVES_NOTHING))
    }
}

const SAVES_NOTHING: &str = "the engine does not save sequences";

fn not_offered(call: &'static str, message: &str) -> EngineFault {
    EngineFault { kind: EngineFaultKind::Unsupported, message: message.to_owned(), call }
}

impl<E: StepEngine + ?Sized> StepEngine for Box<E> {
    fn limits(&self) -> &Limits {
        (**self).limits()
    }

    fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault> {
        (**self).step(slices)
    }

    fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault> {
        (**self).collect(ticket, rows)
    }

    fn fetch(&mut self, ticket: Ticket, row: usize) -> Result<Row<'_>, EngineFault> {
        (**self).fetch(ticket, row)
    }

    fn copy_prefix(&mut self, from: SequenceId, to: SequenceId, end: u32) -> Result<(), EngineFault> {
        (**self).copy_prefix(from, to, end)
    }

    fn truncate(&mut self, sequence: SequenceId, begin: u32) -> Result<(), EngineFault> {
        (**self).truncate(sequence, begin)
    }

    fn range(&self, sequence: SequenceId) -> Result<(u32, u32), EngineFault> {
        (**self).range(sequence)
    }

    fn cache_free(&self) -> u64 {
        (**self).cache_free()
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Vec<u8>, EngineFault> {
        (**self).save(sequence)
    }

    fn restore(&mut self, sequence: SequenceId, state: &[u8]) -> Result<(), EngineFault> {
        (**self).restore(sequence, state)
    }
}

/// Bits of [`Vocabulary::attributes`], as `ENGINE_ATTR_` in the header.
pub mod attribute {
    /// Special: never part of the answer's text.
    pub const CONTROL: u32 = 1 << 0;
    /// Ends generation.
    pub const END_OF_GENERATION: u32 = 1 << 1;
    /// One raw byte.
    pub const BYTE: u32 = 1 << 2;
    /// Must not be generated.
    pub const UNUSED: u32 = 1 << 3;
}

/// A model's whole vocabulary, copied once per model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vocabulary {
    /// Token `i` is `bytes[offsets[i]..offsets[i + 1]]`: what it adds in the middle of an answer.
    pub bytes: Vec<u8>,
    /// `n_tokens + 1` rising offsets.
    pub offsets: Vec<u32>,
    /// Per token, bits of [`attribute`].
    pub attributes: Vec<u32>,
    /// Beginning of sequence, where the model has one.
    pub bos: Option<Token>,
    /// End of sequence.
    pub eos: Option<Token>,
    /// End of turn.
    pub eot: Option<Token>,
    /// Stands between two texts.
    pub sep: Option<Token>,
    /// Does tokenising with specials put BOS first?
    pub adds_bos: bool,
    /// What is found out about its texts once somebody asks.
    pub found: Found,
}

/// What follows from the texts of a vocabulary, found out once.
#[derive(Clone, Debug, Default)]
pub struct Found {
    density: OnceLock<Density>,
    control: OnceLock<ControlTokens>,
    fim: OnceLock<Option<FimTokens>>,
}

/// It follows from the rest of the vocabulary.
impl PartialEq for Found {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Found {}

impl Vocabulary {
    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.attributes.len()
    }

    /// Is there no token at all?
    pub fn is_empty(&self) -> bool {
        self.attributes.is_empty()
    }

    /// The bytes of a token; empty for a number outside the vocabulary.
    pub fn token_bytes(&self, token: Token) -> &[u8] {
        let Ok(index) = usize::try_from(token) else { return &[] };
        match (self.offsets.get(index), self.offsets.get(index + 1)) {
            (Some(&begin), Some(&end)) => self.bytes.get(begin as usize..end as usize).unwrap_or(&[]),
            _ => &[],
        }
    }

    /// A number of tokens that a text has in any case; 0 where that is not known.
    pub fn least_tokens(&self, text: &str) -> u64 {
        self.found.density.get_or_init(|| Density::of(self)).least_tokens(text)
    }

    /// The texts of its control tokens.
    pub fn control_tokens(&self) -> &ControlTokens {
        self.found.control.get_or_init(|| ControlTokens::of(self))
    }

    /// Its tokens for gaps in a text, if it has such.
    pub fn fim_tokens(&self) -> Option<FimTokens> {
        *self.found.fim.get_or_init(|| FimTokens::of(self))
    }

    /// Has the token this attribute?
    pub fn has(&self, token: Token, attribute: u32) -> bool {
        usize::try_from(token)
            .ok()
            .and_then(|index| self.attributes.get(index))
            .is_some_and(|bits| bits & attribute != 0)
    }
}

/// The model's own tokenizer (`engine.tokenizer/1`). Any thread, any number at once.
pub trait Tokenizer: Send + Sync {
    /// The whole vocabulary.
    fn vocabulary(&self) -> &Vocabulary;

    /// Text to tokens. `add_special` adds BOS and EOS as the model wants them; `parse_special` reads
    /// `<|eot|>` in the text as that token instead of its letters.
    fn tokenize(&self, text: &str, add_special: bool, parse_special: bool)
    -> Result<Vec<Token>, EngineFault>;

    /// Tokens to the bytes they stand for.
    fn detokenize(&self, tokens: &[Token]) -> Result<Vec<u8>, EngineFault>;

    /// The source of the model's default chat template, if it has one.
    fn chat_template(&self) -> Option<&str>;
}
