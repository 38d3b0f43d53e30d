//! A row of logits seen through the maximum of each of its blocks.
//!
//! The engine's row is borrowed and never written. The few logits that penalties, bias and mask
//! change live in copies of the blocks they lie in, so a row of 150 000 costs one reading pass.
#![expect(clippy::inline_always, reason = "what a kernel calls has to be compiled with it")]

use std::cmp::Ordering;

use llm_node_cpu::{Kernel, Level};

use super::lanes::{self, LANES, Rounding, larger};

/// Logits per block.
pub(super) const BLOCK: usize = 64;
/// Over how many groups the maxima of blocks are gathered once more. Block `i` belongs to group
/// `i % GROUPS`, so that gathering needs no steps within a vector register.
const GROUPS: usize = 512;
const UNPATCHED: u32 = u32::MAX;

/// A token with its shaped logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// The token's number.
    pub id: u32,
    /// Its logit after penalties, bias and mask.
    pub logit: f32,
}

impl Candidate {
    /// Best first; equal logits by lower id.
    #[expect(clippy::trivially_copy_pass_by_ref, reason = "sorting passes references")]
    pub(super) fn order(a: &Candidate, b: &Candidate) -> Ordering {
        b.logit.partial_cmp(&a.logit).unwrap_or(Ordering::Equal).then(a.id.cmp(&b.id))
    }
}

/// What one pass over the engine's own row tells.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RowState {
    /// The largest logit is finite, and none is NaN.
    Usable,
    /// There is a NaN or a positive infinity.
    NotANumber,
    /// Every logit is negative infinity.
    Empty,
}

/// The room that looking at a row takes; kept from row to row.
#[derive(Debug, Default)]
pub(super) struct ShapedRow {
    level: Level,
    /// Per block, the maximum of its shaped logits.
    maxima: Vec<f32>,
    /// Per group, the maximum of its blocks.
    groups: Vec<f32>,
    /// Per block, the index of its patch.
    patch_of: Vec<u32>,
    patched: Vec<u32>,
    patches: Vec<[f32; BLOCK]>,
    /// Room to select the k-th of some maxima.
    room: Vec<f32>,
    /// Blocks that may hold one of the best.
    promising: Vec<u32>,
}

impl ShapedRow {
    /// One that works at `level`; [`Default`] takes the best there is.
    #[cfg(test)]
    pub(super) fn at(level: Level) -> Self {
        Self { level, ..Self::default() }
    }

    /// Reads the row and forgets all changes to the one before.
    pub(super) fn begin(&mut self, row: &[f32]) -> RowState {
        for &block in &self.patched {
            if let Some(patch) = self.patch_of.get_mut(block as usize) {
                *patch = UNPATCHED;
            }
        }
        self.patched.clear();
        self.patches.clear();
        self.patch_of.resize(row.len().div_ceil(BLOCK), UNPATCHED);
        let nan = self.level.run(BlockMaxima { row, maxima: &mut self.maxima });
        self.gather();
        let max = self.max();
        if nan || max == f32::INFINITY {
            RowState::NotANumber
        } else if max == f32::NEG_INFINITY {
            RowState::Empty
        } else {
            RowState::Usable
        }
    }

    /// Changes one logit. Ids outside the row are ignored. Call [`Self::settle`] after the last.
    pub(super) fn change(&mut self, row: &[f32], id: usize, change: impl FnOnce(f32) -> f32) {
        if id < row.len() {
            let logit = &mut self.patch(row, id / BLOCK)[id % BLOCK];
            *logit = change(*logit);
        }
    }

    /// Sets the logits of one block whose bit is set to negative infinity.
    pub(super) fn forbid(&mut self, row: &[f32], block: usize, bits: u64) {
        if block * BLOCK < row.len() {
            for (index, logit) in self.patch(row, block).iter_mut().enumerate() {
                if bits >> index & 1 != 0 {
                    *logit = f32::NEG_INFINITY;
                }
            }
        }
    }

    /// Brings the maxima up to date with the changes.
    pub(super) fn settle(&mut self) {
        if !self.patched.is_empty() {
            for (&block, patch) in self.patched.iter().zip(&self.patches) {
                self.maxima[block as usize] = lanes::block_max(patch, &mut [0; LANES]);
            }
            self.gather();
        }
    }

    fn gather(&mut self) {
        self.groups.clear();
        self.groups.resize(GROUPS.min(self.maxima.len()), f32::NEG_INFINITY);
        for chunk in self.maxima.chunks(GROUPS) {
            for (group, &max) in self.groups.iter_mut().zip(chunk) {
                *group = larger(max, *group);
            }
        }
    }

    /// The largest shaped logit.
    pub(super) fn max(&self) -> f32 {
        lanes::max(&self.groups)
    }

    /// The best token; the lowest id among equals. `None` if all are forbidden.
    #[expect(clippy::float_cmp, reason = "the maximum is one of those it is compared with")]
    pub(super) fn best(&self, row: &[f32]) -> Option<Candidate> {
        let max = self.max();
        if max == f32::NEG_INFINITY {
            return None;
        }
        let block = lanes::position(&self.maxima, |it| it == max)?;
        let index = lanes::position(self.block(row, block), |it| it == max)?;
        Some(Candidate { id: (block * BLOCK + index) as u32, logit: max })
    }

