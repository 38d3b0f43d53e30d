//! What time alone brings: a stage that takes too long, a wait that is over, a model that nobody asks anything.

use std::mem;

use llm_node_core::error::{ErrorCode, Fault};

use crate::{
    Effect, Fleet, IncidentKind, Moment, Severity, WorkerId,
    life::{Because, Leaving, ModelLife, Stage, Worker, shutting_down, unloaded},
};

impl Fleet {
    /// Whoever has stayed unused for as long as it may begins to go.
    pub(crate) fn retire_unused(&mut self, now: Moment) {
        let is_over = |life: &ModelLife| life.unused_from().is_some_and(|from| from <= now);
        let unused: Vec<String> = self
            .models
            .iter()
            .filter(|(_, life)| is_over(life))
            .map(|(model_id, _)| model_id.clone())
            .collect();
        for model_id in unused {
            let idle = self.life(&model_id).idle_since();
            let seconds = now.since(idle.unwrap_or(now)).as_secs_f64();
            let message = format!("'{model_id}' goes: unused for {seconds:.1} s");
            self.retire(now, &model_id, IncidentKind::Unused, message);
        }
    }

    pub(crate) fn overdue(&mut self, now: Moment) {
        for (model_id, words) in self.ledger.given_up(now) {
            let seconds = self.deadlines.settle.as_secs_f64();
            let message = format!("'{model_id}' ended {seconds} s ago, and {words} do not show as free");
            self.tell(Severity::Warning, IncidentKind::Kept, &model_id, message, None);
        }
        while let Some(model_id) = self
            .models
            .iter()
            .find(|(_, life)| life.deadline().is_some_and(|by| by <= now))
            .map(|(id, _)| id.clone())
        {
            let life = self.life(&model_id);
            let (late, in_time) =
                mem::take(&mut life.leaving).into_iter().partition(|leaving| leaving.by <= now);
            life.leaving = in_time;
            let late: Vec<Leaving> = late;
            for Leaving { ticket, .. } in late {
                let message = format!("Model '{model_id}' was not unloaded in time");
                self.refuse(ticket, Fault::new(ErrorCode::Timeout, message));
            }
            let overdue = |worker: &Worker| worker.deadline().is_some_and(|by| by <= now);
            let life = self.life(&model_id);
            if let Some(worker) = life.workers.iter().find(|worker| overdue(worker)) {
                let worker = worker.id;
                self.worker_is_late(now, worker);
            } else if life.is_waited_out() && life.cools_until(now).is_none() {
                self.load_waiting(now, &model_id);
            }
        }
    }

    pub(crate) fn worker_is_late(&mut self, now: Moment, worker: WorkerId) {
        let kill = self.deadlines.kill;
        let start = self.deadlines.start;
        let stopping = self.stopping.is_some();
        let Some((model_id, it)) = self.worker(worker) else { return };
        match &mut it.stage {
            Stage::Serving => self.growth_is_late(now, worker),
            Stage::Finding { .. } => {
                let message = format!("Looking for model '{model_id}' and its engine took too long");
                self.gone(now, worker, Because::Failed(Fault::new(ErrorCode::Timeout, message)));
            }
            Stage::Starting { .. } => {
                let message = format!("A worker process did not start within {} s", start.as_secs_f64());
                self.kill(now, worker, Because::Failed(Fault::new(ErrorCode::Timeout, message)));
            }
            Stage::Loading { .. } => match it.answers.take() {
                // No device says anything: its engine's word has to do.
                Some(facts) => self.serve(now, worker, *facts),
                None => self.kill(now, worker, Because::Late),
            },
            Stage::Waiting { .. } => {
                let fault = self.no_room(now, &model_id, worker);
                self.end(now, worker, Because::Failed(fault));
            }
            Stage::Draining { .. } => {
                let message = format!("'{model_id}': requests were still under way at the deadline");
                self.tell(Severity::Warning, IncidentKind::Cut, &model_id, message, None);
                self.end(now, worker, Because::Dismissed);
            }
            Stage::Ending { by, is_killed: is_killed @ false, .. } => {
                *is_killed = true;
                *by = now + kill;
                self.effects.push(Effect::Kill { worker });
            }
            Stage::Ending { because, .. } => {
                // Stuck in the kernel: nobody shall wait for that.
                let because = match mem::replace(because, Because::Dismissed) {
                    Because::Late => Because::Failed(self.late(worker, "")),
                    because => because,
                };
                let message = format!("'{model_id}': its worker could not be ended, and is left to itself");
                self.tell(Severity::Error, IncidentKind::Abandoned, &model_id, message, None);
                let fault = if stopping { shutting_down() } else { unloaded(&model_id) };
                self.effects.push(Effect::EndRequests { worker, fault });
                self.gone(now, worker, because);
            }
        }
    }
}
