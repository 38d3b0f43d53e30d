//! The node's configuration, as Python hands it over: one JSON object.
//!
//! Owns the shape and its checks. Refuses unknown fields, and refuses to decide: `auto` was resolved
//! to a backend before, and defaults of settings stand in `python/llm_node/settings.py`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use llm_node_core::{
    chat::model::SyntaxChoice,
    error::{ErrorCode, Fault},
};
use llm_node_wire::message;
use serde::{Deserialize, Serialize};

/// Everything that the node must know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Folders that hold `<id>/<gpu_backend>/manifest.json`, in search order.
    pub engines_dirs: Vec<PathBuf>,
    /// Folder of the models.
    pub models_dir: PathBuf,
    /// Folders of other programs whose models are offered too, in search order. Nothing is written there.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// A model file that is always offered, under the name [`DEMO_MODEL`].
    #[serde(default)]
    pub demo_model: Option<PathBuf>,
    /// Further names of models: what a client may call it, and the name that is meant.
    #[serde(default)]
    pub aliases: BTreeMap<String, String>,
    /// "cuda", "metal", "vulkan" or "cpu"; `None`: no GPU was found and nobody chose the CPU.
    pub gpu_backend: Option<String>,
    /// What models may be placed on.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Most memory that models may take on each device, in bytes.
    #[serde(default)]
    pub vram_limit_bytes: Option<u64>,
    /// Program and arguments of a worker; the endpoint is appended.
    pub worker_command: Vec<String>,
    /// How long an engine may take to show itself.
    #[serde(default = "ten_seconds")]
    pub probe_timeout_seconds: f64,
    /// How long a model may take from its worker's start until it answers.
    pub load_timeout_seconds: f64,
    /// How long a worker process may take until it connects.
    pub start_timeout_seconds: f64,
    /// Requests that may wait for admission, per model.
    pub queue_limit: u32,
    /// Milliseconds that the prompts in a step may make it, while answers are under way.
    #[serde(default = "usual_target_step")]
    pub target_step_ms: u32,
    /// Keep what KV caches hold of answers that ended?
    #[serde(default = "yes")]
    pub keep_prefixes: bool,
    /// How long one step of an engine may take, in whole seconds; 0: any time.
    #[serde(default)]
    pub step_timeout_seconds: u32,
    /// Whether tokens are guessed ahead.
    #[serde(default)]
    pub speculation: Speculation,
    /// A model that guesses instead of the text itself, unless `speculation` is off.
    #[serde(default)]
    pub draft_model: Option<PathBuf>,
    /// How models write calls: a family's name or "off" by model, under [`ALL_MODELS`] for the others.
    #[serde(default)]
    pub tool_syntax: BTreeMap<String, String>,
    /// CPU threads of an engine; 0: the engine's own choice.
    #[serde(default)]
    pub threads: u32,
    /// Sequences at once, per model.
    #[serde(default)]
    pub max_sequences: Option<u32>,
    /// Longest sequence in tokens.
    #[serde(default)]
    pub context_length: Option<u32>,
    /// KV cache for all sequences of a model together, in tokens.
    #[serde(default)]
    pub cache_tokens: Option<u64>,
    /// Sources of chat templates in place of the models' own, or names of built-in ones, by the model's id.
    #[serde(default)]
    pub chat_templates: BTreeMap<String, String>,
    /// Settings for engines: a flat object; values are text, numbers or truth values.
    #[serde(default)]
    pub engine_options: BTreeMap<String, OptionValue>,
    /// Variables of the node's environment that engines get beside the usual ones.
    #[serde(default)]
    pub engine_env: Vec<String>,
    /// "error", "warning", "info", "debug" or "trace".
    #[serde(default = "info")]
    pub log_level: String,
}

/// In settings for each model: those that are not named.
const ALL_MODELS: &str = "*";

/// The name under which [`NodeConfig::demo_model`] is offered.
pub const DEMO_MODEL: &str = "llm-node-demo";

/// A folder in which another program keeps models.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Whose it is, which says how it is laid out.
    pub origin: Origin,
    /// The folder.
    pub path: PathBuf,
}

