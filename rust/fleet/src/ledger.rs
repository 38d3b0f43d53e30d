//! What models may be placed on, and how much of it is spoken for.
//!
//! Owns the translation between an engine's account of memory and the node's devices, the question whether
//! there is room, and the words of a refusal. Figures of what is free are told to it.

use std::{collections::BTreeMap, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
};
use serde::Serialize;
use serde_json::json;

use crate::{
    Device, DeviceKind, Moment, Need, WorkerId,
    size::{format_down, format_up},
};

/// The account of the host's memory.
const HOST: &str = "host";
/// After a process has ended, its memory may take so long until it shows as free.
const SETTLE: Duration = Duration::from_secs(1);

/// All devices, and what each worker holds of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    /// The backend is the CPU: then the host's memory is the device, and the limit counts there.
    on_cpu: bool,
    limit: Option<u64>,
    entries: BTreeMap<String, Entry>,
    holdings: BTreeMap<WorkerId, Holding>,
    /// What was held last may not show as free before then.
    settled_from: Moment,
}

#[derive(Clone, Debug)]
struct Entry {
    device: Device,
    limit: u64,
    /// What was reserved, and taken already, when `device.free_bytes` was measured.
    taken_when_measured: u64,
    /// No load was under way then.
    was_calm: bool,
}

#[derive(Clone, Debug)]
struct Holding {
    model_id: String,
    /// Bytes by account.
    needs: BTreeMap<String, u64>,
    /// Its load is under way: the device's figure does not show it yet.
    is_pending: bool,
    is_pinned: bool,
}

/// A device, what models hold of it, and what they may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// As it was measured last.
    pub device: Device,
    /// Most that models may hold, in bytes.
    pub limit_bytes: u64,
    /// What they hold, in bytes.
    pub reserved_bytes: u64,
    /// Each of them.
    pub holders: Vec<Holder>,
}

/// Who holds memory of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// A model.
    pub model_id: String,
    /// How much.
    pub bytes: u64,
    /// It goes for nobody's sake.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub pinned: bool,
}

/// The use that stands for files of so many bytes: on a GPU, or on the host.
pub fn guessed(bytes: u64, gpu: Option<&Device>) -> MemoryUse {
    MemoryUse {
        device: gpu.map_or(HOST.to_owned(), |gpu| gpu.name.clone()),
        bus_id: gpu.and_then(|gpu| gpu.bus_id.clone()),
        is_host: gpu.is_none(),
        weights: bytes,
        ..MemoryUse::default()
    }
}

impl Ledger {
    /// `limit`: most bytes that models may take on each device.
    pub(crate) fn new(on_cpu: bool, limit: Option<u64>) -> Self {
        Self { on_cpu, limit, ..Self::default() }
    }

    /// Takes new figures over.
    pub(crate) fn read(&mut self, device: Device) {
        let key = key(&device);
        let counts = (device.kind == DeviceKind::Gpu) != self.on_cpu;
        let limit = self.limit.filter(|_| counts).unwrap_or(device.total_bytes);
        let taken_when_measured = self.held(&key, |_, holding| !holding.is_pending);
        let was_calm = self.holdings.values().all(|holding| !holding.is_pending);
        self.entries.insert(key, Entry { device, limit, taken_when_measured, was_calm });
    }

    /// Room for what an engine says that a load takes, in place of what the worker has; all of it or nothing. A
    /// refusal names every device concerned.
    pub(crate) fn reserve(
        &mut self,
        worker: WorkerId,
        uses: &[MemoryUse],
        model_id: &str,
        is_pinned: bool,
    ) -> Result<(), Fault> {
        self.room(uses, |other| other != worker)?;
        let mut needs = self.needs(uses);
        for (name, &bytes) in self.holdings.get(&worker).iter().flat_map(|holding| &holding.needs) {
            // Until it has the new, it may have the old again.
            let need = needs.entry(name.clone()).or_default();
            *need = bytes.max(*need);
        }
        let holding = Holding { model_id: model_id.to_owned(), needs, is_pending: true, is_pinned };
        self.holdings.insert(worker, holding);
        Ok(())
    }

    /// Is there room, beside those that stay? First by the limits, then by what is really there.
    pub(crate) fn room(&self, uses: &[MemoryUse], stays: impl Fn(WorkerId) -> bool) -> Result<(), Fault> {
        let needs = self.needs(uses);
        self.room_by_limits(&needs, &stays)?;
        for (name, &required) in &needs {
            let available = self.available(name, &stays);
            if required > available {
                let shortage = self.shortage(name, available, required, available);
                return Err(self.refusal(&needs, shortage, &stays));
            }
        }
        Ok(())
    }

