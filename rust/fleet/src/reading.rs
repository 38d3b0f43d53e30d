//! What follows from a look at the devices, and from one that does not end.
//!
//! A driver may never answer, or give a GPU up. Nothing is decided then on what was there before: who needs that
//! device waits. Workers on a lost GPU are ended, for nothing that they compute comes back.

use std::time::Duration;

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
};

use crate::{
    DeviceKind, DeviceState, Effect, Fleet, IncidentKind, Moment, Reading, Severity, life::retry_after,
};

/// Whoever was told that nothing can be said may ask again after so long.
const AGAIN: Duration = Duration::from_secs(30);

impl Fleet {
    /// Somebody looks at all devices.
    pub(crate) fn reading_began(&mut self, now: Moment) {
        self.reading_since.get_or_insert(now);
    }

    /// What was seen.
    pub(crate) fn read(&mut self, now: Moment, reading: Reading) {
        if reading.is_whole {
            self.reading_since = None;
        }
        let began = reading.began;
        let is_of_gpus = reading.devices.iter().any(|device| device.kind == DeviceKind::Gpu);
        for (worker, device) in self.ledger.read(reading) {
            let Some((model_id, _)) = self.worker(worker) else { continue };
            let message = format!("'{model_id}' is ended: its GPU, {device}, is lost");
            self.tell(Severity::Error, IncidentKind::DeviceLost, &model_id, message, None);
            self.effects.push(Effect::GiveUp { worker, device });
        }
        if is_of_gpus {
            self.measured(now, began);
        }
        self.relieve(now);
    }

    /// Since when a look at the devices has not ended, where it should have.
    pub(crate) fn blind_since(&self, now: Moment) -> Option<Moment> {
        self.reading_since.filter(|since| now.since(*since) >= self.deadlines.read)
    }

    /// Why nothing can be said of the room for this, if so.
    pub(crate) fn obstacle(&self, now: Moment, uses: &[MemoryUse]) -> Option<String> {
        let (name, state) =
            self.ledger.gpus_of(uses, |state| state != DeviceState::Ok).next().or_else(|| {
                let mut gpus = self.ledger.gpus_of(uses, |_| true);
                gpus.next().filter(|_| self.blind_since(now).is_some())
            })?;
        Some(match state {
            DeviceState::Lost => format!("the GPU '{name}' is lost"),
            DeviceState::Ok | DeviceState::Unreadable => format!("NVML does not answer for the GPU '{name}'"),
        })
    }

    /// What is said then of a load.
    pub(crate) fn cannot_tell(&self, now: Moment, model_id: &str, uses: &[MemoryUse]) -> Option<Fault> {
        let obstacle = self.obstacle(now, uses)?;
        let message = format!(
            "Model '{model_id}' cannot be loaded while {obstacle}. Try again later, and see `llm-node doctor`"
        );
        Some(retry_after(Fault::new(ErrorCode::ModelLoading, message), AGAIN))
    }
}
