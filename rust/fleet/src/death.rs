//! A worker has died.

use std::{mem, time::Duration};

use llm_node_core::error::{ErrorCode, Fault};

use crate::{
    Death, Effect, Fleet, IncidentKind, Moment, Severity, WorkerId,
    life::{Because, HEALTHY_AFTER, Stage, Trouble, Worker, hopeless, retry_after, shutting_down, unloaded},
};

impl Fleet {
    pub(crate) fn died(&mut self, now: Moment, worker: WorkerId, death: Death, is_known: bool) {
        let stopping = self.stopping.is_some();
        let Some((model_id, it)) = self.worker(worker) else { return };
        let crashed = Fault::new(ErrorCode::EngineCrashed, death.message.clone());
        match &mut it.stage {
            Stage::Finding { .. } => {}
            Stage::Starting { died, .. } => *died = Some((death, is_known)),
            Stage::Loading { .. } | Stage::Waiting { .. } => {
                let message = format!("'{model_id}' could not be loaded: {}", death.message);
                self.crashed(now, worker, death, is_known, &message);
            }
            Stage::Serving => {
                if now.since(it.since) >= HEALTHY_AFTER {
                    self.life(&model_id).crashes = 0;
                }
                let words = death.message.clone();
                let fault = self.crashed(now, worker, death, is_known, &words);
                self.effects.push(Effect::EndRequests { worker, fault });
            }
            Stage::Draining { is_retired, .. } => {
                let because = if *is_retired { Because::Retired } else { Because::Dismissed };
                let message = death.message.clone();
                self.tell(Severity::Error, IncidentKind::Crashed, &model_id, message, Some(death));
                self.effects.push(Effect::EndRequests { worker, fault: crashed });
                self.gone(now, worker, because);
            }
            Stage::Ending { because, .. } => {
                let because = match mem::replace(because, Because::Dismissed) {
                    Because::Late => Because::Failed(self.late(worker, &death.call)),
                    because => because,
                };
                let fault = match &because {
                    _ if stopping => shutting_down(),
                    Because::Failed(fault) => fault.clone(),
                    _ => unloaded(&model_id),
                };
                self.effects.push(Effect::EndRequests { worker, fault });
                self.gone(now, worker, because);
            }
        }
    }

    /// A worker has died by itself. Those who waited for it hear that, and its model cools, or is given up. `message`:
    /// what people are told, without what comes next. Gives what its clients are told.
    pub(crate) fn crashed(
        &mut self,
        now: Moment,
        worker: WorkerId,
        death: Death,
        is_known: bool,
        message: &str,
    ) -> Fault {
        let crashed = Fault::new(ErrorCode::EngineCrashed, death.message.clone());
        let Some((model_id, it)) = self.worker(worker) else { return crashed };
        let (engine, is_outgoing) = (it.engine(), it.is_outgoing);
        let life = self.life(&model_id);
        let pause = life.crashed(now, engine, death.clone(), is_known);
        let is_other = |it: &Worker| it.id != worker && (it.is_wanted() || it.is_outgoing);
        let is_given_up = life.is_hopeless() && !life.workers.iter().any(is_other);
        let then = if is_given_up {
            "it crashed too often in a row, and is not loaded again before somebody loads or unloads it"
                .to_owned()
        } else {
            format!("it may be loaded again in {} s", pause.as_secs())
        };
        self.tell(
            Severity::Error,
            IncidentKind::Crashed,
            &model_id,
            format!("{message}; {then}"),
            Some(death),
        );
        self.bury(now, &model_id, worker);
        let life = self.life(&model_id);
        if life.replacement.is_some() && life.is_there() {
            if is_outgoing {
                self.load_waiting(now, &model_id);
            } else {
                self.not_replaced(now, &model_id, &crashed);
            }
            return retry_after(crashed, Duration::ZERO);
        }
        life.replacement = None;
        if life.is_wanted() {
            // Others answer, or will.
            life.next_replica = now + pause;
            self.load_waiting(now, &model_id);
            return retry_after(crashed, Duration::ZERO);
        }
        let fault = if is_given_up {
            let fault = hopeless(&model_id, &crashed);
            life.trouble = Some(Trouble::GivenUp { fault: fault.clone() });
            fault
        } else {
            life.trouble = Some(Trouble::Cooling { until: now + pause, fault: crashed.clone() });
            retry_after(crashed, pause)
        };
        for waiting in mem::take(&mut self.life(&model_id).waiting) {
            self.refuse(waiting.ticket, fault.clone());
        }
        fault
    }

    pub(crate) fn late(&mut self, worker: WorkerId, call: &str) -> Fault {
        let seconds = self.deadlines.load.as_secs_f64();
        let (model_id, engine) =
            self.worker(worker).map(|(model_id, it)| (model_id, it.engine())).unwrap_or_default();
        let call = if call.is_empty() { "the worker" } else { call };
        let message =
            format!("Model '{model_id}' with engine '{engine}': {call} did not return within {seconds} s");
        Fault::new(ErrorCode::Timeout, message)
    }
}
