//! What a check is, what it finds, and the list of all of them.

use llm_node_core::engine::EngineFault;
use llm_node_host::{EngineError, LoadError};
use serde::{Deserialize, Serialize};

use crate::bench::Bench;
use crate::{batch, embed, file, header, life, memory, models, stream, tier0, tokenizer};

/// What it means to fail a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// The engine is not to be used.
    Must,
    /// The engine works, and somebody will be surprised by it.
    Should,
}

/// One question to an engine.
#[derive(Debug)]
pub struct Check {
    /// `group.subject`; also its anchor in docs/conformance.md, with a hyphen for the dot.
    pub name: &'static str,
    /// What it means to fail it.
    pub level: Level,
    /// What is done, for people.
    pub what: &'static str,
    /// The passage of `engine_api.h` that it rests on, word for word.
    pub contract: &'static str,
    /// What to change in an engine that fails.
    pub mend: &'static str,
    /// Checks without which this one says nothing.
    pub after: &'static [&'static str],
    pub(crate) ask: fn(&Bench<'_>) -> Verdict,
}

impl Check {
    /// The whole sentences of `engine_api.h` in which the passage stands, and the line on which they begin.
    pub fn quotation(&self) -> (String, usize) {
        header::quoted(self.contract).unwrap_or_default()
    }

    /// The check called `name`.
    pub fn named(name: &str) -> Option<&'static Self> {
        CHECKS.iter().copied().flatten().find(|check| check.name == name)
    }
}

/// What was seen of an engine that fails a check.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// One sentence or more.
    pub seen: String,
    /// What to change, where that depends on what was seen.
    pub mend: Option<String>,
    /// The calls that lead there, as few as could be found.
    pub script: Vec<String>,
}

/// What became of a check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "status")]
pub enum Status {
    /// Nothing was found.
    Passed,
    /// Something was.
    Failed(Finding),
    /// It could not be asked.
    Skipped {
        /// Why.
        why: String,
    },
}

/// A check with what became of it.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Which.
    pub check: &'static Check,
    /// What became of it.
    pub status: Status,
    /// How long it took.
    pub seconds: f64,
}

impl Outcome {
    /// Was something found?
    pub const fn failed(&self) -> bool {
        matches!(self.status, Status::Failed(_))
    }
}

/// Why a check ends early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Finding(Finding),
    Skip(String),
}

/// `Ok`: nothing was found.
pub(crate) type Verdict = Result<(), Stop>;

impl Stop {
    pub(crate) fn seen(seen: impl Into<String>) -> Self {
        Self::Finding(Finding { seen: seen.into(), ..Finding::default() })
    }

    pub(crate) fn skip(why: impl Into<String>) -> Self {
        Self::Skip(why.into())
    }
}

impl From<EngineError> for Stop {
    fn from(error: EngineError) -> Self {
        Self::seen(error.to_string())
    }
}

impl From<EngineFault> for Stop {
    fn from(fault: EngineFault) -> Self {
        Self::seen(fault.to_string())
    }
}

impl From<LoadError> for Stop {
    fn from(error: LoadError) -> Self {
        Self::seen(error.kind.to_string())
    }
}

/// Ends the check with a finding unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($words:tt)+) => {{
        let holds: bool = $condition;
        if !holds {
            return Err($crate::check::Stop::seen(format!($($words)+)));
        }
    }};
}
pub(crate) use ensure;

/// Every check, in the order in which they are run: by group.
pub const CHECKS: &[&[Check]] = &[
    file::CHECKS,
    life::CHECKS,
    tier0::CHECKS,
    models::CHECKS,
    memory::CHECKS,
    tokenizer::CHECKS,
    batch::CHECKS,
    stream::CHECKS,
    embed::CHECKS,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_what_comes_before_is_there() {
        let mut before: Vec<&str> = Vec::new();
        for check in CHECKS.iter().copied().flatten() {
            assert!(!before.contains(&check.name), "{} is there twice", check.name);
            for name in check.after {
                assert!(before.contains(name), "{}: {name} does not come before it", check.name);
            }
            assert!(check.mend.ends_with('.') && check.what.ends_with('.'), "{}: no sentence", check.name);
            before.push(check.name);
        }
    }
}
