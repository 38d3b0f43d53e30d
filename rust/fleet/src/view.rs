//! What the fleet looks like from outside.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::GpuAddress,
    options::ModelOptions,
};

use crate::{
    Account, Crash, Files, History, Kept, Loaded, Moment, Place, Setup, Usual, WorkerId,
    life::{ModelLife, Stage, Trouble, Worker, retry_after, too_long, whole_seconds},
    use_rate::UseRates,
    wishes::Fit,
};

/// All models that something is to be said of, and all devices.
#[derive(Clone, Debug, Default)]
pub struct FleetView {
    /// By their own names. What is not here is available.
    pub models: BTreeMap<String, Arc<ModelView>>,
    /// GPUs by their number, the host last.
    pub accounts: Vec<Account>,
    /// The GPUs that models are placed on, those with most room first.
    pub gpus: Vec<GpuAddress>,
    /// The models that wait until others have made room, in their order.
    pub line: Vec<Place>,
    /// What loads came to before.
    pub history: Arc<History>,
    /// How much models are used.
    pub use_rates: Arc<UseRates>,
    /// Since when somebody looks at the devices who has not said yet what is there, and until when that is no matter.
    pub reading: Option<(Moment, Moment)>,
}

/// One model.
#[derive(Clone, Debug)]
pub struct ModelView {
    /// What it is doing.
    pub status: Status,
    /// Its workers: those that answer first.
    pub workers: Vec<WorkerView>,
    /// All of them are on their way out: who asks now has the model loaded anew.
    pub is_leaving: bool,
    /// It is being loaded as somebody else wants it, and answers as it was until then, if there is room for both.
    pub is_being_replaced: bool,
    /// What it is loaded with, or being loaded with.
    pub options: Option<ModelOptions>,
    /// The same, by who said what.
    pub setup: Option<Setup>,
    /// Which build of its engine it has.
    pub build: Option<String>,
    /// Its files as they were for that, or for the load that failed.
    pub files: Files,
    /// How many wait for its load.
    pub waiting: usize,
    /// Since when it has nothing to answer, where it is loaded and has nothing.
    pub idle_since: Option<Moment>,
    /// It goes for nobody's sake.
    pub is_pinned: bool,
    /// What keeps it where another needs the room; `None`: it is not there, waits for room itself, or goes already.
    pub kept: Option<Kept>,
    /// When it goes if nobody asks it anything; `None`: it stays, or has something to answer.
    pub unused_from: Option<Moment>,
    /// How a worker of it died last.
    pub last_crash: Option<Crash>,
}

/// One worker of a model.
#[derive(Clone, Debug)]
pub struct WorkerView {
    /// Which.
    pub id: WorkerId,
    /// What it is doing: never `Available`, `Cooling`, `Failed` or `GivenUp`.
    pub status: Status,
    /// Since when it answers, and what its load came to.
    pub loaded: Option<(Moment, Arc<Loaded>)>,
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
        /// By no order: no answer is cut.
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
    /// It crashed too often in a row: requests are told this, and an order to load or unload it begins anew.
    GivenUp(Fault),
}

impl Status {
    /// As people read it: whoever goes, or cools, is told of beside it.
    pub fn word(&self) -> &'static str {
        match self {
            Status::Available => "available",
            Status::Loading => "loading",
            Status::Waiting => "waiting",
            Status::Loaded | Status::Draining { .. } => "loaded",
            Status::Cooling { .. } | Status::Failed(_) | Status::GivenUp(_) => "failed",
        }
    }

    fn of(worker: &Worker) -> Self {
        match &worker.stage {
            Stage::Serving => Status::Loaded,
            Stage::Waiting { .. } => Status::Waiting,
            _ if worker.loaded.is_some() => Status::Draining { is_retired: worker.is_retired() },
            _ => Status::Loading,
        }
    }
}

impl WorkerView {
    fn of(worker: &Worker) -> Self {
        let loaded = worker.loaded.clone().map(|loaded| (worker.since, loaded));
        Self { id: worker.id, status: Status::of(worker), loaded }
    }
}

