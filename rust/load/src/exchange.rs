//! One request under way: what has come of its answer, and when.

use std::time::Instant;

use crate::answer::{self, Said, Usage};

/// Enough of an error's body to find its message.
const ERROR_BODY: usize = 64 << 10;

/// A request that was sent.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) index: u64,
    /// From when its times count.
    pub(crate) start: Instant,
    first: Option<Instant>,
    last: Instant,
    /// Microseconds between events with text.
    pub(crate) gaps: Vec<f32>,
    events_in_window: u64,
    pub(crate) usage: Option<Usage>,
    done: bool,
    /// What the server said went wrong within the stream.
    error: Option<String>,
    error_body: Vec<u8>,
}

impl Exchange {
    /// `gaps` is memory to be used again.
    pub(crate) fn new(index: u64, start: Instant, mut gaps: Vec<f32>) -> Self {
        gaps.clear();
        Self {
            index,
            start,
            first: None,
            last: start,
            gaps,
            events_in_window: 0,
            usage: None,
            done: false,
            error: None,
            error_body: Vec::new(),
        }
    }

    /// An event came at `now`; does it carry text?
    pub(crate) fn event(&mut self, data: &[u8], now: Instant, in_window: bool) -> bool {
        match answer::read(data) {
            Said::Piece { has_text, usage } => {
                self.usage = usage.or(self.usage);
                if has_text {
                    if self.first.is_none() {
                        self.first = Some(now);
                    } else {
                        self.gaps.push(micros(self.last, now) as f32);
                    }
                    self.last = now;
                    self.events_in_window += u64::from(in_window);
                }
                return has_text;
            }
            Said::Done => self.done = true,
            Said::Error(message) | Said::Unreadable(message) => {
                self.error.get_or_insert(message);
            }
        }
        false
    }

    /// A piece of the body of an answer whose status says failure.
    pub(crate) fn error_body(&mut self, bytes: &[u8]) {
        let room = ERROR_BODY - self.error_body.len();
        self.error_body.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// The answer is complete. Why is it a failure, if it is one?
    pub(crate) fn verdict(&mut self, status: u16) -> Option<String> {
        if !(200..300).contains(&status) {
            return Some(format!("HTTP {status}: {}", answer::error_message(&self.error_body)));
        }
        self.error.take().or_else(|| (!self.done).then(|| "the answer ended without [DONE]".to_owned()))
    }

    /// Has the server said that this was all?
    pub(crate) fn is_done(&self) -> bool {
        self.done
    }

    /// Microseconds until the first text.
    pub(crate) fn ttft(&self) -> Option<f64> {
        self.first.map(|first| micros(self.start, first))
    }

    /// Events with text.
    pub(crate) fn events(&self) -> u64 {
        self.gaps.len() as u64 + u64::from(self.first.is_some())
    }

    /// The share of its events with text that came while tokens counted.
    pub(crate) fn share_in_window(&self) -> f64 {
        self.events_in_window as f64 / self.events().max(1) as f64
    }
}

pub(crate) fn micros(from: Instant, to: Instant) -> f64 {
    to.saturating_duration_since(from).as_nanos() as f64 / 1e3
}
