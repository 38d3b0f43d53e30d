//! What comes out of a row: a token, or why there is none.

use crate::engine::Token;

/// What was picked.
#[derive(Clone, Debug, PartialEq)]
pub struct Picked {
    /// The token.
    pub token: Token,
    /// Its log-probability at temperature 1 among the shaped logits, and the likeliest tokens with
    /// theirs, where these were asked for.
    pub logprobs: Option<(f32, Vec<(Token, f32)>)>,
}

/// Why no token could be picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickFault {
    /// The engine's row holds a NaN or a positive infinity.
    #[error("the engine returned logits that are not numbers")]
    NotANumber,
    /// The engine's row holds nothing but negative infinity.
    #[error("the engine returned logits that forbid every token")]
    Empty,
    /// Bias and mask leave no token.
    #[error("no token is allowed: bias and mask forbid all of them")]
    NothingAllowed,
    /// The row came as candidates, and what is not among them matters.
    #[error("the candidates that the engine returned do not decide on a token")]
    Undecided,
}
