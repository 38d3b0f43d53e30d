//! A model that is loaded is wanted with another engine or option: it is loaded anew.
//!
//! Only where its engine has said what that takes, and there could be room. Where there is room for both, the new one is
//! loaded beside the old, which answers until the new one does. Where there is not, the old one ends what it has
//! first, and what comes for the model meanwhile waits. No answer is cut in either. Of several workers one is replaced
//! after the other. What cannot be loaded so leaves the model as it was.

use std::mem;

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::{GpuAddress, MemoryUse, length_of},
    options::ModelOptions,
    shape::Shape,
};
use serde_json::json;

use crate::{
    Fleet, Foreseen, IncidentKind, Moment, Setup, Severity, Won, WorkerId,
    back::GaveUp,
    life::{Because, LONGEST_PAUSE, ModelLife, Stage, Waiting, Worker},
    placing::{figures_on, on},
    room::with_details,
    shape,
    wishes::Fit,
};

/// No worker has this number.
pub(crate) const NOBODY: WorkerId = 0;

/// What a model is to become.
#[derive(Clone, Debug)]
pub(crate) struct Replacement {
    pub(crate) setup: Setup,
    format: Option<String>,
    /// As what it comes back where none is left and none can be loaded.
    former: ModelOptions,
    foreseen: Box<Foreseen>,
    /// So many answered when it began.
    before: usize,
    /// The next one is not tried before.
    pub(crate) not_before: Option<Moment>,
}

impl Fleet {
    /// It is loaded, or being loaded, as something else than somebody wants. `fault`: what is said where it stays.
    pub(crate) fn replace(&mut self, now: Moment, model_id: &str, mut waiting: Waiting, fault: Fault) {
        let (foreseen, format) = (waiting.instead.take(), waiting.format.clone());
        let found = self.life(model_id).lead().filter(|worker| matches!(worker.stage, Stage::Serving));
        let (Some(foreseen), Some(worker)) = (foreseen, found) else {
            return self.refuse(waiting.ticket, fault);
        };
        let asked = worker.setup.replaced(&waiting.wishes);
        match self.begin_to_replace(now, model_id, asked, format, foreseen, &fault.message) {
            Ok(()) => {
                waiting.is_met = true;
                self.life(model_id).waiting.push(waiting);
            }
            Err(fault) => self.refuse(waiting.ticket, fault),
        }
    }

    /// Its engine is another build now.
    pub(crate) fn renew(&mut self, now: Moment, model_id: &str, foreseen: Box<Foreseen>) {
        let Some(life) = self.models.get(model_id).filter(|life| life.replacement.is_none()) else { return };
        let answers = |it: &&Worker| matches!(it.stage, Stage::Serving) && it.is_wanted();
        let Some(worker) = life.lead().filter(answers).filter(|_| self.stopping.is_none()) else { return };
        let (asked, engine) = (worker.setup.replaced(&worker.setup.asked), worker.engine());
        let words = format!("its engine, {engine}, has changed");
        if let Err(fault) = self.begin_to_replace(now, model_id, asked, None, foreseen, &words) {
            let message = format!("'{model_id}' goes on with what its engine was: {fault}");
            self.tell(Severity::Warning, IncidentKind::Refused, model_id, message, None);
        }
    }

    /// `words`: why.
    fn begin_to_replace(
        &mut self,
        now: Moment,
        model_id: &str,
        asked: ModelOptions,
        format: Option<String>,
        foreseen: Box<Foreseen>,
        words: &str,
    ) -> Result<(), Fault> {
        let life = self.life(model_id);
        let Some(lead) = life.lead() else { return Ok(()) };
        let (id, former) = (lead.id, lead.setup.asked.clone());
        let setup = Setup::new(model_id, asked, &self.usual);
        self.has_places(model_id, &setup)?;
        let least = foreseen.least(&self.history)?;
        let (place, no_place) = self.sought_place(now, id, model_id, &setup, &least);
        let uses = on(&least, &place);
        if let Some(fault) = self.cannot_tell(now, model_id, &uses) {
            return Err(fault);
        }
        let has_room = no_place.map_or_else(|| self.could_fit(now, id, &uses), Err);
        has_room.map_err(|fault| with_details(fault, json!({ "holders": self.holders_of(now, &uses) })))?;
        let mut before = 0;
        for id in self.life(model_id).ids() {
            let Some((_, it)) = self.worker(id) else { continue };
            match &mut it.stage {
                Stage::Serving => {
                    it.is_outgoing = true;
                    before += 1;
                }
                Stage::Ending { because, .. } => *because = Because::Retired,
                _ => self.retire_worker(now, id),
            }
        }
        let replacement = Replacement { setup, format, former, foreseen, before, not_before: None };
        self.life(model_id).replacement = Some(replacement);
        let message = format!("'{model_id}' is loaded anew: {words}");
        self.tell(Severity::Info, IncidentKind::Replaced, model_id, message, None);
        Ok(())
    }

