//! A row of logits seen through the maximum of each of its blocks.
//!
//! The engine's row is borrowed and never written. The few logits that penalties, bias and mask
//! change live in copies of the blocks they lie in, so a row of 150 000 costs one reading pass.

use std::cmp::Ordering;

/// Logits per block.
const BLOCK: usize = 64;
/// Independent maxima within a block: what the compiler turns into vector registers.
const LANES: usize = 16;
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
    /// Per block, the maximum of its shaped logits.
    maxima: Vec<f32>,
    /// Per block, the index of its patch.
    patch_of: Vec<u32>,
    patched: Vec<u32>,
    patches: Vec<[f32; BLOCK]>,
    sorted: Vec<f32>,
}

impl ShapedRow {
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
        self.maxima.clear();
        let mut nan = [0; LANES];
        let (blocks, rest) = row.as_chunks::<BLOCK>();
        self.maxima.extend(blocks.iter().map(|block| scan(block, &mut nan)));
        if !rest.is_empty() {
            self.maxima.push(scan(rest, &mut nan));
        }
        let max = self.max();
        if nan.iter().any(|&it| it != 0) || max == f32::INFINITY {
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
        for (&block, patch) in self.patched.iter().zip(&self.patches) {
            self.maxima[block as usize] = scan(patch, &mut [0; LANES]);
        }
    }

    /// The largest shaped logit.
    pub(super) fn max(&self) -> f32 {
        self.maxima.iter().fold(f32::NEG_INFINITY, |max, &it| larger(it, max))
    }

    /// The best token; the lowest id among equals. `None` if all are forbidden.
    #[expect(clippy::float_cmp, reason = "the maximum is one of those it is compared with")]
    pub(super) fn best(&self, row: &[f32]) -> Option<Candidate> {
        let max = self.max();
        if max == f32::NEG_INFINITY {
            return None;
        }
        let block = self.maxima.iter().position(|&it| it == max)?;
        let index = self.block(row, block).iter().position(|&it| it == max)?;
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
        // The k largest block maxima are k logits of the row, so the k best are none below the
        // smallest of these.
        let mut threshold = f32::NEG_INFINITY;
        if k < self.maxima.len() {
            self.sorted.clear();
            self.sorted.extend_from_slice(&self.maxima);
            let (_, kth, _) = self.sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            threshold = *kth;
        }
        for (index, &max) in self.maxima.iter().enumerate() {
            if max >= threshold && max > f32::NEG_INFINITY {
                let first = index * BLOCK;
                for (offset, &logit) in self.block(row, index).iter().enumerate() {
                    if logit >= threshold && logit > f32::NEG_INFINITY {
                        out.push(Candidate { id: (first + offset) as u32, logit });
                    }
                }
            }
        }
        if out.len() > k {
            out.select_nth_unstable_by(k - 1, Candidate::order);
            out.truncate(k);
        }
        out.sort_unstable_by(Candidate::order);
    }

    /// The blocks of shaped logits, in order.
    pub(super) fn blocks<'a>(&'a self, row: &'a [f32]) -> impl Iterator<Item = &'a [f32]> {
        (0..self.maxima.len()).map(|index| self.block(row, index))
    }

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

/// The maximum of a block. `nan` keeps a mark if any of it is NaN.
#[inline]
fn scan(block: &[f32], nan: &mut [u32; LANES]) -> f32 {
    let mut max = [f32::NEG_INFINITY; LANES];
    let (lanes, rest) = block.as_chunks::<LANES>();
    for chunk in lanes {
        for lane in 0..LANES {
            max[lane] = larger(chunk[lane], max[lane]);
            nan[lane] |= u32::from(chunk[lane].is_nan());
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        max[lane] = larger(value, max[lane]);
        nan[lane] |= u32::from(value.is_nan());
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            max[lane] = larger(max[lane + width], max[lane]);
        }
    }
    max[0]
}

/// The larger of two; the second if one is NaN. This, and not `f32::max`, is one machine instruction.
#[inline]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
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

    #[test]
    fn nan_and_infinity_are_seen_anywhere() {
        let mut view = ShapedRow::default();
        for length in [1, 15, 64, 65, 200] {
            for place in 0..length {
                let mut row = vec![0.5; length];
                row[place] = f32::NAN;
                assert_eq!(view.begin(&row), RowState::NotANumber);
                row[place] = f32::INFINITY;
                assert_eq!(view.begin(&row), RowState::NotANumber);
                row[place] = f32::NEG_INFINITY;
                assert_eq!(view.begin(&row), if length == 1 { RowState::Empty } else { RowState::Usable });
            }
        }
        assert_eq!(view.begin(&[]), RowState::Empty);
    }
}
