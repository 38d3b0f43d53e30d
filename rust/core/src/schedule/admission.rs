//! The queue before the engine: bounded by requests and by prompt tokens, and fair to where requests come
//! from.
//!
//! Fair queueing (Demers, Keshav and Shenker, "Analysis and simulation of a fair queueing algorithm",
//! SIGCOMM 1989): as if each source that waits were served a token at a time, by turns, and requests are
//! let in in the order in which they would be done then. So who asks for little is not kept waiting by who
//! asks for much, requests of one source and equal ones of several stay in their order, and nobody is
//! passed for ever: what comes later begins later on the same clock.

use std::collections::{HashMap, VecDeque};

use crate::{
    error::{ErrorCode, Fault},
    request::{Source, Weight},
};

/// Tokens of an answer that must fit the cache beside its prompt before a request is let in. What it
/// generates beyond is not promised; there preemption helps.
pub const ANSWER_SHARE: u32 = 256;

/// How many sources may be remembered that do not wait, before it is looked which of them need not be.
const MOST_GONE: usize = 64;

/// Something that waits, and what it weighs.
#[derive(Clone, Debug)]
struct Waiting<T> {
    value: T,
    source: Source,
    weight: Weight,
    /// When it would be done if sources were served by turns, on the queue's own clock.
    done: f64,
    /// Those that ran already are no burden that a new request could be refused for.
    returned: bool,
}

/// What waits for admission.
#[derive(Clone, Debug)]
pub struct Queue<T> {
    /// Those that ran already first, then by `done`.
    waiting: VecDeque<Waiting<T>>,
    limit: usize,
    token_limit: usize,
    new: usize,
    new_tokens: usize,
    /// Tokens that each source has been served since nobody waited, had all been served alike.
    clock: f64,
    sources: HashMap<Source, Turn>,
    /// Sources that wait.
    active: usize,
}

/// One source's place.
#[derive(Clone, Copy, Debug, Default)]
struct Turn {
    /// When the last of its requests would be done.
    done: f64,
    waiting: usize,
}

/// What a request weighs. More of an answer than its share is not known to come.
fn cost(weight: Weight) -> f64 {
    (weight.prompt as f64) + f64::from(weight.answer.min(ANSWER_SHARE))
}

impl<T> Queue<T> {
    /// An empty queue that takes `limit` requests with `token_limit` prompt tokens in all.
    pub fn new(limit: usize, token_limit: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            limit,
            token_limit,
            new: 0,
            new_tokens: 0,
            clock: 0.0,
            sources: HashMap::new(),
            active: 0,
        }
    }

    /// Puts a new request where its source's turn is, or says `queue_full`. `room` sequences are free
    /// now, so as many requests will not wait. One request is always taken, however long.
    pub fn push(&mut self, value: T, source: Source, weight: Weight, room: usize) -> Result<(), Fault> {
        let full = |what: String| {
            Err(Fault::new(
                ErrorCode::QueueFull,
                format!("The queue for this model is full: {what}. Try again later."),
            ))
        };
        if self.new >= self.limit.saturating_add(room) {
            return full(format!("{} requests wait", self.new));
        }
        if self.new > 0 && self.new_tokens.saturating_add(weight.prompt) > self.token_limit {
            return full(format!("{} prompt tokens wait, of at most {}", self.new_tokens, self.token_limit));
        }
        self.new += 1;
        self.new_tokens += weight.prompt;
        let turn = self.sources.entry(source).or_default();
        self.active += usize::from(turn.waiting == 0);
        turn.waiting += 1;
        turn.done = turn.done.max(self.clock) + cost(weight);
        let done = turn.done;
        let place = self.waiting.partition_point(|it| it.returned || it.done <= done);
        self.waiting.insert(place, Waiting { value, source, weight, done, returned: false });
        Ok(())
    }

    /// Puts back at the front what was running.
    pub fn put_back(&mut self, value: T) {
        let weight = Weight::default();
        self.waiting.push_front(Waiting { value, source: 0, weight, done: 0.0, returned: true });
    }

    /// Who waits, in order.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.waiting.get(index).map(|it| &it.value)
    }

    /// Takes out who waits at `index`, to be served.
    pub fn take(&mut self, index: usize) -> Option<T> {
        let waiting = self.waiting.remove(index)?;
        if !waiting.returned {
            self.clock += cost(waiting.weight) / self.active.max(1) as f64;
        }
        Some(self.forget(waiting, false))
    }

    /// Takes out the first that `matches`, which is not served any more.
    pub fn remove(&mut self, matches: impl Fn(&T) -> bool) -> Option<T> {
        let index = self.waiting.iter().position(|it| matches(&it.value))?;
        let waiting = self.waiting.remove(index)?;
        Some(self.forget(waiting, true))
    }

    /// All that wait, in order, to be changed.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.waiting.iter_mut().map(|it| &mut it.value)
    }

    /// All that wait, in order.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.waiting.iter().map(|it| &it.value)
    }

    /// Requests that wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does none wait?
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Prompt tokens that wait, without those of requests that ran already.
    pub fn tokens(&self) -> usize {
        self.new_tokens
    }

    fn forget(&mut self, waiting: Waiting<T>, unserved: bool) -> T {
        if waiting.returned {
            return waiting.value;
        }
        self.new -= 1;
        self.new_tokens -= waiting.weight.prompt;
        if let Some(turn) = self.sources.get_mut(&waiting.source) {
            turn.waiting -= 1;
            if turn.waiting == 0 {
                self.active -= 1;
                if unserved {
                    turn.done -= cost(waiting.weight);
                }
            }
        }
        if self.new == 0 {
            // Nobody waits: what was served before is no debt.
            self.clock = 0.0;
            self.sources.clear();
        } else if self.sources.len() > 2 * self.active + MOST_GONE {
            // Those that are not ahead of the clock begin where an unknown one does.
            let clock = self.clock;
            self.sources.retain(|_, turn| turn.waiting > 0 || turn.done > clock);
        }
        waiting.value
    }
}

