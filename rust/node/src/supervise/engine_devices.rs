//! GPUs that NVML knows nothing of: what an engine says of them (`engine.memory/1`).
//!
//! Whoever looks at a GPU may take memory of it, by its driver. So a worker that answers is asked, which has it open
//! already; and where there is none, a process that ends at once, when somebody wants to know. Of GPUs that share the
//! host's memory nobody is asked again: what is free there is measured as the host's.

use std::{sync::mpsc, time::Duration};

use llm_node_fleet::{Device, DeviceKind, DeviceState, Status};
use llm_node_wire::message::{EngineDevice, ToWorker};
use parking_lot::Mutex;

use super::{Inner, asking, load::address};

/// A worker's answer is not waited for longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The backends whose devices are read otherwise: through NVML, or as the host's memory.
const READ_OTHERWISE: [&str; 2] = ["cpu", "cuda"];
/// Of these all GPUs share the host's memory, whatever an engine calls them.
const SHARING: &str = "metal";

/// The last question to a worker: its number, and who waits for the answer.
#[derive(Debug, Default)]
struct Asked {
    number: u64,
    waits: Option<mpsc::Sender<Vec<EngineDevice>>>,
}

/// The engine that told of devices last, and which: others may count them otherwise.
#[derive(Clone, Debug)]
struct Told {
    engine: String,
    devices: Vec<Device>,
}

impl Told {
    /// Is what it said still so?
    fn lasts(&self) -> bool {
        self.devices.iter().all(|device| device.kind == DeviceKind::Unified)
    }
}

/// Who tells of the devices, and who waits for a worker to do so.
#[derive(Debug, Default)]
pub(super) struct EngineDevices {
    last: Mutex<Option<Told>>,
    asked: Mutex<Asked>,
}

impl EngineDevices {
    /// A worker has answered.
    pub(super) fn heard(&self, number: u64, devices: Vec<EngineDevice>) {
        let mut asked = self.asked.lock();
        // What comes late was seen before somebody asked again.
        if asked.number == number
            && let Some(waits) = asked.waits.take()
        {
            let _ = waits.send(devices);
        }
    }

    fn ask(&self, waits: mpsc::Sender<Vec<EngineDevice>>) -> u64 {
        let mut asked = self.asked.lock();
        let number = asked.number + 1;
        *asked = Asked { number, waits: Some(waits) };
        number
    }
}

impl Inner {
    /// Are the GPUs of this node only known by what engines say?
    pub(super) fn is_told_of_gpus(&self) -> bool {
        let is_known = |device: &Device| device.kind != DeviceKind::Host;
        let backend = self.config.gpu_backend.as_deref();
        backend.is_some_and(|backend| !READ_OTHERWISE.contains(&backend))
            && !self.config.devices.iter().any(is_known)
    }

    /// The GPUs as an engine tells of them now; none, where none can say.
    pub(super) fn told_gpus(&self) -> Vec<Device> {
        let backend = self.config.gpu_backend.as_deref();
        if let Some(last) = self.engine_devices.last.lock().clone() {
            if last.lasts() {
                return last.devices;
            }
            if let Some(devices) = self.ask_a_worker(&last.engine) {
                return as_devices(backend, devices);
            }
        }
        for candidate in self.candidates(false) {
            let is_of_backend = candidate.manifest.as_ref().map(|it| &*it.gpu_backend) == backend;
            let can_say = |id: &String| id == "engine.memory/1";
            let offers = candidate.verdict.as_ref().is_ok_and(|facts| facts.extensions.iter().any(can_say));
            let Ok(address) = address(&candidate) else { continue };
            if !is_of_backend || !offers {
                continue;
            }
            match asking::list(self, &address) {
                Ok(devices) if devices.is_empty() => {}
                Ok(devices) => {
                    let devices = as_devices(backend, devices);
                    let told = Told { engine: address.id, devices: devices.clone() };
                    *self.engine_devices.last.lock() = Some(told);
                    return devices;
                }
                Err(_) if self.processes.is_closed() => break,
                Err(fault) => log::warn!("engine '{}' does not tell of its devices: {fault}", address.id),
            }
        }
        Vec::new()
    }

    /// Are the devices known without a process for that: has none memory of its own, or answers a worker that can be
    /// asked?
    pub(super) fn has_who_tells(&self) -> bool {
        let last = self.engine_devices.last.lock();
        last.as_ref().is_some_and(|last| last.lasts() || self.who_tells(&last.engine).is_some())
    }

    fn who_tells(&self, engine: &str) -> Option<u64> {
        let view = self.fleet.view();
        let mut workers = view.models.values().flat_map(|model| &model.workers);
        let tells = workers.find(|worker| {
            worker.status == Status::Loaded
                && worker.loaded.as_ref().is_some_and(|(_, loaded)| loaded.engine.id == engine)
        });
        tells.map(|worker| worker.id)
    }

    fn ask_a_worker(&self, engine: &str) -> Option<Vec<EngineDevice>> {
        let process = self.processes.get(self.who_tells(engine)?)?;
        let (waits, answer) = mpsc::channel();
        let number = self.engine_devices.ask(waits);
        process.link.send(ToWorker::Devices { number });
        answer.recv_timeout(ANSWER_DEADLINE).ok().filter(|devices| !devices.is_empty())
    }
}

fn as_devices(backend: Option<&str>, told: Vec<EngineDevice>) -> Vec<Device> {
    let shares = backend == Some(SHARING);
    let device = |(index, told): (u32, EngineDevice)| Device {
        index,
        name: told.name,
        bus_id: told.bus_id,
        uuid: None,
        total_bytes: told.total_bytes,
        free_bytes: told.free_bytes.min(told.total_bytes),
        kind: if shares || told.is_integrated { DeviceKind::Unified } else { DeviceKind::Gpu },
        processes: Vec::new(),
        state: DeviceState::Ok,
        look: None,
    };
    (0..).zip(told).map(device).collect()
}
