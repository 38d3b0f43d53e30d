//! What somebody orders: that a model be loaded, or gone, and that the node go down.

use std::{mem, sync::Arc, time::Duration};

use llm_node_core::options::ModelOptions;

use crate::{
    Effect, Fleet, Moment, Setup, Ticket, Usual, Won, WorkerId,
    decide::Stopping,
    life::{Because, Leaving, Stage, Waiting, Worker, not_loaded, shutting_down, unloaded},
    wishes::{Fit, names_a_size},
};

impl Fleet {
    pub(crate) fn load(&mut self, now: Moment, model_id: &str, mut waiting: Waiting) {
        if self.stopping.is_some() {
            return self.refuse(waiting.ticket, shutting_down());
        }
        Arc::make_mut(&mut self.use_rates).wanted(now, model_id);
        let life = self.life(model_id);
        if life.replacement.is_some() {
            return self.load_meanwhile(now, model_id, waiting);
        }
        if life.workers.is_empty() {
            if let Some(fault) = life.given_up().filter(|_| waiting.for_request) {
                let fault = fault.clone();
                return self.refuse(waiting.ticket, fault);
            }
            if let Some(fault) = life.cooling(now) {
                return self.refuse(waiting.ticket, fault);
            }
            if life.cools_until(now).is_some() {
                life.waiting.push(waiting);
                return;
            }
            let setup = Setup::new(model_id, waiting.wishes.clone(), &self.usual);
            if let Err(fault) = self.has_places(model_id, &setup) {
                return self.refuse(waiting.ticket, fault);
            }
            let life = self.life(model_id);
            if life.given_up().is_some() {
                life.crashes = 0;
            }
            life.next_replica = now;
            self.begin(now, model_id, setup, waiting.format.clone());
            waiting.is_met = true;
            self.life(model_id).waiting.push(waiting);
            return;
        }
        if !life.is_wanted() {
            life.waiting.push(waiting);
            return;
        }
        let (mut differs, mut grows, mut is_growing) = (None, false, false);
        for worker in life.wanted() {
            let state = if worker.loaded.is_some() { "is loaded" } else { "is being loaded" };
            match worker.setup.fits(&waiting.wishes, model_id, state) {
                Fit::Joins => is_growing |= worker.growing.is_some(),
                Fit::Grows(_) if worker.loaded.is_none() || worker.is_in_steps() => grows = true,
                Fit::Grows(fault) | Fit::Differs(fault) => differs = Some(fault),
            }
        }
        if let Some(fault) = differs {
            return self.replace(now, model_id, waiting, fault);
        }
        if grows {
            return self.grow(now, model_id, waiting);
        }
        if is_growing && (names_a_size(&waiting.wishes) || waiting.tokens > 0) {
            // What it will be is not known yet.
            life.waiting.push(waiting);
            return;
        }
        let tokens = mem::take(&mut waiting.tokens);
        if self.has_back_for(now, model_id, tokens) {
            return self.life(model_id).waiting.push(waiting);
        }
        let life = self.life(model_id);
        let loaded = life.lead().and_then(|worker| worker.loaded.clone());
        // A request for which it is too short does not come.
        let is_too_short = loaded.as_ref().is_some_and(|it| it.facts.context_length < tokens);
        for worker in life.workers.iter_mut().filter(|worker| worker.is_wanted() && !is_too_short) {
            // Whoever wants it loaded is about to ask.
            worker.idle_since = worker.idle_since.map(|_| now);
            worker.is_awaited = worker.idle_since.is_some();
            worker.is_expected |= loaded.is_some() && waiting.for_request;
        }
        self.also(model_id, &waiting.wishes);
        match loaded {
            Some(loaded) => self.resolve(waiting.ticket, Ok(Won::Loaded(loaded))),
            None => self.life(model_id).waiting.push(waiting),
        }
    }

    /// What may be said of a model that is there holds for its workers, and for those that take their place.
    pub(crate) fn also(&mut self, model_id: &str, wishes: &ModelOptions) {
        let life = self.life(model_id);
        if let Some(replacement) = &mut life.replacement {
            replacement.setup.also(wishes);
        }
        let mut pins = Vec::new();
        for worker in life.workers.iter_mut().filter(|it| it.is_wanted() || it.is_outgoing) {
            worker.setup.also(wishes);
            pins.push((worker.id, worker.setup.is_pinned()));
        }
        for (worker, is_pinned) in pins {
            self.ledger.pin(worker, is_pinned);
        }
    }

