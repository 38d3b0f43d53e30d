//! The chain on the likeliest tokens of a row, where the rest of it stayed with the engine.
//!
//! What the rest can be is bounded: shaping never lifts a token here, so none of them comes before the
//! last candidate as the engine gave it, and what they weigh together lies between two numbers. Where
//! both ends lead to the same token, so does the whole row.

use super::{
    blockmax::Candidate,
    filters::{Filters, LOOK},
    forbidden::Forbidden,
    job::Job,
    mask::Mask,
    penalties::{self, Occurrences},
    picked::{PickFault, Picked},
};
use crate::{
    engine::{Best, Limits, Token},
    request::Sampling,
};

/// How far sums of the same numbers may lie apart: here in double precision, over a whole row in single
/// precision, and over the engine's row on its device.
const MARGIN: f64 = 1e-4;
/// Weight of what must not be picked, as a part of the whole, that a log-probability may neglect.
const NEGLIGIBLE: f64 = 1e-6;

/// How many candidates to ask for, if they can be expected to decide on a token; 0: the whole row is
/// needed. Where the engine does not give the rest later, they must be sure to decide.
pub fn candidates_for(
    sampling: &Sampling,
    logprobs: Option<u32>,
    forbidden: &Forbidden,
    limits: &Limits,
) -> u32 {
    let most = limits.max_candidates;
    let greedy = sampling.temperature == 0.0;
    let shaped = penalties::penalise(sampling) || !sampling.bias.is_empty();
    let unfiltered = sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0;
    let needed = if greedy { 1 } else { sampling.top_k.max(1) };
    let possible = !lifts(sampling)
        && (greedy || !unfiltered)
        && needed <= most
        && logprobs.is_none_or(|n| n <= most && !shaped);
    let sure = (greedy || (sampling.top_k > 0 && sampling.top_k < limits.n_vocab))
        && !shaped
        && logprobs.is_none()
        && needed.saturating_add(forbidden.count()) <= most;
    if possible && (sure || limits.fetches) { most } else { 0 }
}

/// Can a token become likelier than the engine says?
fn lifts(sampling: &Sampling) -> bool {
    sampling.repeat_penalty < 1.0
        || sampling.frequency_penalty < 0.0
        || sampling.presence_penalty < 0.0
        || sampling.bias.iter().any(|it| it.1 > 0.0)
}

/// Candidates after penalties, bias and mask.
pub(super) struct Shaped<'a> {
    /// All that are not forbidden, best first.
    all: &'a [Candidate],
    /// How many of these no token outside can come before.
    sure: usize,
    outside: Outside,
    n_vocab: usize,
}

/// What is known of the tokens that are no candidates.
#[derive(Clone, Copy)]
struct Outside {
    /// How many there are.
    count: f64,
    /// None of their logits is larger.
    bound: f64,
    /// The log of the sum of `exp(logit)` over the whole row; NaN: not known.
    log_sum: f64,
    /// The same over the candidates.
    own: f64,
    /// How many of them must not be picked, at most; infinite where any may have been made unlikelier.
    lowered: f64,
}

impl<'a> Shaped<'a> {
    /// Shapes what the engine gave, in `room`.
    pub(super) fn new(
        room: &'a mut Vec<Candidate>,
        best: &Best<'_>,
        job: &Job<'_>,
        mask: Option<&Mask>,
        forbidden: &Forbidden,
    ) -> Result<Self, PickFault> {
        let Job { sampling, occurrences, .. } = *job;
        room.clear();
        room.extend(
            best.ids.iter().zip(&*best.logits).map(|(&id, &logit)| Candidate { id: id as u32, logit }),
        );
        if room.iter().any(|it| it.logit.is_nan() || it.logit == f32::INFINITY) {
            return Err(PickFault::NotANumber);
        }
        let (Some(&first), Some(&last)) = (room.first(), room.last()) else {
            return Err(PickFault::Undecided);
        };
        if first.logit == f32::NEG_INFINITY {
            return Err(PickFault::Empty);
        }
        let count = if last.logit > f32::NEG_INFINITY { best.n_vocab.saturating_sub(room.len()) } else { 0 };
        if count > 0 && lifts(sampling) {
            return Err(PickFault::Undecided);
        }
        let max = f64::from(first.logit);
        let own: f64 = room.iter().map(|it| libm::exp(f64::from(it.logit) - max)).sum();
        let penalise = penalties::penalise(sampling);
        if let Some(mask) = mask {
            room.retain(|it| mask.admits(it.id as Token));
        }
        let count = match mask {
            Some(mask) => count.min((mask.count() as usize).saturating_sub(room.len())),
            None => count,
        };
        let outside = Outside {
            count: count as f64,
            bound: f64::from(last.logit),
            log_sum: f64::from(best.log_sum),
            own: max + libm::log(own),
            lowered: if penalise || mask.is_some() || !sampling.bias.is_empty() {
                f64::INFINITY
            } else {
                f64::from(forbidden.count())
            },
        };
        shape(room, sampling, occurrences, forbidden);
        room.retain(|it| it.logit > f32::NEG_INFINITY);
        room.sort_unstable_by(Candidate::order);
        let sure = if count == 0 {
            room.len()
        } else {
            room.partition_point(|it| Candidate::order(it, &last).is_le())
        };
        if sure == 0 {
            return Err(if count == 0 { PickFault::NothingAllowed } else { PickFault::Undecided });
        }
        Ok(Self { all: room, sure, outside, n_vocab: best.n_vocab })
    }

