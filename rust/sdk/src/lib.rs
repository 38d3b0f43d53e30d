//! For engines written in Rust: safe traits, and a macro that makes the C tables from them.
//!
//! An engine implements [`Engine`] and one trait per extension that it offers, and names both to
//! [`export_engine!`]:
//!
//! ```
//! use std::ffi::CStr;
//!
//! use llm_node_sdk::{Config, Engine, Failure, ModelInfo, ModelParams, Models, export_engine};
//!
//! struct MyEngine;
//!
//! impl Engine for MyEngine {
//!     const ID: &'static CStr = c"my_engine";
//!     const VERSION: &'static CStr = c"1.0.0";
//!
//!     fn init(_config: &Config) -> Result<Self, Failure> {
//!         Ok(Self)
//!     }
//! }
//!
//! impl Models for MyEngine {
//!     type Model = Vec<u8>;
//!
//!     fn load(
//!         &self,
//!         params: &ModelParams,
//!         progress: &mut dyn FnMut(f32) -> bool,
//!     ) -> Result<Vec<u8>, Failure> {
//!         progress(0.0);
//!         std::fs::read(&params.path).map_err(|error| Failure::not_found(error.to_string()))
//!     }
//!
//!     fn info(model: &Vec<u8>) -> ModelInfo {
//!         ModelInfo { size_bytes: model.len() as u64, ..ModelInfo::default() }
//!     }
//! }
//!
//! export_engine!(MyEngine: models);
//! # fn main() {}
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
mod instance;
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
