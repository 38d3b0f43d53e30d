//! What the fleet looks like from outside.

use std::{collections::BTreeMap, sync::Arc};

use llm_node_core::{
    error::{ErrorCode, Fault},
    options::ModelOptions,
};

use crate::{
    Account, Crash, History, Loaded, Moment, Setup, Usual, WorkerId,
    life::{ModelLife, Stage, Trouble, Worker, retry_after, too_long, whole_seconds},
    wishes::Fit,
};

/// All models that something is to be said of, and all devices.
#[derive(Clone, Debug, Default)]
pub struct FleetView {
    /// By their own names. What is not here is available.
    pub models: BTreeMap<String, Arc<ModelView>>,
    /// GPUs by their number, the host last.
    pub accounts: Vec<Account>,
    /// The models that wait until others have made room, in their order.
    pub line: Vec<String>,
    /// What loads came to before.
    pub history: Arc<History>,
    /// Since when somebody looks at the devices who has not said yet what is there, and until when that is no matter.
    pub reading: Option<(Moment, Moment)>,
}

/// One model.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// What it is doing.
    pub status: Status,
    /// Its worker, if it has one.
    pub worker: Option<WorkerId>,
    /// That worker is on its way out: who asks now has the model loaded anew.
    pub is_leaving: bool,
    /// What it is loaded with, or being loaded with.
    pub options: Option<ModelOptions>,
    setup: Option<Setup>,
    /// Since when it answers, and what its load came to.
    pub loaded: Option<(Moment, Arc<Loaded>)>,
    /// How many wait for its load.
    pub waiting: usize,
    /// Since when it has nothing to answer, where it is loaded and has nothing.
    pub idle_since: Option<Moment>,
    /// It goes for nobody's sake.
    pub is_pinned: bool,
    /// When it goes if nobody asks it anything; `None`: it stays, or has something to answer.
    pub unused_from: Option<Moment>,
    /// How a worker of it died last.
    pub last_crash: Option<Crash>,
}

/// What a model that is loaded becomes where somebody wants it otherwise.
#[derive(Clone, Debug, PartialEq)]
pub enum Changed {
    /// With another context, in the same worker.
    Grown(Setup),
    /// Loaded anew.
    Replaced(Setup),
}

/// What a model is doing.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    /// It is not loaded.
    Available,
    /// It is being loaded.
    Loading,
    /// Others are to make room for it.
    Waiting,
    /// It answers.
    Loaded,
    /// It ends what is under way, and is gone then.
    Draining {
        /// By no order: who asks for it has it loaded again.
        is_retired: bool,
    },
    /// It crashed, and is not loaded again before then.
    Cooling {
        /// When.
        until: Moment,
        /// How it crashed.
        fault: Fault,
    },
    /// Its last load failed so.
    Failed(Fault),
}

impl ModelView {
    pub(crate) fn of(life: &ModelLife) -> Self {
        let status = match (&life.worker, &life.trouble) {
            (Some(Worker { stage: Stage::Serving, .. }), _) => Status::Loaded,
            (Some(Worker { stage: Stage::Waiting { .. }, .. }), _) => Status::Waiting,
            (Some(worker), _) if worker.loaded.is_some() => {
                Status::Draining { is_retired: worker.is_retired() }
            }
            (Some(_), _) => Status::Loading,
            (None, Some(Trouble::Cooling { until, fault })) => {
                Status::Cooling { until: *until, fault: fault.clone() }
            }
            (None, Some(Trouble::Failed(fault))) => Status::Failed(fault.clone()),
            (None, None) => Status::Available,
        };
        let worker = life.worker.as_ref();
        Self {
            status,
            worker: worker.map(|worker| worker.id),
            is_leaving: worker.is_some_and(|worker| !worker.is_wanted()),
            options: worker.map(|worker| worker.setup.whole()),
            setup: worker.map(|worker| worker.setup.clone()),
            loaded: worker.and_then(|worker| Some((worker.since, worker.loaded.clone()?))),
            waiting: life.waiting.len(),
            idle_since: worker.and_then(|worker| worker.loaded.as_ref().and(worker.idle_since)),
            is_pinned: worker.is_some_and(|worker| worker.setup.is_pinned()),
            unused_from: worker.and_then(Worker::is_unused_from),
            last_crash: life.last_crash.clone(),
        }
    }

    /// The worker for a new request, or why there is none. `model_loading` without a time means that a load
    /// would help.
    pub fn ready(&self, model_id: &str, now: Moment) -> Result<WorkerId, Fault> {
        let soon = |code, what: &str| {
            let message = format!("Model '{model_id}' is being {what}");
            Err(retry_after(Fault::new(code, message), std::time::Duration::from_secs(1)))
        };
        match (&self.status, self.worker) {
            (Status::Loaded, Some(worker)) => Ok(worker),
            (Status::Loading | Status::Waiting, _) => soon(ErrorCode::ModelLoading, "loaded"),
            (Status::Draining { is_retired: false }, _) => soon(ErrorCode::ShuttingDown, "unloaded"),
            // Whoever asks for it loads it, also when the last load failed.
            (Status::Cooling { until, fault }, _) => {
                Err(too_long(now, *until, fault).unwrap_or_else(|| to_be_loaded(model_id)))
            }
            _ => Err(to_be_loaded(model_id)),
        }
    }

    /// What a model that is loaded would be for these wishes; `None`: they are served by what it is.
    pub fn changed(&self, model_id: &str, wishes: &ModelOptions, usual: &Usual) -> Option<Changed> {
        let setup = self.setup.as_ref()?;
        let is_in_steps = self.loaded.as_ref().is_some_and(|(_, loaded)| loaded.facts.source == "batch");
        match setup.fits(wishes, model_id, "is loaded") {
            Fit::Joins => None,
            Fit::Grows(_) if is_in_steps => Some(Changed::Grown(setup.grown(wishes))),
            Fit::Grows(_) | Fit::Differs(_) => {
                Some(Changed::Replaced(Setup::new(model_id, setup.replaced(wishes), usual)))
            }
        }
    }

    /// Whole seconds until it may be loaded again after a crash.
    pub fn pause_seconds(&self, now: Moment) -> Option<u64> {
        match &self.status {
            Status::Cooling { until, .. } if now < *until => Some(whole_seconds(until.since(now))),
            _ => None,
        }
    }
}

impl FleetView {
    /// The worker for a new request to a model, or why there is none; see [`ModelView::ready`].
    pub fn ready(&self, model_id: &str, now: Moment) -> Result<WorkerId, Fault> {
        self.models
            .get(model_id)
            .map_or_else(|| Err(to_be_loaded(model_id)), |model| model.ready(model_id, now))
    }
}

/// What a request is told that should have been a load before.
fn to_be_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelLoading, format!("Model '{model_id}' is not loaded"))
}
