//! `engine.batch/1`: a KV cache and the forward passes on it, behind the port [`StepEngine`].

mod canceller;
mod rows;

use std::collections::VecDeque;
use std::fmt;
use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use llm_node_abi::{
    ENGINE_CONTEXT_ASYNC, ENGINE_CONTEXT_CHAIN, ENGINE_CONTEXT_LATE_MASK, ENGINE_CONTEXT_MIX_ADAPTER,
    ENGINE_CONTEXT_SHARE, ERR_BUFFER_TOO_SMALL, ERR_INVALID_ARGUMENT, ERR_OOM_RAM, EngineBatch,
    EngineBatching, EngineContext, EngineContextInfo, EngineContextParams, EnginePick, EngineRow,
    EngineSlice, Growing,
};
use llm_node_core::engine::{
    EngineFault, EngineFaultKind, Limits, Row, SequenceId, Slice, StepEngine, Ticket,
};

use self::canceller::Handle;
use self::rows::{Described, UNWRITTEN, top};
use crate::callbacks::checked;
use crate::calls;
use crate::error::EngineError;
use crate::model::Model;
use crate::parameters::Options;
use crate::readable;

pub use canceller::Canceller;

/// No engine captures more graphs.
const MOST_DECODE_SIZES: usize = 4096;
/// No engine keeps more sequences.
const MOST_SEQUENCES: u32 = 1 << 20;
/// What is added to the bytes of a state: how many tokens it holds.
const STATE_TRAILER: usize = size_of::<u32>();

/// The functions of a context that is no more.
const NO_CALLS: EngineBatching = EngineBatching {
    struct_size: EngineBatching::SIZE,
    create: None,
    destroy: None,
    info: None,
    step: None,
    collect: None,
    fetch: None,
    cancel: None,
    seq_copy: None,
    seq_remove: None,
    seq_range: None,
    cache_free: None,
    seq_save: None,
    seq_restore: None,
};

/// What a context should be able to take.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContextParams {
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens of the longest sequence; 0: the model's own.
    pub context_length: u32,
    /// Most tokens in one step; 0: the engine's choice.
    pub max_batch_tokens: u32,
    /// Most rows in one step; 0: `max_sequences`.
    pub max_rows: u32,
    /// Tokens that `truncate` should be able to take back, where that costs memory.
    pub rollback: u32,
    /// KV cache for all sequences together, in tokens; 0: `max_sequences * context_length`.
    pub cache_tokens: u64,
    /// Settings for the engine: key and value.
    pub options: Vec<(String, String)>,
}

impl ContextParams {
    pub(crate) fn with_abi<R>(
        &self,
        call: &'static str,
        function: impl FnOnce(&EngineContextParams) -> Result<R, EngineError>,
    ) -> Result<R, EngineError> {
        let options = Options::new(&self.options)
            .ok_or_else(|| EngineError::invalid(call, "an option contains a zero byte"))?;
        function(&EngineContextParams {
            struct_size: EngineContextParams::SIZE,
            max_sequences: self.max_sequences,
            context_length: self.context_length,
            max_batch_tokens: self.max_batch_tokens,
            max_rows: self.max_rows,
            rollback: self.rollback,
            cache_tokens: self.cache_tokens,
            options: options.as_ptr(),
            n_options: options.len(),
        })
    }
}

/// What was made of the parameters. What the scheduler needs of it is [`Limits`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextInfo {
    /// `step` returns before the device is done.
    pub is_async: bool,
    /// A step may go on from a token that the host has not yet seen.
    pub chains: bool,
    /// Masks that come with `collect` are applied on the device.
    pub takes_late_masks: bool,
    /// Slices of one step may differ in their adapter.
    pub mixes_adapters: bool,
    /// Steps under way at once.
    pub max_in_flight: u32,
    /// Numbers of one-token slices for which a graph is captured.
    pub decode_sizes: Vec<u32>,
}

/// A KV cache and what is needed to run a model on it. Dropping it destroys it.
///
/// It can be moved to another thread, but not shared: all its functions are `[step]`.
pub struct Context {
    model: Arc<Model>,
    table: EngineBatching,
    handle: NonNull<EngineContext>,
    shared: Arc<Handle>,
    info: ContextInfo,
    limits: Limits,
    /// Tickets whose rows are still valid, oldest first, and for each of their rows how many candidates
    /// suffice; 0: it must be whole.
    in_flight: VecDeque<(u64, Vec<u32>)>,
    /// What must be in the engine's cache.
    ledger: Ledger,
    /// Scratch of `step` and `collect`; holds nothing between calls.
    slices: Vec<EngineSlice>,
    picks: Vec<EnginePick>,
    rows: Vec<EngineRow>,
}

