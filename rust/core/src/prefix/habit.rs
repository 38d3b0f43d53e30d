//! Do prompts go on where others ended? Only then is it of use to keep what ended.
//!
//! In a cache that is one pool, an engine looks at each token in every pass, if only to find that it is
//! another sequence's. With some thousand kept tokens, llama.cpp's CPU kernels took twice as long for a short
//! prompt, and a fifth longer for each token of an answer. So where a row of prompts went on with nothing that
//! came before, only what several had in common is kept, such as a system prompt, and what is dear to lose.

use std::collections::VecDeque;

use super::LEAST_KEPT;
use crate::engine::Token;

/// So many prompts in a row that go on with nothing: then the next will not, either.
const PATIENCE: u32 = 8;
/// How many ended sequences are remembered, and of each, at most how many tokens.
const REMEMBERED: usize = 16;
const LONGEST: usize = 4096;
/// The part of a prompt, beyond what several have in common, that has to be known for it to count.
const PART: usize = 8;

/// What was seen of prompts lately.
#[derive(Clone, Debug, Default)]
pub struct Habit {
    ended: VecDeque<Box<[Token]>>,
    misses: u32,
}

impl Habit {
    /// A prompt came, of which the cache held the first `known` tokens.
    pub fn saw(&mut self, prompt: &[Token], known: usize) {
        let (longest, shared) = self.common(prompt);
        let own = prompt.len().saturating_sub(shared);
        if longest.max(known) >= shared + (own / PART).clamp(LEAST_KEPT, LONGEST) {
            self.misses = 0;
        } else {
            self.misses = self.misses.saturating_add(1);
        }
    }

    /// A sequence ended that held these. Gives how many of them an earlier one began with, too.
    pub fn ended(&mut self, tokens: &[Token]) -> usize {
        let (shared, _) = self.common(tokens);
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(tokens[..tokens.len().min(LONGEST)].into());
        shared
    }

    /// What the one that goes furthest has in common with these, and what another one has.
    fn common(&self, tokens: &[Token]) -> (usize, usize) {
        self.ended.iter().fold((0, 0), |(longest, second), it| {
            let common = it.iter().zip(tokens).take_while(|(a, b)| a == b).count();
            if common > longest { (common, longest) } else { (longest, second.max(common)) }
        })
    }

    /// Is it likely that the next prompt goes on with one that ended?
    pub fn likely(&self) -> bool {
        self.misses < PATIENCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(first: Token) -> Vec<Token> {
        (first..first + 160).collect()
    }

    fn after(prompts: &[Vec<Token>]) -> Habit {
        let mut habit = Habit::default();
        for prompt in prompts {
            habit.saw(prompt, 0);
            habit.ended(prompt);
        }
        habit
    }

    #[test]
    fn nothing_in_common_for_a_while_is_a_habit() {
        let different: Vec<_> = (0..8).map(|i| prompt(i * 200)).collect();
        assert!(after(&different[..7]).likely());
        assert!(!after(&different).likely());
    }

    #[test]
    fn one_that_goes_on_with_an_earlier_one_ends_it() {
        let different: Vec<_> = (0..20).map(|i| prompt(i * 200)).collect();
        let mut habit = after(&different);
        let mut next = prompt(3400);
        next[19] = 0;
        habit.saw(&next, 0);
        assert!(!habit.likely(), "an eighth less one is too little");
        next[19] = 3419;
        next[20] = 0;
        habit.saw(&next, 0);
        assert!(habit.likely());
    }

    #[test]
    fn what_a_running_sequence_holds_counts_too() {
        let mut habit = after(&(0..8).map(|i| prompt(i * 200)).collect::<Vec<_>>());
        habit.saw(&prompt(9000), 20);
        assert!(habit.likely());
    }

    #[test]
    fn what_all_begin_with_is_not_gone_on_with() {
        let system: Vec<Token> = (0..100).map(|i| 50_000 + i).collect();
        let with = |first: Token| [&system[..], &prompt(first)[..]].concat();
        let mut habit = Habit::default();
        for i in 0..10 {
            habit.saw(&with(i * 200), if i == 0 { 0 } else { 100 });
            assert_eq!(habit.ended(&with(i * 200)), if i == 0 { 0 } else { 100 });
        }
        assert!(!habit.likely());
        // The next turn of a conversation.
        let turn = [with(1800), prompt(9000)].concat();
        habit.saw(&turn, 100);
        assert!(habit.likely());
        assert_eq!(habit.ended(&turn), 260);
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let different: Vec<_> = (0..17).map(|i| prompt(i * 200)).collect();
        let mut habit = after(&different);
        habit.saw(&prompt(0), 0);
        assert!(!habit.likely());
        habit.saw(&prompt(200), 0);
        assert!(habit.likely());
        let long: Vec<Token> = (0..100_000).collect();
        habit.ended(&long);
        let before = habit.ended.iter().map(|it| it.len()).max();
        assert_eq!(before, Some(LONGEST));
        habit.misses = PATIENCE;
        habit.saw(&long, 0);
        assert!(habit.likely(), "all that is remembered of it is enough");
    }
}
