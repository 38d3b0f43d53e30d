//! What a load would come to, without one.

use std::time::Duration;

use llm_node_core::{
    error::{ErrorCode, Fault},
    memory::MemoryUse,
    options::ModelOptions,
};

use crate::{Fleet, Holder, Moment, WorkerId, life::retry_after, wishes::Fit};

/// What is known of a load that has not begun.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreseen {
    /// Id of the engine that would do it.
    pub engine: String,
    /// What it would take, by device.
    pub memory: Vec<MemoryUse>,
    /// The engine cannot say: it is the size of the files.
    pub is_guessed: bool,
}

/// What a load would come to now.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    /// In one word.
    pub verdict: Verdict,
    /// Of one that is loaded, what it has.
    pub foreseen: Foreseen,
    /// What it would take of each device, with what there is for it.
    pub needs: Vec<Need>,
    /// Who would have to go for it.
    pub unload: Vec<Leaver>,
    /// Who holds something of where it would go.
    pub holders: Vec<Holder>,
}

/// How a load would end.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It is loaded, or being loaded, as it is asked for.
    Loaded,
    /// There is room.
    Fits,
    /// There is room once others have gone, which they may at once.
    AfterUnloading,
    /// Others are to make room, and may not yet.
    AfterWaiting,
    /// It would be refused.
    Refused(Fault),
}

/// A device that a load would take something of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Need {
    /// For people.
    pub device: String,
    /// What it would take, in bytes.
    pub required_bytes: u64,
    /// What there is beside all that is held now, in bytes.
    pub available_bytes: u64,
    /// Most that models may hold, in bytes.
    pub limit_bytes: u64,
}

/// A model that would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaver {
    /// Which.
    pub model_id: String,
    /// Since when it has nothing to answer; `None`: it has, and would end that first.
    pub idle_since: Option<Moment>,
}

impl Fleet {
    /// What a load would come to. `foreseen`: of a model that was not loaded when somebody looked.
    pub(crate) fn plan(
        &self,
        now: Moment,
        model_id: &str,
        wishes: &ModelOptions,
        foreseen: Option<Foreseen>,
    ) -> Result<Planned, Fault> {
        let life = self.models.get(model_id);
        let worker = life.and_then(|life| life.worker.as_ref()).filter(|worker| worker.is_wanted());
        let mut unload = Vec::new();
        if let Some(worker) = worker {
            let verdict = match worker.setup.fits(wishes, model_id, "is loaded") {
                Fit::Differs(fault) if worker.loaded.is_none() || foreseen.is_none() => {
                    Some(Verdict::Refused(fault))
                }
                Fit::Joins if worker.needs().is_none() => Some(Verdict::Loaded),
                Fit::Joins => Some(Verdict::AfterWaiting),
                Fit::Grows(_) if worker.loaded.is_none() => Some(Verdict::AfterWaiting),
                Fit::Grows(_) if worker.is_in_steps() => None,
                Fit::Differs(_) | Fit::Grows(_) => {
                    unload.push(Leaver { model_id: model_id.to_owned(), idle_since: worker.idle_since });
                    None
                }
            };
            if let Some(verdict) = verdict {
                let foreseen =
                    Foreseen { engine: worker.engine(), memory: worker.memory(), is_guessed: false };
                return Ok(self.planned(verdict, worker.id, foreseen));
            }
        }
        let worker = worker.map_or(0, |worker| worker.id);
        let Some(foreseen) = foreseen else {
            let message = format!("Model '{model_id}' has just changed; ask again");
            return Err(retry_after(Fault::new(ErrorCode::ModelLoading, message), Duration::from_secs(1)));
        };
        let uses = &foreseen.memory;
        let why_not =
            life.and_then(|life| life.cooling(now)).or_else(|| self.could_fit(now, worker, uses).err());
        if let Some(fault) = why_not {
            return Ok(self.planned(Verdict::Refused(fault), worker, foreseen));
        }
        // Those that wait already have their room first.
        let line = self.line();
        let ahead = line.iter().flat_map(|(_, worker)| self.estimate_of(*worker));
        let all: Vec<MemoryUse> = ahead.chain(uses.iter().cloned()).collect();
        let has_room = self.ledger.room(uses, |other| other != worker).is_ok()
            && self.ledger.hope(now, worker, &all).is_ok();
        let chosen = if has_room {
            Some(Vec::new())
        } else if line.is_empty() {
            self.who_makes_room(now, worker, uses)
        } else {
            None
        };
        let Some(chosen) = chosen else { return Ok(self.planned(Verdict::AfterWaiting, worker, foreseen)) };
        let leavers = self.workers().filter(|(_, worker)| chosen.iter().any(|(it, _)| *it == worker.id));
        unload.extend(
            leavers.map(|(model_id, worker)| Leaver {
                model_id: model_id.clone(),
                idle_since: worker.idle_since,
            }),
        );
        let verdict = if unload.is_empty() { Verdict::Fits } else { Verdict::AfterUnloading };
        Ok(Planned { unload, ..self.planned(verdict, worker, foreseen) })
    }

    /// `worker`: who has some of it already.
    fn planned(&self, verdict: Verdict, worker: WorkerId, foreseen: Foreseen) -> Planned {
        let needs = self.ledger.needs_of(&foreseen.memory, worker);
        let holders = self.ledger.holders_of(&foreseen.memory);
        Planned { verdict, foreseen, needs, unload: Vec::new(), holders }
    }
}
