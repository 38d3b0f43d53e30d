//! What crosses the border: parameters, the slices of a step, and its rows. Foreign memory is looked at
//! here, and only as far as the host said that it reaches.

use std::ffi::c_void;
use std::marker::PhantomData;

use llm_node_abi as abi;

use crate::{Failure, Options, Token, read};

/// What a context should be able to take.
#[derive(Clone, Debug, Default)]
pub struct ContextParams {
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens of the longest sequence; 0: the model's own.
    pub context_length: u32,
    /// Most tokens in one step; 0: the engine's choice.
    pub max_batch_tokens: u32,
    /// Most rows in one step; 0: `max_sequences`.
    pub max_rows: u32,
    /// Tokens that [`Batching::remove`](crate::Batching::remove) should be able to take back, where that costs memory.
    pub rollback: u32,
    /// KV cache for all sequences together, in tokens; 0: `max_sequences * context_length`.
    pub cache_tokens: u64,
    /// Engine-specific settings.
    pub options: Options,
}

impl ContextParams {
    /// # Safety
    ///
    /// What the header says of `EngineContextParams`.
    pub(crate) unsafe fn read(raw: &abi::EngineContextParams) -> Result<Self, Failure> {
        Ok(Self {
            max_sequences: raw.max_sequences,
            context_length: raw.context_length,
            max_batch_tokens: raw.max_batch_tokens,
            max_rows: raw.max_rows,
            rollback: raw.rollback,
            cache_tokens: raw.cache_tokens,
            // SAFETY: passed on to the caller.
            options: unsafe { Options::read(raw.options, raw.n_options) }?,
        })
    }
}

/// What was made of [`ContextParams`]. The comments of `EngineContextInfo` in the header hold.
#[derive(Clone, Debug, Default)]
pub struct ContextInfo {
    /// [`Batching::copy`](crate::Batching::copy) shares memory.
    pub shares_prefixes: bool,
    /// [`Batching::step`](crate::Batching::step) returns before the device is done.
    pub asynchronous: bool,
    /// `ENGINE_TOKEN_PREVIOUS` is understood.
    pub chains: bool,
    /// Masks that come with [`Batching::collect`](crate::Batching::collect) are applied on the device.
    pub late_masks: bool,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens of the longest sequence.
    pub context_length: u32,
    /// Most tokens in one step.
    pub max_batch_tokens: u32,
    /// Most rows in one step.
    pub max_rows: u32,
    /// Steps under way at once; 0 is taken for 1.
    pub max_in_flight: u32,
    /// Tokens that [`Batching::remove`](crate::Batching::remove) may take back; `u32::MAX`: any number.
    pub max_rollback: u32,
    /// Of the stage TOP; 0: that stage is never reached.
    pub max_candidates: u32,
    /// Tokens per page of the cache; 0 is taken for 1, which means no pages.
    pub cache_page: u32,
    /// Capacity of the cache in tokens.
    pub cache_tokens: u64,
    /// Numbers of one-token slices for which a graph is captured.
    pub decode_sizes: Vec<u32>,
}

/// Bit masks over the vocabulary, one per row: bit `i % 32` of word `i / 32` is set if token `i` is
/// allowed.
#[derive(Clone, Copy, Debug)]
pub struct Masks<'a> {
    rows: &'a [*const u32],
    n_words: usize,
    words: PhantomData<&'a [u32]>,
}

impl<'a> Masks<'a> {
    /// # Safety
    ///
    /// Each of `rows` is NULL or points to `n_words` words, for `'a`.
    pub(super) unsafe fn new(rows: &'a [*const u32], n_words: usize) -> Self {
        Self { rows, n_words, words: PhantomData }
    }

    /// The mask of a row; `None`: all tokens are allowed.
    pub fn row(&self, index: usize) -> Option<&'a [u32]> {
        let mask = *self.rows.get(index)?;
        // SAFETY: the host passes NULL or n_words words, for as long as the call lasts.
        (!mask.is_null()).then(|| unsafe { std::slice::from_raw_parts(mask, self.n_words) })
    }
}

/// How far along the chain from logits to a token the host would like the engine to go. Members that
/// `uses` does not name are to be left unread.
#[derive(Clone, Copy, Debug)]
pub struct Pick<'a> {
    /// All numbers, as the header describes them.
    pub raw: abi::EnginePick,
    /// With `ENGINE_PICK_BIAS`.
    pub bias: &'a [abi::EngineBias],
    /// With one of the penalties: what they look at, for the first row.
    pub history: &'a [Token],
    /// With `ENGINE_PICK_MASK`.
    pub masks: Option<Masks<'a>>,
    /// With `ENGINE_PICK_TEMPERATURE`, one per row.
    pub uniforms: &'a [f32],
}

/// Consecutive tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    /// Which sequence.
    pub sequence: u32,
    /// Of `tokens[0]`: it must be where the sequence ends.
    pub position: u32,
    /// What to append; never empty.
    pub tokens: &'a [Token],
    /// Rows wanted, for the last so many tokens; at most as many as there are.
    pub rows: u32,
    pick: *const abi::EnginePick,
    n_words: usize,
}