impl ModelView {
    /// `longest_wait`: of a load, for room.
    pub(crate) fn of(life: &ModelLife, longest_wait: Duration) -> Self {
        let lead = life.lead();
        let status = match (lead, &life.trouble) {
            (Some(lead), _) => Status::of(lead),
            (None, Some(Trouble::Cooling { until, fault })) => {
                Status::Cooling { until: *until, fault: fault.clone() }
            }
            (None, Some(Trouble::Failed { fault, .. })) => Status::Failed(fault.clone()),
            (None, Some(Trouble::GivenUp { fault })) => Status::GivenUp(fault.clone()),
            (None, None) => Status::Available,
        };
        let mut workers: Vec<WorkerView> = life.workers.iter().map(WorkerView::of).collect();
        let is_lead = |worker: &WorkerView| lead.is_some_and(|lead| lead.id == worker.id);
        workers.sort_by_key(|worker| (worker.status != Status::Loaded, !is_lead(worker)));
        Self {
            status,
            workers,
            is_leaving: !life.workers.is_empty() && !life.is_there(),
            is_being_replaced: life.replacement.is_some(),
            options: lead.map(|worker| worker.setup.whole()),
            setup: lead.map(|worker| worker.setup.clone()),
            files: files_of(life),
            build: lead.and_then(|worker| worker.found.as_ref()).map(|found| found.key.build.clone()),
            waiting: life.waiting.len(),
            idle_since: lead.and_then(|worker| worker.loaded.as_ref().and(life.idle_since())),
            is_pinned: lead.is_some_and(|worker| worker.setup.is_pinned()),
            kept: life.kept(longest_wait),
            unused_from: life.unused_from(),
            last_crash: life.last_crash.clone(),
        }
    }

    /// As what it would be loaded anew.
    pub fn renewed(&self, model_id: &str, usual: &Usual) -> Option<Setup> {
        let setup = self.setup.as_ref()?;
        Some(Setup::new(model_id, setup.replaced(&setup.asked), usual))
    }

    /// Is it to have several workers?
    pub fn is_of_several(&self) -> bool {
        self.setup.as_ref().is_some_and(|setup| setup.replicas() > 1)
    }

    /// Of the worker that stands for all: since when it answers, and what its load came to.
    pub fn loaded(&self) -> Option<&(Moment, Arc<Loaded>)> {
        self.workers.first()?.loaded.as_ref()
    }

    /// The workers for a new request, or why there is none. `model_loading` without a time means that a load
    /// would help.
    pub fn ready(&self, model_id: &str, now: Moment) -> Result<Vec<WorkerId>, Fault> {
        match &self.status {
            Status::Loaded => {
                let serving = self.workers.iter().take_while(|worker| worker.status == Status::Loaded);
                Ok(serving.map(|worker| worker.id).collect())
            }
            Status::Loading | Status::Waiting => {
                let message = format!("Model '{model_id}' is being loaded");
                Err(retry_after(Fault::new(ErrorCode::ModelLoading, message), Duration::from_secs(1)))
            }
            // Whoever asks for it loads it, also when the last load failed.
            Status::Cooling { until, fault } => {
                Err(too_long(now, *until, fault).unwrap_or_else(|| to_be_loaded(model_id)))
            }
            Status::GivenUp(fault) => Err(fault.clone()),
            // An unload is for what was there: who asks afterwards has it loaded once that is gone.
            Status::Available | Status::Draining { .. } | Status::Failed(_) => Err(to_be_loaded(model_id)),
        }
    }

    /// What a model that is loaded would be for these wishes; `None`: they are served by what it is.
    pub fn changed(&self, model_id: &str, wishes: &ModelOptions, usual: &Usual) -> Option<Changed> {
        let setup = self.setup.as_ref()?;
        let is_in_steps = self.loaded().is_some_and(|(_, loaded)| loaded.facts.source == "batch");
        match setup.fits(wishes, model_id, "is loaded") {
            Fit::Joins => None,
            Fit::Grows(_) if is_in_steps => Some(Changed::Grown(setup.grown(wishes))),
            Fit::Grows(_) | Fit::Differs(_) => {
                Some(Changed::Replaced(Setup::new(model_id, setup.replaced(wishes), usual)))
            }
        }
    }

    /// Whole seconds until it may be loaded again after a crash; 0: whoever asks next has it loaded.
    pub fn pause_seconds(&self, now: Moment) -> Option<u64> {
        match &self.status {
            Status::Cooling { until, .. } if now < *until => Some(whole_seconds(until.since(now))),
            Status::Cooling { .. } => Some(0),
            _ => None,
        }
    }
}

impl FleetView {
    /// The workers for a new request to a model, or why there is none; see [`ModelView::ready`].
    pub fn ready(&self, model_id: &str, now: Moment) -> Result<Vec<WorkerId>, Fault> {
        self.models
            .get(model_id)
            .map_or_else(|| Err(to_be_loaded(model_id)), |model| model.ready(model_id, now))
    }
}

fn files_of(life: &ModelLife) -> Files {
    match (life.lead(), &life.trouble) {
        (Some(worker), _) => worker.files.clone(),
        (None, Some(Trouble::Failed { files, .. })) => files.clone(),
        (None, _) => Files::new(),
    }
}

/// What a request is told that should have been a load before.
fn to_be_loaded(model_id: &str) -> Fault {
    Fault::new(ErrorCode::ModelLoading, format!("Model '{model_id}' is not loaded"))
}
