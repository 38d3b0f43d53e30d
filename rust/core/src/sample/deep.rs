//! Draws from rows so flat that the best few hundred tokens hold too little of the mass.
//!
//! Sorting a whole vocabulary takes milliseconds. Instead the mass is gathered into buckets of equal
//! logits, best first; only the bucket in which a sum meets its limit is sorted.
#![expect(clippy::inline_always, reason = "what a kernel calls has to be compiled with it")]

use llm_node_cpu::{Kernel, Level};

use super::{
    blockmax::{BLOCK, Candidate, ShapedRow},
    lanes::{self, exp2, larger},
};

const BUCKETS: usize = 4096;
/// What the buckets span, as a power of two: below, a token has less than 1e-17 of the best one's
/// mass, and shares the last bucket.
const SPAN: f32 = 57.0;

/// A row's mass by buckets. Kept from row to row.
#[derive(Debug, Default)]
pub(super) struct Buckets {
    mass: Vec<f64>,
    members: Vec<Candidate>,
    weights: Weights,
}

/// How much a logit weighs, and in which bucket.
#[derive(Clone, Copy, Debug, Default)]
struct Weights {
    max: f32,
    factor: f32,
    floor: f32,
}

impl Weights {
    #[inline(always)]
    fn of(self, logit: f32) -> f32 {
        if logit >= self.floor { exp2((logit - self.max) * self.factor, false) } else { 0.0 }
    }

    /// Rises as the logit falls. Adding 2^23 leaves the integer in the low bits.
    #[inline(always)]
    fn bucket(self, logit: f32) -> u32 {
        let place = (self.max - logit) * self.factor * (BUCKETS as f32 / SPAN);
        let last = (BUCKETS - 1) as f32;
        let place = if place < last { place } else { last };
        (larger(place, 0.0) + 8_388_608.0).to_bits() & (BUCKETS as u32 - 1)
    }
}

impl Buckets {
    /// Gathers `2^((logit - max) * factor)` of all logits that are at least `floor`, and gives the sum.
    pub(super) fn fill(&mut self, view: &ShapedRow, row: &[f32], max: f32, factor: f32, floor: f32) -> f64 {
        // What is forbidden has no mass, whatever the floor is.
        self.weights = Weights { max, factor, floor: larger(floor, f32::MIN) };
        self.mass.clear();
        self.mass.resize(BUCKETS, 0.0);
        view.level().run(Fill { view, row, weights: self.weights, mass: &mut self.mass });
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
        let bucket = at?.0 as u32;
        self.members.clear();
        view.level().run(Collect { view, row, weights: self.weights, bucket, out: &mut self.members });
        self.members.sort_unstable_by(Candidate::order);
        let mut sum = before;
        for it in &self.members {
            sum += f64::from(self.weights.of(it.logit));
            if reached(sum) {
                return Some((it.id, sum));
            }
        }
        self.members.last().map(|it| (it.id, sum))
    }
}

/// Adds each logit's weight to its bucket.
struct Fill<'a> {
    view: &'a ShapedRow,
    row: &'a [f32],
    weights: Weights,
    mass: &'a mut [f64],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let Self { view, row, weights, mass } = self;
        // Computed in lanes, then scattered one by one.
        let mut buckets = [0; BLOCK];
        let mut masses = [0.0; BLOCK];
        for block in view.blocks(row) {
            for ((&logit, bucket), mass) in block.iter().zip(&mut buckets).zip(&mut masses) {
                *bucket = weights.bucket(logit);
                *mass = weights.of(logit);
            }
            for (&bucket, &it) in buckets.iter().zip(&masses).take(block.len()) {
                if let Some(mass) = mass.get_mut(bucket as usize) {
                    *mass += f64::from(it);
                }
            }
        }
    }
}

/// Collects what lies in one bucket.
struct Collect<'a> {
    view: &'a ShapedRow,
    row: &'a [f32],
    weights: Weights,
    bucket: u32,
    out: &'a mut Vec<Candidate>,
}

impl Kernel for Collect<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let Self { view, row, weights, bucket, out } = self;
        let within = |logit: f32| (logit >= weights.floor) & (weights.bucket(logit) == bucket);
        for (index, block) in view.blocks(row).enumerate() {
            lanes::each(block, within, |offset, logit| {
                out.push(Candidate { id: (index * BLOCK + offset) as u32, logit });
            });
        }
    }
}
