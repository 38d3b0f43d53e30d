//! `engine.batch/1`: one forward pass over a batch that the host schedules.

use core::ffi::{CStr, c_void};

use crate::{Code, EngineAdapter, EngineModel, EngineOption, EnginePick, EngineToken};

/// The id of [`EngineBatching`].
pub const ENGINE_EXT_BATCH: &CStr = c"engine.batch/1";

crate::opaque! {
    /// A KV cache and what is needed to run a model on it.
    EngineContext
}

/// What a context should be able to take.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineContextParams {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens of the longest sequence; 0: the model's own.
    pub context_length: u32,
    /// Most tokens in one step; 0: the engine's choice.
    pub max_batch_tokens: u32,
    /// Most rows in one step; 0: `max_sequences`.
    pub max_rows: u32,
    /// Tokens that `seq_remove` should be able to take back.
    pub rollback: u32,
    /// KV cache for all sequences together, in tokens; 0: `max_sequences * context_length`.
    pub cache_tokens: u64,
    /// Engine-specific settings.
    pub options: *const EngineOption,
    /// How many there are.
    pub n_options: usize,
}

/// `seq_copy` shares memory.
pub const ENGINE_CONTEXT_SHARE: u32 = 1 << 0;
/// `step` returns before the device is done.
pub const ENGINE_CONTEXT_ASYNC: u32 = 1 << 1;
/// [`ENGINE_TOKEN_PREVIOUS`](crate::ENGINE_TOKEN_PREVIOUS) is understood.
pub const ENGINE_CONTEXT_CHAIN: u32 = 1 << 2;
/// Masks that come with `collect` are applied on the device.
pub const ENGINE_CONTEXT_LATE_MASK: u32 = 1 << 3;
/// Slices of one step may differ in their adapter.
pub const ENGINE_CONTEXT_MIX_ADAPTER: u32 = 1 << 4;

/// What was made of [`EngineContextParams`].
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineContextInfo {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `ENGINE_CONTEXT_` bits.
    pub flags: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Tokens of the longest sequence.
    pub context_length: u32,
    /// Most tokens in one step.
    pub max_batch_tokens: u32,
    /// Most rows in one step.
    pub max_rows: u32,
    /// Steps under way at once.
    pub max_in_flight: u32,
    /// Tokens that `seq_remove` may take back; `u32::MAX`: any number.
    pub max_rollback: u32,
    /// Of `ENGINE_STAGE_TOP`; 0: that stage is never reached.
    pub max_candidates: u32,
    /// Tokens per page of the cache; 1: no pages.
    pub cache_page: u32,
    /// Number of `decode_sizes`.
    pub n_decode_sizes: u32,
    /// 0.
    pub reserved: u32,
    /// Capacity in tokens.
    pub cache_tokens: u64,
    /// Numbers of one-token slices for which a graph is captured.
    pub decode_sizes: *const u32,
}

/// Consecutive tokens of one sequence. Passed in arrays with a stride.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineSlice {
    /// Which sequence.
    pub sequence: u32,
    /// Of `tokens[0]`: where the sequence ends.
    pub position: u32,
    /// Number of `tokens`.
    pub n_tokens: u32,
    /// Rows wanted, for the last `n_rows` tokens.
    pub n_rows: u32,
    /// What to append.
    pub tokens: *const EngineToken,
    /// For these rows; NULL: `ENGINE_STAGE_LOGITS`.
    pub pick: *const EnginePick,
    /// NULL: the bare model.
    pub adapter: *mut EngineAdapter,
    /// Its weight.
    pub adapter_scale: f32,
    /// 0.
    pub reserved: u32,
}

/// One step.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineBatch {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// Number of `slices`.
    pub n_slices: u32,
    /// Bytes from one slice to the next.
    pub slice_stride: usize,
    /// Each sequence at most once.
    pub slices: *const EngineSlice,
}