// SAFETY: [step]: "the OS thread may change from call to call". The pointers in `slices`, `picks`
// and `rows` are not looked at between calls.
unsafe impl Send for Context {}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("model", &self.model)
            .field("info", &self.info)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// Makes a context for a model, which it keeps loaded.
    ///
    /// The engine may have given more than was asked for, but not less.
    pub fn create(model: &Arc<Model>, params: &ContextParams) -> Result<Self, EngineError> {
        const CALL: &str = "batch.create";
        let asked = params;
        let engine = model.engine();
        let table = engine.tables().batch.ok_or_else(|| EngineError::unsupported(CALL))?;
        let create = table.create.ok_or_else(|| EngineError::unsupported(CALL))?;
        let mut handle = std::ptr::null_mut();
        params.with_abi(CALL, |params| {
            let _one_at_a_time = engine.load_lock();
            engine.announce(CALL);
            // SAFETY: [load]: the lock is held. The parameters outlive the call.
            checked(CALL, || unsafe { create(model.as_ptr(), &raw const *params, &raw mut handle) })
        })?;
        let handle = NonNull::new(handle)
            .ok_or_else(|| EngineError::misbehaved(CALL, "it succeeded, but *context is NULL"))?;
        // Owns the handle from here on, so that an error below destroys it.
        let mut context = Self {
            model: Arc::clone(model),
            table,
            handle,
            shared: Arc::new(Handle(Mutex::new(Some(handle)))),
            info: ContextInfo {
                is_async: false,
                chains: false,
                takes_late_masks: false,
                mixes_adapters: false,
                max_in_flight: 1,
                decode_sizes: Vec::new(),
            },
            limits: Limits {
                max_sequences: 0,
                context_length: 0,
                max_batch_tokens: 0,
                max_rows: 0,
                cache_tokens: 0,
                cache_page: 1,
                max_rollback: 0,
                shares_prefixes: false,
                saves: false,
                max_candidates: 0,
                fetches: false,
                n_vocab: model.info().n_vocab,
            },
            in_flight: VecDeque::new(),
            ledger: Ledger::default(),
            slices: Vec::new(),
            picks: Vec::new(),
            rows: Vec::new(),
        };
        context.read_info()?;
        context.check_promises(asked)?;
        context.ledger.ends = vec![Some(0); context.limits.max_sequences as usize];
        Ok(context)
    }

    /// Destroys what the engine has, and makes it anew with other parameters: there need not be room for both at
    /// once. Where that fails, this is all that can still be done with it.
    pub fn renew(&mut self, params: &ContextParams) -> Result<(), EngineError> {
        self.destroy();
        *self = Self::create(&self.model, params)?;
        Ok(())
    }

    fn destroy(&mut self) {
        // Whoever cancels from now on finds nothing to cancel.
        *self.shared.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
        // Nothing may be asked of what is gone.
        let Some(destroy) = std::mem::replace(&mut self.table, NO_CALLS).destroy else { return };
        self.in_flight.clear();
        let engine = self.model.engine();
        let _one_at_a_time = engine.load_lock();
        engine.announce("batch.destroy");
        // SAFETY: [load]: the lock is held. `&mut self`: no call on the context is running. It is called once, for
        // the table has no such function any more.
        unsafe { destroy(self.handle.as_ptr()) };
    }

    fn check_promises(&self, asked: &ContextParams) -> Result<(), EngineError> {
        let (limits, cache) = (&self.limits, asked.cache_tokens);
        let (length, given) = (asked.context_length, limits.context_length);
        let all = u64::from(length) * u64::from(asked.max_sequences.max(1));
        if given < length && cache > 0 && cache < all {
            // Not the engine's fault: what each sequence has of such a cache may be less.
            let message = format!(
                "a KV cache of {cache} tokens leaves room for sequences of {given}, and {length} were asked for: \
                 name a larger cache_tokens, or a smaller context_length or max_sequences"
            );
            let (call, code) = ("batch.create", ERR_INVALID_ARGUMENT);
            return Err(EngineError::Failed { call, code, message: Some(message) });
        }
        // Rows beyond one for each sequence are no promise: with fewer there are fewer drafts.
        for (what, asked, given) in [
            ("max_sequences", asked.max_sequences.into(), limits.max_sequences.into()),
            ("context_length", length.into(), given.into()),
            ("cache_tokens", cache, limits.cache_tokens),
        ] {
            if given < asked {
                let what = format!("{what} is {given}, and {asked} were asked for");
                return Err(EngineError::misbehaved("batch.info", what));
            }
        }
        if limits.max_sequences > MOST_SEQUENCES {
            let what = format!("max_sequences is {}", limits.max_sequences);
            return Err(EngineError::misbehaved("batch.info", what));
        }
        Ok(())
    }

    /// Is the sequence in the engine's cache what it must be after `call`?
    fn check_end(&mut self, call: &'static str, sequence: SequenceId, due: u32) -> Result<(), EngineFault> {
        let (_, end) = self.range(sequence)?;
        if end != due {
            let what = format!("sequence {sequence} ends at position {end} after it, not at {due}");
            return Err(EngineError::misbehaved(call, what).into());
        }
        self.ledger.set(sequence, Some(end));
        if self.ledger.is_empty() && self.cache_free() != self.limits.cache_tokens {
            let what = format!(
                "room for {} tokens in an empty cache of {}",
                self.cache_free(),
                self.limits.cache_tokens
            );
            return Err(EngineError::misbehaved("batch.cache_free", what).into());
        }
        Ok(())
    }

    /// The model that it runs.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What was made of the parameters.
    pub fn info(&self) -> &ContextInfo {
        &self.info
    }

    /// The engine's handle, for calls that no method makes. What they change in the cache is not known here.
    pub const fn as_ptr(&self) -> *mut EngineContext {
        self.handle.as_ptr()
    }

    /// For other threads, to cancel a step with.
    pub fn canceller(&self) -> Canceller {
        Canceller { handle: Arc::clone(&self.shared), table: self.table }
    }

    fn rows_of(&self, call: &'static str, ticket: Ticket) -> Result<&[u32], EngineError> {
        self.in_flight
            .iter()
            .find(|(known, _)| *known == ticket.0)
            .map(|(_, rows)| &rows[..])
            .ok_or_else(|| EngineError::invalid(call, format!("the rows of ticket {} are gone", ticket.0)))
    }

    fn read_info(&mut self) -> Result<(), EngineError> {
        const CALL: &str = "batch.info";
        let function = self.table.info.ok_or_else(|| EngineError::unsupported(CALL))?;
        let mut info = EngineContextInfo {
            struct_size: EngineContextInfo::SIZE,
            flags: 0,
            max_sequences: 0,
            context_length: 0,
            max_batch_tokens: 0,
            max_rows: 0,
            max_in_flight: 0,
            max_rollback: 0,
            max_candidates: 0,
            cache_page: 0,
            n_decode_sizes: 0,
            reserved: 0,
            cache_tokens: 0,
            decode_sizes: std::ptr::null(),
        };
        // SAFETY: [any]; `info` is a local of the size that it says.
        checked(CALL, || unsafe { function(self.handle.as_ptr(), &raw mut info) })?;
        for (what, number) in [
            ("max_sequences", u64::from(info.max_sequences)),
            ("context_length", u64::from(info.context_length)),
            ("max_batch_tokens", u64::from(info.max_batch_tokens)),
            ("max_rows", u64::from(info.max_rows)),
            ("max_in_flight", u64::from(info.max_in_flight)),
            ("cache_page", u64::from(info.cache_page)),
            ("cache_tokens", info.cache_tokens),
        ] {
            if number == 0 {
                return Err(EngineError::misbehaved(CALL, format!("{what} is 0")));
            }
        }
        let n_decode_sizes = info.n_decode_sizes as usize;
        if n_decode_sizes > MOST_DECODE_SIZES {
            return Err(EngineError::misbehaved(CALL, format!("{n_decode_sizes} decode sizes")));
        }
        let decode_sizes = if n_decode_sizes == 0 {
            Vec::new()
        } else {
            // SAFETY: valid until the context is destroyed, the header says.
            unsafe { readable::values(info.decode_sizes, n_decode_sizes) }
                .map_err(|problem| EngineError::misbehaved(CALL, format!("decode_sizes {problem}")))?
        };
        self.info = ContextInfo {
            is_async: info.flags & ENGINE_CONTEXT_ASYNC != 0,
            chains: info.flags & ENGINE_CONTEXT_CHAIN != 0,
            takes_late_masks: info.flags & ENGINE_CONTEXT_LATE_MASK != 0,
            mixes_adapters: info.flags & ENGINE_CONTEXT_MIX_ADAPTER != 0,
            max_in_flight: info.max_in_flight,
            decode_sizes,
        };
        self.limits = Limits {
            max_sequences: info.max_sequences,
            context_length: info.context_length,
            max_batch_tokens: info.max_batch_tokens,
            max_rows: info.max_rows,
            cache_tokens: info.cache_tokens,
            cache_page: info.cache_page,
            max_rollback: info.max_rollback,
            shares_prefixes: info.flags & ENGINE_CONTEXT_SHARE != 0,
            saves: self.table.seq_save.is_some() && self.table.seq_restore.is_some(),
            max_candidates: info.max_candidates.min(self.model.info().n_vocab),
            fetches: self.table.fetch.is_some(),
            n_vocab: self.model.info().n_vocab,
        };
        Ok(())
    }
}

