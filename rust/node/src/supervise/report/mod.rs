//! What the node says of itself: models, workers and devices, and what loads would come to. What has happened
//! lately has a file of its own.
//!
//! Owns the names of all these fields. Puts together what the fleet, the processes and the traffic know; asks no
//! worker anything.

mod busy;
mod life;
mod model;
pub(super) mod plan;
mod system;

use llm_node_core::{error::ErrorCode, memory::MemoryUse};
use llm_node_fleet::Moment;
use serde::Serialize;

pub(super) use self::{life::loaded, model::ModelRow, system::SystemRow};
use super::{Inner, written};

#[derive(Serialize)]
struct ErrorRow<'a> {
    code: ErrorCode,
    message: &'a str,
}

#[derive(Serialize)]
struct MemoryRow<'a> {
    device: &'a str,
    /// Of the device among the node's; `None`: it does not know that one.
    id: Option<&'a str>,
    bus_id: Option<&'a str>,
    is_host: bool,
    weights_bytes: u64,
    cache_bytes: u64,
    compute_bytes: u64,
    total_bytes: u64,
}

impl<'a> MemoryRow<'a> {
    fn of(use_: &'a MemoryUse) -> Self {
        Self {
            device: &use_.device,
            id: id_of(use_),
            bus_id: use_.bus_id.as_deref(),
            is_host: use_.is_host,
            weights_bytes: use_.weights,
            cache_bytes: use_.cache,
            compute_bytes: use_.compute,
            total_bytes: use_.total(),
        }
    }
}

/// Of the device among the node's.
fn id_of(use_: &MemoryUse) -> Option<&str> {
    if use_.is_host { Some("host") } else { use_.id.as_deref() }
}

/// Rounded up.
fn seconds_until(now: Moment, until: Moment) -> u64 {
    until.since(now).as_millis().div_ceil(1000) as u64
}
