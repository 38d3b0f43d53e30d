//! Those who wait for room: who is in their way, and for how long as things stand.
//!
//! What is known is when the turns of those end that are in the way, and how long the loads take that come before.
//! How long an answer takes is not known, and counts nothing. Whoever would wait for longer than a load may wait hears
//! that at once.

use std::{collections::BTreeSet, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
};
use serde_json::json;

use crate::{
    Fleet, Moment, WorkerId,
    evict::first_enough,
    life::{BETWEEN_REQUESTS, Because, ModelLife, Stage, Worker, whole_seconds},
    plan::READ_IN_A_SECOND,
    reshape::{Growing, Step},
};

/// A model that waits until others have made room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Which.
    pub model_id: String,
    /// What it waits for, of all devices together, in bytes.
    pub needs_bytes: u64,
    /// Those that are in its way, who may go first before the others.
    pub waits_for: Vec<String>,
    /// When there is room for it, as things stand.
    pub expected: Moment,
}

/// Somebody who waits.
pub(crate) struct Waiter {
    pub(crate) worker: WorkerId,
    pub(crate) model_id: String,
    pub(crate) uses: Vec<MemoryUse>,
    pub(crate) is_pinned: bool,
    /// How long its load will take.
    pub(crate) load: Duration,
}

/// A model that may go, and from when on.
struct Resident {
    from: Moment,
    model_id: String,
    workers: Vec<WorkerId>,
}

impl Fleet {
    /// Whoever would wait too long is told so. What is expected for the others is kept for whoever looks.
    pub(crate) fn turn_away(&mut self, now: Moment) {
        loop {
            let waiters = self.waiters();
            self.places = self.places(now, &waiters);
            let late = waiters.iter().zip(&self.places).position(|(waiter, place)| {
                let by = self.worker_at(waiter.worker).and_then(Worker::has_room_by);
                by.is_some_and(|by| by < place.expected) && self.obstacle(now, &waiter.uses).is_none()
            });
            let Some((at, waiter)) = late.and_then(|at| Some((at, waiters.get(at)?))) else { return };
            let fault = self.too_long(now, at, &waiter.uses);
            self.gives_up(now, waiter.worker, fault);
        }
    }

    /// It does not get the room that it waits for.
    pub(crate) fn gives_up(&mut self, now: Moment, worker: WorkerId, fault: Fault) {
        if self.worker_at(worker).is_some_and(|it| it.growing.is_some()) {
            self.stays(now, worker, &fault);
        } else {
            self.end(now, worker, Because::Failed(fault));
        }
    }

    /// What whoever stands there is told.
    fn too_long(&self, now: Moment, at: usize, uses: &[MemoryUse]) -> Fault {
        let Place { model_id, waits_for, expected, .. } = &self.places[at];
        self.would_wait_too_long(now, (model_id, at), waits_for, *expected, uses)
    }

    /// What is said of a load that would wait for longer than it may. `place`: whose, and how many come before it.
    pub(crate) fn would_wait_too_long(
        &self,
        now: Moment,
        place: (&str, usize),
        waits_for: &[String],
        expected: Moment,
        uses: &[MemoryUse],
    ) -> Fault {
        let ((model_id, before), seconds) = (place, whole_seconds(expected.since(now)));
        let most = self.deadlines.room.as_secs_f64();
        let message = format!(
            "Model '{model_id}' would wait for about {seconds} s until {} made room, with {before} before it in line, \
             and a load waits for {most} s at most. Try again later",
            match waits_for {
                [] => "others have".to_owned(),
                [one] => format!("'{one}' has"),
                several => format!("'{}' have", several.join("', '")),
            }
        );
        let details =
            json!({ "retry_after": seconds, "place": before + 1, "holders": self.holders_of(now, uses) });
        Fault::new(ErrorCode::ModelLoading, message).details(details.to_string())
    }

    /// Those who wait, in their order.
    pub(crate) fn waiters(&self) -> Vec<Waiter> {
        let waiter = |(model_id, worker): (String, WorkerId)| {
            let it = self.worker_at(worker)?;
            let load = if it.growing.is_some() { Duration::ZERO } else { it.load_will_take() };
            let (uses, is_pinned) = (it.needs()?.to_vec(), it.setup.is_pinned());
            Some(Waiter { worker, model_id, uses, is_pinned, load })
        };
        self.line().into_iter().filter_map(waiter).collect()
    }

