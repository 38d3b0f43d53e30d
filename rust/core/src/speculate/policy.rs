//! How many tokens are worth verifying, measured per request.

/// How far a result fades with each one that follows: some sixteen count.
const FADE: f32 = 1.0 / 16.0;
/// What a draft of one token that was right says of a second, which nobody has tried: little, but
/// without it no second one would ever be tried.
const HINT: f32 = 1.0 / 8.0;
/// Steps between two attempts of a request whose drafts do not pay.
const SHORTEST_PAUSE: u32 = 16;
const LONGEST_PAUSE: u32 = 256;

/// Decides how many draft tokens a request gets verified.
///
/// The first token of a draft and those behind it are measured apart: a lookup often finds the wrong
/// place, but where it found the right one, long runs of tokens are right.
///
/// For each decoding step of the request: [`Pays::step`], then [`Pays::tokens`], then, if anything was
/// verified, [`Pays::learn`].
#[derive(Clone, Debug)]
pub struct Pays {
    /// Is the first token of a draft right?
    first: Average,
    /// Is the next one right, when all before it were?
    next: Average,
    /// Decoding steps since the last draft was verified.
    since: u32,
    /// Decoding steps until an attempt although drafts do not pay.
    pause: u32,
}

impl Default for Pays {
    fn default() -> Self {
        // Two attempts' worth of hope each, so that the first results decide. Less of it for long drafts:
        // they lose most when they fail, and grow at once when they do not.
        Self {
            first: Average { right: 1.5, tried: 2.0 },
            next: Average { right: 1.0, tried: 2.0 },
            since: 0,
            pause: SHORTEST_PAUSE,
        }
    }
}

impl Pays {
    /// For drafts of which one in twenty is expected to be wrong.
    pub fn of_what_is_likely() -> Self {
        let likely = Average { right: 1.9, tried: 2.0 };
        Self { first: likely.clone(), next: likely, ..Self::default() }
    }

    /// A decoding step of the request begins.
    pub fn step(&mut self) {
        self.since = self.since.saturating_add(1);
    }

    /// How many draft tokens are worth verifying now, at most `most`: so many that the step yields most in its time.
    ///
    /// `decodes` is how many sequences the step decodes; `stretch` how many times as long it takes with so many further
    /// tokens.
    pub fn tokens(&self, decodes: u32, most: u32, stretch: impl Fn(u32) -> f32) -> u32 {
        let (mut tokens, mut best) = (0, decodes.max(1) as f32);
        let mut yielded = best;
        let mut probability = self.first.value();
        for more in 1..=most {
            yielded += probability;
            probability *= self.next.value();
            let rate = yielded / stretch(more);
            if rate > best {
                (tokens, best) = (more, rate);
            }
        }
        if tokens > 0 || self.since < self.pause {
            return tokens;
        }
        // Texts change: a request whose drafts failed may come to a passage that it copies. The fewest tokens tell that
        // pay where all of them are right.
        let decodes = decodes.max(1) as f32;
        (1..=most).find(|&more| (decodes + more as f32) / stretch(more) > decodes).unwrap_or(0)
    }

    /// Of `drafted` tokens the first `accepted` were right.
    pub fn learn(&mut self, drafted: u32, accepted: u32) {
        if drafted == 0 {
            return;
        }
        self.first.add(accepted > 0, 1.0);
        for _ in 1..accepted {
            self.next.add(true, 1.0);
        }
        if 0 < accepted && accepted < drafted {
            self.next.add(false, 1.0);
        } else if drafted == 1 && accepted == 1 {
            self.next.add(true, HINT);
        }
        if accepted > 0 {
            // The next attempt follows at once, until it pays again or fails.
            self.pause = 1;
        } else if self.since >= self.pause {
            self.pause = (self.pause * 2).clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
        }
        self.since = 0;
    }
}

/// The share of attempts that went right, the last ones counting most.
#[derive(Clone, Debug)]
struct Average {
    right: f32,
    tried: f32,
}

impl Average {
    fn value(&self) -> f32 {
        self.right / self.tried
    }

