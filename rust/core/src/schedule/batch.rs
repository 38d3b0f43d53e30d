//! The plan of one step: who takes part, answers first, then prompts, under one budget.
//!
//! Of the prompts, the oldest is read to its end where the step has room for that, and otherwise gets
//! half of the room, however many short ones follow. Those that can be read whole in what is left are,
//! the shortest first, so that a long one does not hold them up either; nobody else is read in part,
//! since engines need a further pass for each length among the slices. And no more are read to their ends
//! together than it takes to fill a pass: each has its first token when all in the step are read.

use super::admission::in_pages;
use crate::engine::SequenceId;

/// What a running sequence wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Demand {
    /// Its id.
    pub sequence: SequenceId,
    /// Order of arrival: lower is older.
    pub age: u64,
    /// Tokens that the cache holds of it.
    pub held: u32,
    /// Tokens that have to follow: 1 while it decodes, more while its prompt is under way.
    pub pending: u32,
}

/// Who takes part in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Answers and prompts, in one pass.
    Both,
    /// Answers alone, if any is under way.
    Answers,
    /// Prompts alone, if any is under way.
    Prompts,
}

/// What a step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tokens in all.
    pub tokens: u32,
    /// Tokens of prompts.
    pub prefill_tokens: u32,
    /// Tokens of those prompts that come to their ends, where these are several.
    pub joint_tokens: u32,
    /// Tokens that the cache can still take.
    pub cache_free: u64,
    /// Tokens per page of the cache.
    pub cache_page: u32,
    /// Whose step it is.
    pub turn: Turn,
}

/// What a sequence gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its id.
    pub sequence: SequenceId,
    /// Of its pending tokens, the first so many.
    pub tokens: u32,
    /// Are these all, so that a row of logits is wanted?
    pub row: bool,
}

/// The cache cannot take what must be done now: somebody has to give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheShort;

/// Plans a step over all that runs. `running` is in ascending order of ids, and so is the answer. It
/// is empty only if nothing runs: where there is no room for prompts, answers go on in their turn.
pub fn plan(running: &[Demand], budget: &Budget) -> Result<Vec<Share>, CacheShort> {
    match plan_turn(running, budget) {
        Err(CacheShort) if budget.turn == Turn::Prompts => {
            plan_turn(running, &Budget { turn: Turn::Answers, ..*budget })
        }
        planned => planned,
    }
}

fn plan_turn(running: &[Demand], budget: &Budget) -> Result<Vec<Share>, CacheShort> {
    let page = budget.cache_page;
    let growth = |it: &Demand, tokens: u32| in_pages(it.held + tokens, page) - in_pages(it.held, page);
    let mut tokens = budget.tokens;
    let mut free = budget.cache_free;
    let mut shares = Vec::with_capacity(running.len());
    let takes_part = among(running, budget.turn);
    for it in running.iter().filter(|it| it.pending == 1 && takes_part(it)) {
        if tokens == 0 {
            break;
        }
        free = free.checked_sub(growth(it, 1)).ok_or(CacheShort)?;
        tokens -= 1;
        shares.push(Share { sequence: it.sequence, tokens: 1, row: true });
    }
    let mut prompts: Vec<_> = running.iter().filter(|it| it.pending > 1 && takes_part(it)).collect();
    prompts.sort_unstable_by_key(|it| it.age);
    let mut prefill = budget.prefill_tokens.max(1).min(tokens);
    let mut takes = vec![0; prompts.len()];
    if let Some((first, others)) = prompts.split_first() {
        // What the oldest is sure of: all that it lacks, or half. It also gets what the others leave.
        takes[0] = if first.pending <= prefill { first.pending } else { prefill.div_ceil(2) };
        prefill -= takes[0];
        let mut joint =
            budget.joint_tokens.saturating_sub(if takes[0] == first.pending { takes[0] } else { 0 });
        let mut order: Vec<usize> = (0..others.len()).collect();
        order.sort_by_key(|&index| others[index].pending);
        for index in order {
            let pending = others[index].pending;
            if pending > prefill.min(joint) {
                break;
            }
            takes[index + 1] = pending;
            prefill -= pending;
            joint -= pending;
        }
        takes[0] += (first.pending - takes[0]).min(prefill);
    }
    for (it, take) in prompts.into_iter().zip(takes) {
        // What is left of the page that it has, and whole new ones.
        let started = in_pages(it.held, page) - u64::from(it.held);
        let pages = free / u64::from(page.max(1)) * u64::from(page.max(1));
        let fits = u32::try_from(started.saturating_add(pages)).unwrap_or(u32::MAX);
        let take = take.min(fits);
        if take == 0 {
            continue;
        }
        free -= growth(it, take);
        shares.push(Share { sequence: it.sequence, tokens: take, row: take == it.pending });
    }
    if shares.is_empty() && !running.is_empty() {
        return Err(CacheShort);
    }
    shares.sort_unstable_by_key(|it| it.sequence);
    Ok(shares)
}

