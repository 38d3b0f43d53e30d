//! Draws from rows so flat that the best thousand tokens hold too little of the mass.
//!
//! Sorting a whole vocabulary takes milliseconds. Instead the mass is gathered into buckets of equal
//! logits, best first; only the bucket in which a sum meets its limit is sorted.

use super::{
    blockmax::{Candidate, ShapedRow},
    logprobs::exp,
};

const BUCKETS: usize = 4096;
/// What the buckets span, in units of the temperature: below, a token has less than 1e-17 of the best
/// one's mass, and shares the last bucket.
const SPAN: f32 = 40.0;

/// A row's mass by buckets. Kept from row to row.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    mass: Vec<f64>,
    members: Vec<Candidate>,
    max: f32,
    scale: f32,
    floor: f32,
}

impl Buckets {
    /// Gathers `exp((logit - max) * scale)` of all logits that are at least `floor`, and gives the sum.
    pub(super) fn fill(&mut self, view: &ShapedRow, row: &[f32], max: f32, scale: f32, floor: f32) -> f64 {
        (self.max, self.scale) = (max, scale);
        // What is forbidden has no mass, whatever the floor is.
        self.floor = floor.max(f32::MIN);
        self.mass.clear();
        self.mass.resize(BUCKETS, 0.0);
        for block in view.blocks(row) {
            for &logit in block {
                if logit >= self.floor {
                    self.mass[bucket(max, scale, logit)] += f64::from(exp((logit - max) * scale));
                }
            }
        }
        self.mass.iter().sum()
    }

    /// The first token, best first, at which the cumulated mass exceeds `target` (or meets it, if
    /// `meets`), with that mass; the last one if none does.
    pub(super) fn locate(
        &mut self,
        view: &ShapedRow,
        row: &[f32],
        target: f64,
        meets: bool,
    ) -> Option<(u32, f64)> {
        let reached = |sum: f64| sum > target || (meets && sum >= target);
        let mut before = 0.0;
        let mut at = None;
        for (index, &mass) in self.mass.iter().enumerate().filter(|(_, mass)| **mass > 0.0) {
            if let Some((_, sum)) = at {
                before = sum;
            }
            at = Some((index, before + mass));
            if reached(before + mass) {
                break;
            }
        }
        let (index, _) = at?;
        self.members.clear();
        let mut id = 0;
        for block in view.blocks(row) {
            for &logit in block {
                if logit >= self.floor && bucket(self.max, self.scale, logit) == index {
                    self.members.push(Candidate { id, logit });
                }
                id += 1;
            }
        }
        self.members.sort_unstable_by(Candidate::order);
        let mut sum = before;
        for it in &self.members {
            sum += f64::from(exp((it.logit - self.max) * self.scale));
            if reached(sum) {
                return Some((it.id, sum));
            }
        }
        self.members.last().map(|it| (it.id, sum))
    }
}

/// Rises as the logit falls.
fn bucket(max: f32, scale: f32, logit: f32) -> usize {
    // A cast saturates, and makes 0 of NaN, which is what 0 times infinity gives for the best.
    (((max - logit) * scale * (BUCKETS as f32 / SPAN)) as usize).min(BUCKETS - 1)
}