    /// Could there be room for a worker, in place of what it has, if all others went that are not pinned? What is free is only looked at where its figures can
    /// be relied on.
    pub(crate) fn hope(&self, now: Moment, worker: WorkerId, uses: &[MemoryUse]) -> Result<(), Fault> {
        let is_pinned =
            |other| other != worker && self.holdings.get(&other).is_some_and(|holding| holding.is_pinned);
        if self.is_calm(now) {
            return self.room(uses, is_pinned);
        }
        self.room_by_limits(&self.needs(uses), &is_pinned)
    }

    /// Do the figures of what is free show all that is held, and nothing that has gone?
    pub(crate) fn is_calm(&self, now: Moment) -> bool {
        now >= self.settled_from && self.entries.values().all(|entry| entry.was_calm)
    }

    /// Whether it goes for nobody's sake.
    pub(crate) fn pin(&mut self, worker: WorkerId, is_pinned: bool) {
        if let Some(holding) = self.holdings.get_mut(&worker) {
            holding.is_pinned = is_pinned;
        }
    }

    fn room_by_limits(
        &self,
        needs: &BTreeMap<String, u64>,
        stays: &impl Fn(WorkerId) -> bool,
    ) -> Result<(), Fault> {
        for (name, &required) in needs {
            let held = self.held(name, |worker, _| stays(worker));
            let available = self.limit_of(name).saturating_sub(held);
            if required > available {
                let shortage = self.shortage(name, self.limit_of(name), required, available);
                return Err(self.refusal(needs, shortage, stays));
            }
        }
        Ok(())
    }

    /// Does it hold anything?
    pub(crate) fn holds(&self, worker: WorkerId) -> bool {
        self.holdings.contains_key(&worker)
    }

    /// Its load is done: the devices' figures show it from now on, and `uses` is what it came to. Where that
    /// is more than the limits leave, it stays with what was reserved, and a sentence says so.
    pub(crate) fn settle(&mut self, worker: WorkerId, uses: &[MemoryUse]) -> Option<String> {
        let needs = self.needs(uses);
        let holding = self.holdings.get_mut(&worker)?;
        holding.is_pending = false;
        if needs.values().all(|&bytes| bytes == 0) {
            return None;
        }
        let before = std::mem::take(&mut holding.needs);
        for (name, &required) in &needs {
            let available = self.limit_of(name).saturating_sub(self.reserved(name));
            if required > available {
                if let Some(holding) = self.holdings.get_mut(&worker) {
                    holding.needs = before;
                }
                return Some(self.shortage(name, self.limit_of(name), required, available).message);
            }
        }
        if let Some(holding) = self.holdings.get_mut(&worker) {
            holding.needs = needs;
        }
        None
    }

    /// It is gone.
    pub(crate) fn release(&mut self, now: Moment, worker: WorkerId) {
        if self.holdings.remove(&worker).is_some() {
            self.settled_from = now + SETTLE;
        }
    }

    /// The use that stands for a model whose engine cannot say: its files, on the first device.
    pub(crate) fn guess(&self, bytes: u64) -> MemoryUse {
        guessed(bytes, self.gpus().next().filter(|_| !self.on_cpu).map(|(_, entry)| &entry.device))
    }

    /// What a load would take of each device, and what there is beside all that others than this worker hold.
    pub(crate) fn needs_of(&self, uses: &[MemoryUse], worker: WorkerId) -> Vec<Need> {
        let needs = self.needs(uses);
        let need = |(name, required_bytes): (&String, &u64)| {
            let stays = |other| other != worker;
            let of_limit = self.limit_of(name).saturating_sub(self.held(name, |other, _| stays(other)));
            Need {
                device: self
                    .entries
                    .get(name)
                    .map_or_else(|| name.clone(), |entry| entry.device.name.clone()),
                required_bytes: *required_bytes,
                available_bytes: of_limit.min(self.available(name, &stays)),
                limit_bytes: self.limit_of(name),
            }
        };
        needs.iter().map(need).collect()
    }

    /// Who holds something of where a load would go.
    pub(crate) fn holders_of(&self, uses: &[MemoryUse]) -> Vec<Holder> {
        let needs = self.needs(uses);
        needs.keys().flat_map(|name| self.holders(name)).collect()
    }

