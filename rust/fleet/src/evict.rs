//! Which models go for another: those that together leave enough, at the least cost.
//!
//! Exact for as many candidates as memory usually holds. Beyond that it takes what costs least for the bytes that are of
//! use, one after the other.

use std::cmp::Reverse;

/// So many candidates are tried in all combinations.
const MOST_EXACT: usize = 12;

/// A model that may go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// Bytes that are free once it has gone, in the order of what is lacking.
    pub(crate) gain: Vec<u64>,
    /// It answers, and would end that first.
    pub(crate) is_busy: bool,
    /// Milliseconds that its absence is expected to cost.
    pub(crate) cost: u64,
}

/// By what sets are compared: how many of them answer, what they cost, how many they are.
type Price = (usize, u64, usize);

fn with(one: &Candidate, (busy, cost, count): Price) -> Price {
    (busy + usize::from(one.is_busy), cost.saturating_add(one.cost), count + 1)
}

/// Do these leave enough of all that is lacking?
fn covers<'a>(lack: &[u64], set: &(impl Iterator<Item = &'a Candidate> + Clone)) -> bool {
    lack.iter().enumerate().all(|(at, lack)| {
        let gain = set.clone().map(|one| one.gain.get(at).copied().unwrap_or(0));
        gain.fold(0, u64::saturating_add) >= *lack
    })
}

/// The places of those that are to go, in order; `None`: all of them would not be enough. Of what costs the same those
/// go that stand first. `lack`: bytes that are missing.
pub(crate) fn cheapest(lack: &[u64], candidates: &[Candidate]) -> Option<Vec<usize>> {
    if !covers(lack, &candidates.iter()) {
        return None;
    }
    let chosen =
        if candidates.len() <= MOST_EXACT { exact(lack, candidates) } else { greedy(lack, candidates) };
    Some(chosen)
}

/// The places of the first that together leave enough, but for those that would go in vain; where all are not enough,
/// of all that leave anything. `gains`: bytes, in the order of `lack`.
pub(crate) fn first_enough(lack: &[u64], gains: &[Vec<u64>]) -> Vec<usize> {
    let is_enough = |chosen: &[usize]| {
        let sum = |at: usize| chosen.iter().map(|one| gains[*one][at]).fold(0, u64::saturating_add);
        lack.iter().enumerate().all(|(at, lack)| sum(at) >= *lack)
    };
    let mut chosen = Vec::new();
    for (at, _) in gains.iter().enumerate().filter(|(_, gain)| gain.iter().any(|bytes| *bytes > 0)) {
        if is_enough(&chosen) {
            break;
        }
        chosen.push(at);
    }
    for at in (0..chosen.len()).rev() {
        let one = chosen.remove(at);
        if !is_enough(&chosen) {
            chosen.insert(at, one);
        }
    }
    chosen
}

fn exact(lack: &[u64], candidates: &[Candidate]) -> Vec<usize> {
    let mut rest = vec![vec![0_u64; lack.len()]];
    for one in candidates.iter().rev() {
        let later = rest.last().into_iter().flatten().zip(&one.gain);
        rest.push(later.map(|(later, gain)| later.saturating_add(*gain)).collect());
    }
    rest.reverse();
    let left = vec![lack.to_vec(); candidates.len() + 1];
    let mut search = Exact { candidates, rest, left, chosen: Vec::new(), best: None };
    search.go_on(0, (0, 0, 0));
    search.best.map(|(_, chosen)| chosen).unwrap_or_default()
}

/// A search through all sets, those with the first candidates first.
struct Exact<'a> {
    candidates: &'a [Candidate],
    /// What all from each place on would leave.
    rest: Vec<Vec<u64>>,
    /// What is lacking still at each place.
    left: Vec<Vec<u64>>,
    chosen: Vec<usize>,
    best: Option<(Price, Vec<usize>)>,
}

impl Exact<'_> {
    fn go_on(&mut self, at: usize, so_far: Price) {
        if self.best.as_ref().is_some_and(|(best, _)| so_far >= *best) {
            return;
        }
        if self.left[at].iter().all(|lack| *lack == 0) {
            self.best = Some((so_far, self.chosen.clone()));
            return;
        }
        let is_out_of_reach = self.left[at].iter().zip(&self.rest[at]).any(|(lack, rest)| lack > rest);
        let Some(one) = self.candidates.get(at).filter(|_| !is_out_of_reach) else { return };
        let (before, after) = self.left.split_at_mut(at + 1);
        for ((left, lack), gain) in after[0].iter_mut().zip(&before[at]).zip(&one.gain) {
            *left = lack.saturating_sub(*gain);
        }
        self.chosen.push(at);
        self.go_on(at + 1, with(one, so_far));
        self.chosen.pop();
        let (before, after) = self.left.split_at_mut(at + 1);
        after[0].clone_from_slice(&before[at]);
        self.go_on(at + 1, so_far);
    }
}

