//! Opens engines and makes calling them safe. Nothing else in the project calls `dlopen`.
//!
//! ```text
//! OpenedEngine   mapped, identity checked, nothing runs      OpenedEngine::open
//! LoadedEngine   engine_init has returned                    OpenedEngine::init
//! Model          a handle of engine.models/1                 Model::load
//! Context        a KV cache of engine.batch/1                Context::create
//! ```
//!
//! Each holds the one above it by `Arc`, so that destroying them in the wrong order does not compile.
//! The thread tags of the header are types here: `[main]` needs the `LoadedEngine` for oneself,
//! `[load]` takes a lock of the engine, `[step]` takes `&mut Context` or a lock of the model, and
//! `[any]` is `&self`.
//!
//! What an engine returns is checked before it is used: counts against capacities, tokens against the
//! vocabulary, offsets for rising, text for being there, bounded and UTF-8. A lie becomes
//! [`EngineError::Misbehaved`]. What no check can survive, a crash, a hang or a C++ exception, is the
//! affair of the process around this crate: run an engine in a worker.
//!
//! This crate does not know manifests: it is told which id and version to expect.
#![warn(missing_docs)]

mod callbacks;
mod calls;
mod context;
mod embed;
mod engine;
mod error;
mod library;
mod memory;
mod model;
mod parameters;
pub mod raw;
mod readable;
mod stream;
mod table;
mod tier0;
mod tokenizer;

pub use calls::Watch;
pub use context::{Canceller, Context, ContextInfo, ContextParams};
pub use embed::Pooling;
pub use engine::{InitConfig, LoadedEngine, Observer, OpenedEngine, unobserved};
pub use error::{AbiSource, EngineError, LoadError, LoadErrorKind};
pub use library::preload;
pub use llm_node_abi::{Code, ENGINE_ABI_VERSION};
pub use memory::{Device, DeviceKind, MemoryUse};
pub use model::{Model, ModelInfo, ModelParams, Progress};
pub use stream::{Prompt, Sampling, StreamRequest};
pub use tier0::{Alternative, Finish, Generated, GeneratedToken};
pub use tokenizer::ModelTokenizer;
