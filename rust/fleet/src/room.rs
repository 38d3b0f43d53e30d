//! Room for a load: whoever waits for it, and who goes to make it.
//!
//! Those who wait stand in one line, in the order in which they were wanted. What fits passes what does not, as
//! long as all before it still could have their room. Who makes room is whoever is missed least ([`crate::evict`]), and
//! never somebody who answers, is pinned, or has just had a load, with one exception: whoever has had its turn takes
//! nothing new while it ends what it has. Before that, whoever has more than enough for its context and nothing to
//! answer gives up the rest. Nobody is asked to go before it is known that it will be enough.

use std::{collections::BTreeSet, time::Duration};

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
};
use serde_json::{Map, Value, json};

use crate::{
    Basis, Effect, Fleet, Holder, IncidentKind, Moment, WorkerId,
    evict::{Candidate, cheapest},
    ledger::Ledger,
    life::{ModelLife, Stage, Worker, whole_seconds},
    reshape::Step,
    shape::Spare,
};

/// How there comes to be room.
#[derive(Clone, Debug, Default)]
pub(crate) struct Way {
    /// Those that give up what they can do without.
    pub(crate) shrink: Vec<Spare>,
    /// Those that go, with all their workers.
    pub(crate) unload: Vec<(Vec<WorkerId>, String)>,
}

impl Way {
    /// Nobody does anything.
    pub(crate) fn is_empty(&self) -> bool {
        self.shrink.is_empty() && self.unload.is_empty()
    }

    /// The workers of those that go.
    pub(crate) fn gone(&self) -> impl Iterator<Item = WorkerId> {
        self.unload.iter().flat_map(|(workers, _)| workers).copied()
    }
}

