//! Which GPUs a model lies on.
//!
//! One, if it fits on one: sooner where nobody loses anything than where others give up what they can do without, and
//! that sooner than where they go; then the one with most room. Several only where no one could hold it once all had
//! gone that have nothing to answer, and as few as possible. What waits for those that answer comes last.

/// What there is of a GPU for a load, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Space {
    /// As things are.
    pub(crate) now: u64,
    /// Once whoever has nothing to answer has given up what it can do without.
    pub(crate) shrunk: u64,
    /// Once whoever has nothing to answer has gone.
    pub(crate) left_by_idle: u64,
    /// Once all have gone that ever may.
    pub(crate) left_by_all: u64,
    /// It may be one of several.
    pub(crate) can_join: bool,
}

/// What others lose for a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Loss {
    /// Nothing.
    Nothing,
    /// What they can do without.
    Shrinking,
    /// Those that answer nothing go.
    Unloading,
    /// It waits for those that answer.
    Waiting,
}

/// What a load takes of GPUs, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    /// Weights and cache, which GPUs share.
    pub(crate) shared: u64,
    /// What each of them has of its own.
    pub(crate) each: u64,
}

/// GPUs by their places in the list, and what others lose for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    pub(crate) gpus: Vec<usize>,
    pub(crate) loss: Loss,
}

/// Parts of what is divided are never equal: a layer lies whole. One part in so many is for that.
const SEAMS: u64 = 20;

impl Space {
    /// What there is at such a loss.
    pub(crate) fn at(&self, loss: Loss) -> u64 {
        match loss {
            Loss::Nothing => self.now,
            Loss::Shrinking => self.shrunk,
            Loss::Unloading => self.left_by_idle,
            Loss::Waiting => self.left_by_all,
        }
    }
}

impl Load {
    /// On so many GPUs together.
    pub(crate) fn on(self, count: usize) -> u64 {
        let all = self.shared.saturating_add(self.each.saturating_mul(count as u64));
        if count > 1 { all.saturating_add(all.div_ceil(SEAMS)) } else { all }
    }
}

/// See the module. `least`, `most`: so many GPUs, and no fewer or more. `None`: it fits nowhere.
pub(crate) fn choose(load: Load, spaces: &[Space], least: usize, most: usize) -> Option<Choice> {
    let soon = [Loss::Nothing, Loss::Shrinking, Loss::Unloading];
    let tries = [&soon[..], &[Loss::Waiting]];
    let mut all = tries.into_iter().flat_map(|losses| {
        (least.max(1)..=most).flat_map(move |count| losses.iter().map(move |loss| (count, *loss)))
    });
    all.find_map(|(count, loss)| Some(Choice { gpus: fullest_of(load, spaces, count, loss)?, loss }))
}

