//! `engine.batch/1`: one forward pass over a batch that the host schedules.

use std::ffi::c_void;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use llm_node_abi as abi;

use crate::export::{Exported, ModelHandle};
use crate::{Failure, Models, Options, Token, guard, read};

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
    /// Tokens that [`Batching::remove`] should be able to take back, where that costs memory.
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
    /// [`Batching::copy`] shares memory.
    pub shares_prefixes: bool,
    /// [`Batching::step`] returns before the device is done.
    pub asynchronous: bool,
    /// `ENGINE_TOKEN_PREVIOUS` is understood.
    pub chains: bool,
    /// Masks that come with [`Batching::collect`] are applied on the device.
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
    /// Tokens that [`Batching::remove`] may take back; `u32::MAX`: any number.
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
                    Some(Masks {
                        rows: read::slice(raw.masks, rows, "masks")?,
                        n_words: self.n_words,
                        words: PhantomData,
                    })
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
    unsafe fn read(raw: &abi::EngineBatch, n_words: usize) -> Result<Self, Failure> {
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

    fn raw(&self) -> Result<abi::EngineRow, Failure> {
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

/// Where [`Batching::collect`] puts its rows, in the order of the slices.
#[derive(Debug)]
pub struct Rows<'a> {
    target: *mut abi::EngineRow,
    stride: usize,
    capacity: usize,
    count: usize,
    memory: PhantomData<Row<'a>>,
}

impl<'a> Rows<'a> {
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

/// `engine.batch/1`. A context is used by one call at a time, from any thread.
pub trait Batching: Models {
    /// A KV cache and what is needed to run a model on it.
    type Context: Send + 'static;

    /// Set to true where [`Batching::canceller`] does something.
    const CANCELS: bool = false;
    /// Set to true where [`Batching::fetch`] is offered.
    const FETCHES: bool = false;
    /// Set to true where [`Batching::saved_size`], [`Batching::save`] and [`Batching::restore`] are.
    const SAVES: bool = false;

    /// Makes a context and says what it can take.
    fn create(
        &self,
        model: &Arc<Self::Model>,
        params: &ContextParams,
    ) -> Result<(Self::Context, ContextInfo), Failure>;

    /// What ends the step under way with `ERR_CANCELLED`, from any thread; asked once.
    fn canceller(context: &Self::Context) -> Box<dyn Fn() + Send + Sync> {
        let _ = context;
        Box::new(|| {})
    }

    /// Submits one forward pass; `ticket` names it.
    fn step(context: &mut Self::Context, batch: &Batch<'_>, ticket: u64) -> Result<(), Failure>;

    /// Waits for that step and describes its rows. The ticket is one whose rows are still valid.
    fn collect<'a>(
        context: &'a mut Self::Context,
        ticket: u64,
        late_masks: Option<Masks<'_>>,
        rows: &mut Rows<'a>,
    ) -> Result<(), Failure>;

    /// The whole row at LOGITS, for a row that was collected at a later stage.
    fn fetch(context: &mut Self::Context, ticket: u64, row: usize) -> Result<Row<'_>, Failure> {
        let _ = (context, ticket, row);
        Err(Failure::unsupported("this engine does not fetch rows"))
    }

    /// Makes positions `0..end` of `from` the beginning of the empty sequence `to`.
    fn copy(context: &mut Self::Context, from: u32, to: u32, end: u32) -> Result<(), Failure>;

    /// Removes positions from `begin` on; 0 always succeeds.
    fn remove(context: &mut Self::Context, sequence: u32, begin: u32) -> Result<(), Failure>;

    /// Positions `begin..end` that the sequence holds.
    fn range(context: &Self::Context, sequence: u32) -> Result<(u32, u32), Failure>;

    /// Tokens that the cache can still take.
    fn cache_free(context: &Self::Context) -> u64;

    /// Bytes that [`Batching::save`] needs for a sequence as it is now; cheap, and not 0. A
    /// sequence that is not empty.
    fn saved_size(context: &mut Self::Context, sequence: u32) -> Result<usize, Failure> {
        let _ = (context, sequence);
        Err(Failure::unsupported("this engine does not save sequences"))
    }

    /// Writes all that the cache holds of a sequence, and says how many bytes that was. There is room
    /// for [`Batching::saved_size`]; what is in it before has no meaning.
    fn save(context: &mut Self::Context, sequence: u32, data: &mut [u8]) -> Result<usize, Failure> {
        let _ = (context, sequence, data);
        Err(Failure::unsupported("this engine does not save sequences"))
    }

    /// Makes the empty sequence what was saved. The bytes come from outside: they must be recognised
    /// as what [`Batching::save`] wrote on a context like this one before they are relied upon.
    fn restore(context: &mut Self::Context, sequence: u32, data: &[u8]) -> Result<(), Failure> {
        let _ = (context, sequence, data);
        Err(Failure::unsupported("this engine does not save sequences"))
    }
}

/// What stands behind an `EngineContext *`.
struct ContextHandle<E: Batching> {
    info: ContextInfo,
    n_words: usize,
    canceller: Box<dyn Fn() + Send + Sync>,
    state: Mutex<State<E>>,
}

struct State<E: Batching> {
    context: E::Context,
    ticket: u64,
}

impl<E: Exported + Batching> ContextHandle<E> {
    /// # Safety
    ///
    /// NULL, or a handle that `create` of this engine made and that was not destroyed, for `'a`.
    unsafe fn from_raw<'a>(pointer: *const abi::EngineContext) -> Result<&'a Self, Failure> {
        // SAFETY: passed on to the caller.
        unsafe { pointer.cast::<Self>().as_ref() }.ok_or_else(|| Failure::invalid("context is NULL"))
    }

    /// The host calls one function at a time, so the lock is free; it makes that a certainty.
    fn state(&self) -> MutexGuard<'_, State<E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check_ticket(&self, last: u64, ticket: u64) -> Result<(), Failure> {
        if ticket == 0 || ticket > last || last - ticket >= u64::from(self.info.max_in_flight.max(1)) {
            return Err(Failure::invalid(format!(
                "there is no step {ticket} to collect; the last is {last}"
            )));
        }
        Ok(())
    }

    fn is_empty(context: &E::Context, sequence: u32) -> Result<bool, Failure> {
        Ok(E::range(context, sequence)?.1 == 0)
    }

    fn check_sequence(&self, sequence: u32) -> Result<(), Failure> {
        if sequence >= self.info.max_sequences {
            return Err(Failure::invalid(format!(
                "there are {} sequences, not {sequence}",
                self.info.max_sequences
            )));
        }
        Ok(())
    }
}

