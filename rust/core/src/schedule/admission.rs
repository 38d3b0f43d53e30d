//! The queue before the engine: bounded by requests and by prompt tokens, first come, first served.

use std::collections::VecDeque;

use crate::error::{ErrorCode, Fault};

/// Tokens of an answer that must fit the cache beside its prompt before a request is let in. What it
/// generates beyond is not promised; there preemption helps.
pub const ANSWER_SHARE: u32 = 256;

/// Something that waits, and what it weighs.
#[derive(Clone, Debug)]
struct Waiting<T> {
    value: T,
    tokens: usize,
    /// Those that ran already are no burden that a new request could be refused for.
    returned: bool,
}

/// What waits for admission.
#[derive(Clone, Debug)]
pub struct Queue<T> {
    waiting: VecDeque<Waiting<T>>,
    limit: usize,
    token_limit: usize,
    new: usize,
    new_tokens: usize,
}

impl<T> Queue<T> {
    /// An empty queue that takes `limit` requests with `token_limit` prompt tokens in all.
    pub fn new(limit: usize, token_limit: usize) -> Self {
        Self { waiting: VecDeque::new(), limit, token_limit, new: 0, new_tokens: 0 }
    }

    /// Puts a new request of `tokens` prompt tokens at the end, or says `queue_full`. `room` sequences
    /// are free now, so as many requests will not wait. One request is always taken, however long.
    pub fn push(&mut self, value: T, tokens: usize, room: usize) -> Result<(), Fault> {
        let full = |what: String| {
            Err(Fault::new(
                ErrorCode::QueueFull,
                format!("The queue for this model is full: {what}. Try again later."),
            ))
        };
        if self.new >= self.limit.saturating_add(room) {
            return full(format!("{} requests wait", self.new));
        }
        if self.new > 0 && self.new_tokens.saturating_add(tokens) > self.token_limit {
            return full(format!("{} prompt tokens wait, of at most {}", self.new_tokens, self.token_limit));
        }
        self.new += 1;
        self.new_tokens += tokens;
        self.waiting.push_back(Waiting { value, tokens, returned: false });
        Ok(())
    }

    /// Puts back at the front what was running.
    pub fn put_back(&mut self, value: T) {
        self.waiting.push_front(Waiting { value, tokens: 0, returned: true });
    }

    /// Who waits, in order.
    pub fn get(&self, index: usize) -> Option<&T> {
        self.waiting.get(index).map(|it| &it.value)
    }

    /// Takes out who waits at `index`.
    pub fn take(&mut self, index: usize) -> Option<T> {
        let waiting = self.waiting.remove(index)?;
        Some(self.forget(waiting))
    }

    /// Takes out the first that `matches`.
    pub fn remove(&mut self, matches: impl Fn(&T) -> bool) -> Option<T> {
        let index = self.waiting.iter().position(|it| matches(&it.value))?;
        self.take(index)
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

    fn forget(&mut self, waiting: Waiting<T>) -> T {
        if !waiting.returned {
            self.new -= 1;
            self.new_tokens -= waiting.tokens;
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
    use super::*;

    #[test]
    fn bounded_by_requests_and_tokens() {
        let mut queue = Queue::new(2, 100);
        queue.push('a', 500, 0).unwrap();
        assert_eq!(queue.push('b', 1, 0).unwrap_err().code, ErrorCode::QueueFull);
        assert_eq!(queue.take(0), Some('a'));
        queue.push('b', 60, 0).unwrap();
        assert_eq!(queue.push('c', 60, 0).unwrap_err().code, ErrorCode::QueueFull);
        queue.push('c', 40, 0).unwrap();
        assert_eq!(queue.push('d', 0, 0).unwrap_err().code, ErrorCode::QueueFull);
        queue.push('d', 0, 1).unwrap();
        assert_eq!(queue.remove(|it| *it == 'c'), Some('c'));
        assert_eq!((queue.len(), queue.tokens()), (2, 60));
    }

    #[test]
    fn what_ran_comes_first_and_is_no_burden() {
        let mut queue = Queue::new(1, 10);
        queue.push('a', 10, 0).unwrap();
        queue.put_back('y');
        queue.put_back('x');
        assert_eq!((queue.len(), queue.tokens()), (3, 10));
        assert_eq!([queue.take(0), queue.take(0)], [Some('x'), Some('y')]);
        assert!(queue.push('b', 0, 0).is_err());
        assert_eq!(queue.take(0), Some('a'));
        assert!(queue.push('b', 0, 0).is_ok());
    }

    #[test]
    fn pages_are_counted_whole() {
        assert_eq!([in_pages(0, 16), in_pages(1, 16), in_pages(16, 16), in_pages(17, 16)], [0, 16, 16, 32]);
        assert_eq!(in_pages(7, 0), 7);
    }
}
