//! How large the context of a load becomes, where its engine says what one takes.
//!
//! A load stands in line for the least that is of use. Once there is room for that, it gets what follows from all that
//! is free then, as [`Shape::choose`] has it. Where that is less than enough, models that have more than enough and
//! nothing to answer give up what they have beyond that first. What the engine says of it is asked then, and where
//! that is more than was thought, it is chosen again.

use std::iter;

use llm_node_core::{
    error::Fault,
    memory::{Figures, MemoryUse, length_of},
    shape::{Place, Shape, Sizing},
};

use crate::{
    Basis, Effect, Fleet, FoundModel, History, Known, LoadKey, Moment, Setup, WorkerId,
    history::is_same_device,
    ledger::Ledger,
    life::{BETWEEN_REQUESTS, Because, Stage, Worker},
    placing::located,
    reshape::{Growing, Step, Why},
};

/// So often an engine is asked what a context takes before that is what has to have room.
pub(crate) const MOST_ROUNDS: u8 = 3;
/// A remembered size is taken again while it is no smaller than so much of what would be chosen now.
const AS_BEFORE: (u64, u64) = (3, 4);

/// The size of a context, and what a load takes with it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Chosen {
    pub(crate) shape: Shape,
    pub(crate) uses: Vec<MemoryUse>,
    /// Such a load was measured: its engine need not be asked.
    pub(crate) is_known: bool,
}

/// Somebody who can do with less.
#[derive(Clone, Debug)]
pub(crate) struct Spare {
    pub(crate) worker: WorkerId,
    pub(crate) model_id: String,
    pub(crate) shape: Shape,
    /// What is free then.
    pub(crate) gain: Vec<MemoryUse>,
}

/// What follows from what there is in a ledger. `before`: what such a load came to. `beyond`: where it is remembered
/// what loads take beyond what is said of them.
pub(crate) fn choose(
    ledger: &Ledger,
    setup: &Setup,
    figures: &Figures,
    before: Option<&Known>,
    beyond: Option<(&History, &LoadKey)>,
    worker: WorkerId,
) -> Result<Chosen, Fault> {
    let (wish, length) = (setup.wish(), length_of(&figures.one));
    let corrected = |uses: Vec<MemoryUse>| match beyond {
        Some((history, key)) => history.corrected(key, uses),
        None => uses,
    };
    let all = Figures { one: corrected(figures.one.clone()), draft: figures.draft.clone() };
    let shape = Shape::choose(wish, length, &ledger.places(&all, worker))?;
    if let Some(before) = before
        && let Some(known) = before.shape
        && known.cells().saturating_mul(AS_BEFORE.1) >= shape.cells().saturating_mul(AS_BEFORE.0)
        && known.is_enough(wish, length) >= shape.is_enough(wish, length)
        && ledger.has_room(&before.uses, |other| other != worker)
    {
        return Ok(Chosen { shape: known, uses: before.uses.clone(), is_known: true });
    }
    Ok(Chosen { shape, uses: corrected(shape.of_figures(figures)), is_known: false })
}

/// The same once more, with what its engine has said of the last choice: what is taken beside a cache depends on how
/// large that is. `said`: with what loads take beyond that.
pub(crate) fn choose_again(
    ledger: &Ledger,
    setup: &Setup,
    figures: &Figures,
    said: &[MemoryUse],
    worker: WorkerId,
) -> Option<Chosen> {
    let known = |one: &MemoryUse| said.iter().find(|known| is_same_device(known, one));
    let mut figures = figures.clone();
    for one in &mut figures.one {
        one.compute = known(one).map_or(one.compute, |known| known.compute);
    }
    figures.draft.iter_mut().for_each(|draft| draft.compute = 0);
    let mut chosen = choose(ledger, setup, &figures, None, None, worker).ok()?;
    for use_ in &mut chosen.uses {
        use_.compute = known(use_).map_or(use_.compute, |known| known.compute);
    }
    Some(chosen)
}

/// The least that is of use, in the same way, and what the sums say that it takes.
pub(crate) fn least(setup: &Setup, figures: &Figures) -> Result<(Shape, Vec<MemoryUse>), Fault> {
    // Where its cache lies is all that counts.
    let place = |one: &MemoryUse| Place {
        is_host: one.is_host,
        free: 0,
        per_token: one.cache_per_token,
        per_sequence: one.cache_per_sequence,
    };
    let places: Vec<Place> = figures.one.iter().map(place).collect();
    let shape = Shape::least(setup.wish(), length_of(&figures.one), &places)?;
    Ok((shape, shape.of_figures(figures)))
}

