//! Whose step is next, what it may take, and what becomes of holes among the sequences that run.

use super::Session;
use crate::{
    engine::{EngineFault, SequenceId, StepEngine},
    schedule::{
        batch::{Budget, Demand, Turn},
        generation::Generation,
        pace::{Hole, Holes},
    },
};

impl<E: StepEngine> Session<E> {
    /// Sees to it that the ids which run have no holes where that costs the engine further passes. Gives
    /// the ids that are to be padded in this step.
    ///
    /// Nobody knows how long a hole would last, so every step with holes counts as the promise of as many
    /// again: what has cost as much as closing them gets closed.
    pub(super) fn close_holes(&mut self) -> Result<Vec<SequenceId>, EngineFault> {
        let mut holes = self.sequences.holes();
        if holes.is_empty() {
            self.steps_with_holes = 0;
            return Ok(Vec::new());
        }
        self.steps_with_holes += 1;
        let first = self.running.keys().next().copied().unwrap_or_default();
        let end = first + self.running.len() as u32;
        let picture = Holes {
            gaps: 1 + holes.windows(2).filter(|it| it[0] + 1 != it[1]).count() as u32,
            width: holes.len() as u32,
            moves: self.running.range(end..).count() as u32,
            steps: self.steps_with_holes,
        };
        match self.pace.holes(&picture) {
            Hole::Leave => Ok(Vec::new()),
            Hole::Pad => {
                let limits = self.limits();
                holes.retain(|&id| {
                    let held = self.sequences.held(id);
                    held < limits.context_length && (held == 0 || limits.max_rollback > 0)
                });
                Ok(holes)
            }
            Hole::Fill => {
                let worth = self.pace.worth_copying();
                for hole in holes {
                    let Some((&from, _)) = self.running.last_key_value().filter(|(from, _)| **from > hole)
                    else {
                        break;
                    };
                    let Some(took) = self.sequences.shift(from, hole, worth)? else { break };
                    self.pace.copied(took);
                    if let Some(generation) = self.running.remove(&from) {
                        self.running.insert(hole, generation);
                    }
                }
                Ok(Vec::new())
            }
        }
    }

    pub(super) fn demands(&self) -> Vec<Demand> {
        self.running
            .iter()
            .map(|(&sequence, it)| Demand { sequence, age: it.age, held: it.held, pending: it.pending() })
            .collect()
    }

    /// Whose step is next, and do answers wait for more than their turn?
    ///
    /// Where each sequence has a part of the cache to itself, engines need a pass for each length among the
    /// slices: prompts beside answers are read without their first token, so both are slower than apart.
    pub(super) fn turn(&mut self) -> (Turn, bool) {
        let all = || self.running.values().map(Generation::pending);
        let short = self.pace.prefill_tokens(0, true, self.limits().max_batch_tokens);
        let prompts = all().filter(|&it| it > 1).count();
        let burst = all().filter(|&it| it > 1 && it <= short).count() as u32;
        let streaming = self.running.values().any(|it| it.pending() == 1 && it.generated() > 1);
        let now = (self.options.clock)();
        if prompts == self.running.len() {
            // Nobody waits.
            (self.answered, self.burst) = (now, 0);
        }
        self.burst = self.burst.max(burst);
        let waited = now.saturating_sub(self.answered);
        if prompts == 0 {
            (Turn::Answers, false)
        } else if prompts == self.running.len() || self.pace.holds_decodes(self.burst, streaming, waited) {
            (Turn::Prompts, true)
        } else if self.limits().shares_prefixes {
            (Turn::Both, false)
        } else if self.prompts_next {
            (Turn::Prompts, false)
        } else {
            (Turn::Answers, false)
        }
    }

    pub(super) fn budget(&self, demands: &[Demand], turn: Turn, held: bool, pads: u32) -> Budget {
        let limits = self.limits();
        let prompts = demands.iter().filter(|it| it.pending > 1).count() as u32;
        let decodes = if held { 0 } else { demands.len() as u32 - prompts };
        // Enough for all answers: with the holes among them they are no more than may run at once, since ids at
        // the sides are taken only where there is no hole.
        let tokens = limits.max_batch_tokens - pads;
        Budget {
            tokens,
            prefill_tokens: if prompts as usize == demands.len() {
                self.pace.undisturbed_tokens(tokens)
            } else {
                self.pace.prefill_tokens(decodes, turn != Turn::Both, tokens)
            },
            joint_tokens: if decodes == 0 { self.pace.joint_tokens() } else { u32::MAX },
            // A sequence that is alone was found to fit; let the engine say otherwise.
            cache_free: if demands.len() == 1 && self.sequences.n_kept() == 0 {
                u64::MAX
            } else {
                self.sequences.room()
            },
            cache_page: limits.cache_page,
            turn,
        }
    }

    /// Is there a prompt under way, or what takes the place of one after a preemption?
    pub(super) fn reads_prompts(&self) -> bool {
        self.running.values().any(|it| it.pending() > 1)
    }
}
