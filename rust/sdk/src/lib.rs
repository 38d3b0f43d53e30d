//! For engines written in Rust: safe traits, and a macro that makes the C tables from them.
//!
//! An engine implements [`Engine`] and one trait per extension that it offers, and names both to
//! [`export_engine!`]:
//!
//! ```ignore
//! struct MyEngine;
//! impl llm_node_sdk::Engine for MyEngine { /* ID, VERSION, init */ }
//! impl llm_node_sdk::Models for MyEngine { /* load, info */ }
//! llm_node_sdk::export_engine!(MyEngine: models);
//! ```
//!
//! What the crate does for it, at every entry:
//!
//! * catches panics, and answers them with `ERR_INTERNAL` and the panic's message and place,
//! * checks pointers and sizes, and reads no member that the host did not provide,
//! * tells the host why a call failed ([`Failure`]),
//! * owns whatever the ABI says must stay valid: texts, the vocabulary, metadata, handles,
//! * keeps handles in a list, so that `engine_shutdown` frees what the host forgot.
//!
//! It refuses to know any model format or device. `engine.serve/1`, `engine.stream/1` and
//! `engine.adapters/1` are not offered yet.
#![warn(missing_docs)]

mod batch;
mod config;
mod embed;
#[doc(hidden)]
pub mod export;
mod failure;
mod guard;
mod host;
mod memory;
mod models;
mod read;
mod tier0;
mod tokenizer;

pub use batch::{Batch, Batching, ContextInfo, ContextParams, Logits, Masks, Pick, Row, Rows, Slice};
pub use config::{Config, Options};
pub use embed::{Embedding, Inputs, Pooling};
pub use failure::Failure;
pub use host::{Severity, log};
pub use memory::{Device, DeviceKind, Memory, MemoryUse};
pub use models::{ModelInfo, ModelParams, Models};
pub use tier0::{Engine, Finish, Generation, Piece};
pub use tokenizer::{Tokenizer, Vocabulary, attribute};

/// The mirror of the C header, for its constants.
pub use llm_node_abi as abi;

/// The number of a token in the vocabulary.
pub type Token = abi::EngineToken;
