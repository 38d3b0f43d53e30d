//! Which tokens a sequence already holds, and what that does to their logits.

use std::collections::BTreeMap;

use crate::{engine::Token, request::Sampling};

/// How often each token occurs in a sequence. Ordered by token, so that a walk over it touches the
/// row from front to back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Occurrences {
    counts: BTreeMap<Token, u32>,
}

impl Occurrences {
    /// The counts of `tokens`.
    pub fn of(tokens: &[Token]) -> Self {
        let mut occurrences = Self::default();
        for &token in tokens {
            occurrences.add(token);
        }
        occurrences
    }

    /// One more.
    pub fn add(&mut self, token: Token) {
        *self.counts.entry(token).or_insert(0) += 1;
    }

    /// How often a token occurs.
    pub(super) fn of_token(&self, token: Token) -> u32 {
        self.counts.get(&token).copied().unwrap_or_default()
    }

    /// All tokens that occur, in ascending order, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Token, u32)> {
        self.counts.iter().map(|(&token, &count)| (token, count))
    }
}

/// Does a request use any penalty at all? If not, nobody needs to count.
#[expect(clippy::float_cmp, reason = "exactly the neutral values mean off")]
pub fn penalise(sampling: &Sampling) -> bool {
    sampling.repeat_penalty != 1.0 || sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0
}

/// The logit of a token that occurs `count > 0` times.
pub(super) fn penalised(logit: f32, count: u32, sampling: &Sampling) -> f32 {
    // A finite logit stays finite, whatever the penalties are.
    let finite =
        |value: f32| if logit == f32::NEG_INFINITY { logit } else { value.clamp(f32::MIN, f32::MAX) };
    let repeat = sampling.repeat_penalty;
    let logit = finite(if logit > 0.0 { logit / repeat } else { logit * repeat });
    let less = (sampling.frequency_penalty * count as f32).clamp(f32::MIN, f32::MAX);
    finite(finite(logit - less) - sampling.presence_penalty)
}

/// The logit of a token with a bias. Negative infinity stays itself, and nothing becomes positive infinity.
pub(super) fn biased(logit: f32, bias: f32) -> f32 {
    (logit + bias).min(f32::MAX)
}

#[cfg(test)]
#[expect(clippy::float_cmp, reason = "equal by construction")]
mod tests {
    use super::*;

    #[test]
    fn penalties_follow_the_header() {
        let sampling = Sampling {
            repeat_penalty: 2.0,
            frequency_penalty: 0.5,
            presence_penalty: 0.25,
            ..Sampling::default()
        };
        assert_eq!(penalised(4.0, 3, &sampling), 4.0 / 2.0 - 0.5 * 3.0 - 0.25);
        assert_eq!(penalised(-4.0, 1, &sampling), -4.0 * 2.0 - 0.5 - 0.25);
        assert_eq!(penalised(f32::NEG_INFINITY, 1, &sampling), f32::NEG_INFINITY);
        let extreme = Sampling { repeat_penalty: 1e-30, frequency_penalty: 3e38, ..Sampling::default() };
        assert!(penalised(3e38, 9, &extreme).is_finite());
    }

    #[test]
    fn the_default_uses_none() {
        assert!(!penalise(&Sampling::default()));
        assert!(penalise(&Sampling { presence_penalty: -0.1, ..Sampling::default() }));
    }
}
