//! `engine.models/1`: several models, each a handle, and what they are.

use core::ffi::{CStr, c_char, c_void};

use crate::{Code, EngineOption, EngineStr};

/// The id of [`EngineModels`].
pub const ENGINE_EXT_MODELS: &CStr = c"engine.models/1";

crate::opaque! {
    /// A loaded model.
    EngineModel
}

/// What to load, and where to.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineModelParams {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// Layers to put on the devices; negative: all.
    pub gpu_layers: i32,
    /// A file, or a directory.
    pub path: *const c_char,
    /// Indices as in `engine.memory/1`; NULL: the engine's choice.
    pub devices: *const u32,
    /// How many there are.
    pub n_devices: usize,
    /// Engine-specific settings.
    pub options: *const EngineOption,
    /// How many there are.
    pub n_options: usize,
    /// How far loading is, from 0 to 1. A result other than 0 ends the load.
    pub progress: Option<unsafe extern "C" fn(user: *mut c_void, fraction: f32) -> i32>,
    /// Passed to `progress`.
    pub user: *mut c_void,
}

/// The model generates text.
pub const ENGINE_MODEL_GENERATES: u32 = 1 << 0;
/// The model makes embeddings.
pub const ENGINE_MODEL_EMBEDS: u32 = 1 << 1;
/// The model ranks pairs of texts.
pub const ENGINE_MODEL_RANKS: u32 = 1 << 2;
/// State cannot be cut back to an earlier position.
pub const ENGINE_MODEL_RECURRENT: u32 = 1 << 3;

/// What a loaded model is.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineModelInfo {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `ENGINE_MODEL_` bits.
    pub flags: u32,
    /// "llama", "qwen3", ...
    pub architecture: *const c_char,
    /// "gguf", "safetensors", ...
    pub format: *const c_char,
    /// "Q4_K_M", "bf16", ...; NULL: not known.
    pub quantization: *const c_char,
    /// Number of weights.
    pub n_parameters: u64,
    /// Their size.
    pub size_bytes: u64,
    /// The width of a row of logits.
    pub n_vocab: u32,
    /// The longest sequence it was trained for, in tokens.
    pub n_context: u32,
    /// The width of one embedding, or of one rank result.
    pub n_embedding: u32,
    /// Calls of `generate` that may run at once; 0 means 1.
    pub max_streams: u32,
}

/// The table of `engine.models/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineModels {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[load]`
    pub load:
        Option<unsafe extern "C" fn(params: *const EngineModelParams, model: *mut *mut EngineModel) -> Code>,
    /// `[load]`
    pub unload: Option<unsafe extern "C" fn(model: *mut EngineModel)>,
    /// `[any]`
    pub info: Option<unsafe extern "C" fn(model: *const EngineModel, info: *mut EngineModelInfo) -> Code>,
    /// `[any]`
    pub meta_count: Option<unsafe extern "C" fn(model: *const EngineModel) -> usize>,
    /// `[any]`
    pub meta_get: Option<
        unsafe extern "C" fn(
            model: *const EngineModel,
            index: usize,
            key: *mut EngineStr,
            value: *mut EngineStr,
        ) -> Code,
    >,
}

crate::growing!(EngineModelParams, EngineModelInfo);
crate::extension!(EngineModels, ENGINE_EXT_MODELS);
