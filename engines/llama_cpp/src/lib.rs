//! The engine for GGUF models: llama.cpp behind the engine ABI.
//!
//! `llama` is the only folder that touches llama.cpp. The others are safe Rust: what to make of the
//! host's parameters (`options`, `plan`), what a text needs to be tokenised (`words`), how sequences lie in the
//! cache (`cells`), how prompts come into a split one (`prefill`) and sequences out of it (`state`), what
//! contexts take (`footprint`), one file per extension (`model`, `memory`, `context`, `embedding`; the tokenizer
//! is a part of `model`).
//!
//! The engine refuses to schedule, to sample and to render templates: it stays at the stage LOGITS,
//! runs the batches that it is given, and never shifts a context.
#![deny(unsafe_code)]

mod cells;
#[cfg_attr(not(target_os = "linux"), expect(dead_code, reason = "only Linux tells how long threads wait"))]
mod contention;
mod context;
mod embedding;
mod footprint;
mod llama;
mod memory;
mod model;
mod options;
mod plan;
mod prefill;
mod state;
#[cfg_attr(not(target_os = "linux"), path = "waiting_elsewhere.rs")]
mod waiting;
mod words;

use std::ffi::CStr;
use std::sync::Mutex;

use crate::model::LastRead;
use llm_node_sdk::{Config, Engine, Failure, Options, Severity, abi, export_engine, log};

/// The architectures that this llama.cpp knows, sorted; generated from its own table.
const ARCHITECTURES: &[&str] = include!(concat!(env!("OUT_DIR"), "/architectures.rs"));

/// The running engine.
pub(crate) struct LlamaEngine {
    /// CPU threads per context, unless its options say otherwise.
    threads: u32,
    /// The host asked for the CPU: no layer goes to a device.
    cpu_only: bool,
    /// Settings for all models and contexts.
    options: Options,
    last_read: Mutex<LastRead>,
}

impl Engine for LlamaEngine {
    const ID: &'static CStr = c"llama_cpp";
    const VERSION: &'static CStr =
        match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
            Ok(version) => version,
            Err(_) => c"",
        };

    fn init(config: &Config) -> Result<Self, Failure> {
        llama::start(|level, message| {
            // What llama.cpp calls information is detail to those who run a node.
            let severity = match level {
                llama::Level::Info => Severity::Debug,
                llama::Level::Warn => Severity::Warn,
                llama::Level::Error => Severity::Error,
            };
            log(severity, message);
        });
        let has_cpu = llama::load_backends(&config.engine_dir).map_err(internal)?;
        if !has_cpu {
            return Err(Failure::new(
                abi::ERR_LOAD_FAILED,
                format!(
                    "no library libggml-cpu-* for this processor in {}: reinstall the engine",
                    config.engine_dir.display()
                ),
            ));
        }
        options::check(&config.options)?;
        Ok(Self {
            threads: if config.n_threads == 0 { physical_cores() } else { config.n_threads },
            cpu_only: config.gpu_backend == "cpu",
            options: config.options.clone(),
            last_read: Mutex::default(),
        })
    }
}

/// Threads beyond the cores that there are, or that a container may use, only get in each other's way.
fn physical_cores() -> u32 {
    u32::try_from(num_cpus::get_physical().min(num_cpus::get()).max(1)).unwrap_or(1)
}

/// A failure of llama.cpp for which there is no better code.
fn internal(fault: llama::Fault) -> Failure {
    match fault.kind {
        llama::FaultKind::NoMemory => Failure::new(abi::ERR_OOM_RAM, fault.message),
        llama::FaultKind::Assertion | llama::FaultKind::Refused => Failure::internal(fault.message),
    }
}

export_engine!(LlamaEngine: models, memory, tokenizer, batch, embed);