/// The table of an engine's functions.
pub const fn table<E: Exported + Batching>() -> abi::EngineBatching {
    abi::EngineBatching {
        struct_size: size_of::<abi::EngineBatching>() as u32,
        create: Some(create::<E>),
        destroy: Some(destroy::<E>),
        info: Some(info::<E>),
        step: Some(step::<E>),
        collect: Some(collect::<E>),
        fetch: if E::FETCHES { Some(fetch::<E>) } else { None },
        cancel: if E::CANCELS { Some(cancel::<E>) } else { None },
        seq_copy: Some(seq_copy::<E>),
        seq_remove: Some(seq_remove::<E>),
        seq_range: Some(seq_range::<E>),
        cache_free: Some(cache_free::<E>),
        seq_save: if E::SAVES { Some(seq_save::<E>) } else { None },
        seq_restore: if E::SAVES { Some(seq_restore::<E>) } else { None },
    }
}

unsafe extern "C" fn create<E: Exported + Batching>(
    model: *mut abi::EngineModel,
    params: *const abi::EngineContextParams,
    context: *mut *mut abi::EngineContext,
) -> abi::Code {
    guard::code("create", || {
        // SAFETY: the host passes a handle of ours and what the header asks for.
        let (handle, params) = unsafe {
            let handle = ModelHandle::<E>::from_raw(model)?;
            (handle, ContextParams::read(&read::required(params, "params")?)?)
        };
        if context.is_null() {
            return Err(Failure::invalid("context is NULL"));
        }
        let (made, info) = E::slot().engine()?.create(&handle.model, &params)?;
        let handle = ContextHandle::<E> {
            canceller: E::canceller(&made),
            n_words: (handle.info.n_vocab as usize).div_ceil(32),
            info,
            state: Mutex::new(State { context: made, ticket: 0 }),
        };
        let pointer = Box::into_raw(Box::new(handle)).cast::<abi::EngineContext>();
        E::slot().contexts().insert(pointer.cast(), free::<E>);
        // SAFETY: checked above, and written on success only.
        unsafe { context.write(pointer) };
        Ok(())
    })
}