    /// Shapes the tokens in `room`, outside of which none may be picked. None of their logits is NaN.
    pub(super) fn of_all(
        room: &'a mut Vec<Candidate>,
        n_vocab: usize,
        job: &Job<'_>,
        forbidden: &Forbidden,
    ) -> Result<Self, PickFault> {
        if room.iter().any(|it| it.logit.is_nan() || it.logit == f32::INFINITY) {
            return Err(PickFault::NotANumber);
        }
        shape(room, job.sampling, job.occurrences, forbidden);
        room.retain(|it| it.logit > f32::NEG_INFINITY);
        room.sort_unstable_by(Candidate::order);
        if room.is_empty() {
            return Err(PickFault::NothingAllowed);
        }
        let outside =
            Outside { count: 0.0, bound: f64::NEG_INFINITY, log_sum: f64::NAN, own: f64::NAN, lowered: 0.0 };
        Ok(Self { sure: room.len(), all: room, outside, n_vocab })
    }

    /// Walks the rest of the chain; see [`super::Sampler::pick`].
    pub(super) fn pick(
        &self,
        sampling: &Sampling,
        uniform: f32,
        logprobs: Option<u32>,
    ) -> Result<Picked, PickFault> {
        let best = self.all[0];
        let filters = Filters::new(sampling, self.n_vocab, best.logit, uniform);
        let id = if sampling.temperature == 0.0 {
            best.id
        } else if filters.top_k > 0 {
            let candidates = self.first(filters.top_k)?;
            let kept = filters.keep(candidates, filters.sum(candidates));
            filters.draw(candidates, &kept)
        } else {
            self.draw(&filters, f64::from(sampling.temperature))?
        };
        let logprobs = logprobs.map(|n| self.logprobs(id, n as usize)).transpose()?;
        Ok(Picked { token: id as Token, logprobs })
    }

    /// The `n` best tokens, or all if there are fewer.
    fn first(&self, n: usize) -> Result<&[Candidate], PickFault> {
        if n > self.sure && !self.is_whole() {
            return Err(PickFault::Undecided);
        }
        Ok(&self.all[..n.min(self.sure)])
    }

    /// Is there no other token?
    fn is_whole(&self) -> bool {
        self.outside.count == 0.0
    }

    fn draw(&self, filters: &Filters, temperature: f64) -> Result<u32, PickFault> {
        let candidates = &self.all[..self.sure.min(LOOK)];
        let (least, most) = if filters.asks_for_total() {
            let (least, most) = self.outside.weight(f64::from(self.all[0].logit), temperature);
            let sum = filters.sum(self.all);
            ((sum + least) * (1.0 - MARGIN), (sum + most) * (1.0 + MARGIN))
        } else {
            (f64::INFINITY, f64::INFINITY)
        };
        let (kept, other) = (filters.keep(candidates, least), filters.keep(candidates, most));
        // From so many on, whole rows are looked at in another way.
        let is_all = self.is_whole() && self.all.len() < LOOK;
        if kept.count == other.count && (is_all || (kept.ended && other.ended)) {
            Ok(filters.draw(candidates, &kept))
        } else {
            Err(PickFault::Undecided)
        }
    }

