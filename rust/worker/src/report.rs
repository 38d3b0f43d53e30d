//! What a running model tells its owner: the node's worker sends it on, an in-process owner keeps it.

use std::sync::Arc;

use llm_node_core::{
    error::{ErrorCode, Fault},
    event::Event,
};
use llm_node_wire::message::RequestId;

/// Writes down what is for whoever wrote the engine: clients are told as well, but may not tell.
pub(crate) fn note(fault: &Fault) {
    if fault.code == ErrorCode::EngineFault {
        log::error!("the engine is at fault: {fault}");
    }
}

/// One thing that a running model has to say.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// What one step brought, in order. Each request gets exactly one ending.
    Events(Vec<(RequestId, Event)>),
    /// After `drain`: nothing is under way any more.
    Drained,
    /// The model answers nothing any more; all its requests have had their endings. Only a new
    /// process helps.
    Lost(Fault),
}

/// Where reports go. Called from the threads of the model; it must not block, and it must not call
/// back into the model.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Report) + Send + Sync>);

impl Reporter {
    /// Any function that takes reports.
    pub fn new(take: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self(Arc::new(take))
    }

    pub(crate) fn tell(&self, report: Report) {
        (self.0)(report);
    }

    pub(crate) fn events(&self, events: Vec<(RequestId, Event)>) {
        if !events.is_empty() {
            self.tell(Report::Events(events));
        }
    }

    pub(crate) fn event(&self, id: RequestId, event: Event) {
        self.events(vec![(id, event)]);
    }
}
