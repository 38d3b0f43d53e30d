//! Which of a model's workers gets a request: the one that has lately had the longest part of its beginning, and may
//! still hold that in its cache, unless another has much less to do.
//!
//! A wrong pick costs time, never an answer.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hasher},
    io,
};

use llm_node_core::request::Prompt;

/// Beginnings are compared in steps of so many bytes.
const STEP: usize = 1024;
/// Of each worker so many steps are known; the oldest go first.
const MOST_KNOWN: usize = 4096;

/// A hash for each step of a prompt, all before it included.
#[derive(Debug, Default)]
pub(super) struct Beginning(Vec<u64>);

impl Beginning {
    pub(super) fn of(prompt: &Prompt) -> Self {
        let mut steps = Steps { hash: DefaultHasher::new(), left: STEP, ended: Vec::new() };
        // A hash takes everything, and what does not serialize cannot reach a worker either.
        let _ = serde_json::to_writer(&mut steps, prompt);
        Self(steps.ended)
    }
}

struct Steps {
    hash: DefaultHasher,
    /// Until the end of the step.
    left: usize,
    ended: Vec<u64>,
}

impl io::Write for Steps {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.left);
        self.hash.write(&bytes[..taken]);
        self.left -= taken;
        if self.left == 0 {
            self.ended.push(self.hash.finish());
            self.left = STEP;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The beginnings that a worker has had lately.
#[derive(Debug, Default)]
pub(super) struct Recent {
    known: HashSet<u64>,
    order: VecDeque<u64>,
}

impl Recent {
    /// How many steps of it are known.
    pub(super) fn shares(&self, beginning: &Beginning) -> usize {
        beginning.0.iter().take_while(|step| self.known.contains(step)).count()
    }

    pub(super) fn add(&mut self, beginning: &Beginning) {
        for step in &beginning.0 {
            if !self.known.insert(*step) {
                continue;
            }
            self.order.push_back(*step);
            if self.order.len() > MOST_KNOWN
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }
}

/// The place of the worker to take, of those with so much to do, which share so many steps; `None`: there is none.
pub(super) fn pick(workers: &[(usize, usize)]) -> Option<usize> {
    let least = workers.iter().map(|(load, _)| *load).min()?;
    // 1.5 times the least, and 2.
    let is_near = |load: usize| 2 * load <= 3 * least + 4;
    let near = workers.iter().enumerate().filter(|(_, (load, _))| is_near(*load));
    // Of equals the first.
    near.min_by_key(|(_, (load, shares))| (usize::MAX - shares, *load)).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beginning(text: &str) -> Beginning {
        Beginning::of(&Prompt::Text(text.to_owned()))
    }

    #[test]
    fn what_begins_alike_is_known_as_far_as_it_does() {
        let (system, mut recent) = ("s".repeat(5 * STEP), Recent::default());
        recent.add(&beginning(&(system.clone() + &"a".repeat(3 * STEP))));
        assert_eq!(recent.shares(&beginning(&(system + &"b".repeat(3 * STEP)))), 5);
        assert_eq!(recent.shares(&beginning(&"b".repeat(3 * STEP))), 0);
        assert_eq!(recent.shares(&beginning("short")), 0);
    }

    #[test]
    fn what_is_known_has_a_bound() {
        let mut recent = Recent::default();
        let (first, second) = ("1".repeat(2 * STEP), "2".repeat((MOST_KNOWN + 2) * STEP));
        recent.add(&beginning(&first));
        recent.add(&beginning(&second));
        assert_eq!(recent.order.len(), recent.known.len());
        assert_eq!((recent.order.len(), recent.shares(&beginning(&first))), (MOST_KNOWN, 0));
    }

    #[test]
    fn it_goes_to_the_longest_beginning_unless_that_one_is_busier_by_far() {
        assert_eq!(pick(&[]), None);
        assert_eq!(pick(&[(3, 0), (2, 0), (2, 0)]), Some(1), "the one with the least to do");
        assert_eq!(pick(&[(2, 0), (5, 1), (5, 4)]), Some(2), "as much as one and a half times it, and 2");
        assert_eq!(pick(&[(2, 0), (6, 4)]), Some(0));
        assert_eq!(pick(&[(0, 0), (2, 1)]), Some(1));
        assert_eq!(pick(&[(0, 0), (3, 1)]), Some(0));
        assert_eq!(pick(&[(1, 3), (0, 3)]), Some(1));
    }
}
