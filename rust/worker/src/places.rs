//! What there is for the cache of a model that a program loads by itself. A node counts that in its ledger, with all
//! that others hold.

use std::collections::BTreeMap;

use llm_node_core::{
    memory::{MemoryUse, usual_reserve},
    shape::Place,
};
use llm_node_host::{Device, DeviceKind};

/// `host_free`: of the host's memory, beside what is left to others. A GPU that shares that has one account with it.
pub(crate) fn places(uses: &[MemoryUse], devices: &[Device], host_free: u64) -> Vec<Place> {
    let device_of =
        |one: &MemoryUse| devices.iter().find(|device| device.name == one.device).filter(|_| !one.is_host);
    let mut accounts: BTreeMap<Option<u32>, (u64, Vec<&MemoryUse>)> = BTreeMap::new();
    for one in uses {
        let (account, free) = match device_of(one) {
            Some(device) if device.kind == DeviceKind::Integrated => (None, host_free.min(device.free_bytes)),
            Some(device) => {
                let reserve = usual_reserve(false, device.total_bytes);
                (Some(device.index), device.free_bytes.saturating_sub(reserve))
            }
            None => (None, host_free),
        };
        let (least, here) = accounts.entry(account).or_insert((free, Vec::new()));
        *least = free.min(*least);
        here.push(one);
    }
    let place = |(account, (free, here)): (Option<u32>, (u64, Vec<&MemoryUse>))| {
        let sum = |of: fn(&MemoryUse) -> u64| here.iter().map(|one| of(one)).fold(0, u64::saturating_add);
        let free = free.saturating_sub(sum(MemoryUse::beside_cache));
        let is_host = here.iter().all(|one| one.is_host);
        Place {
            is_host,
            // A GPU that shares the host's memory leaves half of that to the rest of the machine, as the CPU does.
            free: if account.is_none() && !is_host { free / 2 } else { free },
            per_token: sum(|one| one.cache_per_token),
            per_sequence: sum(|one| one.cache_per_sequence),
        }
    };
    accounts.into_iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn device(index: u32, kind: DeviceKind) -> Device {
        Device {
            index,
            kind,
            name: format!("D{index}"),
            description: String::new(),
            bus_id: None,
            total_bytes: 24 * GIB,
            free_bytes: 16 * GIB,
        }
    }

    fn on(device: &str, per_token: u64) -> MemoryUse {
        MemoryUse {
            device: device.to_owned(),
            is_host: device == "host",
            weights: 2 * GIB,
            cache_per_token: per_token,
            ..MemoryUse::default()
        }
    }

    #[test]
    fn a_gpu_that_shares_the_host_s_memory_has_one_place_with_it() {
        let uses = [on("D0", 100), on("host", 10)];
        let found = |kind, host_free| places(&uses, &[device(0, kind)], host_free);
        let place = |is_host, free, per_token| Place { is_host, free, per_token, per_sequence: 0 };
        // Each has what is free there less its own weights; of the host's a half goes to the cache later on.
        let own = 16 * GIB - usual_reserve(false, 24 * GIB) - 2 * GIB;
        assert_eq!(found(DeviceKind::Gpu, 12 * GIB), [place(true, 10 * GIB, 10), place(false, own, 100)]);
        // Once for both, and both weights.
        assert_eq!(found(DeviceKind::Integrated, 12 * GIB), [place(false, 4 * GIB, 110)]);
        // No more than the GPU may use.
        assert_eq!(found(DeviceKind::Integrated, 40 * GIB), [place(false, 6 * GIB, 110)]);
        assert_eq!(places(&uses[1..], &[], 12 * GIB), [place(true, 10 * GIB, 10)]);
    }
}
