//! What a run came to. Every percentile is exact: all samples are kept.

use serde::Serialize;

use crate::exchange::Exchange;

/// Different messages that are counted apart; a server may put a new number into each.
const MESSAGES: usize = 32;

/// The result of a run. Times are milliseconds unless the name says otherwise.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Requests sent.
    pub requests: u64,
    /// Those with an answer that came to its end.
    pub completed: u64,
    /// The others.
    pub failed: u64,
    /// Why, the most frequent first.
    pub errors: Vec<ErrorCount>,
    /// Completed requests whose answer ended before the length that was asked for, by the server's count.
    pub shorter: u64,
    /// Did the caller end the run?
    pub stopped: bool,
    /// From the first request to the end of the last.
    pub wall_s: f64,
    /// The time in which tokens count for `output_tokens_per_s`.
    pub window_s: f64,
    /// Of completed requests, by the server's count.
    pub prompt_tokens: u64,
    /// Those of them that the server took from its cache, where it says so.
    pub cached_tokens: u64,
    /// Of completed requests, by the server's count; where it gives none, events.
    pub output_tokens: u64,
    /// Of completed requests.
    pub output_tokens_per_s: f64,
    /// Events with text, of completed requests.
    pub events: u64,
    /// More than 1 where the server puts several tokens into one event.
    pub tokens_per_event: Option<f64>,
    /// From sending to the first text.
    pub ttft_ms: Summary,
    /// From one event with text to the next of the same request.
    pub itl_ms: Summary,
    /// Per request: the mean time of each token after the first.
    pub tpot_ms: Summary,
    /// From sending to the end of the answer.
    pub e2e_ms: Summary,
    /// The share of all requests that met the goals; none without goals.
    pub goodput: Option<f64>,
    /// In the order of sending; none unless asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_request: Option<Vec<RequestReport>>,
}

/// How often a message was seen.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorCount {
    /// With the HTTP status where there is one.
    pub message: String,
    /// At least 1.
    pub count: u64,
}

/// One request.
#[derive(Clone, Debug, Serialize)]
pub struct RequestReport {
    /// Since the run began.
    pub start_s: f64,
    /// None where no text came.
    pub ttft_ms: Option<f64>,
    /// By the server's count, else events.
    pub tokens: u64,
    /// Events with text.
    pub events: u64,
    /// By the server's count.
    pub prompt_tokens: u64,
    /// Since the run began.
    pub end_s: f64,
    /// The longest gap.
    pub itl_max_ms: Option<f64>,
    /// Why it failed.
    pub error: Option<String>,
}

/// All samples in five numbers; none of them without samples.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Half of all samples are at most this.
    pub p50: Option<f64>,
    /// 90 % of them.
    pub p90: Option<f64>,
    /// 99 % of them.
    pub p99: Option<f64>,
    /// The mean.
    pub mean: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
}

/// Collects requests as they end. Samples are microseconds.
pub(crate) struct Collected {
    goals: Option<Goals>,
    requests: Option<Vec<(u64, RequestReport)>>,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
    good: u64,
    shorter: u64,
    errors: Vec<ErrorCount>,
    prompt_tokens: u64,
    cached_tokens: u64,
    output_tokens: u64,
    tokens_in_window: f64,
    events: u64,
    ttft: Vec<f32>,
    itl: Vec<f32>,
    tpot: Vec<f32>,
    e2e: Vec<f32>,
}

/// What a good request keeps to, in microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Goals {
    pub(crate) ttft: f64,
    pub(crate) itl: f64,
}

impl Collected {
    pub(crate) fn new(goals: Option<Goals>, per_request: bool) -> Self {
        Self {
            goals,
            requests: per_request.then(Vec::new),
            completed: 0,
            failed: 0,
            good: 0,
            shorter: 0,
            errors: Vec::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            output_tokens: 0,
            tokens_in_window: 0.0,
            events: 0,
            ttft: Vec::new(),
            itl: Vec::new(),
            tpot: Vec::new(),
            e2e: Vec::new(),
        }
    }

