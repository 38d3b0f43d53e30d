//! `engine.tokenizer/1`: vocabulary, tokenise, detokenise, chat template.

use core::ffi::{CStr, c_char};

use crate::{Code, EngineModel, EngineStr, EngineToken};

/// The id of [`EngineTokenizer`].
pub const ENGINE_EXT_TOKENIZER: &CStr = c"engine.tokenizer/1";

/// Special: never part of the answer's text.
pub const ENGINE_ATTR_CONTROL: u32 = 1 << 0;
/// Ends generation.
pub const ENGINE_ATTR_EOG: u32 = 1 << 1;
/// One raw byte.
pub const ENGINE_ATTR_BYTE: u32 = 1 << 2;
/// Must not be generated.
pub const ENGINE_ATTR_UNUSED: u32 = 1 << 3;

/// The whole vocabulary at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineVocab {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// How many tokens there are.
    pub n_tokens: u32,
    /// Token `i` is `bytes[offsets[i]..offsets[i + 1]]`.
    pub bytes: *const u8,
    /// `n_tokens + 1` rising offsets.
    pub offsets: *const u32,
    /// `n_tokens` times `ENGINE_ATTR_` bits.
    pub attributes: *const u32,
    /// Beginning of sequence, or [`ENGINE_TOKEN_NONE`](crate::ENGINE_TOKEN_NONE); likewise below.
    pub bos: EngineToken,
    /// End of sequence.
    pub eos: EngineToken,
    /// End of turn.
    pub eot: EngineToken,
    /// Padding.
    pub pad: EngineToken,
    /// Separator.
    pub sep: EngineToken,
    /// Mask.
    pub mask: EngineToken,
    /// 0 or 1: does [`ENGINE_TOKENIZE_ADD_SPECIAL`] add BOS?
    pub adds_bos: u32,
    /// 0 or 1: does it add EOS?
    pub adds_eos: u32,
}

/// Add BOS and EOS if the model wants them.
pub const ENGINE_TOKENIZE_ADD_SPECIAL: u32 = 1 << 0;
/// `<|eot|>` in the text is that token, not its letters.
pub const ENGINE_TOKENIZE_PARSE_SPECIAL: u32 = 1 << 1;

/// The table of `engine.tokenizer/1`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineTokenizer {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `[any]`
    pub vocab: Option<unsafe extern "C" fn(model: *const EngineModel, vocab: *mut EngineVocab) -> Code>,
    /// `[any]`
    pub tokenize: Option<
        unsafe extern "C" fn(
            model: *const EngineModel,
            text: *const c_char,
            text_len: usize,
            flags: u32,
            tokens: *mut EngineToken,
            capacity: usize,
            count: *mut usize,
        ) -> Code,
    >,
    /// `[any]`
    pub detokenize: Option<
        unsafe extern "C" fn(
            model: *const EngineModel,
            tokens: *const EngineToken,
            n_tokens: usize,
            text: *mut c_char,
            capacity: usize,
            count: *mut usize,
        ) -> Code,
    >,
    /// `[any]`
    pub chat_template: Option<
        unsafe extern "C" fn(model: *const EngineModel, name: *const c_char, source: *mut EngineStr) -> Code,
    >,
}

crate::growing!(EngineVocab);
crate::extension!(EngineTokenizer, ENGINE_EXT_TOKENIZER);