/// 32-bit floats.
pub const ENGINE_F32: u32 = 0;
/// IEEE half precision.
pub const ENGINE_F16: u32 = 1;
/// The upper half of a 32-bit float.
pub const ENGINE_BF16: u32 = 2;

/// One row of a step. Passed in arrays with a stride.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineRow {
    /// `ENGINE_STAGE_`: how far the engine went.
    pub stage: u32,
    /// Of `logits`: `ENGINE_F32`, ...
    pub dtype: u32,
    /// Number of candidates: `n_vocab` at LOGITS.
    pub n: u32,
    /// At TOKEN; else [`ENGINE_TOKEN_NONE`](crate::ENGINE_TOKEN_NONE).
    pub token: EngineToken,
    /// Of `token`, at temperature 1.
    pub logprob: f32,
    /// Log of the sum of `exp(logit)`.
    pub log_sum: f32,
    /// Log of the sum of `exp(logit / temperature)`.
    pub log_sum_t: f32,
    /// 0.
    pub reserved: u32,
    /// The candidates, best first; NULL: candidate `i` is token `i`.
    pub ids: *const EngineToken,
    /// Their logits.
    pub logits: *const c_void,
}

/// The table of `engine.batch/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineBatching {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[load]`
    pub create: Option<
        unsafe extern "C" fn(
            model: *mut EngineModel,
            params: *const EngineContextParams,
            context: *mut *mut EngineContext,
        ) -> Code,
    >,
    /// `[load]`
    pub destroy: Option<unsafe extern "C" fn(context: *mut EngineContext)>,
    /// `[any]`
    pub info:
        Option<unsafe extern "C" fn(context: *const EngineContext, info: *mut EngineContextInfo) -> Code>,
    /// `[step]`
    pub step: Option<
        unsafe extern "C" fn(
            context: *mut EngineContext,
            batch: *const EngineBatch,
            ticket: *mut u64,
        ) -> Code,
    >,
    /// `[step]`
    pub collect: Option<
        unsafe extern "C" fn(
            context: *mut EngineContext,
            ticket: u64,
            late_masks: *const *const u32,
            rows: *mut EngineRow,
            n_rows: usize,
            row_stride: usize,
        ) -> Code,
    >,
    /// `[step]`
    pub fetch: Option<
        unsafe extern "C" fn(
            context: *mut EngineContext,
            ticket: u64,
            row: usize,
            out: *mut EngineRow,
        ) -> Code,
    >,
    /// `[any]`
    pub cancel: Option<unsafe extern "C" fn(context: *mut EngineContext)>,
    /// `[step]`
    pub seq_copy:
        Option<unsafe extern "C" fn(context: *mut EngineContext, from: u32, to: u32, end: u32) -> Code>,
    /// `[step]`
    pub seq_remove:
        Option<unsafe extern "C" fn(context: *mut EngineContext, sequence: u32, begin: u32) -> Code>,
    /// `[step]`
    pub seq_range: Option<
        unsafe extern "C" fn(
            context: *const EngineContext,
            sequence: u32,
            begin: *mut u32,
            end: *mut u32,
        ) -> Code,
    >,
    /// `[step]`
    pub cache_free: Option<unsafe extern "C" fn(context: *const EngineContext) -> u64>,
    /// `[step]`
    pub seq_save: Option<
        unsafe extern "C" fn(
            context: *mut EngineContext,
            sequence: u32,
            data: *mut c_void,
            capacity: usize,
            size: *mut usize,
        ) -> Code,
    >,
    /// `[step]`
    pub seq_restore: Option<
        unsafe extern "C" fn(
            context: *mut EngineContext,
            sequence: u32,
            data: *const c_void,
            size: usize,
        ) -> Code,
    >,
}

crate::growing!(EngineContextParams, EngineContextInfo, EngineBatch);
crate::extension!(EngineBatching, ENGINE_EXT_BATCH);