/// What is free is measured by others, and may have changed without an event.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Fleet {
    /// Who waits for room, in their order.
    pub(crate) fn line(&self) -> Vec<(String, WorkerId)> {
        let mut line: Vec<_> = self
            .workers()
            .filter(|(_, worker)| worker.needs().is_some())
            .map(|(model_id, worker)| (model_id.clone(), worker.id))
            .collect();
        line.sort_by_key(|(_, worker)| *worker);
        line
    }

    /// Does anybody wait for room? Then who gets idle is to be told at once.
    pub fn is_anybody_waiting_for_room(&self) -> bool {
        self.look_again.is_some()
    }

    /// Does anybody look for room now? Then what is free is to be told before anything else.
    pub fn is_room_looked_for(&self, now: Moment) -> bool {
        let is_due = |worker: &Worker| worker.has_back_from().is_some_and(|from| from <= now);
        self.is_anybody_waiting_for_room() || self.workers().any(|(_, worker)| is_due(worker))
    }

    /// Lets those load that there is room for, and makes room for the first that there is none for.
    pub(crate) fn seat(&mut self, now: Moment) {
        let mut ahead: Vec<MemoryUse> = Vec::new();
        let mut has_obstacle = false;
        for (model_id, worker) in self.line() {
            let Some((_, it)) = self.worker(worker) else { continue };
            let Some(uses) = it.needs().map(<[_]>::to_vec) else { continue };
            let grows = it.growing.is_some();
            let setup = it.setup.clone();
            let (basis, longest) = (if grows { Basis::Engine } else { it.basis }, it.longest());
            if self.moves_on(now, worker) {
                continue;
            }
            if self.obstacle(now, &uses).is_some() {
                has_obstacle = true;
                continue;
            }
            if let Err(fault) = self.could_fit(now, worker, &uses) {
                let largest_context = self.largest_context(worker, &uses, longest);
                let nowhere = || self.sought_place(now, worker, &model_id, &setup, &uses).1;
                let fault = if grows { fault } else { nowhere().unwrap_or(fault) };
                let holders = self.holders_of(now, &uses);
                let more = json!({ "basis": basis, "largest_context": largest_context, "holders": holders });
                self.gives_up(now, worker, with_details(fault, more));
                continue;
            }
            let all = [&ahead[..], &uses].concat();
            let is_next = ahead.is_empty() || self.ledger.hope(now, worker, &all).is_ok();
            let has_room = ahead.is_empty() && self.ledger.has_room(&uses, |other| other != worker);
            let gets_more = has_room && self.makes_enough(now, &model_id, worker);
            let is_its_turn = is_next && !gets_more && !self.is_anybody_shrinking();
            if is_its_turn && self.seated(now, &model_id, worker, &ahead) {
                continue;
            }
            // What takes another's place makes that one go first.
            let is_free_to_ask = !self.models.get(&model_id).is_some_and(ModelLife::has_outgoing)
                && !self.is_anybody_shrinking();
            if ahead.is_empty() && !has_room && self.ledger.is_calm(now) && is_free_to_ask {
                self.make_room(now, &model_id, worker, &uses);
            }
            ahead = all;
        }
        let turns = self.models.values().filter_map(|life| life.may_go_from(self.deadlines.room));
        let next = turns.filter(|from| *from > now).fold(now + LOOK_AGAIN, Moment::min);
        self.look_again = (has_obstacle || !ahead.is_empty()).then_some(next);
    }

    /// There is room for it: it is reserved, and its load goes on. `ahead`: those that come before it.
    fn seated(&mut self, now: Moment, model_id: &str, worker: WorkerId, ahead: &[MemoryUse]) -> bool {
        let Some(it) = self.worker_at(worker) else { return false };
        let Some(least) = it.needs().map(<[_]>::to_vec) else { return false };
        let is_pinned = it.setup.is_pinned();
        let Some(chosen) = self.chosen(it, &self.ledger) else {
            let is_reserved = self.ledger.reserve(worker, &least, model_id, is_pinned);
            if is_reserved {
                self.has_room(now, worker);
            }
            return is_reserved;
        };
        let all = [ahead, &chosen.uses].concat();
        let takes_nothing = ahead.is_empty() || self.ledger.hope(now, worker, &all).is_ok();
        let is_reserved = takes_nothing && self.ledger.reserve(worker, &chosen.uses, model_id, is_pinned);
        if is_reserved {
            self.size(now, worker, chosen);
        }
        is_reserved
    }

    /// What it waited for room for may begin.
    pub(crate) fn has_room(&mut self, now: Moment, worker: WorkerId) {
        let (by, room) = (now + self.deadlines.load, self.deadlines.room);
        let Some((_, it)) = self.worker(worker) else { return };
        let effect = if let Some(growing) = &mut it.growing {
            (growing.step, growing.by) = (Step::Making, by);
            Effect::Reshape { worker, sizing: growing.sizing() }
        } else {
            it.wait_ends(now, room);
            it.stage = Stage::Loading { by };
            let shape = it.shape;
            if let Some(pid) = it.pid {
                self.ledger.runs_as(worker, pid);
            }
            Effect::Proceed { worker, shape }
        };
        self.effects.push(effect);
    }

    /// Would there be room for this worker once all others have gone that may, or now where nobody goes for another?
    pub(crate) fn could_fit(&self, now: Moment, worker: WorkerId, uses: &[MemoryUse]) -> Result<(), Fault> {
        if self.deadlines.room.is_zero() {
            return self.ledger.room(uses, |other| other != worker);
        }
        self.ledger.after(&self.spares_of_pinned()).hope(now, worker, uses)
    }

    /// The longest context for which there would be, by sums; see [`crate::Planned::largest_context`].
    pub(crate) fn largest_context(
        &self,
        worker: WorkerId,
        uses: &[MemoryUse],
        longest: Option<u32>,
    ) -> Option<u32> {
        if self.deadlines.room.is_zero() {
            return self.ledger.largest_context(uses, |other| other != worker, longest);
        }
        let ledger = self.ledger.after(&self.spares_of_pinned());
        ledger.largest_context(uses, |other| other != worker && ledger.is_pinned(other), longest)
    }

    /// A worker that is there, as it is.
    pub(crate) fn worker_at(&self, worker: WorkerId) -> Option<&Worker> {
        self.workers().find(|(_, it)| it.id == worker).map(|(_, it)| it)
    }

    /// What the engine of one that waits says that it takes.
    pub(crate) fn estimate_of(&self, worker: WorkerId) -> Vec<MemoryUse> {
        self.worker_at(worker).and_then(Worker::needs).map(<[_]>::to_vec).unwrap_or_default()
    }

    /// Whoever has to go for it begins to, if that is enough.
    fn make_room(&mut self, now: Moment, model_id: &str, worker: WorkerId, uses: &[MemoryUse]) {
        let found = self.who_makes_room(now, worker, uses).zip(self.worker_at(worker));
        let Some((way, it)) = found.filter(|(way, _)| !way.is_empty()) else { return };
        let going = self.workers().filter(|(_, it)| it.is_going()).map(|(_, it)| it.id);
        let way = self.with_enough(now, it, &self.ledger.without(going), way);
        self.make_way(now, model_id, way);
    }

    /// They begin to do what they are to do for a model.
    pub(crate) fn make_way(&mut self, now: Moment, model_id: &str, way: Way) {
        let Way { shrink, unload } = way;
        self.shrink(now, shrink);
        for (_, victim) in unload {
            let idle = self.life(&victim).idle_since();
            let words = idle.map_or_else(
                || "once it has answered".to_owned(),
                |since| format!("unused for {:.1} s", now.since(since).as_secs_f64()),
            );
            let message = format!("'{victim}' makes room for '{model_id}': {words}");
            self.retire(now, &victim, IncidentKind::Evicted, message);
        }
    }

    /// Who has to go beside those that are going, and may at once. `None`: that would not be enough. `worker`: who
    /// needs the room, in place of what it has.
    pub(crate) fn who_makes_room(&self, now: Moment, worker: WorkerId, uses: &[MemoryUse]) -> Option<Way> {
        let goes = |it: &Worker| it.id == worker || it.is_going();
        let mut gone: BTreeSet<WorkerId> =
            self.workers().filter(|(_, it)| goes(it)).map(|(_, it)| it.id).collect();
        gone.extend(self.ledger.settling());
        let room = |ledger: &Ledger, gone: &BTreeSet<WorkerId>| {
            ledger.has_room(uses, |worker| !gone.contains(&worker))
        };
        if room(&self.ledger, &gone) {
            return Some(Way::default());
        }
        // Whoever gives up what it can do without is there as before.
        let mut shrink = self.spares(now, worker, uses);
        let lean = self.ledger.after(&shrink);
        // A model goes as a whole, and for nothing of its own.
        let may_go = |life: &ModelLife| {
            !life.ids().contains(&worker)
                && life.may_go_from(self.deadlines.room).is_some_and(|from| from <= now)
        };
        let mut models: Vec<_> = self
            .models
            .iter()
            .filter(|(_, life)| may_go(life))
            .map(|(model_id, life)| (life.idle_since(), model_id, life))
            .collect();
        // Of those that are missed as little, who was used least lately.
        models.sort_by_key(|(idle_since, model_id, _)| (*idle_since, *model_id));
        let (lack, gains) = lean.lacking(uses, &gone, models.iter().map(|(_, _, life)| life.ids()));
        let candidate =
            |((idle_since, model_id, life), gain): (&(Option<Moment>, &String, &ModelLife), _)| {
                let cost = self.cost_of_absence(now, model_id, life);
                Candidate { gain, is_busy: idle_since.is_none(), cost }
            };
        let candidates: Vec<Candidate> = models.iter().zip(gains).map(candidate).collect();
        let chosen =
            cheapest(&lack, &candidates)?.into_iter().map(|at| (models[at].2.ids(), models[at].1.clone()));
        let unload: Vec<(Vec<WorkerId>, String)> = chosen.collect();
        gone.extend(unload.iter().flat_map(|(workers, _)| workers));
        if !room(&lean, &gone) {
            return None;
        }
        shrink.retain(|spare| !gone.contains(&spare.worker));
        for at in (0..shrink.len()).rev() {
            let spare = shrink.remove(at);
            if !room(&self.ledger.after(&shrink), &gone) {
                shrink.insert(at, spare);
            }
        }
        Some(Way { shrink, unload })
    }

    /// Milliseconds: what it takes to have it back, as far as it is likely to be wanted soon.
    pub(crate) fn cost_of_absence(&self, now: Moment, model_id: &str, life: &ModelLife) -> u64 {
        let reload = life.lead().map_or(0.0, |worker| worker.load_time().as_secs_f64());
        (1000.0 * reload * self.use_rates.chance(now, model_id)) as u64
    }

    /// What is said of a load that has waited for room long enough.
    pub(crate) fn no_room(&mut self, now: Moment, model_id: &str, worker: WorkerId) -> Fault {
        let uses = self.estimate_of(worker);
        if let Some(fault) = self.cannot_tell(now, model_id, &uses) {
            return fault;
        }
        let seconds = self.deadlines.room.as_secs_f64();
        let shortage = self.ledger.room(&uses, |other| other != worker).err();
        let why = shortage.as_ref().map_or_else(|| "others come first".to_owned(), |it| it.message.clone());
        let holders = self.holders_of(now, &uses);
        let names =
            holders.iter().map(|holder| format!("'{}'", holder.model_id)).collect::<Vec<_>>().join(", ");
        let message = format!(
            "Model '{model_id}' has waited {seconds} s for memory that {names} hold and use: {why}. Try again later"
        );
        let place = self.places.iter().position(|place| place.model_id == model_id);
        let expected = place.map_or(Duration::ZERO, |at| self.places[at].expected.since(now));
        let (seconds, place) = (whole_seconds(expected), place.map(|at| at + 1));
        let details = json!({ "retry_after": seconds, "place": place, "holders": holders });
        Fault::new(ErrorCode::ModelLoading, message).details(details.to_string())
    }

    /// Who holds something of where a load would go, and what keeps each of them.
    pub(crate) fn holders_of(&self, now: Moment, uses: &[MemoryUse]) -> Vec<Holder> {
        let mut holders = self.ledger.holders_of(uses);
        for holder in &mut holders {
            let kept = self.models.get(&holder.model_id).and_then(|life| life.kept(self.deadlines.room));
            holder.kept_by = kept.and_then(|kept| kept.at(now)).map(|kept| kept.by);
        }
        holders
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = (&String, &Worker)> {
        self.models.iter().flat_map(|(model_id, life)| life.workers.iter().map(move |it| (model_id, it)))
    }
}

/// A fault with more details than it has.
pub(crate) fn with_details(fault: Fault, more: Value) -> Fault {
    let details: Option<Map<String, Value>> =
        fault.details.as_deref().and_then(|text| serde_json::from_str(text).ok());
    let (mut details, Value::Object(more)) = (details.unwrap_or_default(), more) else { return fault };
    details.extend(more);
    fault.details(Value::Object(details).to_string())
}
