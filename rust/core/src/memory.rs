//! What a model takes of a device's memory, as engines tell it.

use serde::{Deserialize, Serialize};

/// What a model takes on one device, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The engine's name of the device ("CUDA0"); "host" for plain memory.
    pub device: String,
    /// PCI bus id, where the device has one.
    pub bus_id: Option<String>,
    /// Is it memory of the host?
    pub is_host: bool,
    /// Weights.
    pub weights: u64,
    /// KV cache and recurrent state.
    pub cache: u64,
    /// Everything else.
    pub compute: u64,
    /// What `cache` grows by per token of capacity.
    pub cache_per_token: u64,
    /// What `cache` grows by per sequence.
    pub cache_per_sequence: u64,
}

impl MemoryUse {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.compute)
    }
}
