//! What models may be placed on, and how much of it is spoken for.
//!
//! Owns the translation between an engine's account of memory and the ledger's devices, and the
//! question whether there is room. Refuses to touch a GPU: figures come from NVML, through Python.

use std::{collections::BTreeMap, sync::Arc};

use llm_node_core::{
    error::{ErrorCode, Fault},
    vram::ledger::{DeviceAccount, Ledger, Reservation, Shortage},
};
use llm_node_wire::message::MemoryUse;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::json;

use crate::{
    config::{Device, DeviceKind},
    host_memory,
};

/// The account of the host's memory.
const HOST: &str = "host";

/// All devices of the node, with their ledger.
#[derive(Debug)]
pub struct Devices {
    state: Arc<Mutex<State>>,
    /// The backend is "cpu": then the host's memory is the device, and the limit counts there.
    on_cpu: bool,
    vram_limit: Option<u64>,
}

#[derive(Debug, Default)]
struct State {
    ledger: Ledger,
    devices: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    device: Device,
    /// What was reserved, and taken already, when `device.free_bytes` was measured.
    taken_when_measured: u64,
    /// Reserved for loads under way: the device's figure does not show it yet.
    pending: u64,
}

/// Room for one model. Dropping it gives the room back.
#[derive(Debug)]
pub struct Room {
    state: Arc<Mutex<State>>,
    reservation: Option<Reservation>,
    /// Bytes by account.
    needs: BTreeMap<String, u64>,
    pending: bool,
}

/// A device as `/api/system` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceRow {
    index: u32,
    name: String,
    bus_id: Option<String>,
    kind: DeviceKind,
    total_bytes: u64,
    free_bytes: u64,
    limit_bytes: u64,
    reserved_bytes: u64,
    holders: Vec<Holder>,
}

#[derive(Clone, Debug, Serialize)]
struct Holder {
    model_id: String,
    bytes: u64,
}

impl Devices {
    /// `vram_limit`: most bytes that models may take on each device.
    pub fn new(devices: &[Device], gpu_backend: Option<&str>, vram_limit: Option<u64>) -> Self {
        let this = Self {
            state: Arc::new(Mutex::new(State::default())),
            on_cpu: gpu_backend == Some("cpu"),
            vram_limit,
        };
        this.update(devices);
        this
    }

    /// Takes new figures over.
    pub fn update(&self, devices: &[Device]) {
        let mut state = self.state.lock();
        let mut devices = devices.to_vec();
        if !devices.iter().any(|device| device.kind == DeviceKind::Host) {
            devices.push(measure_host());
        }
        for device in devices {
            self.enter(&mut state, device);
        }
    }

    fn enter(&self, state: &mut State, device: Device) {
        let key = key(&device);
        let counts = (device.kind == DeviceKind::Gpu) != self.on_cpu;
        let limit = self.vram_limit.filter(|_| counts).unwrap_or(device.total_bytes);
        state.ledger.set_limit(key.as_str(), limit);
        let reserved = reserved(&state.ledger, &key);
        let pending = state.devices.get(&key).map_or(0, |entry| entry.pending);
        let taken_when_measured = reserved.saturating_sub(pending);
        state.devices.insert(key, Entry { device, taken_when_measured, pending });
    }

    /// Room for what an engine says that a load takes. A refusal names every device concerned.
    pub fn reserve(&self, uses: &[MemoryUse], model_id: &str) -> Result<Room, Fault> {
        let mut state = self.state.lock();
        self.enter(&mut state, measure_host());
        let mut needs: BTreeMap<String, u64> = BTreeMap::new();
        for use_ in uses {
            let need = needs.entry(account_of(&state, use_)).or_default();
            *need = need.saturating_add(use_.total());
        }
        let list: Vec<(String, u64)> = needs.iter().map(|(device, bytes)| (device.clone(), *bytes)).collect();
        let reservation = state
            .ledger
            .reserve_all(&list, model_id)
            .map_err(|shortage| self.refusal(&state, &needs, &shortage))?;
        // The limit is kept; now what is really there.
        for (name, &required) in &needs {
            let available = state.available_beside(name, required);
            if required > available {
                drop(reservation);
                let account = account(&state.ledger, name);
                let account = DeviceAccount { limit: available, reserved: 0, ..account };
                return Err(self.refusal(&state, &needs, &Shortage { required, account }));
            }
        }
        for (name, bytes) in &needs {
            if let Some(entry) = state.devices.get_mut(name) {
                entry.pending = entry.pending.saturating_add(*bytes);
            }
        }
        Ok(Room { state: Arc::clone(&self.state), reservation: Some(reservation), needs, pending: true })
    }

