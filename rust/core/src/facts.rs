//! What is known of a model once it is loaded.

use serde::{Deserialize, Serialize};

use crate::memory::MemoryUse;

/// What a worker says of the model that it has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelFacts {
    /// "llama", "qwen3", ...
    pub architecture: String,
    /// "gguf", "safetensors", ...
    pub format: String,
    /// "Q4_K_M", ...
    pub quantization: Option<String>,
    /// Number of weights.
    pub n_parameters: u64,
    /// Longest sequence in tokens that a request may use.
    pub context_length: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Width of one embedding; 0: the model gives none.
    pub n_embedding: u32,
    /// Can it tell how well a text answers another?
    pub ranks: bool,
    /// Has it tokens for a gap in a text?
    pub fills_gaps: bool,
    /// Can it generate?
    pub generates: bool,
    /// Has it a chat template?
    pub has_chat_template: bool,
    /// What was found out about it, if it can be used.
    pub chat: Option<ChatFacts>,
    /// What it takes on each device.
    pub memory: Vec<MemoryUse>,
    /// Which way requests take: "batch", "stream" or "tier0".
    pub source: String,
}

/// What a model's chat template lets it do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatFacts {
    /// Can it be offered tools?
    pub tools: bool,
    /// Does it mark what it thinks?
    pub thinking: bool,
    /// How it writes calls: "derived" from the template, or a family's name.
    pub syntax: Option<String>,
}