    /// Those who wait are looked at again.
    pub(crate) fn load_waiting(&mut self, now: Moment, model_id: &str) {
        for waiting in mem::take(&mut self.life(model_id).waiting) {
            self.load(now, model_id, waiting);
        }
    }

    pub(crate) fn begin(&mut self, now: Moment, model_id: &str, setup: Setup, format: Option<String>) {
        self.last_worker += 1;
        let pause = self.use_rates.pause(model_id);
        let worker = Worker { pause, ..Worker::new(self.last_worker, setup, now, &self.deadlines) };
        self.effects.push(Effect::Find {
            worker: worker.id,
            model_id: model_id.to_owned(),
            setup: Box::new(worker.setup.clone()),
            format,
        });
        let life = self.life(model_id);
        life.trouble = None;
        life.workers.push(worker);
    }

    pub(crate) fn unload(&mut self, now: Moment, ticket: Ticket, model_id: &str, timeout: Duration) {
        let leaving = Leaving { ticket, by: now + timeout.saturating_add(self.deadlines.end()) };
        let life = self.life(model_id);
        if life.workers.is_empty() {
            life.crashes = 0;
            // Between an old worker and the next there may be none.
            let is_between = life.replacement.take().is_some();
            if life.trouble.take().is_none() && !is_between {
                self.tidy(model_id);
                return self.refuse(ticket, not_loaded(model_id));
            }
            self.dismiss_waiting(model_id);
            self.tidy(model_id);
            return self.gone_for(ticket, model_id);
        }
        life.leaving.push(leaving);
        if life.replacement.take().is_some() || life.is_wanted() {
            // They wait for what is dismissed. Who came while it was on its way out already waits for what comes then.
            self.dismiss_waiting(model_id);
        }
        for worker in self.life(model_id).ids() {
            self.dismiss(now, worker, now + timeout);
        }
    }

    /// Lets a worker go: what it has under way may go on until then.
    pub(crate) fn dismiss(&mut self, now: Moment, worker: WorkerId, by: Moment) {
        let Some((_, it)) = self.worker(worker) else { return };
        match &mut it.stage {
            Stage::Serving => self.drain(now, worker, by),
            Stage::Finding { .. } => self.gone(now, worker, Because::Dismissed),
            Stage::Starting { .. } | Stage::Loading { .. } | Stage::Waiting { .. } => {
                self.kill(now, worker, Because::Dismissed);
            }
            Stage::Ending { because, .. } => *because = Because::Dismissed,
            Stage::Draining { by: before, .. } => drop(before.get_or_insert(by)),
        }
    }

    /// Those who wait for the load are told that somebody unloaded it.
    pub(crate) fn dismiss_waiting(&mut self, model_id: &str) {
        for waiting in mem::take(&mut self.life(model_id).waiting) {
            self.refuse(waiting.ticket, unloaded(model_id));
        }
    }

    pub(crate) fn stop(&mut self, now: Moment, by: Moment) {
        let farewell = self.deadlines.farewell.min(by.since(now));
        self.stopping = Some(Stopping { farewell, is_told: false });
        for model_id in self.models.keys().cloned().collect::<Vec<_>>() {
            let life = self.life(&model_id);
            life.replacement = None;
            for waiting in mem::take(&mut life.waiting) {
                self.refuse(waiting.ticket, shutting_down());
            }
            for worker in self.life(&model_id).ids() {
                let Some((_, it)) = self.worker(worker) else { continue };
                match &mut it.stage {
                    Stage::Draining { by: before, .. } => {
                        *before = Some(before.map_or(by, |before| by.min(before)));
                    }
                    // It is overdue from now on where nobody is to wait any longer.
                    Stage::Ending { by, is_killed: false, .. } => *by = (*by).min(now + farewell),
                    Stage::Ending { .. } => {}
                    _ => self.dismiss(now, worker, by),
                }
            }
        }
    }

    /// Models that are loaded stay as they are, but for how long they stay.
    pub(crate) fn configured(&mut self, usual: Usual) {
        self.usual = usual;
        for model_id in self.models.keys().cloned().collect::<Vec<_>>() {
            let usual = self.usual.of(&model_id);
            if let Some(replacement) = &mut self.life(&model_id).replacement {
                replacement.setup.usually(&usual);
            }
            for worker in self.life(&model_id).ids() {
                let Some((_, it)) = self.worker(worker) else { continue };
                it.setup.usually(&usual);
                let is_pinned = it.setup.is_pinned();
                self.ledger.pin(worker, is_pinned);
            }
        }
    }
}
