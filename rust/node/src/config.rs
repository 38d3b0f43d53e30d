//! The node's configuration, as Python hands it over: one JSON object.
//!
//! Owns the shape and its checks. Refuses unknown fields and missing ones, and refuses to decide: `auto` was resolved
//! to a backend before, and defaults of settings stand in `python/llm_node/settings.py`. Only what may be null may be
//! left out.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use llm_node_core::{
    chat::model::SyntaxChoice,
    error::{ErrorCode, Fault},
    options::{MemoryLimit, ModelOptions},
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
    pub packaged: Vec<Packaged>,
    /// Version of NVIDIA's driver, where there is one.
    pub cuda_driver: Option<String>,
    /// Folder of what the node remembers; `None`: it remembers nothing.
    pub home: Option<PathBuf>,
    /// Folder of the models.
    pub models_dir: PathBuf,
    /// Folders of other programs whose models are offered too, in search order. Nothing is written there.
    pub caches: Vec<Cache>,
    /// A model file that is offered under the name [`DEMO_MODEL`], unless the models folder has one of that name.
    pub demo_model: Option<PathBuf>,
    /// Further names of models: what a client may call it, and the name that is meant.
    pub aliases: BTreeMap<String, String>,
    /// "cuda", "metal", "vulkan", "rocm" or "cpu"; `None`: no GPU was found and nobody chose the CPU.
    pub gpu_backend: Option<String>,
    /// What models may be placed on.
    pub devices: Vec<Device>,
    /// Most memory that models may take.
    pub vram_limit_bytes: MemoryLimit,
    /// What of each device is left to others, in bytes; `None`: a part of it.
    pub vram_reserve_bytes: Option<u64>,
    /// Program and arguments of a worker; the endpoint is appended.
    pub worker_command: Vec<String>,
    /// How long an engine may take to show itself.
    pub probe_timeout_seconds: f64,
    /// How long a model may take from its worker's start until it answers.
    pub load_timeout_seconds: f64,
    /// How long a model waits until others have made room for it; 0: none makes room.
    pub max_wait_seconds: f64,
    /// How long a worker process may take until it connects.
    pub start_timeout_seconds: f64,
    /// Requests that may wait for admission, per model.
    pub queue_limit: u32,
    /// Milliseconds that the prompts in a step may make it, while answers are under way.
    pub target_step_ms: u32,
    /// Keep what KV caches hold of answers that ended?
    pub keep_prefixes: bool,
    /// How long one step of an engine may take, in whole seconds; 0: any time.
    pub step_timeout_seconds: u32,
    /// How models are loaded where nobody says anything else. A draft model is named by its file.
    pub defaults: ModelOptions,
    /// The same for some models, by their own names, over the defaults.
    pub models: BTreeMap<String, ModelOptions>,
    /// Variables of the node's environment that engines get beside the usual ones.
    pub engine_env: Vec<String>,
    /// "error", "warning", "info", "debug" or "trace".
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

#[cfg(test)]
impl NodeConfig {
    /// One for tests, with nothing in it.
    pub(crate) fn example() -> Self {
        serde_json::from_value(tests::example().into()).unwrap_or_else(|error| unreachable!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;

    pub(super) fn example() -> Map<String, Value> {
        let example = json!({
            "engines_dirs": ["/engines"], "packaged": [], "models_dir": "/models", "caches": [], "aliases": {},
            "gpu_backend": "cpu", "vram_limit_bytes": null, "devices": [], "worker_command": ["worker"], "probe_timeout_seconds": 10,
            "load_timeout_seconds": 600, "max_wait_seconds": 120, "start_timeout_seconds": 30, "queue_limit": 512,
            "target_step_ms": 150, "keep_prefixes": true, "step_timeout_seconds": 600, "defaults": {}, "models": {},
            "engine_env": [], "log_level": "info",
        });
        example.as_object().cloned().unwrap_or_default()
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_stands_for_it() {
        let parse =
            |config: &Map<String, Value>| NodeConfig::parse(&Value::Object(config.clone()).to_string());
        assert!(parse(&example()).is_ok());
        for field in example().keys().filter(|field| *field != "gpu_backend") {
            let mut config = example();
            config.remove(field);
            let fault = parse(&config).map(|_| ()).unwrap_err();
            assert!(fault.message.contains(&format!("missing field `{field}`")), "{fault}");
        }
        let mut config = example();
        config.insert("queue_limits".to_owned(), json!(1));
        assert!(parse(&config).map(|_| ()).unwrap_err().message.contains("unknown field `queue_limits`"));
    }
}