impl StepEngine for Context {
    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn step(&mut self, slices: &[Slice<'_>]) -> Result<Ticket, EngineFault> {
        const CALL: &str = "batch.step";
        let step = self.table.step.ok_or_else(|| EngineError::unsupported(CALL))?;
        let candidates = |slice: &Slice<'_>| slice.candidates.min(self.limits.max_candidates);
        self.picks.clear();
        self.picks.extend(slices.iter().map(|slice| top(candidates(slice))));
        self.slices.clear();
        self.slices.extend(slices.iter().zip(&self.picks).map(|(slice, pick)| EngineSlice {
            sequence: slice.sequence,
            position: slice.position,
            n_tokens: slice.tokens.len() as u32,
            n_rows: slice.rows,
            tokens: slice.tokens.as_ptr(),
            pick: if pick.n_candidates > 0 { &raw const *pick } else { std::ptr::null() },
            adapter: std::ptr::null_mut(),
            adapter_scale: 0.0,
            reserved: 0,
        }));
        let batch = EngineBatch {
            struct_size: EngineBatch::SIZE,
            n_slices: slices.len() as u32,
            slice_stride: size_of::<EngineSlice>(),
            slices: self.slices.as_ptr(),
        };
        let mut ticket = 0;
        // SAFETY: [step]: `&mut self`. The batch, the picks and the tokens outlive the call, in which the
        // engine copies what it needs.
        let result =
            checked(CALL, || unsafe { step(self.handle.as_ptr(), &raw const batch, &raw mut ticket) });
        self.slices.clear();
        if let Err(error) = result {
            if !matches!(error.kind(), EngineFaultKind::CacheFull | EngineFaultKind::InvalidArgument) {
                // Part of it may have been done.
                for slice in slices {
                    self.ledger.set(slice.sequence, None);
                }
            }
            return Err(error.into());
        }
        for slice in slices {
            self.ledger.set(slice.sequence, Some(slice.position + slice.tokens.len() as u32));
        }
        match self.in_flight.back() {
            Some((last, _)) if ticket != last.wrapping_add(1) => {
                return Err(EngineError::misbehaved(CALL, format!("ticket {ticket} after {last}")).into());
            }
            None if ticket == 0 => {
                return Err(EngineError::misbehaved(CALL, "ticket 0: they count from 1").into());
            }
            _ => {}
        }
        let mut rows = Vec::new();
        if self.in_flight.len() >= self.info.max_in_flight as usize
            && let Some((_, used)) = self.in_flight.pop_front()
        {
            rows = used;
            rows.clear();
        }
        for (slice, pick) in slices.iter().zip(&self.picks) {
            rows.extend(std::iter::repeat_n(pick.n_candidates, slice.rows as usize));
        }
        self.in_flight.push_back((ticket, rows));
        Ok(Ticket(ticket))
    }

    fn collect(&mut self, ticket: Ticket, rows: usize) -> Result<Vec<Row<'_>>, EngineFault> {
        const CALL: &str = "batch.collect";
        let collect = self.table.collect.ok_or_else(|| EngineError::unsupported(CALL))?;
        let expected = self.rows_of(CALL, ticket)?.len();
        if rows != expected {
            return Err(
                EngineError::invalid(CALL, format!("{rows} rows of a step that has {expected}")).into()
            );
        }
        self.rows.clear();
        self.rows.resize(rows, UNWRITTEN);
        let collected = checked(CALL, || {
            // SAFETY: [step]: `&mut self`. There is room for `rows` rows, one after the other.
            unsafe {
                collect(
                    self.handle.as_ptr(),
                    ticket.0,
                    std::ptr::null(),
                    self.rows.as_mut_ptr(),
                    rows,
                    size_of::<EngineRow>(),
                )
            }
        });
        if let Err(error) = collected {
            // The step failed late, and part of it may have been done.
            self.ledger.forget();
            return Err(error.into());
        }
        let n_vocab = self.limits.n_vocab;
        self.rows
            .iter()
            .zip(self.rows_of(CALL, ticket)?)
            .enumerate()
            .map(|(index, (row, &candidates))| {
                let described = Described { call: CALL, index, row, n_vocab };
                // SAFETY: the engine has just described the row; it stays valid until further steps,
                // for which `self` must be borrowed again.
                unsafe { described.read(candidates) }.map_err(EngineFault::from)
            })
            .collect()
    }