    /// All accounts: GPUs by their number, the host last.
    pub(crate) fn accounts(&self) -> Vec<Account> {
        let mut accounts: Vec<Account> = self
            .entries
            .iter()
            .map(|(name, entry)| Account {
                device: entry.device.clone(),
                limit_bytes: entry.limit,
                reserved_bytes: self.reserved(name),
                holders: self.holders(name).collect(),
            })
            .collect();
        accounts.sort_by_key(|account| (account.device.kind == DeviceKind::Host, account.device.index));
        accounts
    }

    fn needs(&self, uses: &[MemoryUse]) -> BTreeMap<String, u64> {
        let mut needs: BTreeMap<String, u64> = BTreeMap::new();
        for use_ in uses {
            let need = needs.entry(self.account_of(use_)).or_default();
            *need = need.saturating_add(use_.total());
        }
        needs
    }

    fn held(&self, name: &str, counts: impl Fn(WorkerId, &Holding) -> bool) -> u64 {
        let holdings = self.holdings.iter().filter(|(worker, holding)| counts(**worker, holding));
        holdings
            .filter_map(|(_, holding)| holding.needs.get(name))
            .fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }

    fn reserved(&self, name: &str) -> u64 {
        self.held(name, |_, _| true)
    }

    fn holders<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Holder> + 'a {
        self.holdings.values().filter_map(move |holding| {
            let bytes = *holding.needs.get(name).filter(|bytes| **bytes > 0)?;
            Some(Holder { model_id: holding.model_id.clone(), bytes, pinned: holding.is_pinned })
        })
    }

    /// A device that nobody knows has no room.
    fn limit_of(&self, name: &str) -> u64 {
        self.entries.get(name).map_or(0, |entry| entry.limit)
    }

    /// What the device itself still has, after all that was promised since it was measured, beside those that
    /// stay.
    fn available(&self, name: &str, stays: &impl Fn(WorkerId) -> bool) -> u64 {
        let Some(entry) = self.entries.get(name) else { return 0 };
        let before = entry.device.free_bytes.saturating_add(entry.taken_when_measured);
        before.saturating_sub(self.held(name, |worker, _| stays(worker)))
    }

    /// `limit`: what stood in the way.
    fn shortage(&self, name: &str, limit: u64, required: u64, available: u64) -> Fault {
        // With a limit the host's memory plays the part of a GPU's; without one it is only memory.
        let is_video = name != HOST || (self.on_cpu && self.limit == Some(limit));
        let (code, memory) = if is_video { (ErrorCode::OomVram, "VRAM") } else { (ErrorCode::OomRam, "RAM") };
        let (required, available) = (format_up(required), format_down(available));
        Fault::new(code, format!("Insufficient {memory}: required {required}, available {available}"))
    }

    fn refusal(
        &self,
        needs: &BTreeMap<String, u64>,
        shortage: Fault,
        stays: &impl Fn(WorkerId) -> bool,
    ) -> Fault {
        let devices: Vec<_> = needs
            .iter()
            .map(|(name, required)| {
                json!({
                    "device": self.entries.get(name).map_or(name.as_str(), |entry| &entry.device.name),
                    "required_bytes": required,
                    "free_bytes": self.available(name, stays),
                    "limit_bytes": self.limit_of(name),
                })
            })
            .collect();
        let holders: Vec<Holder> = needs.keys().flat_map(|name| self.holders(name)).collect();
        shortage.details(json!({ "devices": devices, "holders": holders }).to_string())
    }

    fn gpus(&self) -> impl Iterator<Item = (&String, &Entry)> {
        self.entries.iter().filter(|(_, entry)| entry.device.kind == DeviceKind::Gpu)
    }

    fn account_of(&self, use_: &MemoryUse) -> String {
        if use_.is_host || self.gpus().next().is_none() {
            return HOST.to_owned();
        }
        let by_bus = use_.bus_id.as_deref().map(normal_bus_id).filter(|key| self.entries.contains_key(key));
        let number: Option<u32> = use_.device.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
        let of = |is_it: &dyn Fn(&Device) -> bool| {
            self.gpus().find(|(_, entry)| is_it(&entry.device)).map(|(key, _)| key.clone())
        };
        by_bus
            .or_else(|| of(&|device| device.name == use_.device))
            .or_else(|| of(&|device| Some(device.index) == number))
            .or_else(|| of(&|_| true))
            .unwrap_or_else(|| HOST.to_owned())
    }
}