    /// The use that stands for a model whose engine cannot say: its files, on the first device.
    pub fn weights(&self, bytes: u64) -> MemoryUse {
        let state = self.state.lock();
        let gpu = state.devices.values().find(|entry| entry.device.kind == DeviceKind::Gpu && !self.on_cpu);
        MemoryUse {
            device: gpu.map_or(HOST.to_owned(), |entry| entry.device.name.clone()),
            bus_id: gpu.and_then(|entry| entry.device.bus_id.clone()),
            is_host: gpu.is_none(),
            weights: bytes,
            ..MemoryUse::default()
        }
    }

    /// For `/api/system`.
    pub fn rows(&self) -> Vec<DeviceRow> {
        let mut state = self.state.lock();
        self.enter(&mut state, measure_host());
        let mut rows: Vec<DeviceRow> = state
            .devices
            .iter()
            .map(|(key, entry)| {
                let account = account(&state.ledger, key);
                DeviceRow {
                    index: entry.device.index,
                    name: entry.device.name.clone(),
                    bus_id: entry.device.bus_id.clone(),
                    kind: entry.device.kind,
                    total_bytes: entry.device.total_bytes,
                    free_bytes: entry.device.free_bytes,
                    limit_bytes: account.limit,
                    reserved_bytes: account.reserved,
                    holders: holders(&account),
                }
            })
            .collect();
        rows.sort_by_key(|row| (row.kind == DeviceKind::Host, row.index));
        rows
    }

    fn refusal(&self, state: &State, needs: &BTreeMap<String, u64>, shortage: &Shortage) -> Fault {
        let host = shortage.account.device == HOST;
        // With a limit the host's memory plays the part of a GPU's; without one it is only memory.
        let limited = self.on_cpu && self.vram_limit == Some(shortage.account.limit);
        let (code, message) = if host && !limited {
            (ErrorCode::OomRam, shortage.to_string().replacen("VRAM", "RAM", 1))
        } else {
            (ErrorCode::OomVram, shortage.to_string())
        };
        let devices: Vec<_> = needs
            .iter()
            .map(|(name, required)| {
                json!({
                    "device": state.devices.get(name).map_or(name.as_str(), |entry| &entry.device.name),
                    "required_bytes": required,
                    "free_bytes": state.available(name),
                    "limit_bytes": account(&state.ledger, name).limit,
                })
            })
            .collect();
        let holders: Vec<Holder> =
            needs.keys().flat_map(|name| holders(&account(&state.ledger, name))).collect();
        Fault::new(code, message).details(json!({ "devices": devices, "holders": holders }).to_string())
    }
}

impl State {
    /// What the device itself still has, after all that was promised since it was measured.
    fn available(&self, name: &str) -> u64 {
        self.available_beside(name, 0)
    }

    /// The same, leaving out so many of the bytes that are reserved.
    fn available_beside(&self, name: &str, own: u64) -> u64 {
        let Some(entry) = self.devices.get(name) else { return 0 };
        let reserved = reserved(&self.ledger, name).saturating_sub(own);
        entry.device.free_bytes.saturating_add(entry.taken_when_measured).saturating_sub(reserved)
    }
}

impl Room {
    /// The load is done: the devices' figures show it from now on, and `uses` is what it came to.
    pub fn settle(&mut self, uses: &[MemoryUse], model_id: &str) {
        let mut state = self.state.lock();
        forget_pending(&mut state, &self.needs);
        self.pending = false;
        if uses.iter().all(|use_| use_.total() == 0) {
            return;
        }
        let mut needs: BTreeMap<String, u64> = BTreeMap::new();
        for use_ in uses {
            let need = needs.entry(account_of(&state, use_)).or_default();
            *need = need.saturating_add(use_.total());
        }
        let list: Vec<(String, u64)> = needs.iter().map(|(device, bytes)| (device.clone(), *bytes)).collect();
        let Some(reservation) = &mut self.reservation else { return };
        match reservation.replace(&list) {
            Ok(()) => self.needs = needs,
            Err(shortage) => {
                log::warn!("model '{model_id}' takes more than its engine estimated: {shortage}");
            }
        }
    }

    /// Bytes in all.
    pub fn total(&self) -> u64 {
        self.needs.values().fold(0, |sum, bytes| sum.saturating_add(*bytes))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if self.pending {
            forget_pending(&mut state, &self.needs);
        }
        // Explicitly under the lock: whoever asks next sees both changes.
        drop(self.reservation.take());
    }
}