    /// The shaped logit of a token.
    pub(super) fn logit(&self, row: &[f32], id: usize) -> f32 {
        self.block(row, id / BLOCK).get(id % BLOCK).copied().unwrap_or(f32::NEG_INFINITY)
    }

    /// The `k` best tokens, best first, into `out`. Forbidden ones are never among them, so there may
    /// be fewer.
    pub(super) fn top(&mut self, row: &[f32], k: usize, out: &mut Vec<Candidate>) {
        out.clear();
        if k == 0 {
            return;
        }
        // The k largest of any maxima are k logits of the row, so the k best are none below the smallest
        // of these. The groups give a bound that leaves little more than k blocks to look at, and these
        // the best bound that maxima can give.
        let bound = kth_largest(&self.groups, k, &mut self.room);
        self.promising.clear();
        let promises = |max| max >= bound && max > f32::NEG_INFINITY;
        lanes::each(&self.maxima, promises, |index, _| self.promising.push(index as u32));
        let mut threshold = bound.max(f32::MIN);
        if k < self.promising.len() {
            self.room.clear();
            self.room.extend(self.promising.iter().map(|&index| self.maxima[index as usize]));
            threshold = *self.room.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1;
        }
        self.level.run(Above { view: self, row, threshold, out });
        if out.len() > k {
            out.select_nth_unstable_by(k - 1, Candidate::order);
            out.truncate(k);
        }
        out.sort_unstable_by(Candidate::order);
    }

    /// The sum of `2^((logit - max) * factor)` over all shaped logits, of which `max` is the largest.
    pub(super) fn sum_exp2(&self, row: &[f32], max: f32, factor: f32, rounding: Rounding) -> f64 {
        match rounding {
            Rounding::Fixed => self.level.run(SumExp2::<false> { view: self, row, max, factor }),
            Rounding::Fast => self.level.run(SumExp2::<true> { view: self, row, max, factor }),
        }
    }

    /// The instruction set to work at.
    pub(super) fn level(&self) -> Level {
        self.level
    }

    /// The blocks of shaped logits, in order.
    #[inline(always)]
    pub(super) fn blocks<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        (0..self.maxima.len()).map(
            #[inline(always)]
            |index| self.block(row, index),
        )
    }

    #[inline(always)]
    fn block<'a>(&'a self, row: &'a [f32], index: usize) -> &'a [f32] {
        let begin = (index * BLOCK).min(row.len());
        let end = (begin + BLOCK).min(row.len());
        match self.patch_of.get(index) {
            Some(&patch) if patch != UNPATCHED => &self.patches[patch as usize][..end - begin],
            _ => &row[begin..end],
        }
    }

    fn patch(&mut self, row: &[f32], block: usize) -> &mut [f32; BLOCK] {
        if self.patch_of[block] == UNPATCHED {
            let begin = block * BLOCK;
            let end = (begin + BLOCK).min(row.len());
            let mut patch = [f32::NEG_INFINITY; BLOCK];
            patch[..end - begin].copy_from_slice(&row[begin..end]);
            self.patch_of[block] = self.patches.len() as u32;
            self.patched.push(block as u32);
            self.patches.push(patch);
        }
        &mut self.patches[self.patch_of[block] as usize]
    }
}

/// Writes the maximum of each block, and says whether there is a NaN.
struct BlockMaxima<'a> {
    row: &'a [f32],
    maxima: &'a mut Vec<f32>,
}

impl Kernel for BlockMaxima<'_> {
    type Output = bool;

    #[inline(always)]
    fn run(self, _: Level) -> bool {
        let Self { row, maxima } = self;
        maxima.clear();
        maxima.resize(row.len().div_ceil(BLOCK), f32::NEG_INFINITY);
        let mut nan = [0; LANES];
        let (blocks, rest) = row.as_chunks::<BLOCK>();
        for (max, block) in maxima.iter_mut().zip(blocks) {
            *max = lanes::block_max(block, &mut nan);
        }
        if let (Some(max), false) = (maxima.last_mut(), rest.is_empty()) {
            let mut block = [f32::NEG_INFINITY; BLOCK];
            block[..rest.len()].copy_from_slice(rest);
            *max = lanes::block_max(&block, &mut nan);
        }
        nan.iter().any(|&it| it != 0)
    }
}

/// Collects the logits from a threshold on, of the promising blocks.
struct Above<'a> {
    view: &'a ShapedRow,
    row: &'a [f32],
    threshold: f32,
    out: &'a mut Vec<Candidate>,
}

impl Kernel for Above<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let Self { view, row, threshold, out } = self;
        for &index in view.promising.iter().filter(|it| view.maxima[**it as usize] >= threshold) {
            let above = |logit| logit >= threshold;
            lanes::each(view.block(row, index as usize), above, |offset, logit| {
                out.push(Candidate { id: index * BLOCK as u32 + offset as u32, logit });
            });
        }
    }
}