/// # Safety
///
/// A pointer that `create` of the same engine made, and that nobody uses any more.
unsafe fn free<E: Exported + Batching>(pointer: *mut c_void) {
    // SAFETY: passed on to the caller.
    drop(unsafe { Box::from_raw(pointer.cast::<ContextHandle<E>>()) });
}

unsafe extern "C" fn destroy<E: Exported + Batching>(context: *mut abi::EngineContext) {
    guard::value("destroy", (), || {
        E::slot().contexts().remove(context.cast());
        Ok(())
    });
}

unsafe extern "C" fn info<E: Exported + Batching>(
    context: *const abi::EngineContext,
    info: *mut abi::EngineContextInfo,
) -> abi::Code {
    guard::code("info", || {
        // SAFETY: the host passes a handle of ours and a struct of its own.
        unsafe {
            let facts = &ContextHandle::<E>::from_raw(context)?.info;
            let flags = [
                (facts.shares_prefixes, abi::ENGINE_CONTEXT_SHARE),
                (facts.asynchronous, abi::ENGINE_CONTEXT_ASYNC),
                (facts.chains, abi::ENGINE_CONTEXT_CHAIN),
                (facts.late_masks, abi::ENGINE_CONTEXT_LATE_MASK),
            ];
            let value = abi::EngineContextInfo {
                struct_size: 0,
                flags: flags.iter().filter(|(is, _)| *is).map(|(_, bit)| bit).sum(),
                max_sequences: facts.max_sequences,
                context_length: facts.context_length,
                max_batch_tokens: facts.max_batch_tokens,
                max_rows: facts.max_rows,
                max_in_flight: facts.max_in_flight.max(1),
                max_rollback: facts.max_rollback,
                max_candidates: facts.max_candidates,
                cache_page: facts.cache_page.max(1),
                n_decode_sizes: facts.decode_sizes.len() as u32,
                reserved: 0,
                cache_tokens: facts.cache_tokens,
                decode_sizes: if facts.decode_sizes.is_empty() {
                    std::ptr::null()
                } else {
                    facts.decode_sizes.as_ptr()
                },
            };
            read::fill(info, &value, "info")
        }
    })
}

unsafe extern "C" fn step<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    batch: *const abi::EngineBatch,
    ticket: *mut u64,
) -> abi::Code {
    guard::code("step", || {
        // SAFETY: the host passes a handle of ours and what the header asks for.
        let (handle, batch) = unsafe {
            let handle = ContextHandle::<E>::from_raw(context)?;
            (handle, Batch::read(&read::required(batch, "batch")?, handle.n_words)?)
        };
        if ticket.is_null() {
            return Err(Failure::invalid("ticket is NULL"));
        }
        for slice in batch.iter() {
            handle.check_sequence(slice.sequence)?;
        }
        let mut state = handle.state();
        let next = state.ticket + 1;
        E::step(&mut state.context, &batch, next)?;
        state.ticket = next;
        // SAFETY: checked above.
        unsafe { ticket.write(next) };
        Ok(())
    })
}

unsafe extern "C" fn collect<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    ticket: u64,
    late_masks: *const *const u32,
    rows: *mut abi::EngineRow,
    n_rows: usize,
    row_stride: usize,
) -> abi::Code {
    guard::code("collect", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        let late_masks = if late_masks.is_null() {
            None
        } else {
            // SAFETY: the host passes one pointer per row.
            let rows = unsafe { read::slice(late_masks, n_rows, "late_masks") }?;
            Some(Masks { rows, n_words: handle.n_words, words: PhantomData })
        };
        if rows.is_null() && n_rows > 0 {
            return Err(Failure::invalid("rows is NULL"));
        }
        let mut state = handle.state();
        handle.check_ticket(state.ticket, ticket)?;
        let mut target =
            Rows { target: rows, stride: row_stride, capacity: n_rows, count: 0, memory: PhantomData };
        E::collect(&mut state.context, ticket, late_masks, &mut target)?;
        if target.count != n_rows {
            return Err(Failure::invalid(format!("the step has {} rows, not {n_rows}", target.count)));
        }
        Ok(())
    })
}