fn key(device: &Device) -> String {
    match (device.kind, &device.bus_id) {
        (DeviceKind::Host, _) => HOST.to_owned(),
        (DeviceKind::Gpu, Some(bus_id)) => normal_bus_id(bus_id),
        (DeviceKind::Gpu, None) => format!("gpu{}", device.index),
    }
}

/// NVML writes the domain with eight digits, CUDA with four, and either in any case.
fn normal_bus_id(bus_id: &str) -> String {
    bus_id.trim_start_matches('0').to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn gpu(index: u32, free: u64) -> Device {
        Device {
            index,
            name: "GPU".into(),
            bus_id: Some(format!("00000000:0{index}:00.0")),
            total_bytes: 24 * GIB,
            free_bytes: free,
            kind: DeviceKind::Gpu,
        }
    }

    fn host(total: u64, free: u64) -> Device {
        let (total_bytes, free_bytes) = (total, free);
        Device { index: 0, name: HOST.into(), bus_id: None, total_bytes, free_bytes, kind: DeviceKind::Host }
    }

    fn ledger(devices: impl IntoIterator<Item = Device>, on_cpu: bool, limit: Option<u64>) -> Ledger {
        let mut ledger = Ledger::new(on_cpu, limit);
        devices.into_iter().for_each(|device| ledger.read(device));
        ledger
    }

    fn use_on(bus_id: Option<&str>, bytes: u64) -> MemoryUse {
        MemoryUse {
            device: "CUDA0".into(),
            bus_id: bus_id.map(str::to_owned),
            is_host: bus_id.is_none(),
            weights: bytes,
            ..MemoryUse::default()
        }
    }

    #[test]
    fn the_limit_is_kept_and_worded_as_specified() {
        for (on_cpu, bus_id) in [(false, Some("0000:00:00.0")), (true, None)] {
            let devices = [gpu(0, 20 * GIB), host(64 * GIB, 60 * GIB)];
            let mut ledger = ledger(devices, on_cpu, Some(8 * GIB));
            let fault = ledger.reserve(1, &[use_on(bus_id, 16 * GIB)], "big", false).unwrap_err();
            assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 8GB");
            assert_eq!(fault.code, ErrorCode::OomVram);
            let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
            assert_eq!(details["devices"][0]["required_bytes"], 16 * GIB);
            assert_eq!(details["devices"][0]["limit_bytes"], 8 * GIB);
            ledger.reserve(1, &[use_on(bus_id, 2 * GIB)], "small", false).unwrap();
            let fault = ledger.reserve(2, &[use_on(bus_id, 16 * GIB)], "big", false).unwrap_err();
            assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 6GB");
            let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
            assert_eq!(details["holders"][0]["model_id"], "small");
        }
    }

    #[test]
    fn what_is_promised_is_not_promised_twice() {
        let mut ledger = ledger([gpu(0, 10 * GIB), gpu(1, 10 * GIB)], false, None);
        let (first, second) = (Some("0000:00:00.0"), Some("0000:01:00.0"));
        ledger.reserve(1, &[use_on(first, 6 * GIB)], "one", false).unwrap();
        let refused = ledger.reserve(2, &[use_on(first, 6 * GIB)], "two", false).unwrap_err();
        assert_eq!(refused.message, "Insufficient VRAM: required 6GB, available 4GB");
        ledger.reserve(2, &[use_on(second, 6 * GIB)], "two", false).unwrap();
        // Once loaded, a fresh figure shows the model; it must not be counted a second time.
        assert_eq!(ledger.settle(1, &[use_on(first, 5 * GIB)]), None);
        ledger.read(gpu(0, 5 * GIB));
        ledger.reserve(3, &[use_on(first, 5 * GIB)], "three", false).unwrap();
        for worker in 1..=3 {
            ledger.release(Moment::default(), worker);
        }
        assert!(ledger.accounts().iter().all(|account| account.reserved_bytes == 0));
    }

    #[test]
    fn plain_memory_is_not_video_memory() {
        let mut ledger = ledger([host(64 * GIB, 60 * GIB)], true, None);
        let fault = ledger.reserve(1, &[use_on(None, 1 << 50)], "huge", false).unwrap_err();
        assert_eq!(fault.code, ErrorCode::OomRam);
        assert_eq!(fault.message, "Insufficient RAM: required 1048576GB, available 64GB");
        let fault = ledger.reserve(1, &[use_on(None, 62 * GIB)], "large", false).unwrap_err();
        assert_eq!(fault.message, "Insufficient RAM: required 62GB, available 60GB");
    }

    #[test]
    fn more_than_was_estimated_is_said_and_what_was_reserved_stays() {
        let mut ledger = ledger([gpu(0, 20 * GIB)], false, Some(8 * GIB));
        let bus_id = Some("0000:00:00.0");
        ledger.reserve(1, &[use_on(bus_id, 4 * GIB)], "one", false).unwrap();
        let words = ledger.settle(1, &[use_on(bus_id, 9 * GIB)]).unwrap();
        assert_eq!(words, "Insufficient VRAM: required 9GB, available 8GB");
        assert_eq!(ledger.accounts()[0].reserved_bytes, 4 * GIB);
        assert_eq!(ledger.settle(1, &[use_on(bus_id, 8 * GIB)]), None);
        assert_eq!(
            ledger.accounts()[0].holders,
            [Holder { model_id: "one".into(), bytes: 8 * GIB, pinned: false }]
        );
    }

    #[test]
    fn what_is_pinned_is_no_hope() {
        let mut ledger = ledger([gpu(0, 10 * GIB)], false, None);
        let bus_id = Some("0000:00:00.0");
        let now = Moment::default();
        ledger.reserve(1, &[use_on(bus_id, 4 * GIB)], "one", false).unwrap();
        ledger.reserve(2, &[use_on(bus_id, 4 * GIB)], "two", true).unwrap();
        for worker in [1, 2] {
            assert_eq!(ledger.settle(worker, &[]), None);
        }
        ledger.read(gpu(0, 2 * GIB));
        assert!(ledger.room(&[use_on(bus_id, 6 * GIB)], |worker| worker == 2).is_ok());
        assert!(ledger.hope(now, 0, &[use_on(bus_id, 6 * GIB)]).is_ok());
        let fault = ledger.hope(now, 0, &[use_on(bus_id, 7 * GIB)]).unwrap_err();
        assert_eq!(fault.message, "Insufficient VRAM: required 7GB, available 6GB");
        let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
        assert_eq!(
            (&details["holders"][0]["pinned"], &details["holders"][1]["pinned"]),
            (&json!(null), &json!(true))
        );
        // While a load is under way, and just after somebody has gone, what is free is not known so well.
        ledger.reserve(3, &[use_on(bus_id, GIB)], "three", false).unwrap();
        ledger.read(gpu(0, GIB));
        assert!(!ledger.is_calm(now) && ledger.hope(now, 0, &[use_on(bus_id, 19 * GIB)]).is_ok());
        ledger.release(now, 3);
        ledger.read(gpu(0, 2 * GIB));
        assert!(!ledger.is_calm(now) && ledger.is_calm(now + SETTLE));
        ledger.pin(2, false);
        assert!(ledger.hope(now + SETTLE, 0, &[use_on(bus_id, 10 * GIB)]).is_ok());
    }

    proptest! {
        #[test]
        fn never_oversubscribed(
            limits in prop::collection::vec(0u64..1000, 1..4),
            actions in prop::collection::vec(
                (0u64..3, prop::collection::vec((0usize..4, prop_oneof![0u64..600, Just(u64::MAX)]), 1..4), 0u64..8),
                0..60,
            ),
        ) {
            let device = |(index, limit): (usize, &u64)| Device {
                total_bytes: *limit,
                bus_id: None,
                ..gpu(index as u32, *limit)
            };
            let mut ledger = ledger(limits.iter().enumerate().map(device), false, None);
            for (kind, needs, worker) in actions {
                let uses: Vec<MemoryUse> = needs
                    .iter()
                    .map(|(index, bytes)| MemoryUse { device: format!("CUDA{index}"), ..use_on(Some("none"), *bytes) })
                    .collect();
                match kind {
                    0 if !ledger.holds(worker) => drop(ledger.reserve(worker, &uses, "m", false)),
                    1 => drop(ledger.settle(worker, &uses)),
                    _ => ledger.release(Moment::default(), worker),
                }
                for account in ledger.accounts() {
                    prop_assert!(account.reserved_bytes <= account.limit_bytes);
                    let held: u64 = account.holders.iter().map(|holder| holder.bytes).sum();
                    prop_assert_eq!(held, account.reserved_bytes);
                }
            }
        }
    }
}
