//! What a request brings forth: pieces of text, and one ending.

use serde::{Deserialize, Serialize};

use crate::{engine::Token, error::Fault};

/// One thing that happened to one request. Exactly one [`Event::Finished`] or [`Event::Failed`] ends
/// each request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The prompt is tokenised and admitted.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
    },
    /// More of the answer.
    Piece(Piece),
    /// The request is done.
    Finished {
        /// Why.
        reason: Finish,
        /// What it took.
        usage: Usage,
    },
    /// The request failed, and nothing more follows.
    Failed(Fault),
}

/// A piece of the answer. Text is whole UTF-8 characters; it is empty while a character or a
/// possible stop string is incomplete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// What it adds to the answer.
    pub text: String,
    /// The tokens behind it, with their log-probabilities where these were asked for.
    pub tokens: Vec<PickedToken>,
}

/// A token that was picked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PickedToken {
    /// Its number; -1 where the engine gives text only.
    pub id: Token,
    /// Present where log-probabilities were asked for.
    pub logprobs: Option<TokenLogprobs>,
}

/// Log-probabilities (natural logarithm) of one position, at temperature 1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The picked token's bytes; of a control token its name.
    pub bytes: Vec<u8>,
    /// Are these part of the answer's text?
    pub is_text: bool,
    /// The picked token's.
    pub logprob: f32,
    /// The likeliest tokens, best first: bytes, number, log-probability.
    pub top: Vec<(Vec<u8>, Token, f32)>,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// An end-of-generation token, or a stop string.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The client left, or the request was cancelled.
    Cancelled,
}

impl Finish {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Cancelled => "cancelled",
        }
    }
}

/// What a request took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the end-of-generation token included.
    pub completion_tokens: u32,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens of the answer that were guessed ahead.
    pub drafted_tokens: u32,
    /// How many of these were right.
    pub accepted_tokens: u32,
}
