//! Others take memory of a device beside the node, until less than half of what is to be left to them is free.
//!
//! Models that answer nothing give them some back, and one that is asked nothing needs least: first those that have
//! more than enough give up the rest, then those go that are hardly missed. Whoever answers, or is pinned, stays as it
//! is.

use std::time::Duration;

use llm_node_core::memory::MemoryUse;

use crate::{
    Fleet, IncidentKind, Moment, Severity, WorkerId,
    replace::NOBODY,
    size::{format_down, format_up},
};

/// It has to last so long.
pub(crate) const LASTS: Duration = Duration::from_secs(3);

/// A device of which too little is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pressed {
    /// The account.
    pub(crate) id: String,
    /// For people.
    pub(crate) name: String,
    pub(crate) free: u64,
    /// What is to be left to others.
    pub(crate) reserve: u64,
    /// The use that stands for what is lacking.
    pub(crate) lack: MemoryUse,
}

impl Fleet {
    /// Devices have just been looked at: a step is done where one has had too little for long enough.
    pub(crate) fn relieve(&mut self, now: Moment) {
        // What goes already shows as free in a moment.
        let leaves = self.workers().any(|(_, it)| it.is_going() && it.idle_since.is_some());
        let is_changing = leaves || self.is_anybody_shrinking() || !self.ledger.is_calm(now);
        if is_changing || self.stopping.is_some() {
            return;
        }
        for pressed in self.ledger.pressed() {
            if self.gives_back(now, &pressed) {
                return self.ledger.looks_anew(now, &pressed.id);
            }
        }
    }

    /// Somebody gives some of it back; false: nobody can.
    fn gives_back(&mut self, now: Moment, pressed: &Pressed) -> bool {
        let Pressed { id, name, free, reserve, lack } = pressed;
        let why = format!(
            "{} of {name} are free, and {} are to be left to others, who take more",
            format_down(*free),
            format_up(*reserve)
        );
        let mut missing = lack.total();
        let mut is_missing = |bytes: u64| {
            let was_missing = missing > 0;
            missing = missing.saturating_sub(bytes);
            was_missing
        };
        let mut spares = self.spares(now, NOBODY, std::slice::from_ref(lack));
        let is_pinned = |worker: WorkerId| self.worker_at(worker).is_some_and(|it| it.setup.is_pinned());
        spares.retain(|spare| !is_pinned(spare.worker));
        spares.retain(|spare| is_missing(self.ledger.taken_of(id, &spare.gain)));
        if !spares.is_empty() {
            for spare in &spares {
                let message = format!("'{}' gets a smaller context: {why}", spare.model_id);
                self.tell(Severity::Warning, IncidentKind::Pressure, &spare.model_id, message, None);
            }
            self.shrink(now, spares);
            return true;
        }
        let mut cold = self.cold(now);
        let held = |worker: &WorkerId| self.ledger.held_by(*worker, id);
        cold.retain(|(workers, _)| workers.iter().any(|worker| held(worker) > 0));
        cold.retain(|(workers, _)| is_missing(workers.iter().map(held).sum()));
        for (workers, model_id) in &cold {
            let message = format!("'{model_id}' goes: {why}");
            self.tell(Severity::Warning, IncidentKind::Pressure, model_id, message, None);
            for worker in workers {
                self.retire_worker(now, *worker);
            }
        }
        !cold.is_empty()
    }
}
