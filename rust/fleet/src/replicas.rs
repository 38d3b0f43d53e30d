//! Several workers for one model, each on a GPU of its own.
//!
//! The first comes first; the others follow while one answers, each with what that one has.

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{GpuAddress, MemoryUse},
};

use crate::{
    Fleet, Moment, Setup,
    life::{LONGEST_PAUSE, ModelLife},
};

impl Fleet {
    /// A model one of whose workers answers gets those that it lacks.
    pub(crate) fn fill(&mut self, now: Moment) {
        let is_due = |life: &ModelLife| life.lacks().is_some_and(|(_, from)| from <= now);
        let lacking = self.models.iter().filter(|(_, life)| self.stopping.is_none() && is_due(life));
        for model_id in lacking.map(|(model_id, _)| model_id.clone()).collect::<Vec<_>>() {
            while let Some((mut setup, _)) = self.life(&model_id).lacks() {
                setup.place = None;
                if self.free_place(&model_id).is_none() {
                    self.life(&model_id).next_replica = now + LONGEST_PAUSE;
                    break;
                }
                self.begin(now, &model_id, setup, None);
            }
        }
    }

    /// The GPU for one more worker of a model: the one with most room of those on which it has none.
    pub(crate) fn free_place(&self, model_id: &str) -> Option<GpuAddress> {
        let workers = self.models.get(model_id).map(|life| &life.workers[..]).unwrap_or_default();
        let is_taken = |place: &GpuAddress| workers.iter().any(|it| it.setup.place.as_ref() == Some(place));
        self.ledger.gpus_by_room().into_iter().find(|place| !is_taken(place))
    }

    /// What a worker takes that lies on that GPU.
    pub(crate) fn placed(&self, mut uses: Vec<MemoryUse>, place: &GpuAddress) -> Vec<MemoryUse> {
        let name = self.ledger.gpu_at(place).map(|gpu| gpu.name.clone());
        for use_ in uses.iter_mut().filter(|use_| !use_.is_host) {
            use_.bus_id.clone_from(&place.bus_id);
            use_.device = name.clone().unwrap_or_else(|| use_.device.clone());
        }
        uses
    }

    /// What all workers of a load take together, of which one takes that; each on a GPU of its own.
    pub(crate) fn of_all(&self, setup: &Setup, uses: Vec<MemoryUse>) -> Vec<MemoryUse> {
        if setup.replicas() == 1 {
            return uses;
        }
        let places = self.ledger.gpus_by_room().into_iter().take(setup.replicas());
        places.flat_map(|place| self.placed(uses.clone(), &place)).collect()
    }

    /// Are there as many GPUs as it is to have workers?
    pub(crate) fn has_places(&self, model_id: &str, setup: &Setup) -> Result<(), Fault> {
        let (wanted, places) = (setup.replicas(), self.ledger.gpus_by_room().len());
        if wanted <= 1.max(places) {
            return Ok(());
        }
        let there = match (self.ledger.is_on_cpu(), places) {
            (true, _) => {
                "this node computes on the CPU, all of which one worker uses: max_sequences is how many answers it \
                 gives at once"
                    .to_owned()
            }
            (_, 0) => "this node has none whose memory it can see".to_owned(),
            (_, places) => format!("this node has {places}"),
        };
        let message = format!("Model '{model_id}': replicas = {wanted} needs as many GPUs, and {there}");
        Err(Fault::new(ErrorCode::InvalidRequest, message).param("replicas"))
    }
}
