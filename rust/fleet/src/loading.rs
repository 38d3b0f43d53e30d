//! A load, from what was found of it until it answers or has come to nothing.

use std::{mem, sync::Arc};

use llm_node_core::{
    error::{ErrorCode, Fault},
    facts::ModelFacts,
    memory::{Estimate, MemoryUse},
    shape::Shape,
};
use serde_json::json;

use crate::{
    Basis, Effect, Files, Fleet, FoundModel, Incident, IncidentKind, Loaded, Moment, Severity, Time, Won,
    WorkerId,
    ledger::Commitment,
    life::{Because, LONGEST_PAUSE, Stage, Trouble, Worker},
    placing::{figures_located, located},
    room::with_details,
};

impl Fleet {
    pub(crate) fn found(
        &mut self,
        now: Moment,
        worker: WorkerId,
        found: Result<FoundModel, Fault>,
        files: Files,
    ) {
        let start = self.deadlines.start.saturating_add(self.deadlines.end());
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Finding { .. } = it.stage else { return };
        it.files = files;
        match found {
            Ok(mut found) => {
                it.setup.chosen(&found.engine.id);
                let has_all = self.place_found(now, worker, &mut found);
                let figures = found.known.as_ref().map(|known| known.figures.clone());
                let Some((model_id, it)) = self.worker(worker) else { return };
                let place = it.setup.place.clone();
                if !has_all {
                    // Others have taken what there was, or it was lost.
                    let message = format!("Model '{model_id}': there are not as many GPUs now as it needs");
                    let fault = Fault::new(ErrorCode::ModelLoading, message);
                    return self.gone(now, worker, Because::Failed(fault));
                }
                it.found = Some(found);
                it.stage = Stage::Starting { by: now + start, died: None };
                self.effects.push(Effect::Spawn { worker, place, figures });
            }
            Err(fault) => self.gone(now, worker, Because::Failed(fault)),
        }
    }

    pub(crate) fn started(&mut self, now: Moment, worker: WorkerId, pid: u32) {
        let load = self.deadlines.load;
        let Some((_, it)) = self.worker(worker) else { return };
        it.pid = Some(pid);
        let Stage::Starting { died, .. } = &mut it.stage else { return };
        let died = died.take();
        it.stage = Stage::Loading { by: now + load };
        if let Some((death, is_known)) = died {
            self.died(now, worker, death, is_known);
        }
    }

    pub(crate) fn not_started(&mut self, now: Moment, worker: WorkerId, fault: Fault) {
        let Some((_, it)) = self.worker(worker) else { return };
        match mem::replace(&mut it.stage, Stage::Serving) {
            Stage::Starting { .. } => self.gone(now, worker, Because::Failed(fault)),
            Stage::Ending { because, .. } => self.gone(now, worker, because),
            stage => it.stage = stage,
        }
    }

    pub(crate) fn estimated(&mut self, now: Moment, worker: WorkerId, estimate: Estimate) {
        if self.ledger.holds(worker) {
            return;
        }
        let by = now + self.deadlines.room;
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Loading { .. } = it.stage else { return };
        // `seat` finds room for it, now or later.
        it.stage = Stage::Waiting { by };
        let place = it.setup.place.clone();
        it.figures = figures_located(estimate.figures, &place);
        if it.is_open() {
            return self.wait_for_the_least(now, worker);
        }
        let Some(found) = &it.found else { return };
        let (key, known, bytes) = (found.key.clone(), found.known.clone(), found.size_bytes);
        let uses = estimate.uses.filter(|uses| uses.iter().any(|use_| use_.total() > 0));
        let uses = uses.map(|uses| located(uses, &place));
        let (said, estimate, basis) = match (known, uses) {
            (Some(known), _) => (known.estimated, known.uses, Basis::Measured),
            (None, Some(uses)) => (uses.clone(), self.history.corrected(&key, uses), Basis::Engine),
            (None, None) => {
                let guess = self.ledger.guess(bytes, &place);
                (guess.clone(), self.history.corrected(&key, guess), Basis::FileSize)
            }
        };
        if let Some((_, it)) = self.worker(worker) {
            (it.said, it.estimate, it.basis) = (said, estimate, basis);
        }
    }

