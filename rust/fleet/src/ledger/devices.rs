//! Which device of the node an engine means, and which devices there are for models.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use llm_node_core::memory::{GpuAddress, MemoryUse, normal_bus_id};

use super::{Entry, Ledger, sum};
use crate::{
    Device, DeviceKind, DeviceState, Moment,
    event::HOST,
    pressure::{LASTS, Pressed},
};

/// What a model takes beside its files, where its engine cannot say: its cache, and what it computes in.
const BESIDE_FILES: u64 = 256 << 20;

/// What stands for a model whose engine cannot say, on a GPU or on the host: its files, a little more for what they are
/// unpacked to, and what is beside them. `most`: what there could be there. It is a guess, and so it does not refuse what
/// the files alone leave room for.
pub fn guessed(bytes: u64, gpu: Option<&Device>, most: u64) -> MemoryUse {
    let usual = (bytes / 100 * 15).saturating_add(BESIDE_FILES);
    MemoryUse { compute: usual.min(most.saturating_sub(bytes)), ..of_files(bytes, gpu) }
}

/// Files of so many bytes, on a GPU or on the host.
pub(super) fn of_files(bytes: u64, gpu: Option<&Device>) -> MemoryUse {
    MemoryUse {
        device: gpu.map_or(HOST.to_owned(), |gpu| gpu.name.clone()),
        id: gpu.map(Device::id),
        bus_id: gpu.and_then(|gpu| gpu.bus_id.clone()),
        is_host: gpu.is_none(),
        weights: bytes,
        ..MemoryUse::default()
    }
}