    /// Somebody wants a model that is being loaded anew.
    pub(crate) fn load_meanwhile(&mut self, now: Moment, model_id: &str, waiting: Waiting) {
        let life = self.life(model_id);
        let Some(replacement) = &mut life.replacement else { return };
        let serves = |it: &&mut Worker| {
            matches!(it.stage, Stage::Serving)
                && it.setup.fits(&waiting.wishes, model_id, "is loaded") == Fit::Joins
        };
        if let Some(it) = life.workers.iter_mut().find(serves)
            && let Some(loaded) = it.loaded.clone()
        {
            it.idle_since = it.idle_since.map(|_| now);
            it.is_awaited = it.idle_since.is_some();
            it.is_expected |= waiting.for_request;
            self.also(model_id, &waiting.wishes);
            return self.resolve(waiting.ticket, Ok(Won::Loaded(loaded)));
        }
        match replacement.setup.fits(&waiting.wishes, model_id, "is being loaded") {
            Fit::Joins | Fit::Grows(_) => life.waiting.push(waiting),
            Fit::Differs(fault) => self.refuse(waiting.ticket, fault),
        }
    }

    /// Each model that is being loaded anew comes a step further, if it can.
    pub(crate) fn go_on_replacing(&mut self, now: Moment) {
        let are = self.models.iter().filter(|(_, life)| life.replacement.is_some());
        for model_id in are.map(|(model_id, _)| model_id.clone()).collect::<Vec<_>>() {
            self.replace_next(now, &model_id);
        }
    }

    fn replace_next(&mut self, now: Moment, model_id: &str) {
        let life = self.life(model_id);
        let Some(replacement) = &mut life.replacement else { return };
        let (wanted, before) = (replacement.setup.replicas(), replacement.before);
        if replacement.not_before.is_some_and(|from| from > now) {
            return;
        }
        replacement.not_before = None;
        let new = life.wanted().count();
        let old: Vec<WorkerId> = life.workers.iter().filter(|it| it.is_outgoing).map(|it| it.id).collect();
        if !life.wanted().all(|it| matches!(it.stage, Stage::Serving)) {
            let is_in_line = life.wanted().any(|it| matches!(it.stage, Stage::Waiting { .. }));
            if let Some(first) = old.first().filter(|_| is_in_line && self.ledger.is_calm(now)) {
                // It takes more than it was to.
                self.retire_worker(now, *first);
            }
            return;
        }
        if new >= wanted {
            life.replacement = None;
            for worker in old {
                self.retire_worker(now, worker);
            }
            self.may_grow(now, model_id);
            return self.load_waiting(now, model_id);
        }
        if let Some(first) = old.first().filter(|_| new > 0 && old.len() + new > wanted) {
            // Its place is the next one's.
            return self.retire_worker(now, *first);
        }
        // What they leave comes back in a moment.
        let is_anybody_leaving =
            life.workers.len() > new + old.len() || self.ledger.settling().next().is_some();
        let place = self.place_beside(now, model_id);
        match (place, old.first()) {
            (Some(place), _) => self.begin_replacing(now, model_id, place),
            (None, _) if is_anybody_leaving => {}
            (None, Some(first)) if old.len() + new >= before.min(wanted) => self.retire_worker(now, *first),
            (None, _) => self.begin_replacing(now, model_id, Vec::new()),
        }
    }

    fn begin_replacing(&mut self, now: Moment, model_id: &str, place: Vec<GpuAddress>) {
        let Some(it) = &self.life(model_id).replacement else { return };
        let (mut setup, format) = (it.setup.clone(), it.format.clone());
        setup.place = place;
        match self.has_a_place(model_id, &setup) {
            Ok(()) => self.begin(now, model_id, setup, format),
            Err(fault) => self.not_replaced(now, model_id, &fault),
        }
    }

    /// Where there is room for the next one beside those that answer; none: wherever its engine puts it.
    fn place_beside(&self, now: Moment, model_id: &str) -> Option<Vec<GpuAddress>> {
        let life = self.models.get(model_id)?;
        let Replacement { setup, foreseen, .. } = life.replacement.as_ref()?;
        let is_anybody_waiting = !self.line().is_empty();
        self.place_beside_of(now, model_id, life, setup, foreseen).filter(|_| !is_anybody_waiting)
    }