    fn fetch(&mut self, ticket: Ticket, row: usize) -> Result<Row<'_>, EngineFault> {
        const CALL: &str = "batch.fetch";
        let fetch = self.table.fetch.ok_or_else(|| EngineError::unsupported(CALL))?;
        let rows = self.rows_of(CALL, ticket)?.len();
        if row >= rows {
            return Err(EngineError::invalid(CALL, format!("row {row} of {rows}")).into());
        }
        let mut out = UNWRITTEN;
        // SAFETY: [step]: `&mut self`. `out` is a local.
        checked(CALL, || unsafe { fetch(self.handle.as_ptr(), ticket.0, row, &raw mut out) })?;
        let described = Described { call: CALL, index: row, row: &out, n_vocab: self.limits.n_vocab };
        // SAFETY: the engine has just described the row; it stays valid until the next step, for which
        // `self` must be borrowed again.
        Ok(unsafe { described.read(0) }?)
    }

    fn copy_prefix(&mut self, from: SequenceId, to: SequenceId, end: u32) -> Result<(), EngineFault> {
        const CALL: &str = "batch.seq_copy";
        let function = self.table.seq_copy.ok_or_else(|| EngineError::unsupported(CALL))?;
        // SAFETY: [step]: `&mut self`.
        checked(CALL, || unsafe { function(self.handle.as_ptr(), from, to, end) })?;
        self.check_end(CALL, to, end)?;
        if let Some(held) = self.ledger.end(from) {
            self.check_end(CALL, from, held)?;
        }
        Ok(())
    }

    fn truncate(&mut self, sequence: SequenceId, begin: u32) -> Result<(), EngineFault> {
        const CALL: &str = "batch.seq_remove";
        let function = self.table.seq_remove.ok_or_else(|| EngineError::unsupported(CALL))?;
        // SAFETY: [step]: `&mut self`.
        checked(CALL, || unsafe { function(self.handle.as_ptr(), sequence, begin) })?;
        let due = match self.ledger.end(sequence) {
            Some(held) => held.min(begin),
            None => self.range(sequence)?.1.min(begin),
        };
        self.check_end(CALL, sequence, due)
    }

    fn range(&self, sequence: SequenceId) -> Result<(u32, u32), EngineFault> {
        const CALL: &str = "batch.seq_range";
        let function = self.table.seq_range.ok_or_else(|| EngineError::unsupported(CALL))?;
        let (mut begin, mut end) = (u32::MAX, 0);
        checked(CALL, || {
            // SAFETY: [step]: a `Context` is not Sync, so no other thread is in a call of it.
            unsafe { function(self.handle.as_ptr(), sequence, &raw mut begin, &raw mut end) }
        })?;
        if begin > end || end > self.limits.context_length {
            return Err(EngineError::misbehaved(
                CALL,
                format!("positions {begin}..{end} of at most {}", self.limits.context_length),
            )
            .into());
        }
        Ok((begin, end))
    }

    fn cache_free(&self) -> u64 {
        let Some(function) = self.table.cache_free else { return 0 };
        // SAFETY: as for `range`.
        let free = calls::under_way("batch.cache_free", || unsafe { function(self.handle.as_ptr()) });
        free.min(self.limits.cache_tokens)
    }

    fn save(&mut self, sequence: SequenceId) -> Result<Vec<u8>, EngineFault> {
        const CALL: &str = "batch.seq_save";
        let function = self.table.seq_save.ok_or_else(|| EngineError::unsupported(CALL))?;
        let tokens = self.range(sequence)?.1;
        let mut needed = 0;
        let asked = checked(CALL, || {
            // SAFETY: [step]: `&mut self`. There is no room, so that nothing is written but the size.
            unsafe { function(self.handle.as_ptr(), sequence, std::ptr::null_mut(), 0, &raw mut needed) }
        });
        match asked {
            Err(EngineError::Failed { code, .. }) if code == ERR_BUFFER_TOO_SMALL => {}
            Ok(()) => return Err(EngineError::misbehaved(CALL, "a state that needs no room").into()),
            Err(error) => return Err(error.into()),
        }
        if needed == 0 || needed as u64 > most_state(tokens) {
            let what = format!("it asks for {needed} bytes for {tokens} tokens");
            return Err(EngineError::misbehaved(CALL, what).into());
        }
        let mut state = zeroed(needed + STATE_TRAILER).ok_or_else(|| EngineError::Failed {
            code: ERR_OOM_RAM,
            message: Some(format!("no memory for {needed} bytes")),
            call: CALL,
        })?;
        let mut size = 0;
        let saved = checked(CALL, || {
            // SAFETY: as above; there is room for `needed` bytes.
            unsafe {
                function(self.handle.as_ptr(), sequence, state.as_mut_ptr().cast(), needed, &raw mut size)
            }
        });
        match saved {
            Err(EngineError::Failed { code, .. }) if code == ERR_BUFFER_TOO_SMALL => {
                let what = format!("{needed} bytes do not do, which it had asked for");
                return Err(EngineError::misbehaved(CALL, what).into());
            }
            other => other?,
        }
        if size == 0 || size > needed {
            let what = format!("it wrote {size} bytes into room for {needed}");
            return Err(EngineError::misbehaved(CALL, what).into());
        }
        state.truncate(size);
        state.extend(tokens.to_le_bytes());
        Ok(state)
    }

    fn restore(&mut self, sequence: SequenceId, state: &[u8]) -> Result<(), EngineFault> {
        const CALL: &str = "batch.seq_restore";
        let function = self.table.seq_restore.ok_or_else(|| EngineError::unsupported(CALL))?;
        let (state, tokens) = state
            .split_last_chunk::<STATE_TRAILER>()
            .ok_or_else(|| EngineError::invalid(CALL, "bytes that are no state"))?;
        checked(CALL, || {
            // SAFETY: [step]: `&mut self`. The bytes outlive the call.
            unsafe { function(self.handle.as_ptr(), sequence, state.as_ptr().cast(), state.len()) }
        })?;
        self.check_end(CALL, sequence, u32::from_le_bytes(*tokens))
    }
}