/// Who brought a model to where it lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// It lies in the models folder.
    #[default]
    Own,
    /// It comes with the package.
    Demo,
    /// The cache of the Hugging Face hub's client.
    Hub,
    /// llama.cpp's cache of before 2026-03.
    LlamaCpp,
    /// LM Studio.
    LmStudio,
    /// Ollama.
    Ollama,
}

/// A device that models may be placed on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its number among those of its kind.
    pub index: u32,
    /// For people.
    pub name: String,
    /// PCI bus id, where it has one.
    #[serde(default)]
    pub bus_id: Option<String>,
    /// All its memory, in bytes.
    pub total_bytes: u64,
    /// What was free when Python looked, in bytes.
    pub free_bytes: u64,
    /// A GPU, or the memory of the host.
    pub kind: DeviceKind,
}

/// What a [`Device`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Has memory of its own.
    Gpu,
    /// The host's memory.
    Host,
}

/// Whether tokens are guessed ahead and verified together; see
/// [`llm_node_wire::message::Speculation`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speculation {
    /// Never.
    Off,
    /// Out of prompt and answer.
    #[default]
    Lookup,
}

/// A value in an object of engine options. Engines get text.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// `"text"`
    Text(String),
    /// `true`, which engines see as `true`
    Truth(bool),
    /// `1`
    Integer(i64),
    /// `0.5`
    Number(f64),
}

impl OptionValue {
    /// As the engine gets it.
    pub fn to_text(&self) -> String {
        match self {
            OptionValue::Text(text) => text.clone(),
            OptionValue::Truth(truth) => truth.to_string(),
            OptionValue::Integer(integer) => integer.to_string(),
            OptionValue::Number(number) => number.to_string(),
        }
    }
}

impl NodeConfig {
    /// Reads and checks the JSON text.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let config: NodeConfig = serde_json::from_str(text).map_err(|error| {
            Fault::new(ErrorCode::InvalidRequest, format!("the node's configuration: {error}"))
        })?;
        for name in config.tool_syntax.values() {
            SyntaxChoice::of(name)?;
        }
        if config.worker_command.is_empty() {
            return Err(invalid("worker_command", "must name a program"));
        }
        for (field, seconds) in [
            ("probe_timeout_seconds", config.probe_timeout_seconds),
            ("load_timeout_seconds", config.load_timeout_seconds),
            ("start_timeout_seconds", config.start_timeout_seconds),
        ] {
            if Duration::try_from_secs_f64(seconds).is_err() || seconds <= 0.0 {
                return Err(invalid(field, "must be a number of seconds above 0"));
            }
        }
        Ok(config)
    }

    /// How a model writes calls whose load does not say; `None`: as its template says.
    pub fn usual_tool_syntax(&self, model_id: &str) -> Option<&String> {
        self.tool_syntax.get(model_id).or_else(|| self.tool_syntax.get(ALL_MODELS))
    }

    /// Who guesses tokens for a model whose load does not say.
    pub fn usual_speculation(&self) -> message::Speculation {
        match (self.speculation, &self.draft_model) {
            (Speculation::Off, _) => message::Speculation::Off,
            (Speculation::Lookup, None) => message::Speculation::Lookup,
            (Speculation::Lookup, Some(path)) => message::Speculation::Model(path.clone()),
        }
    }

    /// [`NodeConfig::probe_timeout_seconds`].
    pub fn probe_timeout(&self) -> Duration {
        seconds(self.probe_timeout_seconds)
    }

    /// [`NodeConfig::load_timeout_seconds`].
    pub fn load_timeout(&self) -> Duration {
        seconds(self.load_timeout_seconds)
    }

    /// [`NodeConfig::start_timeout_seconds`].
    pub fn start_timeout(&self) -> Duration {
        seconds(self.start_timeout_seconds)
    }
}

fn seconds(seconds: f64) -> Duration {
    // `parse` refuses what does not convert.
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
}

fn invalid(field: &str, what: &str) -> Fault {
    Fault::new(ErrorCode::InvalidRequest, format!("the node's configuration: {field} {what}")).param(field)
}

fn ten_seconds() -> f64 {
    10.0
}

fn usual_target_step() -> u32 {
    150
}

fn yes() -> bool {
    true
}

fn info() -> String {
    "info".to_owned()
}