fn greedy(lack: &[u64], candidates: &[Candidate]) -> Vec<usize> {
    let mut left = lack.to_vec();
    let mut chosen: Vec<usize> = Vec::new();
    while left.iter().any(|lack| *lack > 0) {
        let useful = |at: usize| {
            let gain = candidates[at].gain.iter().zip(&left).map(|(gain, lack)| gain.min(lack));
            gain.fold(0, |sum: u64, bytes| sum.saturating_add(*bytes))
        };
        let is_of_use = |at: &usize| !chosen.contains(at) && useful(*at) > 0;
        // By cross products: what one costs for the other's bytes.
        let next = (0..candidates.len()).filter(is_of_use).min_by(|a, b| {
            let (one, other) = (&candidates[*a], &candidates[*b]);
            let costs = |it: &Candidate, bytes: u64| u128::from(it.cost) * u128::from(bytes);
            (one.is_busy.cmp(&other.is_busy))
                .then_with(|| costs(one, useful(*b)).cmp(&costs(other, useful(*a))))
                .then_with(|| useful(*b).cmp(&useful(*a)))
        });
        let Some(next) = next else { break };
        for (lack, gain) in left.iter_mut().zip(&candidates[next].gain) {
            *lack = lack.saturating_sub(*gain);
        }
        chosen.push(next);
    }
    // What came later may have made an earlier one needless: of such the dearest stays.
    let mut dearest_first = chosen.clone();
    dearest_first.sort_by_key(|at| Reverse((candidates[*at].is_busy, candidates[*at].cost, *at)));
    for at in dearest_first {
        let others = || chosen.iter().filter(|other| **other != at).map(|other| &candidates[*other]);
        if covers(lack, &others()) {
            chosen.retain(|other| *other != at);
        }
    }
    chosen.sort_unstable();
    chosen
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn one(gain: u64, cost: u64) -> Candidate {
        Candidate { gain: vec![gain], is_busy: false, cost }
    }

    type Case<'a> = (u64, &'a [Candidate], Option<&'a [usize]>);

    #[test]
    fn what_costs_least_goes_and_nothing_in_vain() {
        let busy = Candidate { is_busy: true, ..one(9, 0) };
        let cases: [Case<'_>; 8] = [
            (0, &[one(1, 1)], Some(&[])),
            (5, &[one(2, 1), one(2, 1)], None),
            // One that is dear, or two that are cheap.
            (4, &[one(4, 10), one(2, 3), one(2, 3)], Some(&[1, 2])),
            (4, &[one(4, 5), one(2, 3), one(2, 3)], Some(&[0])),
            // What costs the same: the fewest, and of those the first.
            (4, &[one(2, 2), one(4, 4), one(2, 2)], Some(&[1])),
            (2, &[one(2, 1), one(2, 1), one(2, 1)], Some(&[0])),
            // Who answers goes when all others are not enough, and then alone, if that will do.
            (4, &[busy.clone(), one(4, 900)], Some(&[1])),
            (5, &[busy, one(4, 900)], Some(&[0])),
        ];
        for (lack, candidates, expected) in cases {
            assert_eq!(cheapest(&[lack], candidates).as_deref(), expected, "{lack} of {candidates:?}");
        }
    }

    #[test]
    fn who_may_go_first_goes_and_nobody_in_vain() {
        let gains: Vec<Vec<u64>> = [[1, 0], [0, 0], [0, 2], [4, 2], [9, 9]].map(Vec::from).into();
        for (lack, expected) in [
            ([0, 0], &[][..]),
            ([1, 0], &[0]),
            ([1, 2], &[0, 2]),
            // The first would not be enough, and is not needed beside the fourth.
            ([4, 2], &[3]),
            ([5, 3], &[0, 2, 3]),
            ([99, 0], &[0, 2, 3, 4]),
        ] {
            assert_eq!(first_enough(&lack, &gains), expected, "{lack:?}");
        }
    }

    fn candidates(most: usize) -> impl Strategy<Value = (Vec<u64>, Vec<Candidate>)> {
        let one = (prop::collection::vec(0_u64..20, 2), prop::bool::weighted(0.2), 0_u64..50)
            .prop_map(|(gain, is_busy, cost)| Candidate { gain, is_busy, cost });
        (prop::collection::vec(0_u64..40, 2), prop::collection::vec(one, 0..=most))
    }

    /// All sets, each looked at by itself.
    fn by_brute_force(lack: &[u64], candidates: &[Candidate]) -> Option<Price> {
        let mut best = None;
        for set in 0..1 << candidates.len() {
            let members = candidates.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0);
            let members: Vec<&Candidate> = members.map(|(_, it)| it).collect();
            let sum = |at: usize| members.iter().map(|it| it.gain[at]).sum::<u64>();
            if (0..lack.len()).all(|at| sum(at) >= lack[at]) {
                let busy = members.iter().filter(|it| it.is_busy).count();
                let price = (busy, members.iter().map(|it| it.cost).sum::<u64>(), members.len());
                best = Some(best.map_or(price, |best: Price| best.min(price)));
            }
        }
        best
    }

    proptest! {
        #[test]
        fn a_plan_is_never_dearer_than_brute_force((lack, candidates) in candidates(8)) {
            let found = cheapest(&lack, &candidates);
            let price = |found: Vec<usize>| {
                found.iter().fold((0, 0, 0), |price, at| with(&candidates[*at], price))
            };
            let found = found.map(price);
            prop_assert_eq!(found, by_brute_force(&lack, &candidates));
        }

        #[test]
        fn of_many_models_enough_go_and_none_in_vain((lack, mut candidates) in candidates(20)) {
            candidates.resize(20.max(candidates.len()), Candidate { gain: vec![1, 1], is_busy: false, cost: 7 });
            let Some(chosen) = cheapest(&lack, &candidates) else {
                prop_assert!(!covers(&lack, &candidates.iter()));
                return Ok(());
            };
            let of = |chosen: &[usize]| covers(&lack, &chosen.iter().map(|at| &candidates[*at]));
            prop_assert!(of(&chosen));
            for at in &chosen {
                let others: Vec<usize> = chosen.iter().copied().filter(|other| other != at).collect();
                prop_assert!(!of(&others), "{} goes in vain", at);
            }
        }
    }
}
