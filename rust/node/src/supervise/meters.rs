//! What requests took, counted by model for as long as the node lives.
//!
//! Counted once for each request, at its ending, out of what the worker says it took. What passes between tokens is
//! counted with each piece of an answer, in the request's own buckets, and added to the model's at the same time.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use llm_node_core::event::{Finish, Usage};
use serde::Serialize;

/// Seconds.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
/// Seconds.
const PER_TOKEN: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// Seconds.
const WHOLE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0,
    50_000.0, 100_000.0,
];

/// How many values came, by size.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Histogram {
    /// Upper ends of the buckets; above the last there is one more.
    bounds: &'static [f64],
    /// Values in each bucket.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    fn add(&mut self, value: f64) {
        self.add_times(value, 1);
    }

    fn add_times(&mut self, value: f64, count: u32) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket] += u64::from(count);
        self.sum += value * f64::from(count);
    }

    fn took(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// For what passes between the tokens of answers.
    pub(super) fn between_tokens() -> Self {
        Self::new(PER_TOKEN)
    }

    /// So many took so long, each of them.
    pub(super) fn took_each(&mut self, time: Duration, count: u32) {
        self.add_times(time.as_secs_f64(), count);
    }

    /// All values of another with the same buckets.
    fn add_all(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum += other.sum;
    }
}

/// A model's figures go so long after it.
const KEPT: Duration = Duration::from_hours(1);

/// All requests to one model.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Meter {
    /// When it was last there.
    #[serde(skip)]
    seen: Instant,
    /// By how they ended: "stop", "length", "abort" or "error".
    requests: BTreeMap<&'static str, u64>,
    prompt_tokens: u64,
    /// Of these, from the prefix cache.
    cached_tokens: u64,
    completion_tokens: u64,
    /// Of these, guessed ahead.
    drafted_tokens: u64,
    /// Of these, right.
    accepted_tokens: u64,
    /// Until it was let in.
    queue_seconds: Histogram,
    /// Until its first token.
    first_token_seconds: Histogram,
    /// From there on, for each further token, on average over a request.
    token_seconds: Histogram,
    /// From each token to the next, as they came. Those of a piece came together: each has its part of the time.
    between_tokens_seconds: Histogram,
    /// From beginning to end.
    request_seconds: Histogram,
    request_prompt_tokens: Histogram,
    request_completion_tokens: Histogram,
    /// Until it answered, of each time that it was loaded.
    load_seconds: Histogram,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            seen: Instant::now(),
            requests: BTreeMap::new(),
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            drafted_tokens: 0,
            accepted_tokens: 0,
            queue_seconds: Histogram::new(FIRST_TOKEN),
            first_token_seconds: Histogram::new(FIRST_TOKEN),
            token_seconds: Histogram::new(PER_TOKEN),
            between_tokens_seconds: Histogram::between_tokens(),
            request_seconds: Histogram::new(WHOLE),
            request_prompt_tokens: Histogram::new(TOKENS),
            request_completion_tokens: Histogram::new(TOKENS),
            load_seconds: Histogram::new(WHOLE),
        }
    }
}

impl Meter {
    fn finished(&mut self, reason: Finish, usage: &Usage) {
        let word = match reason {
            Finish::Stop | Finish::StopString | Finish::Calls => "stop",
            Finish::Length | Finish::Context => "length",
            Finish::Cancelled => "abort",
        };
        *self.requests.entry(word).or_default() += 1;
        self.prompt_tokens += u64::from(usage.prompt_tokens);
        self.cached_tokens += u64::from(usage.cached_tokens);
        self.completion_tokens += u64::from(usage.completion_tokens);
        self.drafted_tokens += u64::from(usage.drafted_tokens);
        self.accepted_tokens += u64::from(usage.accepted_tokens);
        self.queue_seconds.took(usage.waited);
        self.request_seconds.took(usage.waited + usage.read + usage.wrote);
        self.request_prompt_tokens.add(f64::from(usage.prompt_tokens));
        self.request_completion_tokens.add(f64::from(usage.completion_tokens));
        if usage.completion_tokens > 0 {
            self.first_token_seconds.took(usage.waited + usage.read);
        }
        if let Some(further) = usage.completion_tokens.checked_sub(1).filter(|further| *further > 0) {
            self.token_seconds.took(usage.wrote / further);
        }
    }
}

/// All models that were loaded, or asked anything.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Meters(BTreeMap<String, Meter>);

/// Of whom there are more than so many, the rest is counted as one, under [`OTHERS`].
const MOST_MODELS: usize = 64;
const OTHERS: &str = "other";