fn forget_pending(state: &mut State, needs: &BTreeMap<String, u64>) {
    for (name, bytes) in needs {
        if let Some(entry) = state.devices.get_mut(name) {
            entry.pending = entry.pending.saturating_sub(*bytes);
        }
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

fn account_of(state: &State, use_: &MemoryUse) -> String {
    let gpus = || state.devices.iter().filter(|(_, entry)| entry.device.kind == DeviceKind::Gpu);
    if use_.is_host || gpus().next().is_none() {
        return HOST.to_owned();
    }
    let by_bus = use_.bus_id.as_deref().map(normal_bus_id).filter(|key| state.devices.contains_key(key));
    let number: Option<u32> = use_.device.trim_start_matches(|c: char| !c.is_ascii_digit()).parse().ok();
    by_bus
        .or_else(|| gpus().find(|(_, entry)| entry.device.name == use_.device).map(|(key, _)| key.clone()))
        .or_else(|| gpus().find(|(_, entry)| Some(entry.device.index) == number).map(|(key, _)| key.clone()))
        .or_else(|| gpus().next().map(|(key, _)| key.clone()))
        .unwrap_or_else(|| HOST.to_owned())
}

fn account(ledger: &Ledger, name: &str) -> DeviceAccount {
    ledger.devices().into_iter().find(|account| account.device == name).unwrap_or_else(|| DeviceAccount {
        device: name.to_owned(),
        limit: 0,
        reserved: 0,
        holders: Vec::new(),
    })
}

fn reserved(ledger: &Ledger, name: &str) -> u64 {
    account(ledger, name).reserved
}

fn holders(account: &DeviceAccount) -> Vec<Holder> {
    let holder = |(model_id, bytes): &(String, u64)| Holder { model_id: model_id.clone(), bytes: *bytes };
    account.holders.iter().map(holder).collect()
}

/// The host's memory as it is now.
fn measure_host() -> Device {
    let memory = host_memory::read();
    Device {
        index: 0,
        name: HOST.to_owned(),
        bus_id: None,
        total_bytes: memory.total,
        free_bytes: memory.available,
        kind: DeviceKind::Host,
    }
}

#[cfg(test)]
mod tests {
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
        for (backend, bus_id) in [("cuda", Some("0000:00:00.0")), ("cpu", None)] {
            let devices = Devices::new(&[gpu(0, 20 * GIB)], Some(backend), Some(8 * GIB));
            let fault = devices.reserve(&[use_on(bus_id, 16 * GIB)], "big").unwrap_err();
            assert_eq!(fault.message, "Insufficient VRAM: required 16GB, available 8GB");
            assert_eq!(fault.code, ErrorCode::OomVram);
            let details: serde_json::Value = serde_json::from_str(&fault.details.unwrap()).unwrap();
            assert_eq!(details["devices"][0]["required_bytes"], 16 * GIB);
            assert_eq!(details["devices"][0]["limit_bytes"], 8 * GIB);
        }
    }

    #[test]
    fn what_is_promised_is_not_promised_twice() {
        let devices = Devices::new(&[gpu(0, 10 * GIB), gpu(1, 10 * GIB)], Some("cuda"), None);
        let mut room = devices.reserve(&[use_on(Some("0000:00:00.0"), 6 * GIB)], "one").unwrap();
        let refused = devices.reserve(&[use_on(Some("0000:00:00.0"), 6 * GIB)], "two").unwrap_err();
        assert_eq!(refused.message, "Insufficient VRAM: required 6GB, available 4GB");
        let second = devices.reserve(&[use_on(Some("0000:01:00.0"), 6 * GIB)], "two").unwrap();
        // Once loaded, a fresh figure shows the model; it must not be counted a second time.
        room.settle(&[use_on(Some("0000:00:00.0"), 5 * GIB)], "one");
        devices.update(&[gpu(0, 5 * GIB)]);
        assert!(devices.reserve(&[use_on(Some("0000:00:00.0"), 5 * GIB)], "three").is_ok());
        drop((room, second));
        assert!(devices.rows().iter().all(|row| row.reserved_bytes == 0));
    }

    #[test]
    fn plain_memory_is_not_video_memory() {
        let devices = Devices::new(&[], Some("cpu"), None);
        let fault = devices.reserve(&[use_on(None, 1 << 50)], "huge").unwrap_err();
        assert_eq!(fault.code, ErrorCode::OomRam);
        assert!(fault.message.starts_with("Insufficient RAM: required 1048576GB, available "));
    }
}