impl Ledger {
    /// Where what is taken of a device counts: of one that shares the host's memory, there.
    pub(crate) fn account_of<'a>(&self, device: &'a str) -> &'a str {
        let entry = self.entries.get(device);
        if entry.is_some_and(|entry| entry.device.kind == DeviceKind::Unified) { HOST } else { device }
    }

    /// What of these bytes by device counts on an account.
    pub(super) fn on_account(&self, by_device: &BTreeMap<String, u64>, account: &str) -> u64 {
        if account != HOST {
            return by_device.get(account).copied().unwrap_or(0);
        }
        sum(by_device.iter().filter(|(device, _)| self.account_of(device) == HOST).map(|(_, bytes)| bytes))
    }

    /// What uses take, by account.
    pub(super) fn needs(&self, uses: &[MemoryUse]) -> BTreeMap<String, u64> {
        summed(uses, |use_| self.account_of(&self.device_of(use_)).to_owned())
    }

    /// The same by device, whosever its memory is.
    pub(super) fn by_device(&self, uses: &[MemoryUse]) -> BTreeMap<String, u64> {
        summed(uses, |use_| self.device_of(use_))
    }

    /// The accounts that uses concern.
    pub(crate) fn by_account(&self, uses: &[MemoryUse]) -> BTreeMap<String, Vec<MemoryUse>> {
        let mut accounts: BTreeMap<String, Vec<MemoryUse>> = BTreeMap::new();
        for use_ in uses {
            let account = self.account_of(&self.device_of(use_)).to_owned();
            accounts.entry(account).or_default().push(use_.clone());
        }
        accounts
    }

    /// The device that a use is of.
    pub(super) fn device_of(&self, use_: &MemoryUse) -> String {
        if use_.is_host || self.gpus().next().is_none() {
            return HOST.to_owned();
        }
        let by_id = use_.id.clone().filter(|id| self.entries.contains_key(id));
        let number: Option<u32> = use_.device.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        let of = |is_it: &dyn Fn(&Device) -> bool| {
            self.gpus().find(|(_, entry)| is_it(&entry.device)).map(|(key, _)| key.clone())
        };
        let bus = |bus_id: &Option<String>| bus_id.as_deref().map(normal_bus_id);
        by_id
            .or_else(|| of(&|device| use_.bus_id.is_some() && bus(&device.bus_id) == bus(&use_.bus_id)))
            .or_else(|| of(&|device| device.name == use_.device))
            .or_else(|| of(&|device| Some(device.index) == number))
            .or_else(|| of(&|_| true))
            .unwrap_or_else(|| HOST.to_owned())
    }

    pub(super) fn gpus(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.device.kind != DeviceKind::Host)
    }

    /// Has a GPU memory of its own?
    pub(super) fn has_memory_of_gpus(&self) -> bool {
        self.entries.values().any(|entry| entry.device.kind == DeviceKind::Gpu)
    }

    /// The GPUs that these take memory of, by name, whose state is such.
    pub(crate) fn gpus_of(
        &self,
        uses: &[MemoryUse],
        is_such: impl Fn(DeviceState) -> bool,
    ) -> impl Iterator<Item = (&str, DeviceState)> {
        let needs = self.by_device(uses);
        let gpus =
            self.gpus().filter(move |(name, entry)| needs.contains_key(*name) && is_such(entry.device.state));
        gpus.map(|(_, entry)| (&*entry.device.name, entry.device.state))
    }

    /// The GPUs whose state is such, by their number, each with the name that people know it by.
    pub(crate) fn gpus_that_are(&self, is_such: impl Fn(DeviceState) -> bool) -> Vec<(GpuAddress, String)> {
        let gpus = self.gpus().filter(|(_, entry)| is_such(entry.device.state));
        let mut gpus: Vec<(GpuAddress, String)> =
            gpus.map(|(_, entry)| (entry.device.address(), entry.device.name.clone())).collect();
        gpus.sort_by_key(|(gpu, _)| gpu.index);
        gpus
    }

    /// Those that models are placed on: all that can be used, or all, where none can. One that shares the host's memory
    /// is much slower than one with its own, and has its place where there is no other.
    pub(crate) fn gpus_for_models(&self) -> Vec<GpuAddress> {
        let has_own = self.has_memory_of_gpus();
        let is_for = |gpu: &GpuAddress| !has_own || self.account_of(&gpu.id) != HOST;
        let all = |is_such: &dyn Fn(DeviceState) -> bool| {
            let gpus = self.gpus_that_are(|state| !self.on_cpu && is_such(state));
            gpus.into_iter().map(|(gpu, _)| gpu).filter(is_for).collect::<Vec<_>>()
        };
        let usable = all(&|state| state == DeviceState::Ok);
        if usable.is_empty() { all(&|_| true) } else { usable }
    }

    /// The same, those with most room first.
    pub(crate) fn gpus_by_room(&self) -> Vec<GpuAddress> {
        let mut gpus = self.gpus_for_models();
        gpus.sort_by_key(|gpu| Reverse(self.left(self.account_of(&gpu.id), &|_| true)));
        gpus
    }

    /// Those of which too little has been free for long enough.
    pub(crate) fn pressed(&self) -> Vec<Pressed> {
        let is_pressed = |entry: &Entry| entry.low.is_some_and(|(_, lasted)| lasted >= LASTS);
        let pressed = |(id, entry): (&String, &Entry)| {
            let Entry { device, reserve, .. } = entry;
            let gpu = Some(device).filter(|it| it.kind == DeviceKind::Gpu);
            Pressed {
                id: id.clone(),
                name: device.name.clone(),
                free: device.free_bytes,
                reserve: *reserve,
                lack: of_files(reserve.saturating_sub(device.free_bytes), gpu),
            }
        };
        self.entries.iter().filter(|(_, entry)| is_pressed(entry)).map(pressed).collect()
    }

    /// Something was done about it: what is seen from now on counts.
    pub(crate) fn looks_anew(&mut self, now: Moment, id: &str) {
        if let Some(entry) = self.entries.get_mut(id) {
            entry.low = Some((now, Duration::ZERO));
        }
    }

    /// What uses take of an account.
    pub(crate) fn taken_of(&self, id: &str, uses: &[MemoryUse]) -> u64 {
        self.needs(uses).get(id).copied().unwrap_or(0)
    }

    pub(super) fn lost(&self) -> BTreeSet<String> {
        let lost = self.gpus().filter(|(_, entry)| entry.device.state == DeviceState::Lost);
        lost.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn name_of(&self, account: &str) -> String {
        self.entries.get(account).map_or_else(|| account.to_owned(), |entry| entry.device.name.clone())
    }

    /// What stands for a model whose engine cannot say, on its GPUs, or else on the first device.
    pub(crate) fn guess(&self, bytes: u64, place: &[GpuAddress]) -> Vec<MemoryUse> {
        let most = |gpu: Option<&Device>| {
            let device = gpu.map_or_else(|| HOST.to_owned(), Device::id);
            self.left(self.account_of(&device), &|worker| self.is_pinned(worker))
        };
        self.spread(bytes, place, |bytes, gpu| guessed(bytes, gpu, most(gpu)))
    }

    /// Its files alone, in the same places.
    pub(crate) fn files(&self, bytes: u64, place: &[GpuAddress]) -> Vec<MemoryUse> {
        self.spread(bytes, place, of_files)
    }

    fn spread(
        &self,
        bytes: u64,
        place: &[GpuAddress],
        on: impl Fn(u64, Option<&Device>) -> MemoryUse,
    ) -> Vec<MemoryUse> {
        let mut gpus: Vec<&Device> =
            self.gpus().filter(|_| !self.on_cpu).map(|(_, entry)| &entry.device).collect();
        if place.is_empty() {
            return vec![on(bytes, gpus.first().copied())];
        }
        gpus.retain(|gpu| place.contains(&gpu.address()));
        let each = bytes.div_ceil(gpus.len().max(1) as u64);
        gpus.into_iter().map(|gpu| on(each, Some(gpu))).collect()
    }
}

fn summed(uses: &[MemoryUse], name_of: impl Fn(&MemoryUse) -> String) -> BTreeMap<String, u64> {
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    for use_ in uses {
        let sum = sums.entry(name_of(use_)).or_default();
        *sum = sum.saturating_add(use_.total());
    }
    sums
}
