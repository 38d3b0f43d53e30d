//! A model that answers is asked for with a longer context, more sequences or a larger cache than it has: its
//! worker makes its context anew, and goes on.
//!
//! First the worker says what that takes. Then there is room, or others make it, as for a load. Until the new
//! context is there, the model is what it was; where it cannot be made, it stays that.

use std::{mem, sync::Arc};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Figures, MemoryUse},
    shape::{Shape, Sizing},
};

use crate::{
    Effect, Fleet, IncidentKind, Loaded, Moment, Setup, Severity, WorkerId,
    life::{Because, Stage, Waiting, Worker},
    placing::located,
    shape,
    wishes::Fit,
};

/// The way to another context.
#[derive(Clone, Debug)]
pub(crate) struct Growing {
    /// What it is to be.
    pub(crate) setup: Setup,
    /// What the model takes then.
    pub(crate) estimate: Vec<MemoryUse>,
    /// The size of its context, where its engine gives figures.
    pub(crate) shape: Option<Shape>,
    pub(crate) step: Step,
    /// When the step must have ended.
    pub(crate) by: Moment,
    pub(crate) why: Why,
}

impl Growing {
    pub(crate) fn sizing(&self) -> Sizing {
        Sizing { size: self.setup.wish().size, shape: self.shape }
    }
}

/// What for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// Somebody wants more than it has.
    Asked,
    /// Another needs the room: it gives up what it can do without.
    Smaller,
    /// It has back what it gave up. Nobody makes room for that, and nothing that is being answered is read again for
    /// it, unless it is for somebody who waits.
    Back { is_awaited: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Its worker is to say what it takes.
    Sizing,
    /// Others are to make room.
    Waiting,
    /// The context is being made.
    Making,
}

impl Fleet {
    /// Somebody waits for more than the model has, or will have.
    pub(crate) fn grow(&mut self, now: Moment, model_id: &str, waiting: Waiting) {
        for id in self.life(model_id).ids() {
            let Some((_, it)) = self.worker(id) else { continue };
            if let (Stage::Serving, None) = (&it.stage, &it.growing)
                && let Fit::Grows(_) = it.setup.fits(&waiting.wishes, model_id, "is loaded")
            {
                let setup = it.setup.grown(&waiting.wishes);
                let figures = Some(it.figures.clone()).filter(Figures::are_of_contexts);
                let chosen =
                    figures.map(|figures| shape::choose(&self.ledger, &setup, &figures, None, None, id));
                let shape = match chosen.transpose() {
                    Ok(chosen) => chosen.map(|chosen| chosen.shape),
                    Err(fault) => return self.refuse(waiting.ticket, fault),
                };
                self.ask_for(now, id, setup, shape, Why::Asked);
            }
        }
        // It is looked at again once the load, or the growth under way, has come to something.
        self.life(model_id).waiting.push(waiting);
    }

    /// A worker that answers is to say what it takes with another context.
    pub(crate) fn ask_for(
        &mut self,
        now: Moment,
        worker: WorkerId,
        setup: Setup,
        shape: Option<Shape>,
        why: Why,
    ) {
        let (estimate, step, by) = (Vec::new(), Step::Sizing, now + self.deadlines.load);
        let growing = Growing { setup, estimate, shape, step, by, why };
        self.effects.push(Effect::Size { worker, sizing: growing.sizing() });
        if let Some((_, it)) = self.worker(worker) {
            it.growing = Some(growing);
        }
    }

    pub(crate) fn sized(
        &mut self,
        now: Moment,
        worker: WorkerId,
        uses: Result<Option<Vec<MemoryUse>>, Fault>,
    ) {
        let room = self.deadlines.room;
        let Some((_, it)) = self.worker(worker) else { return };
        if let (Stage::Loading { .. }, 1..) = (&it.stage, it.rounds) {
            return self.sized_for_load(now, worker, uses);
        }
        let memory = it.memory();
        let unsaid = self.ledger.unsaid(worker, &memory);
        let Some((_, it)) = self.worker(worker) else { return };
        let Some(growing) = it.growing.as_mut().filter(|growing| growing.step == Step::Sizing) else {
            return;
        };
        let place = it.setup.place.clone();
        match uses.map(|uses| uses.map(|uses| located(uses, &place))) {
            Ok(uses) => {
                // An engine that cannot say is believed to need no more than it has.
                let uses = uses.filter(|uses| uses.iter().any(|use_| use_.total() > 0)).unwrap_or(memory);
                growing.estimate = [&uses[..], &unsaid].concat();
                if let Why::Back { is_awaited } = growing.why {
                    return self.take_back(now, worker, is_awaited);
                }
                (growing.step, growing.by) = (Step::Waiting, now + room);
            }
            Err(fault) => self.stays(now, worker, &fault),
        }
    }

