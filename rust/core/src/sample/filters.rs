//! Top-k, top-p, min-p and the draw, on candidates best first.

use std::f64::consts::LOG2_E;

use super::blockmax::Candidate;
use crate::request::Sampling;

/// How many candidates are looked at one by one where no top-k says it. If they are not enough, the row
/// is seen through its mass: to look at twice as many takes longer than that.
pub(super) const LOOK: usize = 256;

/// What follows the shaping, on candidates best first. Every filter leaves a prefix of them, so together
/// they leave the shortest of these prefixes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Filters {
    temperature: f64,
    /// The largest logit: its weight is 1.
    max: f64,
    /// 0: off.
    pub(super) top_k: usize,
    top_p: f64,
    min_p: f64,
    pub(super) uniform: f64,
}

/// What the filters leave.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kept {
    pub(super) count: usize,
    sum: f64,
    /// A filter ended it, not the end of the candidates.
    pub(super) ended: bool,
}

impl Filters {
    pub(super) fn new(sampling: &Sampling, n_vocab: usize, max: f32, uniform: f32) -> Self {
        Self {
            temperature: f64::from(sampling.temperature),
            max: f64::from(max),
            top_k: if (sampling.top_k as usize) < n_vocab { sampling.top_k as usize } else { 0 },
            top_p: f64::from(sampling.top_p),
            min_p: f64::from(sampling.min_p),
            uniform: f64::from(uniform),
        }
    }

    pub(super) fn factor(&self) -> f32 {
        (LOG2_E / self.temperature).min(f64::from(f32::MAX)) as f32
    }

    fn weight(&self, logit: f32) -> f64 {
        libm::exp((f64::from(logit) - self.max) / self.temperature)
    }

    pub(super) fn sum(&self, candidates: &[Candidate]) -> f64 {
        candidates.iter().map(|it| self.weight(it.logit)).sum()
    }

    /// Without top-k, does it matter what the whole row adds up to? Min-p alone does not ask.
    pub(super) fn asks_for_total(&self) -> bool {
        self.top_p < 1.0 || self.min_p <= 0.0
    }

    /// Without any filter the draw itself says how many candidates have to be looked at.
    fn unfiltered(&self) -> bool {
        self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0
    }

    /// `total` is the weight of all that top-k left.
    pub(super) fn keep(&self, candidates: &[Candidate], total: f64) -> Kept {
        let unfiltered = self.unfiltered();
        let enough = if unfiltered {
            self.uniform * total
        } else if self.top_p < 1.0 {
            self.top_p * total
        } else {
            f64::INFINITY
        };
        let (mut count, mut sum) = (0, 0.0);
        for candidate in candidates {
            let weight = self.weight(candidate.logit);
            // The best one has weight 1.
            if weight < self.min_p {
                return Kept { count, sum, ended: true };
            }
            count += 1;
            sum += weight;
            if sum > enough || (!unfiltered && sum >= enough) {
                return Kept { count, sum, ended: true };
            }
        }
        Kept { count, sum, ended: false }
    }

    pub(super) fn draw(&self, candidates: &[Candidate], kept: &Kept) -> u32 {
        let candidates = &candidates[..kept.count];
        let last = candidates.last().map_or(0, |it| it.id);
        if self.unfiltered() {
            return last;
        }
        let target = self.uniform * kept.sum;
        let mut cumulated = 0.0;
        for candidate in candidates {
            cumulated += self.weight(candidate.logit);
            if cumulated > target {
                return candidate.id;
            }
        }
        last
    }
}