struct SumExp2<'a, const FAST: bool> {
    view: &'a ShapedRow,
    row: &'a [f32],
    max: f32,
    factor: f32,
}

impl<const FAST: bool> Kernel for SumExp2<'_, FAST> {
    type Output = f64;

    #[inline(always)]
    fn run(self, level: Level) -> f64 {
        let fused = FAST && level.fuses();
        lanes::sum_exp2(self.view.blocks(self.row), self.max, self.factor, fused)
    }
}

/// The `k`-th largest of `values`; negative infinity if there are not more than `k`.
fn kth_largest(values: &[f32], k: usize, room: &mut Vec<f32>) -> f32 {
    if k >= values.len() {
        return f32::NEG_INFINITY;
    }
    room.clear();
    room.extend_from_slice(values);
    *room.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "equal by construction")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn naive_top(shaped: &[f32], k: usize) -> Vec<Candidate> {
        let mut all: Vec<_> = shaped
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
            .map(|(id, &logit)| Candidate { id: id as u32, logit })
            .collect();
        all.sort_by(Candidate::order);
        all.truncate(k);
        all
    }

    proptest! {
        /// Few distinct values, so that ties are common.
        #[test]
        fn top_equals_a_full_sort(
            row in prop::collection::vec((-40i32..40).prop_map(|n| n as f32 / 4.0), 1..700),
            changes in prop::collection::vec((0usize..700, -3.0f32..3.0), 0..20),
            forbidden in prop::collection::vec((0usize..11, any::<u64>()), 0..3),
            k in 0usize..800,
        ) {
            let mut shaped = row.clone();
            let mut view = ShapedRow::default();
            // What a row before it left behind must not show.
            view.begin(&[1.0; 130]);
            view.change(&[1.0; 130], 7, |_| 99.0);
            view.settle();
            prop_assert_eq!(view.begin(&row), RowState::Usable);
            for (id, value) in changes {
                view.change(&row, id, |logit| logit + value);
                if let Some(logit) = shaped.get_mut(id) { *logit += value; }
            }
            for (block, bits) in forbidden {
                view.forbid(&row, block, bits);
                for index in 0..64 {
                    if bits >> index & 1 != 0 && let Some(logit) = shaped.get_mut(block * 64 + index) {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
            view.settle();
            let mut top = Vec::new();
            view.top(&row, k, &mut top);
            prop_assert_eq!(&top, &naive_top(&shaped, k));
            prop_assert_eq!(view.best(&row), naive_top(&shaped, 1).first().copied());
            prop_assert_eq!(view.blocks(&row).flatten().copied().collect::<Vec<_>>(), shaped.clone());
            for (id, logit) in shaped.iter().enumerate() {
                prop_assert_eq!(view.logit(&row, id), *logit);
            }
        }
    }

    proptest! {
        /// At any length, at any alignment, with any number in it.
        #[test]
        fn all_levels_see_the_same(
            row in prop::collection::vec(
                prop_oneof![8 => -30.0f32..30.0, 1 => Just(f32::NEG_INFINITY), 1 => -1e38f32..1e38],
                1..3000,
            ),
            skip in 0usize..4,
            forbidden in (0usize..40, any::<u64>()),
            k in 1usize..1200,
            factor in prop_oneof![0.1f32..10.0, Just(f32::MAX)],
        ) {
            let row = &row[skip.min(row.len() - 1)..];
            let seen = Level::all().into_iter().map(|level| {
                let mut view = ShapedRow::at(level);
                let state = view.begin(row);
                view.forbid(row, forbidden.0, forbidden.1);
                view.settle();
                let mut top = Vec::new();
                view.top(row, k, &mut top);
                let max = view.max().max(f32::MIN);
                let sum = view.sum_exp2(row, max, factor, Rounding::Fixed);
                let fast = view.sum_exp2(row, max, factor, Rounding::Fast);
                prop_assert!((fast / sum - 1.0).abs() < 1e-6, "{fast} {sum} {level:?}");
                let maxima: Vec<_> = view.maxima.iter().map(|it| it.to_bits()).collect();
                Ok((state, maxima, view.best(row), top, sum.to_bits()))
            });
            let seen: Vec<_> = seen.collect::<Result<_, _>>()?;
            for other in &seen[1..] {
                prop_assert_eq!(other, &seen[0]);
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_seen_anywhere() {
        for level in Level::all() {
            let mut view = ShapedRow::at(level);
            for (length, place) in
                [1, 15, 64, 65, 200].into_iter().flat_map(|it| (0..it).map(move |at| (it, at)))
            {
                let mut row = vec![0.5; length];
                row[place] = f32::NAN;
                assert_eq!(view.begin(&row), RowState::NotANumber);
                row[place] = f32::INFINITY;
                assert_eq!(view.begin(&row), RowState::NotANumber);
                row[place] = f32::NEG_INFINITY;
                assert_eq!(view.begin(&row), if length == 1 { RowState::Empty } else { RowState::Usable });
            }
        }
        assert_eq!(ShapedRow::default().begin(&[]), RowState::Empty);
    }
}
