//! When the next request is due. Knows no clock: the time is passed in.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

use fastrand::Rng;

use crate::plan::{Arrivals, Limit, Plan};

/// In a closed loop a failure is not followed by the next request at once: a server that refuses
/// everything would be asked thousands of times a second.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// Waits end up to a millisecond late, which is nothing that the server did.
const TIMER_SLACK: Duration = Duration::from_millis(2);

/// From when the times of a request count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// From its sending.
    Sending,
    /// From its arrival: it had to wait for room, and hiding the wait would flatter a slow server.
    Due(Instant),
}

/// The requests that are still to be sent.
pub(crate) struct Schedule {
    arrivals: Arrivals,
    /// Requests that may still begin.
    left: u64,
    /// No request begins later.
    closing: Option<Instant>,
    due: BinaryHeap<Reverse<Instant>>,
    rng: Rng,
}

impl Schedule {
    pub(crate) fn new(plan: &Plan, start: Instant) -> Self {
        let (left, closing) = match plan.limit {
            Limit::Requests(requests) => (requests, None),
            Limit::Seconds(seconds) => (u64::MAX, Some(start + Duration::from_secs_f64(seconds))),
        };
        let mut schedule = Self {
            arrivals: plan.arrivals,
            left,
            closing,
            due: BinaryHeap::new(),
            rng: Rng::with_seed(plan.seed),
        };
        match plan.arrivals {
            Arrivals::Closed { concurrency } | Arrivals::Burst { concurrency } => {
                schedule.due.extend((0..concurrency).map(|_| Reverse(start)));
            }
            Arrivals::Poisson { .. } => schedule.due.push(Reverse(start)),
        }
        schedule
    }

    /// No further request will be due.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.left == 0 || self.closing.is_some_and(|closing| now >= closing)
    }

    /// When to look again, if nothing ends before.
    pub(crate) fn next(&self, now: Instant, under_way: usize) -> Option<Instant> {
        if self.is_over(now) {
            return None;
        }
        // At the closing time at the latest: where nothing is under way, the run is over then.
        let due = self.due.peek().filter(|_| !self.is_full(under_way)).map(|Reverse(due)| *due);
        due.into_iter().chain(self.closing).min()
    }

    /// A request is to be sent now, and its times count from there; nothing where none is due.
    pub(crate) fn take(&mut self, now: Instant, under_way: usize) -> Option<Clock> {
        if self.is_over(now) || self.is_full(under_way) {
            return None;
        }
        let due = self.due.peek().filter(|due| due.0 <= now)?.0;
        self.due.pop();
        self.left -= 1;
        let Arrivals::Poisson { per_second, .. } = self.arrivals else {
            return Some(Clock::Sending);
        };
        // 1 - f64() is never 0.
        let gap = -(1.0 - self.rng.f64()).ln() / per_second;
        self.due.push(Reverse(due + Duration::try_from_secs_f64(gap).unwrap_or(Duration::from_hours(24))));
        Some(if now - due > TIMER_SLACK { Clock::Due(due) } else { Clock::Sending })
    }

    /// A request has ended; `under_way` go on.
    pub(crate) fn ended(&mut self, now: Instant, failed: bool, under_way: usize) {
        let next = if failed { now + PAUSE_AFTER_FAILURE } else { now };
        match self.arrivals {
            Arrivals::Closed { .. } => self.due.push(Reverse(next)),
            Arrivals::Burst { concurrency } => {
                if under_way == 0 && self.due.is_empty() {
                    self.due.extend((0..concurrency).map(|_| Reverse(next)));
                }
            }
            Arrivals::Poisson { .. } => {}
        }
    }

    fn is_full(&self, under_way: usize) -> bool {
        matches!(self.arrivals, Arrivals::Poisson { concurrency: Some(most), .. } if under_way >= most as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(arrivals: &str, limit: &str, start: Instant) -> Schedule {
        let json = format!(
            r#"{{"address": "127.0.0.1:1", "host": "h", "path": "/", "body": [], "prompt_tokens": 1, "seed": 0,
            "prompts": {{"ids": {{"low": 1, "high": 2}}}}, "output_tokens": 1,
            "arrivals": {arrivals}, "limit": {limit}}}"#
        );
        Schedule::new(&Plan::parse(&json).unwrap(), start)
    }

    /// How many requests begin now.
    fn begun(schedule: &mut Schedule, now: Instant) -> usize {
        std::iter::from_fn(|| schedule.take(now, 0)).count()
    }

    #[test]
    fn a_closed_loop_replaces_what_ends() {
        let start = Instant::now();
        let mut schedule = schedule(r#"{"closed": {"concurrency": 3}}"#, r#"{"requests": 5}"#, start);
        assert_eq!(begun(&mut schedule, start), 3);
        schedule.ended(start, false, 2);
        assert_eq!(begun(&mut schedule, start), 1);
        schedule.ended(start, true, 2);
        assert_eq!(begun(&mut schedule, start), 0);
        assert_eq!(schedule.next(start, 2), Some(start + PAUSE_AFTER_FAILURE));
        assert_eq!(begun(&mut schedule, start + PAUSE_AFTER_FAILURE), 1);
        assert!(schedule.is_over(start));
        assert_eq!(schedule.next(start, 0), None);
    }

    #[test]
    fn a_round_waits_for_the_whole_round_before() {
        let start = Instant::now();
        let mut schedule = schedule(r#"{"burst": {"concurrency": 2}}"#, r#"{"seconds": 1}"#, start);
        assert_eq!(begun(&mut schedule, start), 2);
        schedule.ended(start, false, 1);
        assert_eq!(begun(&mut schedule, start), 0);
        schedule.ended(start, false, 0);
        assert_eq!(begun(&mut schedule, start), 2);
        let closing = start + Duration::from_secs(1);
        assert_eq!(schedule.next(start, 2), Some(closing));
        schedule.ended(start, false, 0);
        assert_eq!(begun(&mut schedule, closing), 0);
        assert!(schedule.is_over(closing));
        assert_eq!(schedule.next(closing, 0), None);
    }

    #[test]
    fn arrivals_have_the_mean_rate_and_wait_for_room() {
        let start = Instant::now();
        let mut free = schedule(
            r#"{"poisson": {"per_second": 100, "concurrency": null}}"#,
            r#"{"seconds": 100}"#,
            start,
        );
        let arrived = begun(&mut free, start + Duration::from_secs(99));
        assert!((9500..10300).contains(&arrived), "{arrived}");

        let mut capped =
            schedule(r#"{"poisson": {"per_second": 100, "concurrency": 2}}"#, r#"{"requests": 9}"#, start);
        let late = start + Duration::from_secs(99);
        assert_eq!(capped.take(late, 2), None);
        assert_eq!(capped.next(late, 2), None);
        assert_eq!(capped.take(late, 1), Some(Clock::Due(start)));
    }
}
