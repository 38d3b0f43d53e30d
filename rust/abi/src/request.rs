//! `engine.stream/1` and, as a draft, `engine.serve/1`: requests whose loop the engine runs.

use core::ffi::{CStr, c_char, c_void};

use crate::{Code, EngineAdapter, EngineModel, EnginePick, EngineStr, EngineToken, TokenResult};

/// The id of [`EngineServing`].
pub const ENGINE_EXT_SERVE: &CStr = c"engine.serve/1";
/// The id of [`EngineStreaming`].
pub const ENGINE_EXT_STREAM: &CStr = c"engine.stream/1";

/// One request, for an engine that runs the loop by itself.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineRequest {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// Most tokens of the answer.
    pub max_tokens: u32,
    /// The prompt; NULL: `text` is.
    pub tokens: *const EngineToken,
    /// How many there are.
    pub n_tokens: usize,
    /// The prompt, for an engine without tokenizer.
    pub text: *const c_char,
    /// Its length in bytes.
    pub text_len: usize,
    /// What to use of the chain; NULL: greedy.
    pub pick: *const EnginePick,
    /// Of the engine's random numbers.
    pub seed: u64,
    /// Strings that let the engine end sooner.
    pub stop: *const EngineStr,
    /// How many there are.
    pub n_stop: usize,
    /// NULL: the bare model.
    pub adapter: *mut EngineAdapter,
    /// Its weight.
    pub adapter_scale: f32,
    /// Higher first.
    pub priority: u32,
    /// Before each token: which are allowed next. Not 0 cancels.
    pub fill_mask: Option<unsafe extern "C" fn(user: *mut c_void, mask: *mut u32, n_words: usize) -> i32>,
    /// stream only: each token, the ending element last. Not 0 cancels.
    pub on_token: Option<unsafe extern "C" fn(user: *mut c_void, token: *const TokenResult) -> i32>,
    /// Passed to both.
    pub user: *mut c_void,
}

/// The table of `engine.stream/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineStreaming {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[step]`, but up to `max_streams` calls per model at once.
    pub generate:
        Option<unsafe extern "C" fn(model: *mut EngineModel, request: *const EngineRequest) -> Code>,
}

/// Something that happened to a request of `engine.serve/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineEvent {
    /// The id given to `submit`.
    pub request: u64,
    /// `ERR_OK`; else the request failed, and this is its last event.
    pub status: Code,
    /// 0.
    pub reserved: u32,
    /// `text == NULL`: the last event of this request.
    pub token: TokenResult,
}

/// The table of `engine.serve/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineServing {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[any]`
    pub submit:
        Option<unsafe extern "C" fn(model: *mut EngineModel, id: u64, request: *const EngineRequest) -> Code>,
    /// `[step]`
    pub poll: Option<
        unsafe extern "C" fn(
            model: *mut EngineModel,
            events: *mut EngineEvent,
            capacity: usize,
            count: *mut usize,
            timeout_ms: u32,
        ) -> Code,
    >,
    /// `[any]`
    pub cancel: Option<unsafe extern "C" fn(model: *mut EngineModel, id: u64)>,
}

crate::growing!(EngineRequest);
crate::extension!(EngineStreaming, ENGINE_EXT_STREAM);
crate::extension!(EngineServing, ENGINE_EXT_SERVE);
