//! What a client asks for, in neutral words.
//!
//! API families translate their own shapes into [`Request`]; the worker, which knows the model,
//! turns it into a `ValidRequest`. No word of any API family stands here.

use serde::{Deserialize, Serialize};

use crate::engine::Token;

/// One answer wanted from one model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// What the model is to go on from.
    pub prompt: Prompt,
    /// Most tokens to generate; `None`: what is left of the context.
    #[serde(default)]
    pub max_tokens: Option<u32>,
    /// How a token is picked from the logits.
    #[serde(default)]
    pub sampling: Sampling,
    /// The answer ends before the first of these.
    #[serde(default)]
    pub stop: Vec<String>,
    /// Go on after an end-of-generation token (benchmarks).
    #[serde(default)]
    pub ignore_eos: bool,
    /// Log-probabilities of each token, with so many alternatives beside it.
    #[serde(default)]
    pub logprobs: Option<u32>,
}

/// What the model is to go on from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Prompt {
    /// Plain text. BOS is added as the model wants it; special tokens in it are only letters.
    Text(String),
    /// Tokens, exactly.
    Tokens(Vec<Token>),
    /// A conversation, rendered by the model's chat template.
    Chat(Chat),
}

/// A conversation for the chat template.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Chat {
    /// JSON text of an array of message objects, as the template sees them.
    pub messages: String,
    /// JSON text of an array of tool definitions, as the template sees them.
    #[serde(default)]
    pub tools: Option<String>,
    /// JSON text of an object with further variables for the template.
    #[serde(default)]
    pub variables: Option<String>,
}

/// How a token is picked. The defaults leave the model's own distribution alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    /// 0: greedy. Range 0 to 2 in the public API; any value >= 0 here.
    pub temperature: f32,
    /// The `top_k` best stay; 0: off.
    pub top_k: u32,
    /// The fewest, best first, that add up to this stay; 1: off.
    pub top_p: f32,
    /// Those with this times the best one's probability stay; 0: off.
    pub min_p: f32,
    /// A logit above 0 is divided by it, another multiplied; 1: off.
    pub repeat_penalty: f32,
    /// Subtracted once per occurrence in prompt and answer.
    pub frequency_penalty: f32,
    /// Subtracted once if the token occurs in prompt and answer.
    pub presence_penalty: f32,
    /// Equal seeds give equal answers; `None`: the worker draws one.
    pub seed: Option<u64>,
    /// Added to the logit of a token; -infinity (or -100 in the public API) forbids it.
    pub bias: Vec<(Token, f32)>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repeat_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
            seed: None,
            bias: Vec::new(),
        }
    }
}
