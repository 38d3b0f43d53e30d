//! What a request brings forth: parts of an answer in order, and one ending.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{engine::Token, error::Fault};

/// One thing that happened to one request. Exactly one [`Event::Finished`] or [`Event::Failed`] ends
/// each request.
///
/// A *block* is a run of pieces of one part. Blocks follow each other and never interleave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// The prompt is tokenised and admitted.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of these came from the prefix cache.
        cached_tokens: u32,
        /// What was asked for and is not enforced, one line each.
        relaxed: Vec<String>,
    },
    /// More of the answer.
    Piece(Piece),
    /// The model calls a tool; pieces of [`Part::Input`] follow.
    CallBegan {
        /// Number of the call in this answer, from 0.
        index: u32,
        /// Names the call in its conversation: 24 letters and digits.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// The input of the call is complete.
    CallEnded,
    /// The request is done.
    Finished {
        /// Why.
        reason: Finish,
        /// The stop string that ended it.
        stop: Option<String>,
        /// What it took.
        usage: Usage,
    },
    /// The request failed, and nothing more follows.
    Failed(Fault),
}

/// What a piece belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// What the model says.
    #[default]
    Text,
    /// What it thinks before.
    Reasoning,
    /// The input of the call that was begun last: JSON, or plain text for tools that take such.
    Input,
}

impl Part {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Part::Text => "text",
            Part::Reasoning => "reasoning",
            Part::Input => "input",
        }
    }
}

/// A piece of the answer. Text is whole UTF-8 characters; it is empty while a character or a
/// possible stop string is incomplete.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Piece {
    /// What it belongs to.
    pub part: Part,
    /// What it adds to that.
    pub text: String,
    /// The tokens whose first visible byte lies in it, with their log-probabilities where these were
    /// asked for. Tokens of which nothing is to be seen are in the usage alone.
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
    /// An end-of-generation token.
    Stop,
    /// A stop string.
    StopString,
    /// `max_tokens`.
    Length,
    /// The end of the context, which came before `max_tokens`.
    Context,
    /// An end-of-generation token, behind at least one call.
    Calls,
    /// The client left, or the request was cancelled.
    Cancelled,
}

impl Finish {
    /// The word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Finish::Stop => "stop",
            Finish::StopString => "stop_string",
            Finish::Length => "length",
            Finish::Context => "context",
            Finish::Calls => "calls",
            Finish::Cancelled => "cancelled",
        }
    }

    /// Did the answer come to an end, rather than to a limit?
    pub const fn is_natural(self) -> bool {
        matches!(self, Finish::Stop | Finish::StopString | Finish::Calls)
    }
}

/// What a request took: tokens, and time by the clock of whoever ran it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Tokens generated, the end-of-generation token included.
    pub completion_tokens: u32,
    /// How many of these the model thought with.
    pub reasoning_tokens: u32,
    /// Tokens of the prompt that came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens of the answer that were guessed ahead.
    pub drafted_tokens: u32,
    /// How many of these were right.
    pub accepted_tokens: u32,
    /// From when it was taken to when it was let in.
    pub waited: Duration,
    /// From there to the first token of the answer: the prompt was read.
    pub read: Duration,
    /// From there to the end.
    pub wrote: Duration,
}