impl Fleet {
    /// A load whose engine gives figures stands in line for the least that is of use.
    pub(crate) fn wait_for_the_least(&mut self, now: Moment, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        let Some(FoundModel { key, known, .. }) = it.found.clone() else { return };
        match least(&it.setup, &it.figures) {
            Ok((_, said)) => {
                let estimate = self.history.corrected(&key, said.clone());
                let basis = if known.is_some() { Basis::Measured } else { Basis::Engine };
                if let Some((_, it)) = self.worker(worker) {
                    (it.said, it.estimate, it.basis) = (said, estimate, basis);
                }
            }
            Err(fault) => self.end(now, worker, Because::Failed(fault)),
        }
    }

    /// What a load that stands in line gets of what there is in a ledger; `None`: what it waits for is all that it gets.
    pub(crate) fn chosen(&self, worker: &Worker, ledger: &Ledger) -> Option<Chosen> {
        if !worker.is_open() {
            return None;
        }
        let found = worker.found.as_ref()?;
        let (setup, figures, known) = (&worker.setup, &worker.figures, found.known.as_ref());
        choose(ledger, setup, figures, known, Some((&self.history, &found.key)), worker.id).ok()
    }

    /// It has room for what was chosen: its engine is asked what that takes, unless it is known.
    pub(crate) fn size(&mut self, now: Moment, worker: WorkerId, chosen: Chosen) {
        let (by, room) = (now + self.deadlines.load, self.deadlines.room);
        let Some((_, it)) = self.worker(worker) else { return };
        it.shape = Some(chosen.shape);
        if chosen.is_known {
            let said = it.found.as_ref().and_then(|found| Some(found.known.as_ref()?.estimated.clone()));
            (it.said, it.estimate) = (said.unwrap_or_default(), chosen.uses);
            return self.has_room(now, worker);
        }
        it.wait_ends(now, room);
        it.stage = Stage::Loading { by };
        it.rounds += 1;
        it.estimate = chosen.uses;
        let effect = Effect::Size { worker, sizing: it.sizing() };
        self.effects.push(effect);
    }

