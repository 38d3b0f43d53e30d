//! The parent: registry, models, memory ledger, supervisor. It never opens an engine, and never
//! touches a GPU: workers do, and die of it alone.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod blocks;
pub mod choose;
pub mod config;
pub mod frames;
pub mod host_memory;
pub mod models;
pub mod pattern;
pub mod platform;
pub mod registry;
pub mod supervise;
