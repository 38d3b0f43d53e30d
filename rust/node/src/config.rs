//! The node's configuration, as Python hands it over: one JSON object.
//!
//! Owns the shape and its checks. Refuses unknown fields, and refuses to decide: `auto` was resolved
//! to a backend before, and defaults of settings stand in `python/llm_node/settings.py`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use llm_node_core::{
    chat::model::SyntaxChoice,
    error::{ErrorCode, Fault},
    options::ModelOptions,
};
use llm_node_fleet::{Device, Usual};
use serde::{Deserialize, Serialize};

use crate::registry::surroundings::{Packaged, Surroundings};

/// Everything that the node must know.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// Folders that hold `<id>/<gpu_backend>/manifest.json`, in search order.
    pub engines_dirs: Vec<PathBuf>,
    /// What packages of engines depend on.
    #[serde(default)]
    pub packaged: Vec<Packaged>,
    /// Version of NVIDIA's driver, where there is one.
    #[serde(default)]
    pub cuda_driver: Option<String>,
    /// Folder of what the node remembers; `None`: it remembers nothing.
    #[serde(default)]
    pub home: Option<PathBuf>,
    /// Folder of the models.
    pub models_dir: PathBuf,
    /// Folders of other programs whose models are offered too, in search order. Nothing is written there.
    #[serde(default)]
    pub caches: Vec<Cache>,
    /// A model file that is offered under the name [`DEMO_MODEL`], unless the models folder has one of that name.
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
    /// What of each device is left to others, in bytes; `None`: a part of it.
    #[serde(default)]
    pub vram_reserve_bytes: Option<u64>,
    /// Program and arguments of a worker; the endpoint is appended.
    pub worker_command: Vec<String>,
    /// How long an engine may take to show itself.
    #[serde(default = "ten_seconds")]
    pub probe_timeout_seconds: f64,
    /// How long a model may take from its worker's start until it answers.
    pub load_timeout_seconds: f64,
    /// How long a model waits until others have made room for it; 0: none makes room.
    #[serde(default = "two_minutes")]
    pub max_wait_seconds: f64,
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
    /// How models are loaded where nobody says anything else. A draft model is named by its file.
    #[serde(default)]
    pub defaults: ModelOptions,
    /// The same for some models, by their own names, over the defaults.
    #[serde(default)]
    pub models: BTreeMap<String, ModelOptions>,
    /// Variables of the node's environment that engines get beside the usual ones.
    #[serde(default)]
    pub engine_env: Vec<String>,
    /// "error", "warning", "info", "debug" or "trace".
    #[serde(default = "info")]
    pub log_level: String,
}

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

impl NodeConfig {
    /// Reads and checks the JSON text.
    pub fn parse(text: &str) -> Result<Self, Fault> {
        let config: NodeConfig = serde_json::from_str(text).map_err(|error| {
            Fault::new(ErrorCode::InvalidRequest, format!("the node's configuration: {error}"))
        })?;
        for options in std::iter::once(&config.defaults).chain(config.models.values()) {
            options.tool_syntax.as_deref().map_or(Ok(SyntaxChoice::Found), SyntaxChoice::of)?;
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
        if Duration::try_from_secs_f64(config.max_wait_seconds).is_err() {
            return Err(invalid("max_wait_seconds", "must be a number of seconds"));
        }
        Ok(config)
    }

    /// What is said of loads.
    pub fn usual(&self) -> Usual {
        Usual { defaults: self.defaults.clone(), models: self.models.clone() }
    }

    /// Where engines are, and what they find beside them.
    pub fn surroundings(&self) -> Surroundings {
        Surroundings {
            engines_dirs: self.engines_dirs.clone(),
            packaged: self.packaged.clone(),
            cuda_driver: self.cuda_driver.clone(),
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

    /// [`NodeConfig::max_wait_seconds`].
    pub fn max_wait(&self) -> Duration {
        seconds(self.max_wait_seconds)
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

fn two_minutes() -> f64 {
    120.0
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
