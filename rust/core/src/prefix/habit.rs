//! Do prompts begin alike? Only then is it of use to keep what ended.
//!
//! In a cache that is one pool, an engine looks at each token in every pass, if only to find that it is
//! another sequence's. With some thousand kept tokens, llama.cpp's CPU kernels took twice as long for a short
//! prompt, and a fifth longer for each token of an answer. So where a row of prompts had nothing in common
//! with what came before, no more is kept than would be dear to lose.

use std::collections::VecDeque;

use super::LEAST_KEPT;
use crate::engine::Token;

/// So many prompts in a row that begin like nothing before: then the next will, too.
const PATIENCE: u32 = 8;
/// How many ended sequences are remembered, and of each, at most how many tokens.
const REMEMBERED: usize = 16;
const LONGEST: usize = 4096;
/// The part of a prompt that has to be known for it to count.
const PART: usize = 8;

/// What was seen of prompts lately.
#[derive(Clone, Debug, Default)]
pub struct Habit {
    ended: VecDeque<Box<[Token]>>,
    misses: u32,
}

impl Habit {
    /// A prompt came.
    pub fn saw(&mut self, prompt: &[Token]) {
        let common = |it: &[Token]| it.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        let known = self.ended.iter().map(|it| common(it)).max().unwrap_or_default();
        if known >= (prompt.len() / PART).clamp(LEAST_KEPT, LONGEST) {
            self.misses = 0;
        } else {
            self.misses = self.misses.saturating_add(1);
        }
    }

    /// A sequence ended that held these.
    pub fn ended(&mut self, tokens: &[Token]) {
        if self.ended.len() == REMEMBERED {
            self.ended.pop_front();
        }
        self.ended.push_back(tokens[..tokens.len().min(LONGEST)].into());
    }

    /// Is it likely that the next prompt begins like one that ended?
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
            habit.saw(prompt);
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
    fn one_that_begins_like_an_earlier_one_ends_it() {
        let different: Vec<_> = (0..20).map(|i| prompt(i * 200)).collect();
        let mut habit = after(&different);
        let mut next = prompt(3400);
        next[19] = 0;
        habit.saw(&next);
        assert!(!habit.likely(), "an eighth less one is too little");
        next[19] = 3419;
        next[20] = 0;
        habit.saw(&next);
        assert!(habit.likely());
    }

    #[test]
    fn what_is_long_past_is_forgotten() {
        let different: Vec<_> = (0..17).map(|i| prompt(i * 200)).collect();
        let mut habit = after(&different);
        habit.saw(&prompt(0));
        assert!(!habit.likely());
        habit.saw(&prompt(200));
        assert!(habit.likely());
        let long: Vec<Token> = (0..100_000).collect();
        habit.ended(&long);
        let before = habit.ended.iter().map(|it| it.len()).max();
        assert_eq!(before, Some(LONGEST));
        habit.misses = PATIENCE;
        habit.saw(&long);
        assert!(habit.likely(), "all that is remembered of it is enough");
    }
}