    fn logprobs(&self, id: u32, n: usize) -> Result<(f32, Vec<(Token, f32)>), PickFault> {
        let likeliest = self.first(n)?;
        let max = f64::from(self.all[0].logit);
        let sum: f64 = self.all.iter().map(|it| libm::exp(f64::from(it.logit) - max)).sum();
        let rest = if self.is_whole() { 0.0 } else { self.outside.known_weight(max, sum)? };
        let log_sum = max + libm::log(sum + rest);
        let logprob = |logit: f32| (f64::from(logit) - log_sum) as f32;
        let own = self.all.iter().find(|it| it.id == id).map_or(f32::NEG_INFINITY, |it| logprob(it.logit));
        Ok((own, likeliest.iter().map(|it| (it.id as Token, logprob(it.logit))).collect()))
    }
}

impl Outside {
    /// The sum of `exp((logit - max) / temperature)` lies between these.
    fn weight(&self, max: f64, temperature: f64) -> (f64, f64) {
        if self.count == 0.0 {
            return (0.0, 0.0);
        }
        let each = libm::exp((self.bound - max) / temperature);
        let most = self.count * each;
        if !self.log_sum.is_finite() {
            return (0.0, most);
        }
        // At temperature 1 the sums say it, as precisely as they are.
        let (whole, own) = (libm::exp(self.log_sum - max), libm::exp(self.own - max));
        if !whole.is_finite() {
            return (0.0, most);
        }
        let margin = MARGIN.max(4.0 * f64::from(f32::EPSILON) * self.log_sum.abs());
        let hidden = self.lowered * libm::exp(self.bound - max);
        let at_most = (whole * (1.0 + margin) - own).max(0.0);
        let at_least = (whole * (1.0 - margin) - own - hidden).max(0.0);
        // At another one the rest weighs most or least if it lies as near to the bound as it can, and the
        // other if all of it is equally likely.
        let power = 1.0 / temperature;
        let near = |sum: f64| sum * libm::exp((self.bound - max) * (power - 1.0));
        let even = |sum: f64| self.count * libm::pow(sum / self.count, power);
        let (least, bound) = if temperature <= 1.0 {
            (even(at_least), near(at_most))
        } else {
            (near(at_least), even(at_most))
        };
        // Products with infinity, of which nothing follows, are no numbers.
        (if least.is_finite() { least } else { 0.0 }, most.min(bound))
    }

    /// The same at temperature 1, as precisely as a log-probability has to be. `sum` is the weight of the
    /// candidates that may be picked.
    fn known_weight(&self, max: f64, sum: f64) -> Result<f64, PickFault> {
        let (whole, own) = (libm::exp(self.log_sum - max), libm::exp(self.own - max));
        let rest = (whole - own).max(0.0);
        let hidden = self.lowered * libm::exp(self.bound - max);
        // Most of the sum must not be what is forbidden, or what is left of it is no longer precise.
        let precise = whole.is_finite() && own <= 2.0 * sum && hidden <= NEGLIGIBLE * (sum + rest);
        if precise { Ok(rest) } else { Err(PickFault::Undecided) }
    }
}

