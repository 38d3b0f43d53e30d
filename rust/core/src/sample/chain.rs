//! The chain from a row of logits to a token.

use std::f64::consts::LOG2_E;

use super::{
    best::Shaped,
    blockmax::{Candidate, RowState, ShapedRow},
    deep::Buckets,
    filters::{Filters, LOOK},
    forbidden::Forbidden,
    job::Job,
    lanes::Rounding,
    mask::Mask,
    penalties::{self, Occurrences},
    picked::{PickFault, Picked},
};
use crate::{
    engine::{Row, Token},
    request::Sampling,
};

/// Picks tokens. Holds only room that is used again from row to row.
#[derive(Debug, Default)]
pub struct Sampler {
    view: ShapedRow,
    candidates: Vec<Candidate>,
    buckets: Buckets,
    /// A row as a mask leaves it.
    masked: Vec<f32>,
}

impl Sampler {
    /// Walks the chain from a row as it came: whole, or cut down to its candidates. These give the token
    /// that the whole row would give, or [`PickFault::Undecided`].
    pub fn pick_from(&mut self, job: &Job<'_>, forbidden: &Forbidden) -> Result<Picked, PickFault> {
        let Job { row, sampling, occurrences, mask, uniform, logprobs } = *job;
        match (row, mask) {
            (Row::Whole(logits), None) => {
                self.pick(logits, sampling, occurrences, forbidden, uniform, logprobs)
            }
            (Row::Whole(logits), Some(mask)) => self.pick_masked(logits, mask, job, forbidden),
            (Row::Best(best), mask) => {
                let shaped = Shaped::new(&mut self.candidates, best, job, mask, forbidden)?;
                shaped.pick(sampling, uniform, logprobs)
            }
        }
    }

    /// The same where the logits of what the mask does not admit count as negative infinity.
    fn pick_masked(
        &mut self,
        row: &[f32],
        mask: &Mask,
        job: &Job<'_>,
        forbidden: &Forbidden,
    ) -> Result<Picked, PickFault> {
        let Job { sampling, occurrences, uniform, logprobs, .. } = *job;
        if mask.few(row, &mut self.candidates) {
            let shaped = Shaped::of_all(&mut self.candidates, row.len(), job, forbidden)?;
            match shaped.pick(sampling, uniform, logprobs) {
                Err(PickFault::Undecided) => {}
                decided => return decided,
            }
        }
        let mut masked = std::mem::take(&mut self.masked);
        mask.apply(row, self.view.level(), &mut masked);
        let picked = self.pick(&masked, sampling, occurrences, forbidden, uniform, logprobs);
        self.masked = masked;
        picked.map_err(|fault| if fault == PickFault::Empty { PickFault::NothingAllowed } else { fault })
    }

    /// Walks the chain: `row` is the engine's, one logit per token of the vocabulary; `occurrences`
    /// count what the sequence holds; `uniform` lies in `[0, 1)`; `logprobs` says how many of the
    /// likeliest tokens are wanted beside the picked one's log-probability.
    pub fn pick(
        &mut self,
        row: &[f32],
        sampling: &Sampling,
        occurrences: &Occurrences,
        forbidden: &Forbidden,
        uniform: f32,
        logprobs: Option<u32>,
    ) -> Result<Picked, PickFault> {
        match self.view.begin(row) {
            RowState::NotANumber => return Err(PickFault::NotANumber),
            RowState::Empty => return Err(PickFault::Empty),
            RowState::Usable => {}
        }
        self.shape(row, sampling, occurrences, forbidden);
        let best = self.view.best(row).ok_or(PickFault::NothingAllowed)?;
        let id =
            if sampling.temperature > 0.0 { self.draw(row, best.logit, sampling, uniform) } else { best.id };
        let logprobs = logprobs.map(|n| self.logprobs(row, id, best.logit, n as usize));
        Ok(Picked { token: id as Token, logprobs })
    }

    fn shape(&mut self, row: &[f32], sampling: &Sampling, occurrences: &Occurrences, forbidden: &Forbidden) {
        if penalties::penalise(sampling) {
            for (token, count) in occurrences.iter() {
                if let Ok(id) = usize::try_from(token) {
                    self.view.change(row, id, |logit| penalties::penalised(logit, count, sampling));
                }
            }
        }
        for &(token, bias) in &sampling.bias {
            if let Ok(id) = usize::try_from(token) {
                self.view.change(row, id, |logit| penalties::biased(logit, bias));
            }
        }
        for &(block, bits) in forbidden.blocks() {
            self.view.forbid(row, block as usize, bits);
        }
        self.view.settle();
    }

