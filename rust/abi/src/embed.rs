//! `engine.embed/1`: embeddings and reranking.

use core::ffi::CStr;

use crate::{Code, EngineModel, EngineToken};

/// The id of [`EngineEmbedding`].
pub const ENGINE_EXT_EMBED: &CStr = c"engine.embed/1";

/// As the model says.
pub const ENGINE_POOL_MODEL: u32 = 0;
/// The mean over all tokens.
pub const ENGINE_POOL_MEAN: u32 = 1;
/// The first token's.
pub const ENGINE_POOL_CLS: u32 = 2;
/// The last token's.
pub const ENGINE_POOL_LAST: u32 = 3;
/// A rank result.
pub const ENGINE_POOL_RANK: u32 = 4;

/// What to embed.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineEmbedParams {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `ENGINE_POOL_`.
    pub pooling: u32,
    /// `n_inputs` pointers, to `lengths[i]` tokens each.
    pub inputs: *const *const EngineToken,
    /// Tokens per input.
    pub lengths: *const usize,
    /// How many there are.
    pub n_inputs: usize,
}

/// The table of `engine.embed/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineEmbedding {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[step]`. `capacity` counts floats.
    pub embed: Option<
        unsafe extern "C" fn(
            model: *mut EngineModel,
            params: *const EngineEmbedParams,
            vectors: *mut f32,
            capacity: usize,
        ) -> Code,
    >,
}

crate::growing!(EngineEmbedParams);
crate::extension!(EngineEmbedding, ENGINE_EXT_EMBED);