fn shape(
    candidates: &mut [Candidate],
    sampling: &Sampling,
    occurrences: &Occurrences,
    forbidden: &Forbidden,
) {
    if penalties::penalise(sampling) {
        for it in &mut *candidates {
            let count = occurrences.of_token(it.id as Token);
            if count > 0 {
                it.logit = penalties::penalised(it.logit, count, sampling);
            }
        }
    }
    if !sampling.bias.is_empty() {
        candidates.sort_unstable_by_key(|it| it.id);
        for &(token, bias) in &sampling.bias {
            if let Ok(index) = candidates.binary_search_by_key(&token, |it| it.id as Token) {
                let it = &mut candidates[index];
                it.logit = penalties::biased(it.logit, bias);
            }
        }
    }
    for it in candidates {
        if forbidden.has(it.id) {
            it.logit = f32::NEG_INFINITY;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine::{Row, Vocabulary, attribute},
        sample::{Sampler, rng},
    };

    /// What an engine would give of a row.
    fn best(row: &[f32], n: usize, sums: bool) -> Row<'static> {
        let mut all: Vec<_> = (0..).zip(row).map(|(id, &logit)| Candidate { id, logit }).collect();
        all.sort_by(Candidate::order);
        all.truncate(n);
        let max = f64::from(all[0].logit);
        let sum: f64 = row.iter().map(|&it| (f64::from(it) - max).exp()).sum();
        Row::Best(Best {
            ids: all.iter().map(|it| it.id as Token).collect(),
            logits: all.iter().map(|it| it.logit).collect(),
            log_sum: if sums { (max + sum.ln()) as f32 } else { f32::NAN },
            n_vocab: row.len(),
        })
    }

    fn forbidding(ids: &[u32], n_vocab: usize) -> Forbidden {
        let mut attributes = vec![0; n_vocab];
        for &id in ids.iter().filter(|it| (**it as usize) < n_vocab) {
            attributes[id as usize] = attribute::UNUSED;
        }
        Forbidden::of(&Vocabulary { attributes, ..Vocabulary::default() }, n_vocab)
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        (
            prop_oneof![2 => Just(0.0f32), 2 => Just(1.0f32), 3 => 0.05f32..3.0],
            prop_oneof![3 => Just(0u32), 1 => 1u32..60],
            prop_oneof![1 => Just(1.0f32), 2 => 0.05f32..1.0],
            prop_oneof![2 => Just(0.0f32), 1 => 0.0001f32..1.0],
            (
                prop_oneof![3 => Just(1.0f32), 1 => 0.8f32..1.8],
                prop_oneof![3 => Just(0.0f32), 1 => -0.2f32..1.0],
                prop_oneof![3 => Just(0.0f32), 1 => -0.2f32..1.0],
            ),
            prop_oneof![
                2 => Just(Vec::new()),
                1 => prop::collection::vec(
                    (0i32..500, prop_oneof![3 => -5.0f32..0.0, 1 => Just(f32::NEG_INFINITY), 1 => 0.0f32..2.0]),
                    0..40
                )
            ],
        )
            .prop_map(|(temperature, top_k, top_p, min_p, (repeat, frequency, presence), bias)| Sampling {
                temperature,
                top_k,
                top_p,
                min_p,
                repeat_penalty: repeat,
                frequency_penalty: frequency,
                presence_penalty: presence,
                seed: None,
                bias,
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        /// Candidates that decide give what the whole row gives.
        #[test]
        fn what_decides_is_right(
            seed in any::<u64>(),
            (length, n) in (1usize..600, prop_oneof![1usize..30, 1usize..600]),
            // Coarse steps make ties.
            (spread, steps) in (0.1f32..30.0, prop_oneof![Just(4.0f32), Just(1e6)]),
            sampling in sampling(),
            (history, unused) in (prop::collection::vec(0i32..500, 0..40), prop::collection::vec(0u32..600, 0..12)),
            (sums, uniform) in (any::<bool>(), 0.0f32..1.0),
            logprobs in prop_oneof![2 => Just(None), 1 => (0u32..8).prop_map(Some)],
        ) {
            // Most logits lie low, as in rows of models.
            let row: Vec<f32> = (0..length as u64)
                .map(|id| {
                    let logit = spread * rng::uniform(seed, id).powi(3) - spread / 4.0;
                    (logit * steps).round() / steps
                })
                .collect();
            let occurrences = Occurrences::of(&history);
            let forbidden = forbidding(&unused, length);
            let mut sampler = Sampler::default();
            let whole = sampler.pick(&row, &sampling, &occurrences, &forbidden, uniform, logprobs);
            let row = best(&row, n, sums);
            let job = Job {
                row: &row, sampling: &sampling, occurrences: &occurrences, mask: None, uniform, logprobs,
            };
            match (sampler.pick_from(&job, &forbidden), whole) {
                // Sums of the whole row may be as near to a limit as two ways of adding up lie apart.
                (Err(PickFault::Undecided), _) => {
                    let few = (1..length as u32).contains(&sampling.top_k);
                    prop_assert!(n < length || (sampling.temperature > 0.0 && !few));
                }
                (Ok(picked), Ok(whole)) => {
                    prop_assert_eq!(picked.token, whole.token);
                    prop_assert_eq!(picked.logprobs.is_some(), whole.logprobs.is_some());
                    if let (Some((own, top)), Some((whole_own, whole_top))) = (picked.logprobs, whole.logprobs) {
                        prop_assert!((own - whole_own).abs() < 1e-4, "{} {}", own, whole_own);
                        prop_assert_eq!(top.len(), whole_top.len());
                        for (one, other) in top.iter().zip(&whole_top) {
                            prop_assert!(one.0 == other.0 && (one.1 - other.1).abs() < 1e-4);
                        }
                    }
                }
                (picked, whole) => prop_assert_eq!(picked, whole),
            }
        }
    }

    fn gaussian(seed: u64, length: u64, spread: f32) -> Vec<f32> {
        (0..length)
            .map(|id| {
                let radius = (-2.0 * (1.0 - rng::uniform(seed, 2 * id)).ln()).sqrt();
                spread * radius * (std::f32::consts::TAU * rng::uniform(seed, 2 * id + 1)).cos()
            })
            .collect()
    }

    /// How many of 100 rows their 256 best candidates decide on.
    fn decided(sampling: &Sampling, sums: bool, logprobs: Option<u32>) -> usize {
        let none = Occurrences::default();
        let mut sampler = Sampler::default();
        (0..100)
            .filter(|&seed| {
                let row = gaussian(seed, 4000, 3.0);
                let uniform = rng::uniform(99, seed);
                let all = Forbidden::default();
                let row = best(&row, 256, sums);
                let job = Job { row: &row, sampling, occurrences: &none, mask: None, uniform, logprobs };
                sampler.pick_from(&job, &all).is_ok()
            })
            .count()
    }

    #[test]
    fn the_usual_ways_are_decided() {
        let plain = Sampling::default();
        let greedy = Sampling { temperature: 0.0, ..plain.clone() };
        let penalised = Sampling { repeat_penalty: 1.3, ..greedy.clone() };
        let top_k = Sampling { top_k: 40, top_p: 0.9, ..plain.clone() };
        let top_p = Sampling { top_p: 0.5, ..plain.clone() };
        let cold = Sampling { temperature: 0.5, ..top_p.clone() };
        let hot = Sampling { temperature: 1.1, ..top_p.clone() };
        let min_p = Sampling { min_p: 0.05, ..plain.clone() };
        for (sampling, sums, logprobs, least) in [
            (&greedy, false, None, 100),
            (&penalised, false, None, 100),
            (&top_k, false, None, 100),
            (&min_p, false, None, 100),
            (&top_p, true, None, 95),
            (&cold, true, None, 85),
            (&hot, true, None, 1),
            (&greedy, true, Some(20), 100),
            (&plain, true, None, 50),
        ] {
            let decided = decided(sampling, sums, logprobs);
            assert!(decided >= least, "{decided} of {least}: {sampling:?}");
        }
        assert_eq!(decided(&greedy, false, Some(1)), 0);
    }

    #[test]
    fn who_asks_for_candidates() {
        let limits = |max_candidates, fetches| Limits {
            max_sequences: 1,
            context_length: 1,
            max_batch_tokens: 1,
            max_rows: 1,
            cache_tokens: 1,
            cache_page: 1,
            max_rollback: 0,
            shares_prefixes: false,
            saves: false,
            max_candidates,
            fetches,
            n_vocab: 100,
        };
        let plain = Sampling::default();
        let greedy = Sampling { temperature: 0.0, ..plain.clone() };
        let penalised = Sampling { presence_penalty: 0.5, ..greedy.clone() };
        let lifted = Sampling { presence_penalty: -0.5, ..greedy.clone() };
        let biased = Sampling { bias: vec![(1, 0.5)], ..greedy.clone() };
        let top_k = Sampling { top_k: 18, ..plain.clone() };
        let wide = Sampling { top_k: 21, ..plain.clone() };
        let top_p = Sampling { top_p: 0.9, ..plain.clone() };
        let forbidden = forbidding(&[3, 70, 71], 100);
        for (sampling, logprobs, with_fetch, without) in [
            (&greedy, None, 20, 20),
            (&greedy, Some(20), 20, 0),
            (&greedy, Some(21), 0, 0),
            (&penalised, None, 20, 0),
            (&penalised, Some(1), 0, 0),
            (&lifted, None, 0, 0),
            (&biased, None, 0, 0),
            // Three more may be forbidden.
            (&top_k, None, 20, 0),
            (&Sampling { top_k: 17, ..plain.clone() }, None, 20, 20),
            (&wide, None, 0, 0),
            (&top_p, None, 20, 0),
            (&plain, None, 0, 0),
        ] {
            let asked = |fetches| candidates_for(sampling, logprobs, &forbidden, &limits(20, fetches));
            assert_eq!((asked(true), asked(false)), (with_fetch, without), "{sampling:?} {logprobs:?}");
        }
        assert_eq!(candidates_for(&greedy, None, &forbidden, &limits(0, true)), 0);
    }
}