    fn draw(&mut self, row: &[f32], max: f32, sampling: &Sampling, uniform: f32) -> u32 {
        let filters = Filters::new(sampling, row.len(), max, uniform);
        let look = if filters.top_k > 0 { filters.top_k } else { LOOK };
        self.view.top(row, look, &mut self.candidates);
        let total = if filters.top_k > 0 {
            filters.sum(&self.candidates)
        } else if filters.asks_for_total() {
            self.view.sum_exp2(row, max, filters.factor(), Rounding::Fixed)
        } else {
            f64::INFINITY
        };
        let kept = filters.keep(&self.candidates, total);
        if !kept.ended && filters.top_k == 0 && self.candidates.len() == LOOK {
            return self.draw_deep(row, max, filters.factor(), sampling, filters.uniform);
        }
        filters.draw(&self.candidates, &kept)
    }

    /// The same without top-k, where no small number of candidates is enough.
    fn draw_deep(&mut self, row: &[f32], max: f32, factor: f32, sampling: &Sampling, uniform: f64) -> u32 {
        let Self { view, buckets, .. } = self;
        let mut sum = f64::INFINITY;
        if sampling.top_p < 1.0 || sampling.min_p <= 0.0 {
            sum = buckets.fill(view, row, max, factor, f32::MIN);
        }
        if sampling.top_p < 1.0
            && let Some((_, kept)) = buckets.locate(view, row, f64::from(sampling.top_p) * sum, true)
        {
            sum = kept;
        }
        if sampling.min_p > 0.0 {
            let floor =
                f64::from(max) + f64::from(sampling.temperature) * libm::log(f64::from(sampling.min_p));
            sum = sum.min(buckets.fill(view, row, max, factor, floor as f32));
        }
        buckets.locate(view, row, uniform * sum, false).map_or(0, |it| it.0)
    }

    fn logprobs(&mut self, row: &[f32], id: u32, max: f32, n: usize) -> (f32, Vec<(Token, f32)>) {
        let log_sum = f64::from(max) + libm::log(self.view.sum_exp2(row, max, LOG2_E as f32, Rounding::Fast));
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let own = logprob(self.view.logit(row, id as usize));
        self.view.top(row, n, &mut self.candidates);
        (own, self.candidates.iter().map(|it| (it.id as Token, logprob(it.logit))).collect())
    }
}

#[cfg(test)]
mod tests {
    use llm_node_cpu::Level;
    use proptest::prelude::*;

    use super::*;
    use crate::engine::{Vocabulary, attribute};

    /// The chain as the header words it, without any regard for speed. Also says how near the nearest
    /// decision was to going the other way.
    fn reference(shaped: &[f32], sampling: &Sampling, uniform: f32) -> (Token, f64) {
        let mut all: Vec<(u32, f64)> = shaped
            .iter()
            .enumerate()
            .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
            .map(|(id, &logit)| (id as u32, f64::from(logit)))
            .collect();
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if sampling.temperature == 0.0 {
            return (all[0].0 as Token, 1.0);
        }
        let normalise = |list: &mut Vec<(u32, f64)>| {
            let sum: f64 = list.iter().map(|it| it.1).sum();
            for it in list {
                it.1 /= sum;
            }
        };
        let max = all[0].1;
        for it in &mut all {
            it.1 = ((it.1 - max) / f64::from(sampling.temperature)).exp();
        }
        normalise(&mut all);
        let mut margin = 1.0f64;
        if sampling.top_k > 0 {
            all.truncate(sampling.top_k as usize);
            normalise(&mut all);
        }
        if sampling.top_p < 1.0 {
            let mut sum = 0.0;
            let mut keep = all.len();
            for (index, it) in all.iter().enumerate() {
                sum += it.1;
                margin = margin.min((sum - f64::from(sampling.top_p)).abs());
                if sum >= f64::from(sampling.top_p) {
                    keep = index + 1;
                    break;
                }
            }
            all.truncate(keep);
            normalise(&mut all);
        }
        let least = all[0].1 * f64::from(sampling.min_p);
        all.retain(|it| {
            if sampling.min_p > 0.0 {
                margin = margin.min((it.1 - least).abs() / all_best(least, sampling));
            }
            it.1 >= least
        });
        normalise(&mut all);
        let mut sum = 0.0;
        for it in &all {
            sum += it.1;
            margin = margin.min((sum - f64::from(uniform)).abs());
            if sum > f64::from(uniform) {
                return (it.0 as Token, margin);
            }
        }
        (all[all.len() - 1].0 as Token, margin)
    }

