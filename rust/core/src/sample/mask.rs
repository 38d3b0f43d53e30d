//! Which tokens a grammar admits at one place, and how a row of logits is seen through that.
//!
//! What comes out is what the chain gives where the logits of all other tokens were set to negative
//! infinity. Penalties and bias leave negative infinity as it is, so that it does not matter that this
//! happens before them.
#![expect(clippy::inline_always, reason = "what a kernel calls has to be compiled with it")]

use llm_node_cpu::{Kernel, Level};

use super::{
    blockmax::{BLOCK, Candidate},
    lanes::LANES,
};
use crate::engine::Token;

/// So many tokens or fewer are looked at one by one, and the rest of the row is not looked at.
const FEW: u32 = 128;

/// The tokens that may come next, a bit for each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// A word for each block of the row.
    blocks: Vec<u64>,
    count: u32,
}

impl Mask {
    /// From words of 32 bits, the lowest bit of the first one for token 0.
    pub fn of(words: &[u32]) -> Self {
        const { assert!(BLOCK == 64) };
        let blocks: Vec<u64> = words
            .chunks(2)
            .map(|pair| u64::from(pair[0]) | u64::from(pair.get(1).copied().unwrap_or_default()) << 32)
            .collect();
        let count = blocks.iter().map(|it| it.count_ones()).sum();
        Self { blocks, count }
    }

    /// All tokens below `count` that are `admitted`.
    pub fn with(count: usize, admitted: impl Fn(Token) -> bool) -> Self {
        let mut words = vec![0; count.div_ceil(32)];
        for id in (0..count).filter(|&id| admitted(id as Token)) {
            words[id / 32] |= 1 << (id % 32);
        }
        Self::of(&words)
    }

    /// Admits one more.
    pub fn admit(&mut self, token: Token) {
        let block = usize::try_from(token).ok().and_then(|id| Some((self.blocks.get_mut(id / 64)?, id % 64)));
        if let Some((bits, bit)) = block {
            self.count += u32::from(*bits >> bit & 1 == 0);
            *bits |= 1 << bit;
        }
    }

    /// How many tokens it admits.
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Does it admit this one?
    pub fn admits(&self, token: Token) -> bool {
        usize::try_from(token)
            .ok()
            .and_then(|id| Some(self.blocks.get(id / 64)? >> (id % 64) & 1 != 0))
            .unwrap_or(false)
    }

    /// The tokens that it admits and their logits in `row`, if these are few.
    pub(super) fn few(&self, row: &[f32], out: &mut Vec<Candidate>) -> bool {
        out.clear();
        if self.count > FEW {
            return false;
        }
        for (block, &bits) in self.blocks.iter().enumerate() {
            let mut rest = bits;
            while rest != 0 {
                let id = block * BLOCK + rest.trailing_zeros() as usize;
                rest &= rest - 1;
                out.extend(row.get(id).map(|&logit| Candidate { id: id as u32, logit }));
            }
        }
        true
    }

    /// Writes the row as it is seen through the mask.
    pub(super) fn apply(&self, row: &[f32], level: Level, out: &mut Vec<f32>) {
        out.resize(row.len(), f32::NEG_INFINITY);
        level.run(Apply { blocks: &self.blocks, row, out });
    }
}

