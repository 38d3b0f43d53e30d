//! What the fleet orders.

use std::{sync::Arc, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Figures, GpuAddress},
    shape::{Shape, Sizing},
};

use crate::{ChosenEngine, LoadKey, Planned, Setup, Ticket, Time, WorkerId};

/// What is to be done. In order; none of it may keep the fleet waiting.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Find the model's file and the engine that loads it, and tell by `Found`.
    Find {
        /// For which worker.
        worker: WorkerId,
        /// Which model.
        model_id: String,
        /// How it is to be loaded.
        setup: Box<Setup>,
        /// The format that it is expected to have.
        format: Option<String>,
    },
    /// Start a process for what was found, let it load, and tell by `Started` or `NotStarted`.
    Spawn {
        /// Which worker it is to be.
        worker: WorkerId,
        /// The GPUs that it is to see, and to load on; none: where there are none, or its engine's choice.
        place: Vec<GpuAddress>,
        /// What its engine said of the same load before, on as many: then it is not asked.
        figures: Option<Figures>,
    },
    /// There is room for what it takes: it may load.
    Proceed {
        /// Which worker.
        worker: WorkerId,
        /// The size of its context; `None`: its engine gave no figures.
        shape: Option<Shape>,
    },
    /// Ask it what its model takes with such a context, and tell by `Sized`. Before it loads, or of one that answers.
    Size {
        /// Which worker.
        worker: WorkerId,
        /// Which context.
        sizing: Sizing,
    },
    /// There is room for that: it is to make its context anew, and tell by `Reshaped`. Its answers go on.
    Reshape {
        /// Which worker.
        worker: WorkerId,
        /// Which context.
        sizing: Sizing,
    },
    /// It takes requests from now on.
    Open {
        /// Which worker.
        worker: WorkerId,
        /// Of which model.
        model_id: String,
    },
    /// Give it nothing new, let it end what is under way, and tell by `Drained`.
    Drain {
        /// Which worker.
        worker: WorkerId,
    },
    /// Tell it to end.
    Stop {
        /// Which worker.
        worker: WorkerId,
    },
    /// End it at once. It may not have a process yet; then it gets none.
    Kill {
        /// Which worker.
        worker: WorkerId,
    },
    /// End it at once, as one that crashed: its GPU is lost.
    GiveUp {
        /// Which worker.
        worker: WorkerId,
        /// The GPU's name.
        device: String,
    },
    /// It is gone: all that it owed ends with this fault.
    EndRequests {
        /// Which worker.
        worker: WorkerId,
        /// What its clients are told.
        fault: Fault,
    },
    /// It was unloaded by somebody: nothing is held against requests to the model any more.
    Pardon {
        /// Which model.
        model_id: String,
    },
    /// Somebody has what they waited for, or hears why not. Once for each ticket.
    Resolve {
        /// Who.
        ticket: Ticket,
        /// What came of it.
        outcome: Result<Won, Fault>,
    },
    /// This is to be remembered, also by nodes to come.
    Record {
        /// Which load.
        key: LoadKey,
        /// What its engine said of it.
        figures: Figures,
        /// What it came to.
        time: Time,
    },
    /// People may want to know.
    Tell(Incident),
    /// After `Stopping`: no worker is left.
    Stopped,
}

/// What somebody waited for.
#[derive(Clone, Debug)]
pub enum Won {
    /// The model is loaded.
    Loaded(Arc<Loaded>),
    /// The model is gone.
    Unloaded,
    /// This is what a load would come to.
    Planned(Box<Planned>),
}

/// What a load came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The model's own name, also where the client used another.
    pub model_id: String,
    /// With which engine.
    pub engine: ChosenEngine,
    /// From the first wish for it until it answered.
    pub took: Duration,
    /// What it was to take by its engine's estimate; `None` with another context than it was loaded with.
    pub estimated_bytes: Option<u64>,
    /// All that the worker says of the model.
    pub facts: ModelFacts,
}

/// Something that people may want to know of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incident {
    /// How bad it is.
    pub severity: Severity,
    /// What it is.
    pub kind: IncidentKind,
    /// Which model.
    pub model_id: String,
    /// With which engine, where one was chosen.
    pub engine: Option<String>,
    /// The error's code, where there is an error.
    pub code: Option<ErrorCode>,
    /// How a worker ended, if one did.
    pub death: Option<crate::Death>,
    /// A sentence.
    pub message: String,
}

/// How bad an [`Incident`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Info,
    /// Not as it should be.
    Warning,
    /// Somebody did not get what they asked for.
    Error,
}

/// What an [`Incident`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IncidentKind {
    /// A model answers.
    Loaded,
    /// A model is gone, because somebody wanted it.
    Unloaded,
    /// A load came to nothing.
    LoadFailed,
    /// There was no memory for a load.
    Refused,
    /// A worker ended although nobody wanted it.
    Crashed,
    /// A model that answers has another context.
    Reshaped,
    /// A model goes to come back as somebody else wants it.
    Replaced,
    /// A model goes to make room for another.
    Evicted,
    /// Others than models take memory that is to be left to them: a model gives up a part of its context, or goes.
    Pressure,
    /// A model goes because nobody has asked it anything for as long as it was to stay.
    Unused,
    /// Answers were cut by the deadline of an unload.
    Cut,
    /// A model takes more than its engine estimated.
    Overrun,
    /// What a model held of a GPU does not show as free after its end.
    Kept,
    /// A process could not be ended.
    Abandoned,
    /// The GPU that a model lies on has been given up by its driver.
    DeviceLost,
}

impl Severity {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        }
    }
}

impl IncidentKind {
    /// Each of them.
    pub const ALL: [Self; 15] = [
        IncidentKind::Loaded,
        IncidentKind::Unloaded,
        IncidentKind::LoadFailed,
        IncidentKind::Refused,
        IncidentKind::Crashed,
        IncidentKind::Reshaped,
        IncidentKind::Replaced,
        IncidentKind::Evicted,
        IncidentKind::Pressure,
        IncidentKind::Unused,
        IncidentKind::Cut,
        IncidentKind::Overrun,
        IncidentKind::Kept,
        IncidentKind::Abandoned,
        IncidentKind::DeviceLost,
    ];

    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            IncidentKind::Loaded => "loaded",
            IncidentKind::Unloaded => "unloaded",
            IncidentKind::LoadFailed => "load_failed",
            IncidentKind::Refused => "refused",
            IncidentKind::Crashed => "crashed",
            IncidentKind::Reshaped => "reshaped",
            IncidentKind::Replaced => "replaced",
            IncidentKind::Evicted => "evicted",
            IncidentKind::Pressure => "pressure",
            IncidentKind::Unused => "unused",
            IncidentKind::Cut => "cut",
            IncidentKind::Overrun => "overrun",
            IncidentKind::Kept => "kept",
            IncidentKind::Abandoned => "abandoned",
            IncidentKind::DeviceLost => "device_lost",
        }
    }
}
