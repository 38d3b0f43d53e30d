//! What is seen of devices: how much is free, what of that models take, and who is seen to take it.

use llm_node_core::memory::usual_reserve;

use super::{Entry, Holding, Ledger};
use crate::{Device, DeviceKind, DeviceState, Reading, WorkerId, event::HOST};

/// A GPU counts a process's memory rightly where it is no further off than this factor: in containers the number
/// of a process may be another's.
pub(super) const BELIEVED: u64 = 2;

impl Ledger {
    /// Takes new figures over, and says who holds memory of GPUs that are lost since, with the name of one.
    pub(crate) fn read(&mut self, reading: Reading) -> Vec<(WorkerId, String)> {
        let (lost_before, began) = (self.lost(), reading.began);
        if reading.is_whole {
            let seen: Vec<String> = reading.devices.iter().map(Device::id).collect();
            let unseen = |(name, _): &(&String, &mut Entry)| *name != HOST && !seen.contains(name);
            for (_, entry) in self.entries.iter_mut().filter(unseen) {
                entry.device.state = DeviceState::Unreadable;
            }
        }
        let (hosts, gpus): (Vec<_>, Vec<_>) =
            reading.devices.into_iter().partition(|device| device.kind == DeviceKind::Host);
        // What may be taken of the host follows from the GPUs that there are.
        for device in gpus.into_iter().chain(hosts) {
            let key = device.id();
            let counts = self.is_for_models(device.kind);
            let is_host = device.kind == DeviceKind::Host;
            let usual = usual_reserve(is_host, device.total_bytes);
            let reserve = self.reserve.filter(|_| counts).unwrap_or(usual);
            let most = device.total_bytes.saturating_sub(reserve).min(self.most_for(device.kind));
            let limit = self.limit_for(&device).map_or(most, |limit| limit.min(most));
            for process in &device.processes {
                self.see(&key, &device, process.pid, process.bytes);
            }
            for settling in self.settling.values_mut() {
                settling.owed.retain(|account, (_, free)| *account != key || device.free_bytes < *free);
            }
            self.settling.retain(|_, settling| !settling.owed.is_empty());
            let taken_when_measured = self.shown(&key);
            let was_calm = self.holdings.values().all(|holding| !holding.is_pending);
            let is_low = device.kind != DeviceKind::Unified
                && device.state == DeviceState::Ok
                && device.free_bytes < reserve / 2;
            let since = self.entries.get(&key).and_then(|entry| entry.low).map_or(began, |(since, _)| since);
            let low = is_low.then(|| (since, began.since(since)));
            self.entries.insert(key, Entry { device, limit, reserve, taken_when_measured, was_calm, low });
        }
        let lost: Vec<String> = self.lost().difference(&lost_before).cloned().collect();
        let of = |(worker, holding): (&WorkerId, &Holding)| {
            let name = lost.iter().find(|name| holding.needs.get(*name).is_some_and(|bytes| *bytes > 0))?;
            Some((*worker, self.name_of(name)))
        };
        self.holdings.iter().filter_map(of).collect()
    }

    /// So much of the host's memory a GPU that shares it can use.
    fn most_for(&self, kind: DeviceKind) -> u64 {
        let is_shared = kind == DeviceKind::Host && !self.on_cpu && !self.has_memory_of_gpus();
        let most = self.gpus().map(|(_, entry)| entry.device.total_bytes).filter(|_| is_shared).max();
        most.unwrap_or(u64::MAX)
    }

    /// What was set for a device that models are placed on; of the host's memory what was set for a GPU that shares it.
    pub(super) fn limit_for(&self, device: &Device) -> Option<u64> {
        if !self.is_for_models(device.kind) {
            return None;
        }
        let mut sharing = self.gpus().map(|(_, entry)| &entry.device).peekable();
        if device.kind == DeviceKind::Host && !self.on_cpu && sharing.peek().is_some() {
            return sharing.filter_map(|gpu| self.limit.of(&gpu.address())).min();
        }
        self.limit.of(&device.address())
    }

    /// Are models placed on such a device? On the host's memory also where no GPU is seen to have some of its own.
    pub(super) fn is_for_models(&self, kind: DeviceKind) -> bool {
        match kind {
            DeviceKind::Gpu => !self.on_cpu,
            DeviceKind::Unified => false,
            DeviceKind::Host => self.on_cpu || !self.has_memory_of_gpus(),
        }
    }

    /// A process was seen to take so much.
    fn see(&mut self, name: &str, device: &Device, pid: u32, bytes: u64) {
        let is_near =
            |other: u64| bytes <= other.saturating_mul(BELIEVED) && other <= bytes.saturating_mul(BELIEVED);
        let Some(holding) = self.holdings.values_mut().find(|holding| holding.pid == Some(pid)) else {
            return;
        };
        let said = holding.said.get(name).copied().unwrap_or(0);
        let fell = holding.free_before.get(name).map_or(0, |free| free.saturating_sub(device.free_bytes));
        if device.kind != DeviceKind::Host && !is_near(said) && !is_near(fell) {
            return;
        }
        holding.seen.insert(name.to_owned(), bytes);
        if !holding.is_pending {
            holding.needs.insert(name.to_owned(), said.max(bytes));
        }
    }

    /// What a device's figure shows of what is held, and of what has not come back. The host's counts pages that were
    /// never touched, and those of files, as free.
    pub(super) fn shown(&self, name: &str) -> u64 {
        let holdings = self.holdings.values().filter(|holding| !holding.is_pending);
        let shown = |holding: &Holding| {
            let needs = self.on_account(&holding.needs, name);
            let (Some(bytes), Some(seen)) = (holding.needs.get(HOST), holding.seen.get(HOST)) else {
                return needs;
            };
            if name == HOST { needs - bytes.saturating_sub(*seen) } else { needs }
        };
        holdings.map(shown).fold(self.settling_of(name), u64::saturating_add)
    }
}