    pub(crate) fn ready(&mut self, now: Moment, worker: WorkerId, mut facts: ModelFacts) {
        let holds = self.ledger.holds(worker);
        let is_on_gpu = self.ledger.is_on_gpu(worker);
        let measure = self.deadlines.measure;
        let Some((_, it)) = self.worker(worker) else { return };
        let Stage::Loading { .. } = it.stage else { return };
        if !holds {
            let fault =
                Fault::new(ErrorCode::Internal, "The worker loaded the model before there was room for it");
            return self.end(now, worker, Because::Failed(fault));
        }
        facts.memory = located(facts.memory, &it.setup.place);
        if it.answers.is_none() && is_on_gpu {
            it.answers = Some(Box::new(facts));
            it.since = now;
            it.stage = Stage::Loading { by: now + measure };
            return;
        }
        self.serve(now, worker, facts);
    }

    /// Of loads that are done a GPU says what they came to.
    pub(crate) fn measured(&mut self, now: Moment, began: Moment) {
        let is_it = |worker: &Worker| worker.is_measured() && worker.since <= began;
        let done: Vec<WorkerId> =
            self.workers().filter(|(_, worker)| is_it(worker)).map(|(_, worker)| worker.id).collect();
        for worker in done {
            let facts = self.worker(worker).and_then(|(_, it)| it.answers.take());
            if let Some(facts) = facts {
                self.serve(now, worker, *facts);
            }
        }
    }

    /// A model that is loaded takes what it takes: that is learned, and it answers if there is room for it.
    pub(crate) fn serve(&mut self, now: Moment, worker: WorkerId, facts: ModelFacts) {
        let Some((model_id, it)) = self.worker(worker) else { return };
        let says_nothing = facts.memory.iter().all(|use_| use_.total() == 0);
        let uses = match it.basis {
            _ if !says_nothing => facts.memory.clone(),
            // What it takes beside its files is seen by now.
            Basis::FileSize => {
                let (bytes, place) =
                    (it.found.as_ref().map_or(0, |found| found.size_bytes), it.setup.place.clone());
                self.ledger.files(bytes, &place)
            }
            Basis::Measured | Basis::Engine => it.estimate.clone(),
        };
        let commitment = self.settle(worker, &model_id, &uses);
        let Some((_, it)) = self.worker(worker) else { return };
        let took = now.since(it.begun);
        let time = Time {
            date: 0,
            seconds: took.saturating_sub(it.waited).as_secs_f64(),
            shape: it.shape,
            estimated: it.said.clone(),
            measured: commitment.measured.clone(),
        };
        self.learn(now, worker, time, &commitment);
        if let Some(fault) = commitment.shortage {
            let more = json!({ "holders": self.holders_of(now, &commitment.measured) });
            return self.kill(now, worker, Because::Failed(with_details(fault, more)));
        }
        let Some((_, it)) = self.worker(worker) else { return };
        let engine = it.found.as_ref().map(|found| found.engine.clone()).unwrap_or_default();
        let estimated_bytes = Some(it.said.iter().map(MemoryUse::total).sum());
        let mut loaded = Loaded { model_id: model_id.clone(), engine, took, estimated_bytes, facts };
        it.complete(&mut loaded);
        let loaded = Arc::new(loaded);
        it.setup.came_to(loaded.facts.context_length, loaded.facts.max_sequences);
        it.setup.has_cells(it.shape.map(Shape::cells));
        it.loaded = Some(Arc::clone(&loaded));
        it.stage = Stage::Serving;
        it.since = now;
        it.idle_since = Some(now);
        self.effects.push(Effect::Open { worker, model_id: model_id.clone() });
        self.tell(Severity::Info, IncidentKind::Loaded, &model_id, in_words(&loaded), None);
        for waiting in mem::take(&mut self.life(&model_id).waiting) {
            if waiting.is_met {
                if let Some((_, it)) = self.worker(worker) {
                    it.is_expected |= waiting.for_request;
                }
                self.resolve(waiting.ticket, Ok(Won::Loaded(Arc::clone(&loaded))));
            } else {
                self.load(now, &model_id, waiting);
            }
        }
    }

