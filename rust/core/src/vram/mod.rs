//! Memory of devices: who holds how much of what may be held.
//!
//! It owns the account and refuses to measure: what a device has and what a model takes are told to
//! it.

pub mod ledger;
mod size;
