//! Picking a token: the fixed chain from a row of logits to a token, and how far to go along it.

use crate::EngineToken;

/// The model's own output, the whole vocabulary.
pub const ENGINE_STAGE_LOGITS: u32 = 0;
/// The largest shaped logits, best first.
pub const ENGINE_STAGE_TOP: u32 = 1;
/// The token.
pub const ENGINE_STAGE_TOKEN: u32 = 2;

/// `repeat_penalty` over history.
pub const ENGINE_PICK_REPEAT: u32 = 1 << 0;
/// `frequency_penalty` over history.
pub const ENGINE_PICK_FREQUENCY: u32 = 1 << 1;
/// `presence_penalty` over history.
pub const ENGINE_PICK_PRESENCE: u32 = 1 << 2;
/// `bias`.
pub const ENGINE_PICK_BIAS: u32 = 1 << 3;
/// `masks`.
pub const ENGINE_PICK_MASK: u32 = 1 << 4;
/// The masks come with `collect`.
pub const ENGINE_PICK_LATE_MASK: u32 = 1 << 5;
/// `temperature`; without it the choice is greedy.
pub const ENGINE_PICK_TEMPERATURE: u32 = 1 << 6;
/// The `top_k` best stay.
pub const ENGINE_PICK_TOP_K: u32 = 1 << 7;
/// The fewest, best first, that add up to `top_p` stay.
pub const ENGINE_PICK_TOP_P: u32 = 1 << 8;
/// Those with `min_p` times the best one's probability stay.
pub const ENGINE_PICK_MIN_P: u32 = 1 << 9;

/// What is added to one logit. Frozen.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EngineBias {
    /// Whose.
    pub token: EngineToken,
    /// Added to the logit; minus infinity forbids.
    pub bias: f32,
}

/// How far along the chain the host would like the engine to go, and with what.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct EnginePick {
    /// Size of this struct as its provider knows it.
    pub struct_size: u32,
    /// `ENGINE_STAGE_`: the furthest that is wanted.
    pub stage: u32,
    /// `ENGINE_PICK_` bits: the members that matter.
    pub uses: u32,
    /// TOP: how many. TOKEN: how many beside the token.
    pub n_candidates: u32,
    /// A positive logit is divided by it, any other multiplied.
    pub repeat_penalty: f32,
    /// Subtracted once per occurrence.
    pub frequency_penalty: f32,
    /// Subtracted once if it occurs.
    pub presence_penalty: f32,
    /// Above 0.
    pub temperature: f32,
    /// Probability mass that stays.
    pub top_p: f32,
    /// Share of the best one's probability.
    pub min_p: f32,
    /// How many stay.
    pub top_k: u32,
    /// Number of `bias`.
    pub n_bias: u32,
    /// Additions to single logits.
    pub bias: *const EngineBias,
    /// What the penalties look at, for the first row of the slice.
    pub history: *const EngineToken,
    /// How many there are.
    pub n_history: usize,
    /// One mask per row, `(n_vocab + 31) / 32` words each; NULL: all tokens are allowed.
    pub masks: *const *const u32,
    /// One number in `[0, 1)` per row.
    pub uniforms: *const f32,
}

crate::growing!(EnginePick);

impl EnginePick {
    /// The likeliest token of whole rows: nothing that shapes, nothing that filters.
    pub const GREEDY: Self = Self {
        struct_size: size_of::<Self>() as u32,
        stage: ENGINE_STAGE_LOGITS,
        uses: 0,
        n_candidates: 0,
        repeat_penalty: 1.0,
        frequency_penalty: 0.0,
        presence_penalty: 0.0,
        temperature: 1.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        n_bias: 0,
        bias: std::ptr::null(),
        history: std::ptr::null(),
        n_history: 0,
        masks: std::ptr::null(),
        uniforms: std::ptr::null(),
    };
}
