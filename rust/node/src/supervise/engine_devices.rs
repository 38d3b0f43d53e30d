//! GPUs that NVML knows nothing of: what an engine says of them (`engine.memory/1`).
//!
//! Whoever looks at a GPU may take memory of it, by its driver. So a worker that answers is asked, which has it open
//! already; and where there is none, a process that ends at once, when somebody wants to know.

use std::{sync::mpsc, time::Duration};

use llm_node_fleet::{Device, DeviceKind, DeviceState, Status};
use llm_node_wire::message::{EngineDevice, ToWorker};
use parking_lot::Mutex;

use super::{Inner, asking, load::address};

/// A worker's answer is not waited for longer.
const ANSWER_DEADLINE: Duration = Duration::from_secs(1);

/// The backends whose GPUs are read otherwise: through NVML, or as the host's memory.
const READ_OTHERWISE: [&str; 3] = ["cpu", "cuda", "metal"];

/// The last question to a worker: its number, and who waits for the answer.
#[derive(Debug, Default)]
struct Asked {
    number: u64,
    waits: Option<mpsc::Sender<Vec<EngineDevice>>>,
}

/// Who tells of the devices, and who waits for a worker to do so.
#[derive(Debug, Default)]
pub(super) struct EngineDevices {
    /// The engine that told of some last: others may count them otherwise.
    by: Mutex<Option<String>>,
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
        let by = self.engine_devices.by.lock().clone();
        if let Some(devices) = by.and_then(|engine| self.ask_a_worker(&engine)) {
            return as_devices(devices);
        }
        let backend = self.config.gpu_backend.as_deref();
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
                    *self.engine_devices.by.lock() = Some(address.id);
                    return as_devices(devices);
                }
                Err(_) if self.processes.is_closed() => break,
                Err(fault) => log::warn!("engine '{}' does not tell of its devices: {fault}", address.id),
            }
        }
        Vec::new()
    }

    /// Does a worker answer that can be asked about the devices?
    pub(super) fn has_who_tells(&self) -> bool {
        self.engine_devices.by.lock().as_ref().is_some_and(|engine| self.who_tells(engine).is_some())
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

fn as_devices(told: Vec<EngineDevice>) -> Vec<Device> {
    let device = |(index, told): (u32, EngineDevice)| Device {
        index,
        name: told.name,
        bus_id: told.bus_id,
        uuid: None,
        total_bytes: told.total_bytes,
        free_bytes: told.free_bytes.min(told.total_bytes),
        kind: if told.is_integrated { DeviceKind::Unified } else { DeviceKind::Gpu },
        processes: Vec::new(),
        state: DeviceState::Ok,
        look: None,
    };
    (0..).zip(told).map(device).collect()
}
