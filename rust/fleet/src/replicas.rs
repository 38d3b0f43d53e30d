//! Several workers for one model, each on GPUs of its own.
//!
//! The first comes first; the others follow while one answers, each with what that one has.

use llm_node_core::memory::MemoryUse;

use crate::{
    Fleet, Moment, Setup,
    life::{LONGEST_PAUSE, ModelLife},
    placing::on,
};

impl Fleet {
    /// A model one of whose workers answers gets those that it lacks.
    pub(crate) fn fill(&mut self, now: Moment) {
        let is_due = |life: &ModelLife| life.lacks().is_some_and(|(_, from)| from <= now);
        let lacking = self.models.iter().filter(|(_, life)| self.stopping.is_none() && is_due(life));
        for model_id in lacking.map(|(model_id, _)| model_id.clone()).collect::<Vec<_>>() {
            while let Some((mut setup, _)) = self.life(&model_id).lacks() {
                setup.place = Vec::new();
                if !self.has_place_left(&model_id, &setup) {
                    self.life(&model_id).next_replica = now + LONGEST_PAUSE;
                    break;
                }
                self.begin(now, &model_id, setup, None);
            }
        }
    }

    /// What all workers of a load take together, of which one takes that; each on GPUs of its own.
    pub(crate) fn of_all(&self, setup: &Setup, uses: Vec<MemoryUse>) -> Vec<MemoryUse> {
        if setup.replicas() == 1 {
            return uses;
        }
        let (gpus, each) = self.shares_of(setup);
        let places = gpus.chunks(each).take(setup.replicas());
        places.flat_map(|place| on(&uses, place)).collect()
    }
}
