//! What an engine is told when it starts.

use std::path::PathBuf;

use llm_node_abi as abi;

use crate::{Failure, read};

/// Engine-specific settings as they stand in the node's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options(Vec<(String, String)>);

impl Options {
    /// The value of a key; the last one counts where it comes twice.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// # Safety
    ///
    /// `count` elements are readable, their members NULL or terminated.
    pub(crate) unsafe fn read(options: *const abi::EngineOption, count: usize) -> Result<Self, Failure> {
        // SAFETY: passed on to the caller.
        let options = unsafe { read::slice(options, count, "options") }?;
        options
            .iter()
            .map(|option| {
                // SAFETY: passed on to the caller.
                let (key, value) = unsafe { (read::text(option.key), read::text(option.value)) };
                let key = key.ok_or_else(|| Failure::invalid("the key of an option is NULL"))?;
                let value =
                    value.ok_or_else(|| Failure::invalid(format!("the value of option {key} is NULL")))?;
                Ok((key, value))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Options {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }
}

/// What `engine_init` is given.
#[derive(Clone, Debug)]
pub struct Config {
    /// CPU threads the engine may use; 0: its own choice.
    pub n_threads: u32,
    /// Where manifest.json is.
    pub engine_dir: PathBuf,
    /// The manifest's: "cuda", "metal", "cpu", ...
    pub gpu_backend: String,
    /// Bytes, for the engine as a whole; 0: no limit.
    pub vram_limit_bytes: u64,
    /// Bytes; 0: no limit.
    pub ram_limit_bytes: u64,
    /// Tier 0 only; 0: the model's own.
    pub context_length: u32,
    /// Tier 0 only: most per `engine_generate`; 0: no limit.
    pub max_tokens: u32,
    /// Engine-specific settings.
    pub options: Options,
}

impl Config {
    /// # Safety
    ///
    /// What the header says of `EngineConfig`.
    pub(crate) unsafe fn read(raw: &abi::EngineConfig) -> Result<Self, Failure> {
        // SAFETY: passed on to the caller.
        unsafe {
            Ok(Self {
                n_threads: raw.n_threads,
                engine_dir: if raw.engine_dir.is_null() {
                    PathBuf::new()
                } else {
                    read::path(raw.engine_dir, "engine_dir")?
                },
                gpu_backend: read::text(raw.gpu_backend).unwrap_or_default(),
                vram_limit_bytes: raw.vram_limit_bytes,
                ram_limit_bytes: raw.ram_limit_bytes,
                context_length: raw.context_length,
                max_tokens: raw.max_tokens,
                options: Options::read(raw.options, raw.n_options)?,
            })
        }
    }
}