/// Tokens that a sequence of `held` tokens takes of a cache in pages of `page` tokens.
pub fn in_pages(held: u32, page: u32) -> u64 {
    let page = u64::from(page.max(1));
    u64::from(held).div_ceil(page) * page
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn prompt(tokens: usize) -> Weight {
        Weight { prompt: tokens, answer: 0 }
    }

    /// The order in which they are let in.
    fn order(queue: &mut Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.take(0)).collect()
    }

    #[test]
    fn bounded_by_requests_and_tokens() {
        let mut queue = Queue::new(2, 100);
        queue.push('a', 1, prompt(500), 0).unwrap();
        assert_eq!(queue.push('b', 1, prompt(1), 0).unwrap_err().code, ErrorCode::QueueFull);
        assert_eq!(queue.take(0), Some('a'));
        queue.push('b', 1, prompt(60), 0).unwrap();
        assert_eq!(queue.push('c', 1, prompt(60), 0).unwrap_err().code, ErrorCode::QueueFull);
        queue.push('c', 1, prompt(40), 0).unwrap();
        assert_eq!(queue.push('d', 1, prompt(0), 0).unwrap_err().code, ErrorCode::QueueFull);
        queue.push('d', 1, prompt(0), 1).unwrap();
        assert_eq!(queue.remove(|it| *it == 'c'), Some('c'));
        assert_eq!((queue.len(), queue.tokens()), (2, 60));
    }

    #[test]
    fn what_ran_comes_first_and_is_no_burden() {
        let mut queue = Queue::new(1, 10);
        queue.push('a', 1, prompt(10), 0).unwrap();
        queue.put_back('y');
        queue.put_back('x');
        assert_eq!((queue.len(), queue.tokens()), (3, 10));
        assert_eq!([queue.take(0), queue.take(0)], [Some('x'), Some('y')]);
        assert!(queue.push('b', 1, prompt(0), 0).is_err());
        assert_eq!(queue.take(0), Some('a'));
        assert!(queue.push('b', 1, prompt(0), 0).is_ok());
    }

    #[test]
    fn sources_take_turns() {
        let mut queue = Queue::new(100, 1000);
        for n in 0..10 {
            queue.push(n, 1, prompt(10), 0).unwrap();
        }
        queue.push(100, 2, prompt(10), 0).unwrap();
        queue.push(101, 2, prompt(10), 0).unwrap();
        assert_eq!(order(&mut queue), [0, 100, 1, 101, 2, 3, 4, 5, 6, 7, 8, 9]);
    }

    #[test]
    fn who_asks_for_little_does_not_wait_for_many_who_ask_for_much() {
        let mut queue = Queue::new(1000, 100_000);
        for n in 0..300_u32 {
            queue.push(n, n.into(), Weight { prompt: 3, answer: 100 }, 0).unwrap();
        }
        for _ in 0..30 {
            queue.take(0).unwrap();
        }
        queue.push(1000, 1000, Weight { prompt: 3, answer: 5 }, 0).unwrap();
        assert_eq!(queue.take(0), Some(1000));
        assert_eq!(queue.take(0), Some(30), "and the others keep their order");
    }

    #[test]
    fn what_an_answer_may_take_counts_up_to_the_share_that_is_sure() {
        let mut queue = Queue::new(10, 1000);
        queue.push(0, 1, Weight { prompt: 10, answer: u32::MAX }, 0).unwrap();
        queue.push(1, 2, Weight { prompt: 10, answer: ANSWER_SHARE }, 0).unwrap();
        assert_eq!(order(&mut queue), [0, 1]);
    }

    #[test]
    fn who_left_unserved_has_no_debt() {
        let mut queue = Queue::new(10, 1000);
        queue.push(0, 1, prompt(50), 0).unwrap();
        queue.push(1, 2, prompt(100), 0).unwrap();
        assert_eq!(queue.remove(|it| *it == 1), Some(1));
        queue.push(2, 2, prompt(40), 0).unwrap();
        assert_eq!(order(&mut queue), [2, 0]);
    }

    #[test]
    fn the_clock_begins_anew_when_nobody_waits() {
        let mut queue = Queue::new(10, 10_000);
        for n in 0..1000_u32 {
            queue.push(n, n.into(), prompt(10), 0).unwrap();
            assert_eq!(queue.take(0), Some(n));
        }
        assert!(queue.clock == 0.0 && queue.sources.is_empty());
    }

    proptest! {
        /// Whatever comes and goes, requests of one source keep their order, and what is remembered of
        /// sources has a bound.
        #[test]
        fn one_source_keeps_its_order(
            steps in prop::collection::vec((0..4_u8, 0..400_u64, 1..300_usize, 0..300_u32), 1..600)
        ) {
            let mut queue = Queue::new(usize::MAX, usize::MAX);
            let mut last: HashMap<Source, usize> = HashMap::new();
            for (number, (step, source, prompt, answer)) in steps.into_iter().enumerate() {
                match step {
                    0 | 1 => queue.push((number, source), source, Weight { prompt, answer }, 0).unwrap(),
                    2 => {
                        if let Some((taken, source)) = queue.take(0) {
                            prop_assert!(last.insert(source, taken).is_none_or(|before| before < taken));
                        }
                    }
                    _ => drop(queue.remove(|it| it.1 == source)),
                }
                prop_assert!(queue.sources.len() <= 2 * queue.active + MOST_GONE + 1);
                let waiting: HashSet<_> = queue.iter().map(|it| it.1).collect();
                prop_assert_eq!(queue.active, waiting.len());
            }
            while let Some((taken, source)) = queue.take(0) {
                prop_assert!(last.insert(source, taken).is_none_or(|before| before < taken));
            }
        }
    }

    #[test]
    fn nobody_is_passed_for_ever() {
        let mut queue = Queue::new(usize::MAX, usize::MAX);
        queue.push(0, 0, Weight { prompt: 1000, answer: 0 }, 0).unwrap();
        // One short request after another, each of a source of its own.
        let mut passes = 0_u32;
        loop {
            passes += 1;
            queue.push(passes, passes.into(), prompt(10), 0).unwrap();
            if queue.take(0) == Some(0) {
                break;
            }
        }
        // Half of what is served meanwhile is its own due.
        assert!((150..=250).contains(&passes), "{passes}");
    }

    #[test]
    fn pages_are_counted_whole() {
        assert_eq!([in_pages(0, 16), in_pages(1, 16), in_pages(16, 16), in_pages(17, 16)], [0, 16, 16, 32]);
        assert_eq!(in_pages(7, 0), 7);
    }
}
