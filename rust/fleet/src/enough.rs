//! A load that there is room for gets enough of a context, where others can do with less.
//!
//! First those give up the rest that have more than enough. Where that will not do, models go that are hardly missed.
//! For more than enough nobody does anything.

use llm_node_core::memory::MemoryUse;

use crate::{Fleet, Moment, WorkerId, ledger::Ledger, life::Worker, room::Way, shape::Chosen};

/// Whose absence is expected to cost less, in milliseconds, is hardly missed.
const HARDLY_MISSED: u64 = 2000;

impl Fleet {
    /// Others make room so that the first in line, which has room for the least, gets enough. `true`: it waits for that.
    pub(crate) fn makes_enough(&mut self, now: Moment, model_id: &str, worker: WorkerId) -> bool {
        let Some(it) = self.worker_at(worker) else { return false };
        let has_enough = |ledger: &Ledger| self.chosen(it, ledger).is_none_or(|has| it.is_enough(&has));
        if self.deadlines.room.is_zero() || has_enough(&self.ledger) {
            return false;
        }
        let seconds = self.deadlines.end().saturating_add(self.deadlines.settle);
        let has_time = it.has_room_by().is_some_and(|by| by > now + seconds);
        // What those leave who go by themselves is there in a moment.
        let leaving = self.workers().filter(|(_, it)| it.is_going() && it.idle_since.is_some());
        let leaving: Vec<WorkerId> = leaving.map(|(_, it)| it.id).chain(self.ledger.settling()).collect();
        let then = self.ledger.without(leaving.iter().copied());
        if has_time && !leaving.is_empty() && has_enough(&then) {
            return true;
        }
        if !self.ledger.is_calm(now) {
            return has_time && self.ledger.is_settling(now) && self.gains_by_waiting(now, it, &then);
        }
        let mut way = self.with_enough(now, it, &then, Way::default());
        if !has_time {
            way.unload.clear();
        }
        let is_of_use = !way.is_empty();
        self.make_way(now, model_id, way);
        is_of_use
    }

    /// May it get more once the figures of what is free show all that has gone? Not where the limits stand in the way.
    fn gains_by_waiting(&self, now: Moment, it: &Worker, ledger: &Ledger) -> bool {
        let at_best = ledger.by_limits();
        let shape = |ledger: &Ledger| self.chosen(it, ledger).map(|gets| gets.shape);
        shape(&at_best) != shape(&self.ledger)
            || !self.with_enough(now, it, &at_best, Way::default()).is_empty()
    }

    /// What others do for a load, so that it gets enough beside. `ledger`: as all is when they have not done it yet.
    pub(crate) fn with_enough(&self, now: Moment, it: &Worker, ledger: &Ledger, way: Way) -> Way {
        let chosen = |ledger: &Ledger| self.chosen(it, ledger);
        self.way_to_enough(now, (it.id, &it.estimate), ledger, way, chosen, |gets| it.is_enough(gets))
    }

    /// The same of a load that has not begun. `of`: its worker, and the least that it takes. `chosen`: what it gets of
    /// what there is in a ledger.
    pub(crate) fn way_to_enough(
        &self,
        now: Moment,
        of: (WorkerId, &[MemoryUse]),
        ledger: &Ledger,
        way: Way,
        chosen: impl Fn(&Ledger) -> Option<Chosen>,
        is_enough: impl Fn(&Chosen) -> bool,
    ) -> Way {
        let (worker, uses) = of;
        let then = ledger.without(way.gone());
        let Some(has) = chosen(&then.after(&way.shrink)) else { return way };
        if is_enough(&has) || self.deadlines.room.is_zero() {
            return way;
        }
        let mut shrink = self.spares(now, worker, uses);
        shrink.retain(|spare| then.holds(spare.worker));
        let lean = then.after(&shrink);
        let gets = chosen(&lean);
        let mut cold = Vec::new();
        if !gets.as_ref().is_some_and(&is_enough) {
            let will_do = |cold: &[(Vec<WorkerId>, String)]| {
                let without = lean.without(cold.iter().flat_map(|(workers, _)| workers).copied());
                chosen(&without).is_some_and(|gets| is_enough(&gets))
            };
            let may_go = |workers: &[WorkerId]| {
                !workers.contains(&worker) && workers.iter().any(|worker| then.holds(*worker))
            };
            for one in self.cold(now).into_iter().filter(|(workers, _)| may_go(workers)) {
                if will_do(&cold) {
                    break;
                }
                cold.push(one);
            }
            for at in (0..cold.len()).rev() {
                let one = cold.remove(at);
                if !will_do(&cold) {
                    cold.insert(at, one);
                }
            }
            if !will_do(&cold) {
                // Nobody goes for less.
                cold.clear();
            }
        }
        let is_longer = gets.is_some_and(|gets| gets.shape.context_length > has.shape.context_length);
        if cold.is_empty() && !is_longer {
            return way;
        }
        shrink.retain(|spare| cold.iter().all(|(gone, _)| !gone.contains(&spare.worker)));
        Way { shrink, unload: way.unload.into_iter().chain(cold).collect() }
    }

    /// Models that may go at once and are hardly missed, those first that are missed least.
    pub(crate) fn cold(&self, now: Moment) -> Vec<(Vec<WorkerId>, String)> {
        let cold = self.models.iter().filter_map(|(model_id, life)| {
            let idle_since = life.idle_since()?;
            let is_free = life.may_go_from(self.deadlines.room).is_some_and(|from| from <= now);
            let cost = self.cost_of_absence(now, model_id, life);
            (is_free && cost < HARDLY_MISSED).then(|| (cost, idle_since, model_id, life.ids()))
        });
        let mut cold: Vec<_> = cold.collect();
        cold.sort();
        cold.into_iter().map(|(.., model_id, workers)| (workers, model_id.clone())).collect()
    }
}

impl Worker {
    /// Is what it would get as long as it has to be?
    fn is_enough(&self, gets: &Chosen) -> bool {
        gets.shape.is_enough(self.setup.wish(), self.longest().unwrap_or(0))
    }
}