/// What changes logits, and with them who is among the likeliest.
const SHAPING: u32 = abi::ENGINE_PICK_REPEAT
    | abi::ENGINE_PICK_FREQUENCY
    | abi::ENGINE_PICK_PRESENCE
    | abi::ENGINE_PICK_BIAS
    | abi::ENGINE_PICK_MASK
    | abi::ENGINE_PICK_LATE_MASK;

impl<'a> Slice<'a> {
    /// How many of the likeliest tokens of each row suffice, where an engine that knows no more of the chain
    /// than [`Row::top`] may answer so; 0: the host needs whole rows.
    pub fn candidates(&self) -> Result<u32, Failure> {
        let pick = self.pick()?;
        let top = pick.filter(|pick| pick.raw.stage >= abi::ENGINE_STAGE_TOP && pick.raw.uses & SHAPING == 0);
        Ok(top.map_or(0, |pick| pick.raw.n_candidates))
    }

    /// What the host would like to be done with the rows; `None`: nothing, logits will do.
    pub fn pick(&self) -> Result<Option<Pick<'a>>, Failure> {
        const PENALTIES: u32 =
            abi::ENGINE_PICK_REPEAT | abi::ENGINE_PICK_FREQUENCY | abi::ENGINE_PICK_PRESENCE;
        let rows = self.rows as usize;
        // SAFETY: the host passes NULL or what the header asks for, valid during the call.
        unsafe {
            let Some(raw) = read::growing(self.pick) else { return Ok(None) };
            let used = |bits: u32| raw.uses & bits != 0;
            Ok(Some(Pick {
                bias: if used(abi::ENGINE_PICK_BIAS) {
                    read::slice(raw.bias, raw.n_bias as usize, "bias")?
                } else {
                    &[]
                },
                history: if used(PENALTIES) {
                    read::slice(raw.history, raw.n_history, "history")?
                } else {
                    &[]
                },
                masks: if used(abi::ENGINE_PICK_MASK) && !raw.masks.is_null() {
                    Some(Masks::new(read::slice(raw.masks, rows, "masks")?, self.n_words))
                } else {
                    None
                },
                uniforms: if used(abi::ENGINE_PICK_TEMPERATURE) && !raw.uniforms.is_null() {
                    read::slice(raw.uniforms, rows, "uniforms")?
                } else {
                    &[]
                },
                raw,
            }))
        }
    }
}

/// The slices of one step, as the host passed them: nothing is copied. Pointers are checked, each
/// slice has at least one token and at most as many rows; the rest is the engine's to check.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    slices: *const abi::EngineSlice,
    stride: usize,
    count: usize,
    n_words: usize,
    lifetime: PhantomData<&'a abi::EngineSlice>,
}

impl<'a> Batch<'a> {
    /// # Safety
    ///
    /// What the header says of `EngineBatch`, for `'a`.
    pub(super) unsafe fn read(raw: &abi::EngineBatch, n_words: usize) -> Result<Self, Failure> {
        let batch = Self {
            slices: raw.slices,
            stride: raw.slice_stride,
            count: raw.n_slices as usize,
            n_words,
            lifetime: PhantomData,
        };
        if batch.count == 0 {
            return Err(Failure::invalid("the batch has no slices"));
        }
        if batch.slices.is_null() {
            return Err(Failure::invalid("slices is NULL"));
        }
        // Everything up to the tokens has been there since the first revision.
        if batch.stride < std::mem::offset_of!(abi::EngineSlice, pick) {
            return Err(Failure::invalid("slice_stride is shorter than a slice"));
        }
        for index in 0..batch.count {
            // SAFETY: the index is in range.
            let slice = unsafe { batch.raw(index) };
            let what = |text: &str| Failure::invalid(format!("slice {index}: {text}"));
            if slice.n_tokens == 0 || slice.tokens.is_null() || !slice.tokens.is_aligned() {
                return Err(what("it has no tokens"));
            }
            if slice.n_rows > slice.n_tokens {
                return Err(what("more rows than tokens are wanted"));
            }
            if !slice.adapter.is_null() {
                return Err(what("this engine has no adapters"));
            }
        }
        Ok(batch)
    }

    /// # Safety
    ///
    /// `index` is below the count.
    unsafe fn raw(&self, index: usize) -> abi::EngineSlice {
        // SAFETY: the host passes that many slices of that stride.
        unsafe { read::strided(self.slices, self.stride, index) }
    }