    /// The same of what would take a model's place.
    pub(crate) fn place_beside_of(
        &self,
        now: Moment,
        model_id: &str,
        life: &ModelLife,
        setup: &Setup,
        foreseen: &Foreseen,
    ) -> Option<Vec<GpuAddress>> {
        let least = foreseen.least(&self.history).ok()?;
        let place = self.place_without_loss(now, model_id, setup, &least)?;
        self.fits_beside(life, setup, foreseen, &place).then_some(place)
    }

    /// Is there room for it beside all others, for a context that is long enough, or as long as there is?
    fn fits_beside(
        &self,
        life: &ModelLife,
        setup: &Setup,
        foreseen: &Foreseen,
        place: &[GpuAddress],
    ) -> bool {
        let placed = |uses: Vec<MemoryUse>| on(&uses, place);
        let Foreseen { figures, key, before, .. } = foreseen;
        let least = foreseen.least(&self.history).map(placed);
        if !least.is_ok_and(|least| self.ledger.has_room(&least, |_| true)) {
            return false;
        }
        if !figures.are_of_contexts() {
            return true;
        }
        let figures = figures_on(figures, place);
        let before = before.as_deref().cloned().and_then(|before| before.on(place));
        let beyond = Some((&*self.history, key));
        let chosen = shape::choose(&self.ledger, setup, &figures, before.as_ref(), beyond, NOBODY);
        let has = life.lead().and_then(|worker| worker.shape).map_or(u32::MAX, |shape| shape.context_length);
        let is_long_enough = |shape: Shape| {
            shape.context_length >= has || shape.is_enough(setup.wish(), length_of(&figures.one))
        };
        chosen.is_ok_and(|chosen| is_long_enough(chosen.shape))
    }

    /// Those that were loaded beside others have what these leave, once that is free.
    fn may_grow(&mut self, now: Moment, model_id: &str) {
        let mut then = self.ledger.clone();
        let life = self.life(model_id);
        for worker in life.workers.iter().filter(|it| !it.is_wanted()) {
            then.withdraw(worker.id);
        }
        let new: Vec<WorkerId> = life.wanted().filter(|it| it.is_in_steps()).map(|it| it.id).collect();
        for worker in new {
            let Some(it) = self.worker_at(worker).filter(|it| it.figures.are_of_contexts()) else { continue };
            let Some(has) = it.shape else { continue };
            let chosen = shape::choose(&then, &it.setup, &it.figures, None, None, worker);
            let Some(had) = chosen.ok().map(|chosen| chosen.shape) else { continue };
            if had.cells() / 2 >= has.cells()
                && let Some((_, it)) = self.worker(worker)
            {
                it.gave_up = Some(GaveUp { had, from: now });
            }
        }
    }

    /// Is there a GPU for one more worker, where it has to have one of its own? One may have been lost.
    fn has_a_place(&self, model_id: &str, setup: &Setup) -> Result<(), Fault> {
        let is_there =
            setup.replicas() == 1 || !setup.place.is_empty() || self.has_place_left(model_id, setup);
        if is_there {
            return Ok(());
        }
        self.has_places(model_id, setup)?;
        let message = format!("Model '{model_id}': there is no GPU for another of its workers now");
        Err(Fault::new(ErrorCode::ModelLoading, message))
    }

    fn refuse_all(&mut self, model_id: &str, fault: &Fault) {
        for waiting in mem::take(&mut self.life(model_id).waiting) {
            self.refuse(waiting.ticket, fault.clone());
        }
    }

    /// One could not be loaded so.
    pub(crate) fn not_replaced(&mut self, now: Moment, model_id: &str, fault: &Fault) {
        let life = self.life(model_id);
        let waiting = mem::take(&mut life.waiting);
        let is_one_there = life.is_wanted();
        let replacement = life.replacement.as_ref();
        // The next one is tried later, perhaps in vain: whoever wants more than it has does not wait for that.
        let wants_more = |waiting: &Waiting| {
            replacement
                .is_some_and(|it| it.setup.fits(&waiting.wishes, model_id, "is being loaded") != Fit::Joins)
        };
        let (met, others): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|waiting| waiting.is_met || (is_one_there && wants_more(waiting)));
        life.waiting = others;
        if is_one_there {
            // The first one answers.
            if let Some(replacement) = &mut life.replacement {
                replacement.not_before = Some(now + LONGEST_PAUSE);
            }
        } else if let Some(Replacement { former, .. }) = life.replacement.take() {
            for worker in &mut life.workers {
                worker.is_outgoing = false;
            }
            if !life.is_wanted() {
                let setup = Setup::new(model_id, former, &self.usual);
                match self.has_a_place(model_id, &setup) {
                    Ok(()) => self.begin(now, model_id, setup, None),
                    Err(fault) => self.refuse_all(model_id, &fault),
                }
            }
        }
        for waiting in met {
            self.refuse(waiting.ticket, fault.clone());
        }
        self.load_waiting(now, model_id);
    }
}
