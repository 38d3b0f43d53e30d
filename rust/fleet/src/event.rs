//! What the fleet is told.

use std::time::Duration;

use llm_node_core::{
    error::Fault,
    facts::ModelFacts,
    memory::{Estimate, GpuAddress, MemoryUse, normal_bus_id},
    options::ModelOptions,
};
use serde::{Deserialize, Serialize};

use crate::{Foreseen, Known, LoadKey, Moment, Ticket, Usual, WorkerId};

/// An order, or something that has happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// Somebody wants a model to be loaded.
    Load {
        /// Who.
        ticket: Ticket,
        /// The model's own name.
        model_id: String,
        /// As what. A draft model by its file.
        wishes: ModelOptions,
        /// The format that the model is expected to have.
        format: Option<String>,
        /// What it would come to as these wishes have it, where it was loaded otherwise when somebody looked.
        instead: Option<Box<Foreseen>>,
        /// A request comes as soon as it is loaded.
        for_request: bool,
        /// Of so many tokens at least, which the context was too short for; 0: nobody knows.
        tokens: u32,
    },
    /// The engine of a model that answers is another build now: it is to be loaded anew with that.
    Renew {
        /// The model's own name.
        model_id: String,
        /// What it would come to.
        instead: Box<Foreseen>,
    },
    /// Somebody wants to know what a load would come to.
    Plan {
        /// Who.
        ticket: Ticket,
        /// The model's own name.
        model_id: String,
        /// As what. A draft model by its file.
        wishes: ModelOptions,
        /// What is known of it, where it was not loaded when somebody looked.
        foreseen: Option<Foreseen>,
    },
    /// Somebody wants a model to be gone.
    Unload {
        /// Who.
        ticket: Ticket,
        /// The model's own name.
        model_id: String,
        /// For so long its answers may go on.
        timeout: Duration,
    },
    /// The node is going down: answers under way may go on until then. Said again, it is the new deadline.
    Stopping {
        /// When the last ones are cut.
        by: Moment,
    },
    /// Which engine a worker that was to be found will have, or why there is none.
    Found {
        /// Which worker.
        worker: WorkerId,
        /// What was found.
        found: Result<FoundModel, Fault>,
        /// The model's files as they were then.
        files: Files,
    },
    /// A worker's process has introduced itself, and is told to load.
    Started {
        /// Which worker.
        worker: WorkerId,
        /// Its process.
        pid: u32,
    },
    /// A worker's process could not be started, or ended before it had introduced itself. It is gone.
    NotStarted {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        fault: Fault,
    },
    /// What a load will take, or the figures from which that follows.
    Estimated {
        /// Which worker.
        worker: WorkerId,
        /// As its engine says, where it was asked.
        estimate: Estimate,
    },
    /// A model answers requests from now on.
    Ready {
        /// Which worker.
        worker: WorkerId,
        /// What it says of the model.
        facts: ModelFacts,
    },
    /// A load has failed; the process ends by itself.
    Failed {
        /// Which worker.
        worker: WorkerId,
        /// Why.
        fault: Fault,
    },
    /// What a model takes with such a context, or why there can be none.
    Sized {
        /// Which worker.
        worker: WorkerId,
        /// By device; `None`: its engine cannot say.
        uses: Result<Option<Vec<MemoryUse>>, Fault>,
    },
    /// A loaded model has another context, or why it has not.
    Reshaped {
        /// Which worker.
        worker: WorkerId,
        /// What it says of the model now.
        facts: Result<ModelFacts, Fault>,
    },
    /// A worker has been asked something since this was told of it last, or has answered all.
    Used {
        /// Which worker.
        worker: WorkerId,
        /// So often, since then.
        requests: u32,
        /// Since when all of that is answered; `None`: it is not.
        idle_since: Option<Moment>,
    },
    /// A worker that was to drain has nothing under way any more.
    Drained {
        /// Which worker.
        worker: WorkerId,
    },
    /// A worker's process has ended, and all that it said was told before.
    Died {
        /// Which worker.
        worker: WorkerId,
        /// How.
        death: Death,
        /// All that it had under way had killed a worker before: that says nothing of the engine's health.
        is_known: bool,
    },
    /// What the configuration says of loads from now on.
    Configured(Usual),
    /// Somebody looks at all devices. A driver may never answer.
    ReadingBegan,
    /// What the devices' memory is like.
    Reading(Reading),
    /// Nothing but that time has passed.
    Time,
}