    /// What each of them waits for, and until when, if nothing happens that is not known now.
    pub(crate) fn places(&self, now: Moment, waiters: &[Waiter]) -> Vec<Place> {
        if waiters.is_empty() {
            return Vec::new();
        }
        let mut then = self.ledger.after(&self.spares_of_pinned()).without(self.ledger.settling());
        let mut residents: Vec<Resident> = self
            .models
            .iter()
            .filter_map(|(model_id, life)| {
                let from = self.leaves_from(now, life)?;
                Some(Resident { from, model_id: model_id.clone(), workers: life.ids() })
            })
            .collect();
        let loads = self.models.values().filter_map(ModelLife::loaded_by);
        // When the one before has its room, and when all loads are done that come before the next.
        let (mut room_from, mut calm_from) = (now, loads.fold(now, Moment::max));
        let mut places = Vec::new();
        for Waiter { worker, model_id, uses, is_pinned, load } in waiters {
            residents.sort_by(|a, b| (a.from, &a.model_id).cmp(&(b.from, &b.model_id)));
            let others = residents.iter().map(|it| &it.workers[..]);
            let (lack, mut gains) = then.lacking(uses, &BTreeSet::from([*worker]), others);
            for (gain, _) in gains.iter_mut().zip(&residents).filter(|(_, it)| it.model_id == *model_id) {
                gain.fill(0); // a model makes no room for itself
            }
            let chosen = first_enough(&lack, &gains);
            if let Some(last) = chosen.last() {
                room_from = room_from.max(residents[*last].from).max(calm_from);
            }
            let waits_for = chosen.iter().map(|at| residents[*at].model_id.clone()).collect();
            for at in chosen.into_iter().rev() {
                residents.remove(at).workers.into_iter().for_each(|worker| then.withdraw(worker));
            }
            let needs_bytes = uses.iter().map(MemoryUse::total).fold(0, u64::saturating_add);
            let (name, expected) = (model_id.clone(), room_from);
            places.push(Place { model_id: name, needs_bytes, waits_for, expected });
            // What there is no room for even so, as things stand, takes none from those behind it.
            then.reserve(*worker, uses, model_id, *is_pinned);
            calm_from = calm_from.max(room_from + *load);
            if !is_pinned {
                let (from, workers) = (room_from + *load + BETWEEN_REQUESTS, vec![*worker]);
                residents.push(Resident { from, model_id: model_id.clone(), workers });
            }
        }
        places
    }

    /// From when on a model may be asked to go, as far as that is known; `None`: it does not go, or waits itself.
    fn leaves_from(&self, now: Moment, life: &ModelLife) -> Option<Moment> {
        if !life.is_there() {
            return Some(now);
        }
        let is_pinned = life.wanted().any(|it| it.setup.is_pinned());
        if is_pinned || life.workers.iter().any(|it| it.needs().is_some()) {
            return None;
        }
        let loaded = life.loaded_by().map(|by| by + BETWEEN_REQUESTS);
        let from = life.may_go_from(self.deadlines.room).or(loaded);
        Some(from.map_or(now, |from| from.max(now)))
    }
}

impl ModelLife {
    /// When its load under way is done, as far as that is known.
    fn loaded_by(&self) -> Option<Moment> {
        let is_loading = |it: &&Worker| {
            matches!(it.stage, Stage::Finding { .. } | Stage::Starting { .. } | Stage::Loading { .. })
        };
        let done = |it: &Worker| it.begun + it.waited + it.load_will_take();
        self.workers.iter().filter(is_loading).map(done).max()
    }
}

impl Worker {
    /// How long its load takes: as long as before, or as it takes to read its weights.
    fn load_will_take(&self) -> Duration {
        let before = self.found.as_ref().and_then(|found| found.known.as_ref()).map(|known| known.seconds);
        let weights = || self.estimate.iter().map(|it| it.weights).fold(0, u64::saturating_add);
        let seconds = before.unwrap_or_else(|| weights() as f64 / READ_IN_A_SECOND);
        Duration::try_from_secs_f64(seconds).unwrap_or_default()
    }

    /// Until when it waits for room, at the longest.
    pub(crate) fn has_room_by(&self) -> Option<Moment> {
        match (&self.stage, &self.growing) {
            (Stage::Waiting { by }, _) | (Stage::Serving, Some(Growing { step: Step::Waiting, by, .. })) => {
                Some(*by)
            }
            _ => None,
        }
    }
}