    /// A request for `asked` tokens has ended after `e2e` microseconds; `start` is when it was sent, in
    /// seconds of the run.
    pub(crate) fn add(
        &mut self,
        exchange: &mut Exchange,
        asked: u64,
        start: f64,
        e2e: f64,
        error: Option<String>,
    ) {
        let ttft = exchange.ttft();
        let events = exchange.events();
        let usage = exchange.usage.unwrap_or_default();
        let tokens = if usage.completion_tokens > 0 { usage.completion_tokens } else { events };
        if let Some(requests) = &mut self.requests {
            let longest = exchange.gaps.iter().copied().reduce(f32::max);
            requests.push((
                exchange.index,
                RequestReport {
                    start_s: start,
                    ttft_ms: ttft.map(|micros| micros / 1e3),
                    tokens,
                    events,
                    prompt_tokens: usage.prompt_tokens,
                    end_s: start + e2e / 1e6,
                    itl_max_ms: longest.map(|micros| f64::from(micros) / 1e3),
                    error: error.clone(),
                },
            ));
        }
        if let Some(message) = error {
            self.failed += 1;
            count(&mut self.errors, message);
            return;
        }
        self.completed += 1;
        self.shorter += u64::from((1..asked).contains(&usage.completion_tokens));
        self.prompt_tokens += usage.prompt_tokens;
        self.cached_tokens += usage.cached_tokens();
        self.output_tokens += tokens;
        self.events += events;
        self.e2e.push(e2e as f32);
        let Some(ttft) = ttft else {
            self.tokens_in_window += tokens as f64;
            return;
        };
        self.tokens_in_window += tokens as f64 * exchange.share_in_window();
        self.ttft.push(ttft as f32);
        if tokens > 1 {
            let after_first: f64 = exchange.gaps.iter().copied().map(f64::from).sum();
            self.tpot.push((after_first / (tokens - 1) as f64) as f32);
        }
        self.itl.extend_from_slice(&exchange.gaps);
        if let Some(goals) = self.goals {
            let itl = percentile_of(&mut exchange.gaps, 0.99).unwrap_or(0.0);
            self.good += u64::from(ttft <= goals.ttft && itl <= goals.itl);
        }
    }

    /// The report of a run of `wall` seconds, whose tokens counted for `window` seconds.
    pub(crate) fn report(mut self, wall: f64, window: f64, stopped: bool) -> Report {
        self.errors.sort_by_key(|error| std::cmp::Reverse(error.count));
        let requests = self.completed + self.failed;
        Report {
            requests,
            completed: self.completed,
            failed: self.failed,
            errors: self.errors,
            shorter: self.shorter,
            stopped,
            wall_s: wall,
            window_s: window,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            output_tokens: self.output_tokens,
            output_tokens_per_s: if window > 0.0 { self.tokens_in_window / window } else { 0.0 },
            events: self.events,
            tokens_per_event: (self.events > 0).then(|| self.output_tokens as f64 / self.events as f64),
            ttft_ms: Summary::of(self.ttft),
            itl_ms: Summary::of(self.itl),
            tpot_ms: Summary::of(self.tpot),
            e2e_ms: Summary::of(self.e2e),
            goodput: self.goals.filter(|_| requests > 0).map(|_| self.good as f64 / requests as f64),
            per_request: self.requests.map(|mut requests| {
                requests.sort_by_key(|(index, _)| *index);
                requests.into_iter().map(|(_, request)| request).collect()
            }),
        }
    }
}

fn count(errors: &mut Vec<ErrorCount>, message: String) {
    if let Some(known) = errors.iter_mut().find(|known| known.message == message) {
        known.count += 1;
    } else if errors.len() < MESSAGES {
        errors.push(ErrorCount { message, count: 1 });
    } else {
        count(errors, errors[MESSAGES - 1].message.clone());
    }
}

impl Summary {
    /// Of samples in microseconds.
    fn of(mut samples: Vec<f32>) -> Self {
        if samples.is_empty() {
            return Self::default();
        }
        samples.sort_unstable_by(f32::total_cmp);
        let at = |share| Some(f64::from(samples[rank(samples.len(), share)]) / 1e3);
        let sum: f64 = samples.iter().copied().map(f64::from).sum();
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            mean: Some(sum / samples.len() as f64 / 1e3),
            max: at(1.0),
        }
    }
}

/// The nearest rank: the smallest sample that `share` of all are at most.
fn rank(samples: usize, share: f64) -> usize {
    ((samples as f64 * share).ceil() as usize).clamp(1, samples) - 1
}

fn percentile_of(samples: &mut [f32], share: f64) -> Option<f64> {
    if samples.is_empty() {
        return None;
    }
    let at = rank(samples.len(), share);
    Some(f64::from(*samples.select_nth_unstable_by(at, f32::total_cmp).1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let samples: Vec<f32> = (1..=200).rev().map(|milli| milli as f32 * 1e3).collect();
        let summary = Summary::of(samples.clone());
        let found = [summary.p50, summary.p90, summary.p99, summary.mean, summary.max];
        assert_eq!(found, [100.0, 180.0, 198.0, 100.5, 200.0].map(Some));
        assert_eq!(percentile_of(&mut samples.clone(), 0.99), Some(198e3));
        assert_eq!(Summary::of(vec![7e3]).p99, Some(7.0));
        assert_eq!(Summary::of(Vec::new()).max, None);
    }

    #[test]
    fn messages_are_counted_and_bounded() {
        let mut errors = Vec::new();
        for number in 0..100 {
            count(&mut errors, format!("failure {}", number % 50));
        }
        assert_eq!(errors.len(), MESSAGES);
        assert_eq!(errors.iter().map(|error| error.count).sum::<u64>(), 100);
    }
}