/// Who takes part of what runs: everybody where nobody's turn it is otherwise.
fn among(running: &[Demand], turn: Turn) -> impl Fn(&Demand) -> bool + use<> {
    let answers = running.iter().any(|it| it.pending == 1);
    let prompts = running.iter().any(|it| it.pending > 1);
    move |it| match turn {
        Turn::Answers if answers => it.pending == 1,
        Turn::Prompts if prompts => it.pending > 1,
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn budget() -> impl Strategy<Value = Budget> {
        let turn = prop_oneof![Just(Turn::Both), Just(Turn::Answers), Just(Turn::Prompts)];
        let joint = prop_oneof![1u32..64, Just(u32::MAX)];
        (8u32..64, 1u32..64, joint, prop_oneof![0u64..200, Just(1 << 40)], 1u32..20, turn).prop_map(
            |(tokens, prefill_tokens, joint_tokens, cache_free, cache_page, turn)| Budget {
                tokens,
                prefill_tokens,
                joint_tokens,
                cache_free,
                cache_page,
                turn,
            },
        )
    }

    proptest! {
        #[test]
        fn a_plan_keeps_to_its_budget(
            wants in prop::collection::vec((0u32..100, prop_oneof![Just(1u32), 1u32..90]), 0..8),
            ages in Just((0u64..8).collect::<Vec<_>>()).prop_shuffle(),
            budget in budget(),
        ) {
            let running: Vec<_> = wants.iter().zip(&ages).enumerate()
                .map(|(index, (&(held, pending), &age))| Demand { sequence: index as u32 * 2, age, held, pending })
                .collect();
            match plan(&running, &budget) {
                Err(CacheShort) => {
                    let unbounded = Budget { cache_free: 1 << 40, ..budget };
                    prop_assert!(!plan(&running, &unbounded).unwrap().is_empty());
                }
                Ok(shares) => {
                    // Where no prompt finds room, answers take the turn.
                    let passed = budget.turn == Turn::Prompts
                        && running.iter().any(|it| it.pending > 1)
                        && shares.iter().all(|it| running.iter().any(|one| one.sequence == it.sequence && one.pending == 1));
                    prop_assert!(!passed || budget.cache_free < 200);
                    let turn = if passed { Turn::Answers } else { budget.turn };
                    let takes_part = among(&running, turn);
                    let decodes = running.iter().filter(|it| it.pending == 1 && takes_part(it)).count();
                    prop_assert!(shares.windows(2).all(|it| it[0].sequence < it[1].sequence));
                    prop_assert_eq!(shares.is_empty(), running.is_empty());
                    prop_assert!(shares.iter().map(|it| it.tokens).sum::<u32>() <= budget.tokens);
                    let (mut growth, mut prefill, mut decoding, mut ending) = (0, 0, 0, Vec::new());
                    let oldest = running.iter().filter(|it| it.pending > 1 && takes_part(it)).min_by_key(|it| it.age);
                    for it in &running {
                        let share = shares.iter().find(|share| share.sequence == it.sequence);
                        if let Some(share) = share {
                            prop_assert!(share.tokens >= 1 && share.tokens <= it.pending);
                            prop_assert_eq!(share.row, share.tokens == it.pending);
                            growth += in_pages(it.held + share.tokens, budget.cache_page) - in_pages(it.held, budget.cache_page);
                        }
                        if it.pending == 1 {
                            decoding += usize::from(share.is_some());
                        } else {
                            prefill += share.map_or(0, |share| share.tokens);
                            ending.extend(share.filter(|share| share.row).map(|share| share.tokens));
                        }
                    }
                    let together: u32 = ending.iter().sum();
                    prop_assert!(ending.len() < 2 || together <= budget.joint_tokens);
                    prop_assert_eq!(decoding, decodes);
                    prop_assert!(prefill <= budget.prefill_tokens);
                    prop_assert!(growth <= budget.cache_free);
                    let room = budget.prefill_tokens.min(budget.tokens - decodes as u32);
                    if let (Some(oldest), true) = (oldest, room > 0 && budget.cache_free > 1000) {
                        let share = shares.iter().find(|share| share.sequence == oldest.sequence).unwrap();
                        prop_assert!(share.tokens >= oldest.pending.min(room.div_ceil(2)));
                        for it in running.iter().filter(|it| it.pending > 1) {
                            let share = shares.iter().find(|share| share.sequence == it.sequence);
                            if it.sequence == oldest.sequence {
                                continue;
                            }
                            // Whole, or there was no room for it.
                            let left = (room - prefill).min(budget.joint_tokens.saturating_sub(together));
                            prop_assert!(share.map_or(it.pending > left, |share| share.row));
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn short_prompts_pass_a_long_one_that_goes_on() {
        let long = Demand { sequence: 0, age: 0, held: 0, pending: 1000 };
        let short = |sequence, pending| Demand { sequence, age: u64::from(sequence), held: 0, pending };
        let budget = Budget {
            tokens: 512,
            prefill_tokens: 64,
            joint_tokens: u32::MAX,
            cache_free: 1 << 20,
            cache_page: 1,
            turn: Turn::Both,
        };
        let given = |running: &[Demand], budget: &Budget| -> Vec<_> {
            let shares = plan(running, budget).unwrap();
            shares.iter().map(|it| (it.sequence, it.tokens, it.row)).collect()
        };
        assert_eq!(given(&[long, short(1, 30), short(2, 10)], &budget), [(0, 54, false), (2, 10, true)]);
        // A full pass ends with its prompts, though the step had room for more of them.
        let full = Budget { prefill_tokens: 512, joint_tokens: 64, ..budget };
        let burst: Vec<_> = (1..5).map(|sequence| short(sequence, 30)).collect();
        assert_eq!(given(&burst, &full), [(1, 30, true), (2, 30, true)]);
        // One that only goes on is no reason to hold others back.
        assert_eq!(given(&[long, short(1, 30)], &full), [(0, 482, false), (1, 30, true)]);
    }
}
