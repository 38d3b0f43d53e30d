//! One engine, one model, its scheduler and its sampler.
//!
//! Used in two ways. As the child process of a node ([`serve::run_worker`]), and within a program:
//!
//! ```text
//! Engine::open(address, settings, unobserved())?      engine.rs   dlopen, engine_init
//!     .load(plan, progress)?                          engine.rs   model, tokenizer, context
//!     .start(scheduling, Reporter::new(...))?        model.rs    threads; from here on it answers
//!     .submit(id, request)                            model.rs    events come to the reporter
//! ```
//!
//! Who loads an engine in the own process accepts that it may crash it. The sandbox belongs to the
//! child alone.
#![deny(unsafe_code)]

mod draft;
pub mod engine;
mod grammar;
mod intake;
pub mod model;
mod outbox;
mod places;
pub mod report;
mod reshape;
#[cfg_attr(unix, expect(unsafe_code, reason = "ending a process without destructors has no safe way"))]
pub mod sandbox;
mod sending;
pub mod serve;
mod served;
mod source;

pub use engine::{Engine, EngineSettings, Observer, unobserved};
pub use model::{LoadedModel, RunningModel};
pub use report::{Report, Reporter};
