//! A model that has given up a part of its context for others has it back once nobody needs the room.
//!
//! Its worker makes its context anew for that, and forgets what it knows of earlier prompts. So it is done while
//! nothing is asked of it, nobody loads, and some time after it was made smaller: the longer, the oftener that was. A
//! request that is too long for what is left, and was not for what it had, has it done at once.

use std::time::Duration;

use llm_node_core::{memory::MemoryUse, shape::Shape};

use crate::{
    Fleet, Moment, WorkerId,
    life::{Stage, Worker},
    reshape::Why,
    shape,
};

/// For so long nothing was asked of it: who is in a conversation has answered by then.
const QUIET: Duration = Duration::from_secs(30);
/// No sooner after it has given something up; twice as long after each further time.
const FIRST_REST: Duration = Duration::from_mins(1);
const LONGEST_REST: Duration = Duration::from_hours(1);
/// What is free is looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// What a worker has given up for others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GaveUp {
    /// What it had.
    pub(crate) had: Shape,
    /// Nothing of it comes back before, unless somebody waits for it.
    pub(crate) from: Moment,
}

impl Fleet {
    /// Whoever has given something up, and may have it back now, gets it.
    pub(crate) fn give_back(&mut self, now: Moment) {
        if self.stopping.is_some() {
            return;
        }
        let is_due = |worker: &Worker| worker.has_back_from().is_some_and(|from| from <= now);
        let due: Vec<WorkerId> =
            self.workers().filter(|(_, worker)| is_due(worker)).map(|(_, worker)| worker.id).collect();
        for worker in due {
            // One at a time: what is free then is another thing.
            let is_quiet = self.ledger.is_calm(now) && !self.workers().any(|(_, it)| it.is_changing());
            let shape = self.worker_at(worker).filter(|_| is_quiet).and_then(|it| self.free_for(it));
            match shape {
                Some(shape) => self.has_back(now, worker, shape, false),
                None => self.looks_again(now, worker),
            }
        }
    }

    /// A request needs so many tokens: is it what the model had, and on its way now?
    pub(crate) fn has_back_for(&mut self, now: Moment, model_id: &str, tokens: u32) -> bool {
        if tokens == 0 || !self.line().is_empty() {
            return false;
        }
        let mut is_any = false;
        for worker in self.life(model_id).ids() {
            let Some(it) = self.worker_at(worker).filter(|it| it.is_serving()) else { continue };
            let is_long = |shape: Shape| shape.context_length >= tokens;
            let shape = if it.shape.is_some_and(is_long) { None } else { self.free_for(it) };
            if let Some(shape) = shape.filter(|shape| is_long(*shape)) {
                self.has_back(now, worker, shape, true);
                is_any = true;
            }
        }
        is_any
    }

    fn has_back(&mut self, now: Moment, worker: WorkerId, shape: Shape, is_awaited: bool) {
        if let Some(setup) = self.worker_at(worker).map(|it| it.setup.clone()) {
            self.ask_for(now, worker, setup, Some(shape), Why::Back { is_awaited });
        }
    }

    /// Its worker has said what it takes then.
    pub(crate) fn take_back(&mut self, now: Moment, worker: WorkerId, is_awaited: bool) {
        let is_line_empty = self.line().is_empty();
        let Some((model_id, it)) = self.worker(worker) else { return };
        let Some(uses) = it.growing.as_ref().map(|growing| growing.estimate.clone()) else { return };
        let (is_pinned, may) =
            (it.setup.is_pinned(), is_line_empty && (is_awaited || it.idle_since.is_some()));
        if may && self.ledger.reserve(worker, &uses, &model_id, is_pinned) {
            return self.has_room(now, worker);
        }
        self.looks_again(now, worker);
        self.load_waiting(now, &model_id);
    }

    fn looks_again(&mut self, now: Moment, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        it.growing = None;
        if let Some(gave_up) = &mut it.gave_up {
            gave_up.from = now + LOOK_AGAIN;
        }
    }

    /// All that a worker had, or else twice what it has, if that is free.
    fn free_for(&self, worker: &Worker) -> Option<Shape> {
        let (had, has) = (worker.gave_up?.had, worker.shape?);
        let uses = had.of_figures(&worker.figures);
        let unsaid = self.ledger.unsaid(worker.id, &worker.memory());
        let all: Vec<MemoryUse> = [uses, unsaid].concat();
        if self.ledger.has_room(&all, |other| other != worker.id) {
            return Some(had);
        }
        let chosen =
            shape::choose(&self.ledger, &worker.setup, &worker.figures, None, None, worker.id).ok()?;
        let shape = chosen.shape;
        (shape.cells() / 2 >= has.cells() && shape.cells() < had.cells()).then_some(shape)
    }
}

impl Worker {
    /// When it may have back what it gave up; `None`: it gave nothing up, or has something else to do.
    pub(crate) fn has_back_from(&self) -> Option<Moment> {
        let idle_since = self.idle_since.filter(|_| self.is_serving() && !self.is_stiff)?;
        Some((idle_since + QUIET).max(self.gave_up?.from))
    }

    /// It has another context. `had`: the one before.
    pub(crate) fn changed(&mut self, now: Moment, why: Why, had: Option<Shape>) {
        let cells = |shape: Option<Shape>| shape.map_or(0, Shape::cells);
        let before = self.gave_up.map(|gave_up| gave_up.had);
        self.gave_up = match why {
            Why::Asked => None,
            Why::Back { .. } if cells(self.shape) >= cells(before) => None,
            Why::Smaller | Why::Back { .. } => {
                let had = if before.is_some() { before } else { had };
                had.map(|had| GaveUp { had, from: now })
            }
        };
        if why != Why::Asked {
            self.put_off(now);
        }
        // What it has for somebody's sake is no reason to wait longer the next time.
        self.setbacks += u32::from(why == Why::Smaller);
    }

    /// It has stayed as it is.
    pub(crate) fn keeps_less(&mut self, now: Moment, why: Why) {
        if let Why::Back { .. } = why {
            self.put_off(now);
            self.setbacks += 1;
        }
    }

    /// It is not looked for again soon.
    fn put_off(&mut self, now: Moment) {
        let rest = FIRST_REST.saturating_mul(2_u32.saturating_pow(self.setbacks.min(16))).min(LONGEST_REST);
        if let Some(gave_up) = &mut self.gave_up {
            gave_up.from = now + rest;
        }
    }

    /// Does it answer, and is not about to have another context?
    pub(crate) fn is_serving(&self) -> bool {
        matches!((&self.stage, &self.growing), (Stage::Serving, None))
    }

    /// Is it being loaded, or made anew, or on its way out?
    fn is_changing(&self) -> bool {
        !self.is_serving()
    }
}