    /// What its engine says that it takes as it was chosen. `uses`: `None` where it cannot say.
    pub(crate) fn sized_for_load(
        &mut self,
        now: Moment,
        worker: WorkerId,
        uses: Result<Option<Vec<MemoryUse>>, Fault>,
    ) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let (is_pinned, rounds, place) = (it.setup.is_pinned(), it.rounds, it.setup.place.clone());
        let Some(found) = it.found.clone() else { return };
        let (said, basis) = match uses {
            Ok(Some(uses)) if uses.iter().any(|it| it.total() > 0) => (located(uses, &place), Basis::Engine),
            Ok(_) => (self.ledger.guess(found.size_bytes, &place), Basis::FileSize),
            Err(fault) => return self.end(now, worker, Because::Failed(fault)),
        };
        let estimate = self.history.corrected(&found.key, said.clone());
        // What was reserved on the sums alone was not taken.
        self.ledger.withdraw(worker);
        let has_room = self.ledger.reserve(worker, &estimate, &model_id, is_pinned);
        let Some((_, it)) = self.worker(worker) else { return };
        (it.said, it.basis) = (said, basis);
        it.estimate = estimate;
        let has = it.shape.map_or(0, Shape::cells);
        if rounds < MOST_ROUNDS
            && basis == Basis::Engine
            && let Some(again) = self
                .worker_at(worker)
                .and_then(|it| choose_again(&self.ledger, &it.setup, &it.figures, &it.estimate, worker))
            && (!has_room || again.shape.cells() / 2 >= has)
            && self.ledger.has_room(&again.uses, |other| other != worker)
        {
            self.ledger.withdraw(worker);
            if self.ledger.reserve(worker, &again.uses, &model_id, is_pinned) {
                return self.size(now, worker, again);
            }
        }
        if has_room {
            return self.has_room(now, worker);
        }
        let by = now + self.deadlines.room;
        if let Some((_, it)) = self.worker(worker) {
            it.stage = Stage::Waiting { by };
            if it.is_open() {
                self.wait_for_the_least(now, worker);
            }
        }
    }

    /// Those that have more than enough and nothing to answer, on the devices of what is wanted.
    pub(crate) fn spares(&self, now: Moment, worker: WorkerId, uses: &[MemoryUse]) -> Vec<Spare> {
        let wanted = self.ledger.by_account(uses);
        let is_of_use = |gain: &[MemoryUse]| {
            self.ledger
                .by_account(gain)
                .iter()
                .any(|(name, here)| wanted.contains_key(name) && here.iter().any(|it| it.cache > 0))
        };
        self.workers()
            .filter(|(_, it)| it.id != worker && it.is_idle(now))
            .filter_map(|(model_id, it)| {
                let (shape, gain) = it.beyond_enough(&self.ledger)?;
                is_of_use(&gain).then(|| Spare { worker: it.id, model_id: model_id.clone(), shape, gain })
            })
            .collect()
    }

    /// The same of those that go for nobody's sake, whatever they answer now.
    pub(crate) fn spares_of_pinned(&self) -> Vec<Spare> {
        let pinned = self.workers().filter(|(_, it)| it.setup.is_pinned());
        pinned
            .filter_map(|(model_id, it)| {
                let (shape, gain) = it.beyond_enough(&self.ledger)?;
                Some(Spare { worker: it.id, model_id: model_id.clone(), shape, gain })
            })
            .collect()
    }

    /// They give up what they can do without.
    pub(crate) fn shrink(&mut self, now: Moment, spares: Vec<Spare>) {
        let by = now + self.deadlines.load;
        for Spare { worker, shape, .. } in spares {
            let Some((_, it)) = self.worker(worker) else { continue };
            let (setup, estimate) = (it.setup.clone(), it.memory());
            let sizing = Sizing { size: setup.wish().size, shape: Some(shape) };
            let (step, shape, why) = (Step::Making, Some(shape), Why::Smaller);
            it.growing = Some(Growing { setup, estimate, shape, step, by, why });
            self.effects.push(Effect::Reshape { worker, sizing });
        }
    }

    /// Does somebody give up what it can do without just now?
    pub(crate) fn is_anybody_shrinking(&self) -> bool {
        self.workers().any(|(_, it)| it.growing.as_ref().is_some_and(|growing| growing.why == Why::Smaller))
    }
}

impl Worker {
    /// Is the size of its context still to be chosen?
    pub(crate) fn is_open(&self) -> bool {
        self.rounds < MOST_ROUNDS
            && self.figures.are_of_contexts()
            && matches!(self.stage, Stage::Waiting { .. })
    }

    /// As it is to be loaded.
    pub(crate) fn sizing(&self) -> Sizing {
        Sizing { size: self.setup.wish().size, shape: self.shape }
    }

    fn is_idle(&self, now: Moment) -> bool {
        self.idle_since.is_some_and(|since| since + BETWEEN_REQUESTS <= now)
    }

    /// What it can do with, and what is free then, if it has more.
    fn beyond_enough(&self, ledger: &Ledger) -> Option<(Shape, Vec<MemoryUse>)> {
        let (Stage::Serving, None, false) = (&self.stage, &self.growing, self.is_stiff) else { return None };
        let has = self.shape.filter(|_| self.is_in_steps())?;
        let length = length_of(&self.figures.one);
        let mut gain = has.of_figures(&self.figures);
        // What it has it may keep, whatever others take meanwhile.
        let own = ledger.by_account(&gain).into_values().map(|here| here.iter().map(|it| it.cache).sum());
        let places = ledger.places(&self.figures, self.id).into_iter().zip(own.chain(iter::repeat(0)));
        let places: Vec<Place> =
            places.map(|(place, own): (_, u64)| Place { free: place.free.max(own), ..place }).collect();
        let enough = Shape::enough(self.setup.wish_of_all(), length, &places).ok()?;
        if enough.cells() >= has.cells() {
            return None;
        }
        for (one, left) in gain.iter_mut().zip(enough.of_figures(&self.figures)) {
            (one.weights, one.compute) = (0, 0);
            one.cache = one.cache.saturating_sub(left.cache);
        }
        Some((enough, gain))
    }
}
