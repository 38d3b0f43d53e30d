//! Does an engine keep what `engine_api.h` says?
//!
//! Each [`Check`] asks one thing of an engine, and runs in a process of its own, so that a crash or a hang
//! of the engine is a finding like any other. [`run`] starts these processes and gathers what they found;
//! [`child`] is what they do.
//!
//! ```text
//! Subject     which engine, and with which model
//! Check       name, level, passage of the header, what to change when it fails
//! Outcome     passed, failed with a Finding, skipped with a reason
//! Item        what the contract was designed to be asked, and which checks ask it
//! ```
//!
//! It asks through `llm-node-host` wherever a node would ask in the same way. What no node does (sizes of an
//! older host, wrong arguments, memory that is taken away) goes through `raw`, the one unsafe module.
#![warn(missing_docs)]
#![deny(unsafe_code)]

mod batch;
mod bench;
mod check;
mod embed;
mod file;
mod header;
mod items;
mod life;
mod memory;
mod models;
mod picks;
#[expect(unsafe_code, reason = "calls that no safe method makes, and the state of the process")]
mod raw;
mod run;
mod script;
mod stream;
mod tier0;
mod tokenizer;
mod world;

pub use check::{CHECKS, Check, Finding, Level, Outcome, Status};
pub use items::{By, ITEMS, Item};
pub use run::{RunError, Selection, child, run};

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Which engine is checked, and with what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subject {
    /// The shared library.
    pub library: PathBuf,
    /// What it needs of other packages, opened before it in this order, as a worker does.
    pub libraries: Vec<PathBuf>,
    /// The manifest's id.
    pub id: String,
    /// The manifest's version.
    pub version: String,
    /// The manifest's backend.
    pub gpu_backend: String,
    /// A model that the engine can load; without one nothing is checked that needs one.
    pub model: Option<PathBuf>,
    /// Settings that it is started with: key and value.
    pub options: Vec<(String, String)>,
    /// Fewer repetitions.
    pub quick: bool,
    /// What is made up at random begins from it: another one asks for other things.
    pub seed: u64,
}