/// Where the host believes each sequence to end.
#[derive(Debug, Default)]
struct Ledger {
    /// `None`: a call failed that had to do with the sequence.
    ends: Vec<Option<u32>>,
    /// The tokens of all sequences whose ends are known.
    tokens: u64,
    unknown: usize,
}

impl Ledger {
    fn end(&self, sequence: SequenceId) -> Option<u32> {
        self.ends.get(sequence as usize).copied().flatten()
    }

    fn set(&mut self, sequence: SequenceId, end: Option<u32>) {
        let Some(place) = self.ends.get_mut(sequence as usize) else { return };
        let old = std::mem::replace(place, end);
        self.tokens = self.tokens + u64::from(end.unwrap_or(0)) - u64::from(old.unwrap_or(0));
        self.unknown = self.unknown + usize::from(end.is_none()) - usize::from(old.is_none());
    }

    fn forget(&mut self) {
        self.ends.fill(None);
        self.tokens = 0;
        self.unknown = self.ends.len();
    }

    /// Is there for certain no token of any sequence?
    fn is_empty(&self) -> bool {
        self.tokens == 0 && self.unknown == 0
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.destroy();
    }
}

/// The largest state of a sequence that is believed. The widest models without grouped heads keep some
/// 5 MiB per token in 32 bits, and recurrent ones some 100 MiB whatever the length.
fn most_state(tokens: u32) -> u64 {
    (4 << 30) + u64::from(tokens) * (8 << 20)
}

/// Bytes that the system hands out as zeros, without writing them twice; `None`: there is no memory.
fn zeroed(size: usize) -> Option<Vec<u8>> {
    let layout = std::alloc::Layout::array::<u8>(size).ok().filter(|layout| layout.size() > 0)?;
    // SAFETY: the layout is not empty.
    let bytes = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })?;
    // SAFETY: of the global allocator, with the layout of a boxed slice of that length, and initialised.
    let bytes = unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(bytes.as_ptr(), size)) };
    Some(bytes.into_vec())
}