    /// What was reserved is what is taken. Where that is much more, it is said.
    pub(crate) fn settle(&mut self, worker: WorkerId, model_id: &str, uses: &[MemoryUse]) -> Commitment {
        let commitment = self.ledger.commit(worker, uses);
        if let Some(words) = &commitment.excess {
            let message = format!("model '{model_id}' takes more than its engine estimated: {words}");
            self.tell(Severity::Warning, IncidentKind::Overrun, model_id, message, None);
        }
        commitment
    }

    /// What a load came to, for the next one. Beside another it says little, unless it went beyond all bounds.
    pub(crate) fn learn(&mut self, now: Moment, worker: WorkerId, time: Time, commitment: &Commitment) {
        let Some((_, it)) = self.worker(worker) else { return };
        let Some(found) = &it.found else { return };
        if commitment.is_disturbed && commitment.excess.is_none() {
            return;
        }
        let (key, figures) = (found.key.clone(), it.figures.clone());
        let time = Time { date: self.epoch.saturating_add(now.0.as_secs()), ..time };
        Arc::make_mut(&mut self.history).learn(key.clone(), figures.clone(), time.clone());
        self.effects.push(Effect::Record { key, figures, time });
    }

    pub(crate) fn failed(&mut self, now: Moment, worker: WorkerId, fault: Fault) {
        let Some((_, it)) = self.worker(worker) else { return };
        if let Stage::Loading { .. } | Stage::Waiting { .. } = it.stage {
            self.end(now, worker, Because::Failed(fault));
        }
    }

    /// The same load once more, on other GPUs.
    pub(crate) fn begin_again(&mut self, now: Moment, model_id: &str, worker: WorkerId) {
        let Some((_, it)) = self.worker(worker) else { return };
        let (mut setup, begun, waited, search) = (it.setup.clone(), it.begun, it.waited, it.search);
        setup.place = Vec::new();
        self.bury(now, model_id, worker);
        self.begin(now, model_id, setup, None);
        if let Some((_, it)) = self.worker(self.last_worker) {
            (it.begun, it.waited, it.search) = (begun, waited, search);
        }
    }

    /// A load has come to nothing.
    pub(crate) fn not_loaded(
        &mut self,
        now: Moment,
        model_id: &str,
        engine: String,
        files: Files,
        fault: &Fault,
    ) {
        let kind = match fault.code {
            ErrorCode::OomVram | ErrorCode::OomRam | ErrorCode::ModelLoading => IncidentKind::Refused,
            _ => IncidentKind::LoadFailed,
        };
        self.effects.push(Effect::Tell(Incident {
            severity: Severity::Error,
            kind,
            model_id: model_id.to_owned(),
            engine: Some(engine).filter(|engine| !engine.is_empty()),
            code: Some(fault.code),
            death: None,
            message: format!("'{model_id}' could not be loaded: {fault}"),
        }));
        if self.life(model_id).replacement.is_some() {
            return self.not_replaced(now, model_id, fault);
        }
        let life = self.life(model_id);
        if life.is_wanted() {
            // Others answer, or will.
            life.next_replica = now + LONGEST_PAUSE;
            return self.load_waiting(now, model_id);
        }
        // What was wrong with the order is not the model's state.
        let is_of_model = fault.code != ErrorCode::InvalidRequest;
        life.trouble = is_of_model.then(|| Trouble::Failed { fault: fault.clone(), files });
        for waiting in mem::take(&mut life.waiting) {
            self.refuse(waiting.ticket, fault.clone());
        }
        self.tidy(model_id);
    }
}

/// "'m' is loaded with e 1.0, in 80 ms: context 2048 tokens, 64 sequences, 8 MiB"
fn in_words(loaded: &Loaded) -> String {
    let Loaded { model_id, engine, took, facts, .. } = loaded;
    let bytes = facts.memory.iter().fold(0, |sum, use_| use_.total().saturating_add(sum));
    format!(
        "'{model_id}' is loaded with {} {}, in {} ms: context {} tokens, {} sequences, {} MiB",
        engine.id,
        engine.version,
        took.as_millis(),
        facts.context_length,
        facts.max_sequences,
        bytes.div_ceil(1 << 20)
    )
}