    fn all_best(least: f64, sampling: &Sampling) -> f64 {
        least / f64::from(sampling.min_p)
    }

    fn vocabulary(attributes: &[u32]) -> Vocabulary {
        Vocabulary {
            offsets: vec![0; attributes.len() + 1],
            attributes: attributes.to_vec(),
            ..Vocabulary::default()
        }
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        (
            (prop_oneof![Just(0.0f32), 0.05f32..3.0], prop_oneof![Just(0u32), 1u32..900]),
            (prop_oneof![Just(1.0f32), 0.01f32..1.0], prop_oneof![Just(0.0f32), 0.001f32..=1.0]),
            (prop_oneof![Just(1.0f32), 0.5f32..2.0], -2.0f32..2.0, -2.0f32..2.0, any::<bool>()),
            prop::collection::vec((0..1000i32, prop_oneof![Just(f32::NEG_INFINITY), -5.0f32..5.0]), 0..6),
        )
            .prop_map(
                |((temperature, top_k), (top_p, min_p), (repeat, frequency, presence, on), bias)| Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repeat_penalty: if on { repeat } else { 1.0 },
                    frequency_penalty: if on { frequency } else { 0.0 },
                    presence_penalty: if on { presence } else { 0.0 },
                    seed: None,
                    bias,
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

        #[test]
        fn equals_the_naive_chain(
            row in prop::collection::vec(-12.0f32..12.0, 1..1000),
            unused in prop::collection::vec(0usize..1000, 0..30),
            history in prop::collection::vec(0i32..1000, 0..50),
            sampling in sampling(),
            uniform in 0.0f32..1.0,
        ) {
            let mut attributes = vec![0; row.len()];
            for id in unused {
                if id > 0 && id < row.len() { attributes[id] = attribute::UNUSED; }
            }
            let mut shaped = row.clone();
            let occurrences = Occurrences::of(&history);
            if penalties::penalise(&sampling) {
                for (token, count) in occurrences.iter() {
                    if let Some(logit) = shaped.get_mut(token as usize) {
                        *logit = penalties::penalised(*logit, count, &sampling);
                    }
                }
            }
            for &(token, bias) in &sampling.bias {
                if let Some(logit) = shaped.get_mut(token as usize) { *logit += bias; }
            }
            for (id, &bits) in attributes.iter().enumerate() {
                if bits != 0 { shaped[id] = f32::NEG_INFINITY; }
            }
            let forbidden = Forbidden::of(&vocabulary(&attributes), row.len());
            let mut sampler = Sampler::default();
            let picked = sampler.pick(&row, &sampling, &occurrences, &forbidden, uniform, Some(5));
            if shaped.iter().all(|it| *it == f32::NEG_INFINITY) {
                prop_assert_eq!(picked, Err(PickFault::NothingAllowed));
                return Ok(());
            }
            let picked = picked.unwrap();
            let (token, margin) = reference(&shaped, &sampling, uniform);
            // Two ways of adding up the same numbers may part where a sum meets its limit.
            if margin > 1e-5 {
                prop_assert_eq!(picked.token, token);
            }
            prop_assert!(shaped[picked.token as usize] > f32::NEG_INFINITY);

            let max = shaped.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = shaped.iter().map(|&it| (f64::from(it) - f64::from(max)).exp()).sum();
            let logprob = |id: Token| f64::from(shaped[id as usize]) - f64::from(max) - sum.ln();
            let (own, top) = picked.logprobs.unwrap();
            prop_assert!((f64::from(own) - logprob(picked.token)).abs() < 1e-5);
            prop_assert!(top.len() <= 5 && top.windows(2).all(|pair| pair[0].1 >= pair[1].1));
            for (id, value) in top {
                prop_assert!((f64::from(value) - logprob(id)).abs() < 1e-5);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

        /// Flat rows, where the draw lies deep.
        #[test]
        fn equals_the_naive_chain_on_flat_rows(
            seed in any::<u64>(),
            length in 1100usize..5000,
            spread in 0.01f32..3.0,
            (top_p, min_p) in (prop_oneof![Just(1.0f32), 0.5f32..1.0], prop_oneof![Just(0.0f32), 0.0001f32..0.5]),
            temperature in 0.5f32..3.0,
            uniform in 0.0f32..1.0,
        ) {
            // Rounded, so that there are ties.
            let row: Vec<f32> = (0..length as u64)
                .map(|id| (crate::sample::rng::uniform(seed, id) * spread * 256.0).round() / 256.0)
                .collect();
            let sampling = Sampling { temperature, top_p, min_p, ..Sampling::default() };
            let (none, all) = (Occurrences::default(), Forbidden::default());
            let picked = Sampler::default().pick(&row, &sampling, &none, &all, uniform, None).unwrap();
            let (token, margin) = reference(&row, &sampling, uniform);
            if margin > 1e-5 {
                prop_assert_eq!(picked.token, token);
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

        /// What is picked does not depend on the instruction set.
        #[test]
        fn all_levels_pick_the_same(
            seed in any::<u64>(),
            length in 1usize..4000,
            spread in 0.01f32..40.0,
            sampling in sampling(),
            uniform in 0.0f32..1.0,
        ) {
            let row: Vec<f32> =
                (0..length as u64).map(|id| crate::sample::rng::uniform(seed, id) * spread).collect();
            let occurrences = Occurrences::of(&[1, 5, 5, 700]);
            let mut picks = Level::all().into_iter().map(|level| {
                let mut sampler = Sampler { view: ShapedRow::at(level), ..Sampler::default() };
                sampler
                    .pick(&row, &sampling, &occurrences, &Forbidden::default(), uniform, None)
                    .map(|it| it.token)
            });
            let first = picks.next();
            for other in picks {
                prop_assert_eq!(Some(other), first);
            }
        }
    }

    /// A flat row, where most of the mass lies beyond the first look.
    #[test]
    fn flat_rows_are_drawn_evenly() {
        let row = vec![0.0; 20_000];
        let mut sampler = Sampler::default();
        let sampling = Sampling::default();
        for step in 0u16..100 {
            let uniform = f32::from(step) / 100.0 + 0.0042;
            let picked = sampler
                .pick(&row, &sampling, &Occurrences::default(), &Forbidden::default(), uniform, None)
                .unwrap();
            assert!((picked.token as f32 - uniform * 20_000.0).abs() < 2.0, "{} {uniform}", picked.token);
        }
    }

    #[test]
    fn rows_that_are_not_numbers_are_refused() {
        let mut sampler = Sampler::default();
        let mut pick = |row: &[f32]| {
            let (sampling, none) = (Sampling::default(), Occurrences::default());
            sampler.pick(row, &sampling, &none, &Forbidden::default(), 0.5, None).map(|it| it.token)
        };
        assert_eq!(pick(&[0.0, f32::NAN, 1.0]), Err(PickFault::NotANumber));
        assert_eq!(pick(&[0.0, f32::INFINITY]), Err(PickFault::NotANumber));
        assert_eq!(pick(&[f32::NEG_INFINITY; 70]), Err(PickFault::Empty));
        assert_eq!(pick(&[f32::NEG_INFINITY, -1e30]), Ok(1));
    }

    #[test]
    fn a_tiny_temperature_is_greedy() {
        let row = [1.0, 1.001, 0.5];
        let sampling = Sampling { temperature: 1e-30, ..Sampling::default() };
        let picked = Sampler::default()
            .pick(&row, &sampling, &Occurrences::default(), &Forbidden::default(), 0.999, None)
            .unwrap();
        assert_eq!(picked.token, 1);
    }

    #[test]
    fn what_lies_beyond_the_vocabulary_is_never_picked() {
        let forbidden = Forbidden::of(&vocabulary(&[0, attribute::UNUSED, 0]), 70);
        let mut row = vec![5.0; 70];
        row[2] = -3.0;
        row[0] = -4.0;
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let picked =
            Sampler::default().pick(&row, &greedy, &Occurrences::default(), &forbidden, 0.0, None).unwrap();
        assert_eq!(picked.token, 2);
    }
}