    fn add(&mut self, right: bool, weight: f32) {
        let keep = 1.0 - weight * FADE;
        self.right = self.right * keep + if right { weight } else { 0.0 };
        self.tried = self.tried * keep + weight;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Each further token takes that part of a step's time.
    fn dearer(cost: f32) -> impl Fn(u32) -> f32 {
        move |more| 1.0 + cost * more as f32
    }

    /// Runs so many decoding steps; of each draft the first `right(step)` tokens are right. Gives what was
    /// drafted at each step.
    fn run(pays: &mut Pays, steps: u32, cost: f32, most: u32, right: impl Fn(u32) -> u32) -> Vec<u32> {
        (0..steps)
            .map(|step| {
                pays.step();
                let drafted = pays.tokens(1, most, dearer(cost));
                pays.learn(drafted, right(step).min(drafted));
                drafted
            })
            .collect()
    }

    #[test]
    fn a_new_request_drafts() {
        assert!(Pays::default().tokens(1, 16, dearer(0.1)) >= 2);
        assert!(Pays::default().tokens(1, 16, dearer(0.7)) >= 1);
    }

    #[test]
    fn perfect_drafts_grow_to_the_bound() {
        for (cost, most) in [(0.0, 64), (0.05, 32), (0.2, 16), (0.5, 8), (0.9, 1)] {
            let drafted = run(&mut Pays::default(), 200, cost, most, |_| u32::MAX);
            assert_eq!(drafted[199], most, "{cost}");
        }
    }

    #[test]
    fn hopeless_drafts_cost_next_to_nothing() {
        for cost in [0.02, 0.1, 0.3, 0.6] {
            let drafted = run(&mut Pays::default(), 4096, cost, 16, |_| 0);
            let early: u32 = drafted[..64].iter().sum();
            assert!(early as f32 * cost < 2.0, "{early} tokens at {cost}: two steps' worth lost");
            let late = &drafted[1024..];
            assert!(late.iter().sum::<u32>() <= late.len() as u32 / LONGEST_PAUSE + 1);
        }
    }

    #[test]
    fn pauses_double_up_to_the_longest() {
        let drafted = run(&mut Pays::default(), 4096, 0.5, 16, |_| 0);
        let attempts: Vec<_> = (0..).zip(&drafted).filter(|(_, it)| **it > 0).map(|(step, _)| step).collect();
        let pauses: Vec<u32> = attempts.windows(2).map(|it| it[1] - it[0]).collect();
        let doubled: Vec<_> = pauses.iter().skip_while(|it| **it == 1).copied().take(4).collect();
        assert!(doubled.windows(2).all(|it| it[1] == (it[0] * 2).min(LONGEST_PAUSE)), "{pauses:?}");
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
    }

    #[test]
    fn a_text_that_becomes_predictable_is_noticed() {
        for cost in [0.05, 0.3, 0.6] {
            let mut pays = Pays::default();
            run(&mut pays, 1000, cost, 16, |_| 0);
            let drafted = run(&mut pays, LONGEST_PAUSE + 64, cost, 16, |_| u32::MAX);
            assert!(drafted[drafted.len() - 1] >= 2, "{cost}: {drafted:?}");
        }
    }

    #[test]
    fn the_place_and_the_run_are_told_apart() {
        // One lookup in four finds the right place, and there all of it is right.
        let right = |step| if step % 4 == 0 { u32::MAX } else { 0 };
        let cheap = run(&mut Pays::default(), 400, 0.05, 16, right);
        assert!(cheap[300..].iter().all(|&it| it >= 8), "{:?}", &cheap[300..]);
        let dear = run(&mut Pays::default(), 400, 0.6, 16, right);
        assert!(dear[100..].iter().sum::<u32>() <= 150, "{:?}", &dear[100..]);
    }

    #[test]
    fn what_costs_a_whole_token_is_not_tried() {
        for cost in [1.0, 2.0, f32::INFINITY, f32::NAN] {
            let mut pays = Pays::default();
            run(&mut pays, 100, 0.0, 16, |_| u32::MAX);
            assert!(run(&mut pays, 600, cost, 16, |_| 0).iter().all(|&it| it == 0), "{cost}");
        }
    }

    #[test]
    fn a_size_that_takes_long_is_passed_over() {
        let blocks = |more: u32| [1.0, 2.3, 2.6, 2.9, 4.6, 4.7][more as usize];
        let likely = Pays::of_what_is_likely();
        assert_eq!([1, 2, 3, 4, 5].map(|most| likely.tokens(1, most, blocks)), [0, 2, 3, 3, 3]);
        // Nor is it tried when drafts have failed, or were right at once.
        let mut failed = Pays::default();
        let drafted: Vec<_> = (0..200)
            .map(|_| {
                failed.step();
                let drafted = failed.tokens(1, 5, blocks);
                failed.learn(drafted, 0);
                drafted
            })
            .collect();
        assert!(drafted.contains(&2) && !drafted.contains(&1), "{drafted:?}");
        // Beside many others one more is one more.
        assert_eq!(likely.tokens(16, 5, |more| 1.0 + 0.05 * more as f32), 4);
        assert_eq!(likely.tokens(16, 5, |more| 1.0 + 0.07 * more as f32), 0);
    }

    proptest! {
        #[test]
        fn never_more_than_most_and_dearer_is_never_longer(
            results in prop::collection::vec((0u32..20, 0u32..20), 0..100),
            (cost, more) in (0.0f32..1.2, 0.0f32..1.0), most in 0u32..40,
        ) {
            let mut pays = Pays::default();
            for (drafted, accepted) in results {
                pays.step();
                pays.learn(drafted, accepted.min(drafted));
                let tokens = pays.tokens(1, most, dearer(cost));
                prop_assert!(tokens <= most);
                prop_assert!(pays.tokens(1, most, dearer(cost + more)) <= tokens.max(1));
            }
        }
    }
}