unsafe extern "C" fn fetch<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    ticket: u64,
    row: usize,
    out: *mut abi::EngineRow,
) -> abi::Code {
    guard::code("fetch", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        if out.is_null() {
            return Err(Failure::invalid("out is NULL"));
        }
        let mut state = handle.state();
        handle.check_ticket(state.ticket, ticket)?;
        let raw = E::fetch(&mut state.context, ticket, row)?.raw()?;
        // SAFETY: checked above.
        unsafe { out.write(raw) };
        Ok(())
    })
}

unsafe extern "C" fn cancel<E: Exported + Batching>(context: *mut abi::EngineContext) {
    guard::value("cancel", (), || {
        // SAFETY: the host passes a handle of ours. The lock is not taken: a step may hold it.
        (unsafe { ContextHandle::<E>::from_raw(context) }?.canceller)();
        Ok(())
    });
}

unsafe extern "C" fn seq_copy<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    from: u32,
    to: u32,
    end: u32,
) -> abi::Code {
    guard::code("seq_copy", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(from)?;
        handle.check_sequence(to)?;
        if from == to {
            return Err(Failure::invalid("a sequence cannot be copied onto itself"));
        }
        E::copy(&mut handle.state().context, from, to, end)
    })
}

unsafe extern "C" fn seq_remove<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    begin: u32,
) -> abi::Code {
    guard::code("seq_remove", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        E::remove(&mut handle.state().context, sequence, begin)
    })
}

unsafe extern "C" fn seq_range<E: Exported + Batching>(
    context: *const abi::EngineContext,
    sequence: u32,
    begin: *mut u32,
    end: *mut u32,
) -> abi::Code {
    guard::code("seq_range", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        if begin.is_null() || end.is_null() {
            return Err(Failure::invalid("begin or end is NULL"));
        }
        let range = E::range(&handle.state().context, sequence)?;
        // SAFETY: checked above.
        unsafe {
            begin.write(range.0);
            end.write(range.1);
        }
        Ok(())
    })
}

unsafe extern "C" fn cache_free<E: Exported + Batching>(context: *const abi::EngineContext) -> u64 {
    guard::value("cache_free", 0, || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        Ok(E::cache_free(&handle.state().context))
    })
}

unsafe extern "C" fn seq_save<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    data: *mut c_void,
    capacity: usize,
    size: *mut usize,
) -> abi::Code {
    guard::code("seq_save", || {
        // SAFETY: the host passes a handle of ours.
        let handle = unsafe { ContextHandle::<E>::from_raw(context) }?;
        handle.check_sequence(sequence)?;
        if size.is_null() || (data.is_null() && capacity > 0) {
            return Err(Failure::invalid("data or size is NULL"));
        }
        let mut state = handle.state();
        if ContextHandle::<E>::is_empty(&state.context, sequence)? {
            return Err(Failure::invalid(format!("sequence {sequence} is empty")));
        }
        let needed = E::saved_size(&mut state.context, sequence)?;
        if needed == 0 {
            return Err(Failure::internal("a state of 0 bytes"));
        }
        if capacity < needed {
            // SAFETY: checked above.
            unsafe { size.write(needed) };
            return Err(Failure::new(
                abi::ERR_BUFFER_TOO_SMALL,
                format!("the state has {needed} bytes, and there is room for {capacity}"),
            ));
        }
        // SAFETY: the host passes room for more than 0 bytes, which any value may be in.
        let data = unsafe { std::slice::from_raw_parts_mut(data.cast::<u8>(), needed) };
        let written = E::save(&mut state.context, sequence, data)?;
        if written == 0 || written > needed {
            return Err(Failure::internal(format!("{written} bytes saved, and {needed} announced")));
        }
        // SAFETY: checked above.
        unsafe { size.write(written) };
        Ok(())
    })
}

unsafe extern "C" fn seq_restore<E: Exported + Batching>(
    context: *mut abi::EngineContext,
    sequence: u32,
    data: *const c_void,
    size: usize,
) -> abi::Code {
    guard::code("seq_restore", || {
        // SAFETY: the host passes a handle of ours and that many bytes.
        let (handle, data) = unsafe {
            let handle = ContextHandle::<E>::from_raw(context)?;
            (handle, read::slice(data.cast::<u8>(), size, "data")?)
        };
        handle.check_sequence(sequence)?;
        let mut state = handle.state();
        if !ContextHandle::<E>::is_empty(&state.context, sequence)? {
            return Err(Failure::invalid(format!("sequence {sequence} is not empty")));
        }
        E::restore(&mut state.context, sequence, data)
    })
}
