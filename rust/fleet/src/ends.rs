//! How workers end, and what goes on once they have.

use std::mem;

use crate::{
    Effect, Fleet, IncidentKind, Moment, Severity, WorkerId,
    life::{Because, Leaving, Stage},
};

impl Fleet {
    /// Lets a worker end what is under way, until then.
    pub(crate) fn drain(&mut self, now: Moment, worker: WorkerId, by: Moment) {
        if by <= now {
            return self.end(now, worker, Because::Dismissed);
        }
        self.turn(worker, Stage::Draining { by: Some(by), is_retired: false }, Effect::Drain { worker });
    }

    pub(crate) fn drained(&mut self, now: Moment, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        if let Stage::Draining { is_retired, .. } = it.stage {
            let because = if is_retired { Because::Retired } else { Because::Dismissed };
            self.end(now, worker, because);
        }
    }

    /// Lets the model's workers end what is under way, and go, by no order.
    pub(crate) fn retire(&mut self, now: Moment, model_id: &str, kind: IncidentKind, message: String) {
        self.tell(Severity::Info, kind, model_id, message, None);
        for worker in self.life(model_id).ids() {
            self.retire_worker(now, worker);
        }
    }

    /// Lets one of them.
    pub(crate) fn retire_worker(&mut self, now: Moment, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        match it.stage {
            Stage::Serving => {
                let stage = Stage::Draining { by: None, is_retired: true };
                self.turn(worker, stage, Effect::Drain { worker });
            }
            Stage::Finding { .. } => self.gone(now, worker, Because::Retired),
            Stage::Starting { .. } | Stage::Loading { .. } | Stage::Waiting { .. } => {
                self.kill(now, worker, Because::Retired);
            }
            Stage::Draining { .. } | Stage::Ending { .. } => {}
        }
    }

    /// Asks a worker to end.
    pub(crate) fn end(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let by = now + self.stopping.map_or(self.deadlines.stop, |stopping| stopping.farewell);
        self.turn(worker, Stage::Ending { by, is_killed: false, because }, Effect::Stop { worker });
    }

    /// Ends a worker.
    pub(crate) fn kill(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let by = now + self.deadlines.kill;
        self.turn(worker, Stage::Ending { by, is_killed: true, because }, Effect::Kill { worker });
    }

    /// On its way out, whatever it was to become.
    pub(crate) fn turn(&mut self, worker: WorkerId, stage: Stage, effect: Effect) {
        if let Some((_, it)) = self.worker(worker) {
            (it.growing, it.is_outgoing) = (None, false);
            it.stage = stage;
            self.effects.push(effect);
        }
    }

    /// A worker is no more, and what waited for that goes on.
    pub(crate) fn gone(&mut self, now: Moment, worker: WorkerId, because: Because) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let (engine, files) = (it.engine(), it.files.clone());
        match because {
            Because::Moved if self.stopping.is_none() => self.begin_again(now, &model_id, worker),
            Because::Failed(fault) if self.stopping.is_none() => {
                self.bury(now, &model_id, worker);
                self.not_loaded(now, &model_id, engine, files, &fault);
            }
            // Others are there, or come.
            _ if self.life(&model_id).workers.len() > 1 || self.life(&model_id).replacement.is_some() => {
                self.bury(now, &model_id, worker);
            }
            _ => {
                let message = format!("'{model_id}' is unloaded");
                self.tell(Severity::Info, IncidentKind::Unloaded, &model_id, message, None);
                self.bury(now, &model_id, worker);
                let life = self.life(&model_id);
                life.crashes = 0;
                let (leaving, waiting) = (mem::take(&mut life.leaving), mem::take(&mut life.waiting));
                self.tidy(&model_id);
                for Leaving { ticket, .. } in leaving {
                    self.gone_for(ticket, &model_id);
                }
                // These came while the model was on its way out.
                for waiting in waiting {
                    self.load(now, &model_id, waiting);
                }
            }
        }
    }

    pub(crate) fn bury(&mut self, now: Moment, model_id: &str, worker: WorkerId) {
        self.ledger.release(now, worker, self.deadlines.settle);
        self.life(model_id).workers.retain(|it| it.id != worker);
    }

    pub(crate) fn tell_stopped(&mut self) {
        let is_empty = self.workers().next().is_none();
        if let Some(stopping) = &mut self.stopping
            && is_empty
            && !mem::replace(&mut stopping.is_told, true)
        {
            self.effects.push(Effect::Stopped);
        }
    }
}