    /// Number of slices.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Is there no slice? Never so for a batch that reaches an engine.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// One slice, in the host's order.
    pub fn get(&self, index: usize) -> Option<Slice<'a>> {
        if index >= self.count {
            return None;
        }
        // SAFETY: the index is in range; the tokens were checked in `read`.
        unsafe {
            let raw = self.raw(index);
            Some(Slice {
                sequence: raw.sequence,
                position: raw.position,
                tokens: std::slice::from_raw_parts(raw.tokens, raw.n_tokens as usize),
                rows: raw.n_rows,
                pick: raw.pick,
                n_words: self.n_words,
            })
        }
    }

    /// All slices, in the host's order.
    pub fn iter(&self) -> impl Iterator<Item = Slice<'a>> + use<'a> {
        let batch = *self;
        (0..batch.count).filter_map(move |index| batch.get(index))
    }
}

/// Numbers of a row.
#[derive(Clone, Copy, Debug)]
pub enum Logits<'a> {
    /// 32-bit floats.
    F32(&'a [f32]),
    /// IEEE half precision, as bits.
    F16(&'a [u16]),
    /// The upper half of a 32-bit float, as bits.
    Bf16(&'a [u16]),
}

/// One row of a step. It points into the engine's memory, which must stay as it is until
/// `max_in_flight` further steps were submitted, whatever else is called meanwhile.
#[derive(Clone, Copy, Debug)]
pub struct Row<'a> {
    /// `ENGINE_STAGE_`: how far the engine went.
    pub stage: u32,
    /// The token that was drawn, at TOKEN.
    pub token: Option<Token>,
    /// Its log-probability at temperature 1.
    pub logprob: f32,
    /// Log of the sum of `exp(logit)`; NaN: not computed.
    pub log_sum: f32,
    /// Log of the sum of `exp(logit / temperature)`; NaN: not computed.
    pub log_sum_t: f32,
    /// The candidates, best first; `None`: candidate `i` is token `i`.
    pub ids: Option<&'a [Token]>,
    /// Their logits.
    pub logits: Logits<'a>,
}

impl<'a> Row<'a> {
    /// The model's own output, the whole vocabulary.
    pub fn logits(logits: &'a [f32]) -> Self {
        Self {
            stage: abi::ENGINE_STAGE_LOGITS,
            token: None,
            logprob: f32::NAN,
            log_sum: f32::NAN,
            log_sum_t: f32::NAN,
            ids: None,
            logits: Logits::F32(logits),
        }
    }

    /// The likeliest tokens with their logits, best first and equal ones by lower id. `log_sum` is the log
    /// of the sum of `exp(logit)` over the whole vocabulary; NaN: not computed.
    pub fn top(ids: &'a [Token], logits: &'a [f32], log_sum: f32) -> Self {
        Self { stage: abi::ENGINE_STAGE_TOP, ids: Some(ids), log_sum, ..Self::logits(logits) }
    }

    pub(super) fn raw(&self) -> Result<abi::EngineRow, Failure> {
        let (dtype, n, logits) = match self.logits {
            Logits::F32(values) => (abi::ENGINE_F32, values.len(), values.as_ptr().cast::<c_void>()),
            Logits::F16(values) => (abi::ENGINE_F16, values.len(), values.as_ptr().cast()),
            Logits::Bf16(values) => (abi::ENGINE_BF16, values.len(), values.as_ptr().cast()),
        };
        if self.ids.is_some_and(|ids| ids.len() != n) {
            return Err(Failure::internal("a row has more ids than logits, or fewer"));
        }
        Ok(abi::EngineRow {
            stage: self.stage,
            dtype,
            n: n as u32,
            token: self.token.unwrap_or(abi::ENGINE_TOKEN_NONE),
            logprob: self.logprob,
            log_sum: self.log_sum,
            log_sum_t: self.log_sum_t,
            reserved: 0,
            ids: self.ids.map_or(std::ptr::null(), <[Token]>::as_ptr),
            logits,
        })
    }
}

/// Where [`Batching::collect`](crate::Batching::collect) puts its rows, in the order of the slices.
#[derive(Debug)]
pub struct Rows<'a> {
    target: *mut abi::EngineRow,
    stride: usize,
    capacity: usize,
    count: usize,
    memory: PhantomData<Row<'a>>,
}

impl<'a> Rows<'a> {
    /// # Safety
    ///
    /// `target` has room for `capacity` rows of that stride, for as long as this exists.
    pub(super) unsafe fn new(target: *mut abi::EngineRow, stride: usize, capacity: usize) -> Self {
        Self { target, stride, capacity, count: 0, memory: PhantomData }
    }

    /// Rows so far.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Number of rows that the host expects.
    pub fn expected(&self) -> usize {
        self.capacity
    }

    /// The next row.
    pub fn push(&mut self, row: Row<'a>) -> Result<(), Failure> {
        if self.count >= self.capacity {
            return Err(Failure::invalid(format!("the step has more than {} rows", self.capacity)));
        }
        let raw = row.raw()?;
        // SAFETY: the host passes room for `capacity` rows of that stride, and the index is below it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                (&raw const raw).cast::<u8>(),
                self.target.cast::<u8>().add(self.stride * self.count),
                self.stride.min(size_of::<abi::EngineRow>()),
            );
        }
        self.count += 1;
        Ok(())
    }
}
