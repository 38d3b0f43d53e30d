//! What a run is to do. Comes as JSON, and is checked before anything is sent.

use std::{net::SocketAddr, time::Duration};

use serde::Deserialize;

/// One run.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Where the server listens.
    pub address: SocketAddr,
    /// The `Host` header.
    pub host: String,
    /// The path of every request.
    pub path: String,
    /// Further headers, names and values.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// The body of every request, in order.
    pub body: Vec<Part>,
    /// Where prompts come from.
    pub prompts: Prompts,
    /// Tokens of each prompt, counted in words' own counts or in numbers.
    pub prompt_tokens: u32,
    /// So many of them, at the beginning, are the same in every request.
    #[serde(default)]
    pub prefix_tokens: u32,
    /// What the shared beginning is drawn from.
    #[serde(default)]
    pub prefix_seed: u64,
    /// What prompts and arrivals are drawn from.
    pub seed: u64,
    /// Tokens asked for.
    pub output_tokens: u32,
    /// Tokens asked for by every `short_every`-th request.
    #[serde(default)]
    pub short_output_tokens: u32,
    /// 0: by none.
    #[serde(default)]
    pub short_every: u64,
    /// When requests are sent.
    pub arrivals: Arrivals,
    /// When the run ends.
    pub limit: Limit,
    /// A request that takes longer has failed.
    #[serde(default)]
    pub timeout_seconds: Option<f64>,
    /// A good request has its first text within so many milliseconds.
    #[serde(default)]
    pub ttft_goal_ms: Option<f64>,
    /// A good request has 99 % of its gaps within so many milliseconds.
    #[serde(default)]
    pub itl_goal_ms: Option<f64>,
    /// Report each request too.
    #[serde(default)]
    pub per_request: bool,
}

/// A part of a request's body.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Sent as it is.
    Text(String),
    /// The prompt: the inside of a JSON string, or a JSON list of numbers.
    Prompt,
    /// How many tokens are asked for.
    OutputTokens,
    /// A number of the request's own: the plan's seed and the request's index together, below 2^31.
    Seed,
}

/// Where prompts come from.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prompts {
    /// Text: `start`, then words at random.
    Words {
        /// Not counted in `prompt_tokens`.
        start: String,
        /// At least one.
        words: Vec<Word>,
    },
    /// Token numbers, at random from `low` up to but not including `high`.
    Ids {
        /// The lowest.
        low: u32,
        /// One above the highest.
        high: u32,
    },
}

/// A piece of text with its length in tokens.
#[derive(Clone, Debug, Deserialize)]
pub struct Word {
    /// With the space before it.
    pub text: String,
    /// At least 1.
    pub tokens: u32,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    /// So many are always under way: where one ends, the next is sent.
    Closed {
        /// Requests under way.
        concurrency: u32,
    },
    /// So many at once; when all have ended, the next so many.
    Burst {
        /// Requests of one round.
        concurrency: u32,
    },
    /// At random times, independent of each other and of the answers.
    Poisson {
        /// The mean rate.
        per_second: f64,
        /// At most so many under way; what arrives then waits, and the wait is part of its time.
        concurrency: Option<u32>,
    },
}

/// When a run ends.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// After so many requests.
    Requests(u64),
    /// No new request after so many seconds; those under way are waited for.
    Seconds(f64),
}

/// Why a plan cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not JSON of the right shape.
    #[error("the plan of a load run: {0}")]
    Json(#[from] serde_json::Error),
    /// A value out of range.
    #[error("the plan of a load run: {0}")]
    Value(&'static str),
}

impl Plan {
    /// Read and check.
    pub fn parse(json: &str) -> Result<Self, PlanError> {
        let plan: Self = serde_json::from_str(json)?;
        plan.check()?;
        Ok(plan)
    }

    fn check(&self) -> Result<(), PlanError> {
        let positive = |value: f64| value.is_finite() && value > 0.0;
        let clean = |text: &str| !text.bytes().any(|byte| byte.is_ascii_control());
        let rules = [
            (self.prefix_tokens <= self.prompt_tokens, "prefix_tokens is more than prompt_tokens"),
            (self.output_tokens > 0, "output_tokens is 0"),
            (self.short_every == 0 || self.short_output_tokens > 0, "short_output_tokens is 0"),
            (
                match &self.prompts {
                    Prompts::Words { words, .. } => {
                        !words.is_empty() && words.iter().all(|word| word.tokens > 0)
                    }
                    Prompts::Ids { low, high } => low < high && self.prompt_tokens > 0,
                },
                "there is nothing to make prompts of",
            ),
            (
                match self.arrivals {
                    Arrivals::Closed { concurrency } | Arrivals::Burst { concurrency } => concurrency > 0,
                    Arrivals::Poisson { per_second, concurrency } => {
                        positive(per_second) && concurrency != Some(0)
                    }
                },
                "the arrivals have no rate or no concurrency",
            ),
            (
                match self.limit {
                    Limit::Requests(requests) => requests > 0,
                    Limit::Seconds(seconds) => positive(seconds) && seconds < 1e9,
                },
                "the limit is not positive",
            ),
            (
                self.timeout_seconds.is_none_or(|seconds| positive(seconds) && seconds < 1e9),
                "the time-out is not positive",
            ),
            (
                clean(&self.host)
                    && clean(&self.path)
                    && self.headers.iter().all(|(name, value)| clean(name) && clean(value)),
                "a header has a control character",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(PlanError::Value(broken)),
            None => Ok(()),
        }
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.timeout_seconds.map(Duration::from_secs_f64)
    }

    /// How many tokens the request of this index asks for.
    pub(crate) fn output_tokens_of(&self, index: u64) -> u32 {
        if self.short_every > 0 && index % self.short_every == self.short_every - 1 {
            self.short_output_tokens
        } else {
            self.output_tokens
        }
    }
}