/// So many that hold it at such a loss: of one GPU each that does, by what there is of it now.
fn fullest_of(load: Load, spaces: &[Space], count: usize, loss: Loss) -> Option<Vec<usize>> {
    let needed = load.on(count);
    let is_one = |at: &usize| {
        let space = &spaces[*at];
        if count > 1 { space.can_join } else { space.at(loss) >= needed }
    };
    let mut gpus: Vec<usize> = (0..spaces.len()).filter(is_one).collect();
    let rank = |at: &usize| {
        let Space { now, .. } = spaces[*at];
        let there = spaces[*at].at(loss);
        std::cmp::Reverse(if count > 1 { (there, now) } else { (now, there) })
    };
    gpus.sort_by_key(rank);
    gpus.truncate(count);
    let there = gpus.iter().map(|at| spaces[*at].at(loss)).fold(0, u64::saturating_add);
    let holds = gpus.len() == count && there >= needed;
    gpus.sort_unstable();
    holds.then_some(gpus)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn space(now: u64, shrunk: u64, left_by_idle: u64, left_by_all: u64) -> Space {
        Space { now, shrunk, left_by_idle, left_by_all, can_join: true }
    }

    fn chosen(shared: u64, spaces: &[Space]) -> Option<(Vec<usize>, Loss)> {
        choose(Load { shared, each: 0 }, spaces, 1, spaces.len()).map(|choice| (choice.gpus, choice.loss))
    }

    #[test]
    fn one_where_one_will_do_and_at_the_least_loss() {
        let empty = |free| space(free, free, free, free);
        let found = |gpus: &[usize], loss| Some((gpus.to_vec(), loss));
        for (needs, spaces, wanted) in [
            (5, vec![empty(8)], found(&[0], Loss::Nothing)),
            (9, vec![empty(8)], None),
            // The one with most room.
            (5, vec![empty(6), empty(8), empty(7)], found(&[1], Loss::Nothing)),
            (5, vec![empty(8), empty(8)], found(&[0], Loss::Nothing)),
            // Nothing lost comes before a part, and that before all.
            (5, vec![space(4, 8, 8, 8), space(5, 5, 5, 5)], found(&[1], Loss::Nothing)),
            (5, vec![space(4, 4, 9, 9), space(1, 5, 5, 5)], found(&[1], Loss::Shrinking)),
            (5, vec![space(4, 4, 4, 9), space(1, 1, 5, 5)], found(&[1], Loss::Unloading)),
            // Whoever has most room now loses least.
            (5, vec![space(1, 1, 9, 9), space(3, 3, 5, 5)], found(&[1], Loss::Unloading)),
            // Several only where no one could hold it ...
            (9, vec![space(0, 0, 9, 9), empty(8), empty(8)], found(&[0], Loss::Unloading)),
            (9, vec![empty(8), empty(8)], found(&[0, 1], Loss::Nothing)),
            // ... as few as possible, of those with most room, and with something for the seams.
            (14, vec![empty(4), empty(8), empty(8), empty(5)], found(&[1, 2], Loss::Nothing)),
            (16, vec![empty(4), empty(8), empty(8), empty(5)], found(&[1, 2, 3], Loss::Nothing)),
            (19, vec![empty(10), empty(10)], found(&[0, 1], Loss::Nothing)),
            (20, vec![empty(10), empty(10)], None),
            // Two that are free soon, before one whose model answers.
            (9, vec![space(5, 5, 5, 10), space(5, 5, 5, 5)], found(&[0, 1], Loss::Nothing)),
            (11, vec![space(5, 5, 5, 11), space(5, 5, 5, 5)], found(&[0], Loss::Waiting)),
        ] {
            assert_eq!(chosen(needs, &spaces), wanted, "{needs} of {spaces:?}");
        }
    }

    #[test]
    fn a_part_of_a_gpu_joins_no_other_and_what_is_asked_for_is_kept() {
        let part = |free| Space { can_join: false, ..space(free, free, free, free) };
        assert_eq!(chosen(9, &[part(8), part(8)]), None);
        assert_eq!(chosen(7, &[part(8), part(9)]), Some((vec![1], Loss::Nothing)));
        let spaces = [space(8, 8, 8, 8); 3];
        let load = Load { shared: 4, each: 1 };
        assert_eq!(choose(load, &spaces, 2, 2).map(|it| it.gpus), Some(vec![0, 1]));
        assert_eq!(choose(load, &spaces, 4, 4), None);
        // Each has some of its own.
        assert_eq!((load.on(1), load.on(2), Load { shared: 100, each: 10 }.on(2)), (5, 7, 126));
    }

    /// All sets of that many.
    fn sets(of: usize, count: usize) -> impl Iterator<Item = Vec<usize>> {
        (0..1_u32 << of)
            .filter(move |bits| bits.count_ones() as usize == count)
            .map(move |bits| (0..of).filter(|at| bits >> at & 1 == 1).collect())
    }

    proptest! {
        #[test]
        fn no_other_set_is_better(
            rows in prop::collection::vec((0u64..20, 0u64..10, 0u64..10, 0u64..10, any::<bool>()), 0..6),
            shared in 0u64..60,
            each in 0u64..4,
        ) {
            let spaces: Vec<Space> = rows
                .into_iter()
                .map(|(now, more, idle, all, can_join)| {
                    let (shrunk, left_by_idle) = (now + more, now + more + idle);
                    Space { now, shrunk, left_by_idle, left_by_all: left_by_idle + all, can_join }
                })
                .collect();
            let load = Load { shared, each };
            let holds = |set: &[usize], loss| {
                let there: u64 = set.iter().map(|at| spaces[*at].at(loss)).sum();
                let may = set.len() == 1 || set.iter().all(|at| spaces[*at].can_join);
                may && there >= load.on(set.len())
            };
            let losses = [Loss::Nothing, Loss::Shrinking, Loss::Unloading, Loss::Waiting];
            let best = (1..=spaces.len())
                .flat_map(|count| losses.map(|loss| (loss == Loss::Waiting, count, loss)))
                .filter(|(_, count, loss)| sets(spaces.len(), *count).any(|set| holds(&set, *loss)))
                .min();
            let found = choose(load, &spaces, 1, spaces.len());
            let key = found.as_ref().map(|it| (it.loss == Loss::Waiting, it.gpus.len(), it.loss));
            prop_assert_eq!(key, best);
            if let Some(Choice { gpus, loss }) = found {
                prop_assert!(holds(&gpus, loss));
                if let [one] = gpus[..] {
                    let others = (0..spaces.len()).filter(|at| holds(&[*at], loss));
                    prop_assert_eq!(others.map(|at| spaces[at].now).max(), Some(spaces[one].now));
                }
            }
        }
    }
}