impl Meters {
    /// A model has been loaded.
    pub(super) fn loaded(&mut self, model_id: &str, took: Duration) {
        self.of(model_id).load_seconds.took(took);
    }

    /// A request has had its answer.
    pub(super) fn finished(&mut self, model_id: &str, reason: Finish, usage: &Usage) {
        self.of(model_id).finished(reason, usage);
    }

    /// How the tokens of an answer came, whatever its ending.
    pub(super) fn came(&mut self, model_id: &str, between_tokens: &Histogram) {
        self.of(model_id).between_tokens_seconds.add_all(between_tokens);
    }

    /// A request has failed.
    pub(super) fn failed(&mut self, model_id: &str) {
        *self.of(model_id).requests.entry("error").or_default() += 1;
    }

    /// Those of models that are gone for an hour go; `is_there`: is such a model loaded?
    pub(super) fn told(&mut self, now: Instant, is_there: impl Fn(&str) -> bool) -> Self {
        self.0.retain(|model_id, meter| {
            if is_there(model_id) {
                meter.seen = now;
            }
            model_id == OTHERS || now.saturating_duration_since(meter.seen) < KEPT
        });
        self.clone()
    }

    fn of(&mut self, model_id: &str) -> &mut Meter {
        let has_room = self.0.len() < MOST_MODELS || self.0.contains_key(model_id);
        let meter = self.0.entry(if has_room { model_id } else { OTHERS }.to_owned()).or_default();
        meter.seen = Instant::now();
        meter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_ending_is_counted_once_and_in_its_bucket() {
        let mut meters = Meters::default();
        let usage = Usage {
            prompt_tokens: 10,
            completion_tokens: 5,
            cached_tokens: 4,
            waited: Duration::from_millis(1),
            read: Duration::from_millis(9),
            wrote: Duration::from_millis(40),
            ..Usage::default()
        };
        meters.finished("m", Finish::Calls, &usage);
        meters.finished("m", Finish::Cancelled, &Usage { completion_tokens: 0, ..usage });
        meters.failed("m");
        let meter = &meters.0["m"];
        assert_eq!(meter.requests, BTreeMap::from([("abort", 1), ("error", 1), ("stop", 1)]));
        assert_eq!((meter.prompt_tokens, meter.cached_tokens, meter.completion_tokens), (20, 8, 5));
        let bucket = |histogram: &Histogram, bound: f64| {
            histogram.counts[histogram.bounds.partition_point(|it| *it < bound)]
        };
        assert_eq!(bucket(&meter.queue_seconds, 0.001), 2, "a bound belongs to its bucket");
        assert_eq!(bucket(&meter.first_token_seconds, 0.01), 1, "who got no token had no first one");
        assert_eq!(bucket(&meter.token_seconds, 0.01), 1);
        assert_eq!(meter.request_seconds.counts.iter().sum::<u64>(), 2);
    }

    #[test]
    fn tokens_that_come_together_have_a_part_of_the_time_each() {
        let mut meters = Meters::default();
        for count in [1, 4] {
            let mut between = Histogram::between_tokens();
            between.took_each(Duration::from_millis(100) / count, count);
            meters.came("m", &between);
        }
        let Histogram { bounds, counts, sum } = &meters.0["m"].between_tokens_seconds;
        let of = |bound: f64| counts[bounds.partition_point(|it| *it < bound)];
        assert_eq!((of(0.1), of(0.025), counts.iter().sum::<u64>()), (1, 4, 5));
        assert!((sum - 0.2).abs() < 1e-9);
    }

    #[test]
    fn figures_go_an_hour_after_their_model() {
        let mut meters = Meters::default();
        meters.failed("gone");
        meters.failed("loaded");
        let told = |meters: &mut Meters, minutes: u64| {
            let after = Duration::from_mins(minutes);
            let told = meters.told(Instant::now() + after, |model_id| model_id == "loaded");
            told.0.into_keys().collect::<Vec<_>>()
        };
        assert_eq!(told(&mut meters, 59), ["gone", "loaded"]);
        assert_eq!(told(&mut meters, 60), ["loaded"]);
        assert_eq!(told(&mut meters, 61), ["loaded"], "it has been seen since");
    }

    #[test]
    fn names_that_somebody_makes_up_do_not_fill_the_memory() {
        let mut meters = Meters::default();
        for n in 0..MOST_MODELS + 10 {
            meters.failed(&n.to_string());
        }
        assert_eq!(meters.0.len(), MOST_MODELS + 1);
        assert_eq!(meters.0[OTHERS].requests["error"], 10);
    }
}