struct Apply<'a> {
    blocks: &'a [u64],
    row: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Apply<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, _: Level) {
        let Self { blocks, row, out } = self;
        let words = blocks.iter().copied().chain(std::iter::repeat(0));
        for ((row, out), bits) in row.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(words) {
            match bits {
                0 => out.fill(f32::NEG_INFINITY),
                u64::MAX => out.copy_from_slice(row),
                bits => {
                    for (part, (row, out)) in row.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate() {
                        let bits = (bits >> (part * LANES)) as u32;
                        for (lane, (&logit, out)) in row.iter().zip(out).enumerate() {
                            *out = if bits & (1 << lane) != 0 { logit } else { f32::NEG_INFINITY };
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        engine::{Best, Row, Vocabulary, attribute},
        request::Sampling,
        sample::{Forbidden, Job, Occurrences, PickFault, Sampler, rng},
    };

    fn mask(admitted: &[bool]) -> Mask {
        let mut words = vec![0u32; admitted.len().div_ceil(32)];
        for (id, _) in admitted.iter().enumerate().filter(|it| *it.1) {
            words[id / 32] |= 1 << (id % 32);
        }
        Mask::of(&words)
    }

    fn sampling() -> impl Strategy<Value = Sampling> {
        (
            (prop_oneof![Just(0.0f32), 0.05f32..3.0], prop_oneof![2 => Just(0u32), 1 => 1u32..300]),
            (prop_oneof![Just(1.0f32), 0.05f32..1.0], prop_oneof![Just(0.0f32), 0.001f32..=1.0]),
            (
                prop_oneof![2 => Just(1.0f32), 1 => 0.5f32..2.0],
                prop_oneof![2 => Just(0.0f32), 1 => -1.0f32..2.0],
            ),
            prop::collection::vec((0..900i32, prop_oneof![Just(f32::NEG_INFINITY), -5.0f32..5.0]), 0..4),
        )
            .prop_map(
                |((temperature, top_k), (top_p, min_p), (repeat_penalty, presence_penalty), bias)| Sampling {
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    repeat_penalty,
                    presence_penalty,
                    bias,
                    ..Sampling::default()
                },
            )
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

        /// What a mask gives is what the chain gives where the other logits are negative infinity. The chain
        /// itself is held to one in double precision in its own tests.
        #[test]
        fn equals_negative_infinity_for_the_rest(
            (seed, length) in (any::<u64>(), 1usize..900),
            (density, candidates) in (prop_oneof![Just(0.0f32), Just(1.0), 0.0f32..0.1, 0.0f32..1.0], 1usize..300),
            (spread, coarse) in (0.1f32..30.0, any::<bool>()),
            (history, unused) in (prop::collection::vec(0i32..900, 0..40), prop::collection::vec(0usize..900, 0..8)),
            (sampling, uniform, sums) in (sampling(), 0.0f32..1.0, any::<bool>()),
        ) {
            let row: Vec<f32> = (0..length as u64)
                .map(|id| {
                    let logit = spread * rng::uniform(seed, id).powi(3);
                    if coarse { (logit * 4.0).round() / 4.0 } else { logit }
                })
                .collect();
            let admitted: Vec<bool> = (0..length as u64).map(|id| rng::uniform(!seed, id) < density).collect();
            let mask = mask(&admitted);
            prop_assert_eq!(mask.count() as usize, admitted.iter().filter(|it| **it).count());
            for (id, &is) in admitted.iter().enumerate() {
                prop_assert_eq!(mask.admits(id as Token), is);
            }
            prop_assert!(!mask.admits(-1) && !mask.admits(length as Token + 64));

            let mut attributes = vec![0; length];
            for id in unused.into_iter().filter(|it| *it < length) { attributes[id] = attribute::UNUSED; }
            let forbidden = Forbidden::of(&Vocabulary { attributes, ..Vocabulary::default() }, length);
            let occurrences = Occurrences::of(&history);
            let masked: Vec<f32> =
                row.iter().zip(&admitted).map(|(&it, &is)| if is { it } else { f32::NEG_INFINITY }).collect();
            let mut sampler = Sampler::default();
            let expected = sampler
                .pick(&masked, &sampling, &occurrences, &forbidden, uniform, Some(4))
                .map_err(|it| if it == PickFault::Empty { PickFault::NothingAllowed } else { it });

            let whole = Row::Whole(row.as_slice().into());
            let job = Job {
                row: &whole,
                sampling: &sampling,
                occurrences: &occurrences,
                mask: Some(&mask),
                uniform,
                logprobs: Some(4),
            };
            let picked = sampler.pick_from(&job, &forbidden);
            // Levels differ in how they write, not in what.
            for level in Level::all() {
                let mut out = vec![7.0; 3];
                mask.apply(&row, level, &mut out);
                prop_assert_eq!(&out, &masked);
            }
            let mut all: Vec<_> = (0..length as Token).collect();
            all.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b)));
            all.truncate(candidates);
            let sum: f64 = row.iter().map(|&it| f64::from(it).exp()).sum();
            let best = Row::Best(Best {
                logits: all.iter().map(|&id| row[id as usize]).collect(),
                ids: all.into(),
                log_sum: if sums { sum.ln() as f32 } else { f32::NAN },
                n_vocab: length,
            });
            let from_best = sampler.pick_from(&Job { row: &best, ..job }, &forbidden);
            let without = sampler.pick_from(&Job { row: &best, logprobs: None, ..job }, &forbidden);

            for (picked, may_be_undecided) in [(picked, false), (from_best, true), (without, true)] {
                match (picked, &expected) {
                    (Err(PickFault::Undecided), _) if may_be_undecided => {}
                    (Ok(picked), Ok(expected)) => {
                        prop_assert!(admitted[picked.token as usize]);
                        // Where a sum meets its limit two ways of adding up may part.
                        prop_assert!(picked.token == expected.token || sampling.temperature > 0.0);
                        if picked.token != expected.token { continue; }
                        let (Some((own, top)), Some((expected, expected_top))) = (picked.logprobs, &expected.logprobs)
                        else { continue };
                        prop_assert!((own - expected).abs() < 1e-4);
                        prop_assert_eq!(top.len(), expected_top.len());
                        for (one, other) in top.iter().zip(expected_top) {
                            prop_assert!(one.0 == other.0 && (one.1 - other.1).abs() < 1e-4);
                        }
                    }
                    (picked, expected) => prop_assert_eq!(&picked, expected),
                }
            }
        }
    }

    /// How often two ways part is counted, so that it does not become usual.
    #[test]
    fn few_tokens_are_drawn_as_in_the_row() {
        let none = (Occurrences::default(), Forbidden::default());
        let sampling = Sampling { top_p: 0.9, temperature: 0.8, ..Sampling::default() };
        let mut parted = 0;
        for seed in 0..2000 {
            let row: Vec<f32> = (0..400).map(|id| 9.0 * rng::uniform(seed, id)).collect();
            let admitted: Vec<bool> = (0..400).map(|id| rng::uniform(!seed, id) < 0.2).collect();
            let mask = mask(&admitted);
            assert!(mask.count() <= FEW);
            let masked: Vec<f32> =
                row.iter().zip(&admitted).map(|(&it, &is)| if is { it } else { f32::NEG_INFINITY }).collect();
            let uniform = rng::uniform(seed, 1000);
            let mut sampler = Sampler::default();
            let expected = sampler.pick(&masked, &sampling, &none.0, &none.1, uniform, None);
            let row = Row::Whole(row.into());
            let job = Job {
                row: &row,
                sampling: &sampling,
                occurrences: &none.0,
                mask: Some(&mask),
                uniform,
                logprobs: None,
            };
            parted += usize::from(sampler.pick_from(&job, &none.1) != expected);
        }
        assert!(parted <= 1, "{parted}");
    }

    #[test]
    fn numbers_that_are_none_are_seen_where_they_matter() {
        let sampling = Sampling::default();
        let (none, all) = (Occurrences::default(), Forbidden::default());
        let mut row = vec![0.0; 400];
        row[3] = f32::NAN;
        let row = Row::Whole(row.into());
        let pick = |admitted: &[bool]| {
            let mask = mask(admitted);
            let job = Job {
                row: &row,
                sampling: &sampling,
                occurrences: &none,
                mask: Some(&mask),
                uniform: 0.5,
                logprobs: None,
            };
            Sampler::default().pick_from(&job, &all).map(|it| it.token)
        };
        assert_eq!(pick(&[true; 400]), Err(PickFault::NotANumber));
        assert_eq!(pick(&[true; 8]), Err(PickFault::NotANumber));
        assert_eq!(pick(&[true, true]), Ok(1));
        assert_eq!(pick(&[false; 400]), Err(PickFault::NothingAllowed));
    }
}
