//! What a model takes of a device's memory, as engines tell it.

use serde::{Deserialize, Serialize};

/// What a model takes on one device, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryUse {
    /// The engine's name of the device ("CUDA0"); "host" for plain memory.
    pub device: String,
    /// The node's id of it, once that is known: [`GpuAddress::id`].
    #[serde(default)]
    pub id: Option<String>,
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

/// A GPU of the node, as an engine finds it among its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuAddress {
    /// What the node calls it: "GPU-" or "MIG-" and what NVML calls it for good; where there is no NVML, something else.
    pub id: String,
    /// Its number among GPUs.
    pub index: u32,
    /// PCI bus id, where it has one.
    pub bus_id: Option<String>,
}

impl GpuAddress {
    /// Is it a part of a GPU? CUDA opens one of these for a process.
    pub fn is_part(&self) -> bool {
        self.id.starts_with("MIG-")
    }

    /// Is that what NVML calls it? Then drivers know it by that.
    pub fn is_known_to_drivers(&self) -> bool {
        self.is_part() || self.id.starts_with("GPU-")
    }
}

/// Where these GPUs stand among those of an engine, whose bus ids are these; `None`: the engine lacks one. Without bus
/// ids they are told apart by their order where it has as many, and by their numbers where it has more.
pub fn among(place: &[GpuAddress], bus_ids: &[Option<&str>]) -> Option<Vec<usize>> {
    let has_no_buses = bus_ids.iter().all(Option::is_none);
    let at = |(order, gpu): (usize, &GpuAddress)| {
        let own = gpu.bus_id.as_deref().map(normal_bus_id);
        if own.is_none() || has_no_buses {
            let index = if bus_ids.len() == place.len() { order } else { gpu.index as usize };
            return Some(index).filter(|index| *index < bus_ids.len());
        }
        bus_ids.iter().position(|bus_id| bus_id.map(normal_bus_id) == own)
    };
    place.iter().enumerate().map(at).collect()
}

/// NVML writes the domain with eight digits, CUDA with four, and either in any case.
pub fn normal_bus_id(bus_id: &str) -> String {
    bus_id.trim_start_matches('0').to_ascii_lowercase()
}

/// What an engine says of a model that is not loaded, and of its draft model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// For one sequence of the model's own length; empty: it cannot say.
    pub one: Vec<MemoryUse>,
    /// The same for the draft model; empty where there is none.
    pub draft: Vec<MemoryUse>,
}

/// What a load will take, and the figures that this comes of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Estimate {
    /// With the context that the model gets; `None`: the engine cannot say, or was not asked.
    pub uses: Option<Vec<MemoryUse>>,
    /// Good for another load of the same.
    pub figures: Figures,
}

impl Figures {
    /// Do they say what a context takes?
    pub fn are_of_contexts(&self) -> bool {
        self.one.iter().any(|one| one.cache_per_token > 0 || one.cache_per_sequence > 0)
    }
}

/// Adds up what two models take, device by device.
pub fn add(all: &mut Vec<MemoryUse>, uses: Vec<MemoryUse>) {
    for use_ in uses {
        match all.iter_mut().find(|it| (&it.device, &it.bus_id) == (&use_.device, &use_.bus_id)) {
            Some(sum) => {
                sum.weights = sum.weights.saturating_add(use_.weights);
                sum.cache = sum.cache.saturating_add(use_.cache);
                sum.compute = sum.compute.saturating_add(use_.compute);
                sum.cache_per_token = sum.cache_per_token.saturating_add(use_.cache_per_token);
                sum.cache_per_sequence = sum.cache_per_sequence.saturating_add(use_.cache_per_sequence);
            }
            None => all.push(use_),
        }
    }
}

impl MemoryUse {
    /// All but the cache.
    pub fn beside_cache(&self) -> u64 {
        self.weights.saturating_add(self.compute)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        self.weights.saturating_add(self.cache).saturating_add(self.compute)
    }
}

/// What of a device's memory is left to others where nobody says, in bytes: 256 MiB or 2 %, of the host's 1 GiB or
/// 10 %, and never more than half.
pub fn usual_reserve(is_host: bool, total: u64) -> u64 {
    let reserve = if is_host { (1 << 30).max(total / 10) } else { (256 << 20).max(total / 50) };
    reserve.min(total / 2)
}

/// The model's own length, from an estimate for one sequence of it. 0: cannot be told.
pub fn length_of(uses: &[MemoryUse]) -> u32 {
    let sum = |of: fn(&MemoryUse) -> u64| uses.iter().map(of).fold(0, u64::saturating_add);
    let cache = sum(|one| one.cache).saturating_sub(sum(|one| one.cache_per_sequence));
    let tokens = cache.checked_div(sum(|one| one.cache_per_token)).unwrap_or(0);
    u32::try_from(tokens).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_found_by_their_bus_or_else_by_order_or_number() {
        let gpu = |index, bus_id: Option<&str>| GpuAddress {
            id: format!("GPU-{index}"),
            index,
            bus_id: bus_id.map(str::to_owned),
        };
        let place = [gpu(1, Some("0000:C1:00.0"))];
        let buses = [Some("00000000:c1:00.0"), Some("0000:01:00.0")];
        assert_eq!(among(&place, &buses), Some(vec![0]));
        assert_eq!(among(&place, &buses[1..]), None);
        assert_eq!((among(&place, &[None, None]), among(&place, &[None])), (Some(vec![1]), Some(vec![0])));
        assert_eq!(among(&[gpu(1, None)], &buses), Some(vec![1]));
        assert_eq!(among(&[gpu(2, None), gpu(5, None)], &[None, None]), Some(vec![0, 1]));
        assert_eq!(among(&[gpu(2, None)], &[None, None]), None);
    }

    #[test]
    fn the_length_comes_back_out_of_an_estimate() {
        let use_ = MemoryUse {
            cache: 640 * 2048 + 100,
            cache_per_token: 640,
            cache_per_sequence: 100,
            ..MemoryUse::default()
        };
        assert_eq!(length_of(&[use_]), 2048);
        assert_eq!(length_of(&[]), 0);
    }
}