    pub(crate) fn reshaped(&mut self, now: Moment, worker: WorkerId, facts: Result<ModelFacts, Fault>) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let Some(growing) = it.growing.take_if(|growing| growing.step == Step::Making) else { return };
        let facts = match facts {
            Ok(facts) => ModelFacts { memory: located(facts.memory, &it.setup.place), ..facts },
            Err(fault) => {
                it.growing = Some(growing);
                return self.stays(now, worker, &fault);
            }
        };
        let Some(before) = &it.loaded else { return };
        let mut loaded = Loaded { facts, estimated_bytes: None, ..Loaded::clone(before) };
        it.complete(&mut loaded);
        let mut setup = growing.setup;
        setup.stays_like(&it.setup);
        setup.came_to(loaded.facts.context_length, loaded.facts.max_sequences);
        setup.has_cells(growing.shape.map(Shape::cells));
        it.setup = setup;
        let had = mem::replace(&mut it.shape, growing.shape);
        it.changed(now, growing.why, had);
        let message = format!(
            "'{model_id}' has a context of {} tokens now, and {} sequences",
            loaded.facts.context_length, loaded.facts.max_sequences
        );
        let loaded = Arc::new(loaded);
        it.loaded = Some(Arc::clone(&loaded));
        self.settle(worker, &model_id, &loaded.facts.memory);
        self.tell(Severity::Info, IncidentKind::Reshaped, &model_id, message, None);
        self.load_waiting(now, &model_id);
    }

    /// It stays what it is: those who wanted it otherwise are told why, and those who want something else again
    /// have their turn.
    pub(crate) fn stays(&mut self, now: Moment, worker: WorkerId, fault: &Fault) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let Some(growing) = it.growing.take() else { return };
        it.is_stiff |= growing.why == Why::Smaller;
        it.keeps_less(now, growing.why);
        let loaded = it.loaded.clone();
        let waiting = mem::take(&mut self.life(&model_id).waiting);
        if let (Step::Making, Some(loaded)) = (growing.step, loaded) {
            self.settle(worker, &model_id, &loaded.facts.memory);
        }
        let message = format!("'{model_id}' keeps the context that it has: {fault}");
        self.tell(Severity::Warning, IncidentKind::Refused, &model_id, message, None);
        for waiting in waiting {
            match growing.setup.fits(&waiting.wishes, &model_id, "is loaded") {
                Fit::Joins if growing.why == Why::Asked => self.refuse(waiting.ticket, fault.clone()),
                Fit::Joins | Fit::Grows(_) | Fit::Differs(_) => self.load(now, &model_id, waiting),
            }
        }
    }

    /// The step to another context takes too long.
    pub(crate) fn growth_is_late(&mut self, now: Moment, worker: WorkerId) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        match it.growing.as_ref().map(|growing| growing.step) {
            None => {}
            Some(Step::Waiting) => {
                let fault = self.no_room(now, &model_id, worker);
                self.stays(now, worker, &fault);
            }
            Some(Step::Sizing | Step::Making) => {
                let seconds = self.deadlines.load.as_secs_f64();
                let message =
                    format!("Model '{model_id}': its worker did not change its context within {seconds} s");
                let fault = Fault::new(ErrorCode::Timeout, message);
                self.kill(now, worker, Because::Failed(fault));
            }
        }
    }
}

impl Worker {
    /// What it takes, as far as is known.
    pub(crate) fn memory(&self) -> Vec<MemoryUse> {
        self.loaded.as_ref().map_or(&self.estimate, |loaded| &loaded.facts.memory).clone()
    }

    /// Is it one whose context can be made anew?
    pub(crate) fn is_in_steps(&self) -> bool {
        self.loaded.as_ref().is_some_and(|loaded| loaded.facts.source == "batch")
    }

    /// What it waits for room for.
    pub(crate) fn needs(&self) -> Option<&[MemoryUse]> {
        match (&self.stage, &self.growing) {
            (Stage::Waiting { .. }, _) => Some(&self.estimate),
            (Stage::Serving, Some(Growing { step: Step::Waiting, estimate, .. })) => Some(estimate),
            _ => None,
        }
    }
}
