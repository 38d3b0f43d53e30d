//! What engines say of loads that are only looked at. Of the same files an engine says the same (`memory.estimate` of
//! the conformance tests): it is remembered, and all who ask at the same time share one process.

use std::{collections::VecDeque, sync::Arc};

use llm_node_core::{
    error::Fault,
    memory::{Estimate, GpuAddress, MemoryUse},
    shape::Sizing,
};
use llm_node_fleet::LoadKey;
use llm_node_wire::message::LoadPlan;
use parking_lot::Mutex;

use super::{Inner, asking::Asked};

/// Of so many loads at most it is remembered.
const MOST_LOADS: usize = 64;
/// Of one load so many sizes.
const MOST_SIZES: usize = 64;

/// What an answer depends on: the load, and where it is to be.
type Subject = (LoadKey, Vec<GpuAddress>);

/// The loads of which engines have said something, the latest last.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<VecDeque<(Subject, Arc<Mutex<Answers>>)>>);

#[derive(Debug, Default)]
struct Answers {
    estimate: Option<Estimate>,
    /// The latest last.
    sized: VecDeque<(Sizing, Option<Vec<MemoryUse>>)>,
    /// So many look at the load now.
    lookers: usize,
    /// What they ask; where that fails, it fails for all of them.
    asked: Option<Result<Asked, Fault>>,
}

/// Somebody looks at a load. With the last of them its process ends, where there is one.
#[derive(Debug)]
pub(super) struct Look {
    plan: LoadPlan,
    answers: Arc<Mutex<Answers>>,
}

impl Said {
    /// Looks at the load of a plan. `key` tells it from others.
    pub(super) fn look(&self, key: LoadKey, plan: LoadPlan) -> Look {
        let subject = (key, plan.place.clone());
        let mut loads = self.0.lock();
        let known = loads.iter().position(|(other, _)| *other == subject).and_then(|at| loads.remove(at));
        let (subject, answers) = known.unwrap_or_else(|| (subject, Arc::default()));
        loads.push_back((subject, Arc::clone(&answers)));
        if loads.len() > MOST_LOADS {
            loads.pop_front();
        }
        drop(loads);
        answers.lock().lookers += 1;
        Look { plan, answers }
    }
}

impl Look {
    /// What the load would take as it was asked for.
    pub(super) fn estimate(&self, inner: &Inner) -> Result<Estimate, Fault> {
        let mut answers = self.answers.lock();
        if answers.estimate.is_none() {
            answers.ask(inner, &self.plan)?;
        }
        Ok(answers.estimate.clone().unwrap_or_default())
    }

    /// What it would take with such a context; `None`: its engine cannot say.
    pub(super) fn size(&self, inner: &Inner, sizing: Sizing) -> Result<Option<Vec<MemoryUse>>, Fault> {
        let mut answers = self.answers.lock();
        if let Some((_, known)) = answers.sized.iter().find(|(other, _)| *other == sizing) {
            return Ok(known.clone());
        }
        let said = answers.ask(inner, &self.plan)?.size(sizing);
        match said {
            Ok(uses) => {
                answers.sized.push_back((sizing, uses.clone()));
                if answers.sized.len() > MOST_SIZES {
                    answers.sized.pop_front();
                }
                Ok(uses)
            }
            Err(fault) => {
                answers.asked = Some(Err(fault.clone()));
                Err(fault)
            }
        }
    }
}

impl Answers {
    /// The process that can be asked, which the first who needs it starts.
    fn ask(&mut self, inner: &Inner, plan: &LoadPlan) -> Result<&Asked, Fault> {
        let Self { estimate, asked, .. } = self;
        let begun = asked.get_or_insert_with(|| {
            let (asked, said) = Asked::begin(inner, plan.clone())?;
            *estimate = Some(said);
            Ok(asked)
        });
        begun.as_ref().map_err(Fault::clone)
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        let mut answers = self.answers.lock();
        answers.lookers -= 1;
        let ends = if answers.lookers == 0 { answers.asked.take() } else { None };
        drop(answers);
        // Its end is waited for, and nobody else has to wait for that.
        drop(ends);
    }
}
