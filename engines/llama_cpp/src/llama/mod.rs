//! The one folder that touches llama.cpp: safe types over the raw bindings and the C++ shim.
//!
//! It owns pointers, lifetimes, the log and the conversion of every kind of failure into a [`Fault`].
//! It refuses policy: which context to make, what a code means to the host and how sequences are kept
//! is decided elsewhere. It validates nothing that its callers have validated, except where llama.cpp
//! would read out of bounds.
//!
//! `shim` declares the C++ side, `fault` calls it, `log` and `text` carry words across; on these stand the
//! objects: `device`, `header`, `model`, `context`, `team`.
#![allow(unsafe_code)]

mod context;
mod device;
mod fault;
mod header;
mod log;
mod model;
mod shim;
#[cfg(target_os = "linux")]
mod team;
mod text;

pub(crate) use context::{CacheType, Context, ContextSettings, Decoded, Entry, Pooling, Use};
pub(crate) use device::{DeviceKind, device_memory, devices, load_backends};
pub(crate) use fault::{Fault, FaultKind};
pub(crate) use header::Header;
pub(crate) use log::{Level, start};
pub(crate) use model::{LoadMode, Model, ModelSettings};
#[cfg(target_os = "linux")]
pub(crate) use team::{processors, team};