/// The files of a model: of each its path, how large it is, in bytes, and when it was written, in nanoseconds since
/// 1970.
pub type Files = Vec<(String, u64, u64)>;

/// How a worker ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Death {
    /// "signal 11 (SIGSEGV)"
    pub ending: String,
    /// The signal's number, if it was one.
    pub signal: Option<i64>,
    /// The engine's call that was under way: "engine.batch/1 step".
    pub call: String,
    /// "Engine 'a' of model 'm' died in engine_init: signal 11 (SIGSEGV)"
    pub message: String,
}

/// What there is to know of a model and its engine before a worker runs.
#[derive(Clone, Debug, PartialEq)]
pub struct FoundModel {
    /// Which engine loads it.
    pub engine: ChosenEngine,
    /// Size of all files that are loaded, its draft model's too.
    pub size_bytes: u64,
    /// Its file's format.
    pub format: String,
    /// Its architecture, where the file tells.
    pub architecture: Option<String>,
    /// Its quantization, where the file tells.
    pub quantization: Option<String>,
    /// What tells such a load from others.
    pub key: LoadKey,
    /// What it came to before. Then its engine is not asked.
    pub known: Option<Known>,
}

/// An engine, as far as people are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChosenEngine {
    /// Its id.
    pub id: String,
    /// Its version.
    pub version: String,
    /// What it was built for.
    pub gpu_backend: String,
}

/// A device that models may be placed on, and what was free when somebody looked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Its number among those of its kind.
    pub index: u32,
    /// For people.
    pub name: String,
    /// PCI bus id, where it has one.
    #[serde(default)]
    pub bus_id: Option<String>,
    /// What NVML calls it for good: "GPU-", or of a part of one "MIG-", and the rest.
    #[serde(default)]
    pub uuid: Option<String>,
    /// All its memory, in bytes.
    pub total_bytes: u64,
    /// What was free, in bytes.
    pub free_bytes: u64,
    /// A GPU, or the memory of the host.
    pub kind: DeviceKind,
    /// Processes that were seen on it.
    #[serde(default)]
    pub processes: Vec<ProcessUse>,
    /// Whether it can be used.
    #[serde(default)]
    pub state: DeviceState,
    /// How busy it is, for people.
    #[serde(default)]
    pub look: Option<Look>,
}

/// What became of a [`Device`] that was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceState {
    /// It can be used.
    #[default]
    Ok,
    /// Its driver has given it up: nothing on it computes any more.
    Lost,
    /// Nothing is heard of it.
    Unreadable,
}

/// How busy a GPU is. `None`: it does not tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The share of the last moments in which it computed anything.
    pub utilization_percent: Option<u32>,
    /// How hot it is.
    pub temperature_celsius: Option<u32>,
    /// What it takes.
    pub power_watts: Option<u32>,
    /// The clock of its multiprocessors.
    pub clock_mhz: Option<u32>,
}

impl Device {
    /// What the node calls it: what NVML does, or else where it is.
    pub fn id(&self) -> String {
        match (self.kind, &self.uuid, &self.bus_id) {
            (DeviceKind::Host, ..) => HOST.to_owned(),
            (_, Some(uuid), _) => uuid.clone(),
            (_, None, Some(bus_id)) => normal_bus_id(bus_id),
            (_, None, None) => format!("gpu{}", self.index),
        }
    }

    /// What it is, for people: a part of a GPU (MIG) is told apart, and one that shares the host's memory.
    pub fn kind_word(&self) -> &'static str {
        match self.kind {
            DeviceKind::Host => "host",
            DeviceKind::Unified => "unified",
            DeviceKind::Gpu if self.address().is_part() => "mig",
            DeviceKind::Gpu => "gpu",
        }
    }

    /// As engines find it among theirs.
    pub fn address(&self) -> GpuAddress {
        GpuAddress { id: self.id(), index: self.index, bus_id: self.bus_id.clone() }
    }
}

/// What the host's memory is called.
pub(crate) const HOST: &str = "host";

/// What a process takes of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessUse {
    /// Its number.
    pub pid: u32,
    /// How much.
    pub bytes: u64,
}

/// What devices were like when somebody looked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// When it began.
    pub began: Moment,
    /// What there is now of those that were looked at.
    pub devices: Vec<Device>,
    /// All were looked at: of a GPU that is not here nothing is heard.
    pub is_whole: bool,
}

/// What a [`Device`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Has memory of its own.
    Gpu,
    /// A GPU that shares the host's memory.
    Unified,
    /// The host's memory.
    Host,
}
