//! Settings of this engine, as they stand in the node's configuration. A model's or context's own
//! settings come before those of the engine. A value that is not understood is an error, a key that is
//! not known is a warning.

use llm_node_sdk::{Failure, Options, Severity, log};

use crate::llama::{CacheType, LoadMode};

/// All keys, for the warning and for the manifest.
const KNOWN: &[&str] = &[
    "cache_mode",
    "cache_type_k",
    "cache_type_v",
    "flash_attention",
    "load_mode",
    "n_ubatch",
    "prefill_pool",
    "swa_full",
    "threads",
    "wait_policy",
];

/// How sequences share the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum CacheMode {
    /// See `plan`.
    #[default]
    Auto,
    /// One pool for all: prefixes are shared, masks grow with sequences times tokens.
    Unified,
    /// A part of its own for each sequence: faster with many, no sharing.
    Split,
}

/// How threads wait for each other within a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) enum WaitPolicy {
    /// As `contention` finds best.
    #[default]
    Auto,
    /// They look whether the others are done, for as long as GOMP_SPINCOUNT says.
    Active,
    /// They sleep after a moment.
    Passive,
}

/// For a context.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ContextOptions {
    pub(crate) cache_mode: CacheMode,
    pub(crate) cache_type_k: CacheType,
    pub(crate) cache_type_v: CacheType,
    /// `None`: where the model and the device allow it.
    pub(crate) flash_attention: Option<bool>,
    /// Most tokens in one physical pass; `None`: see `plan`.
    pub(crate) n_ubatch: Option<u32>,
    /// No pool to read prompts together in, see `prefill`: it takes memory.
    pub(crate) no_prefill_pool: bool,
    /// Keep all positions of layers with a sliding window, so that they can be cut back.
    pub(crate) swa_full: bool,
    pub(crate) threads: Option<u32>,
    pub(crate) wait_policy: WaitPolicy,
}

impl ContextOptions {
    pub(crate) fn parse(engine: &Options, own: &Options) -> Result<Self, Failure> {
        warn(own);
        let get = |key| own.get(key).or_else(|| engine.get(key)).map(|value| (key, value));
        Ok(Self {
            cache_mode: choose(
                get("cache_mode"),
                &[("auto", CacheMode::Auto), ("unified", CacheMode::Unified), ("split", CacheMode::Split)],
            )?
            .unwrap_or_default(),
            cache_type_k: cache_type(get("cache_type_k"))?,
            cache_type_v: cache_type(get("cache_type_v"))?,
            flash_attention: choose(
                get("flash_attention"),
                &[("auto", None), ("on", Some(true)), ("off", Some(false))],
            )?
            .flatten(),
            n_ubatch: number(get("n_ubatch"))?,
            no_prefill_pool: choose(get("prefill_pool"), &[("auto", false), ("off", true)])?.unwrap_or(false),
            swa_full: choose(get("swa_full"), &[("on", true), ("off", false)])?.unwrap_or(false),
            threads: number(get("threads"))?,
            wait_policy: choose(
                get("wait_policy"),
                &[
                    ("auto", WaitPolicy::Auto),
                    ("active", WaitPolicy::Active),
                    ("passive", WaitPolicy::Passive),
                ],
            )?
            .unwrap_or_default(),
        })
    }
}

/// For a model.
pub(crate) fn load_mode(engine: &Options, own: &Options) -> Result<LoadMode, Failure> {
    warn(own);
    let value = own.get("load_mode").or_else(|| engine.get("load_mode"));
    Ok(choose(
        value.map(|value| ("load_mode", value)),
        &[
            ("auto", LoadMode::Auto),
            ("mmap", LoadMode::Mmap),
            ("read", LoadMode::Read),
            ("lock", LoadMode::Lock),
        ],
    )?
    .unwrap_or_default())
}

/// Finds what is wrong with the engine's own settings when it starts, not when a model is loaded.
pub(crate) fn check(engine: &Options) -> Result<(), Failure> {
    warn(engine);
    let none = Options::default();
    ContextOptions::parse(engine, &none)?;
    load_mode(engine, &none)?;
    Ok(())
}

fn warn(options: &Options) {
    for (key, _) in options.iter() {
        if !KNOWN.contains(&key) {
            log(
                Severity::Warn,
                &format!(
                    "option {key} is not known to llama_cpp, and ignored; known are {}",
                    KNOWN.join(", ")
                ),
            );
        }
    }
}

fn choose<T: Copy>(
    setting: Option<(&'static str, &str)>,
    choices: &[(&'static str, T)],
) -> Result<Option<T>, Failure> {
    let Some((key, value)) = setting else { return Ok(None) };
    if let Some((_, choice)) = choices.iter().find(|(name, _)| *name == value) {
        return Ok(Some(*choice));
    }
    let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
    Err(Failure::invalid(format!("option {key} is {value:?}; it can be {}", names.join(", "))))
}

fn cache_type(setting: Option<(&'static str, &str)>) -> Result<CacheType, Failure> {
    let Some((key, value)) = setting else { return Ok(CacheType::default()) };
    CacheType::named(value).ok_or_else(|| {
        Failure::invalid(format!(
            "option {key} is {value:?}; it can be f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl"
        ))
    })
}

fn number(setting: Option<(&'static str, &str)>) -> Result<Option<u32>, Failure> {
    let Some((key, value)) = setting else { return Ok(None) };
    match value.parse() {
        Ok(number) if (1..=1 << 20).contains(&number) => Ok(Some(number)),
        _ => Err(Failure::invalid(format!("option {key} is {value:?}; it must be a number from 1"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(pairs: &[(&str, &str)]) -> Options {
        pairs.iter().copied().collect()
    }

    #[test]
    fn a_contexts_own_settings_come_first() {
        let engine = options(&[("cache_mode", "split"), ("cache_type_k", "q8_0")]);
        let parsed = ContextOptions::parse(&engine, &options(&[("cache_mode", "unified")])).unwrap();
        assert_eq!(parsed.cache_mode, CacheMode::Unified);
        assert_eq!(parsed.cache_type_k, CacheType::Q8_0);
        assert_eq!(parsed.cache_type_v, CacheType::F16);
    }

    #[test]
    fn a_bad_value_names_the_good_ones() {
        let failure = check(&options(&[("cache_mode", "both")])).unwrap_err();
        assert!(failure.message.contains("unified"), "{failure}");
        assert!(check(&options(&[("n_ubatch", "0")])).is_err());
        assert!(check(&options(&[("n_ubatch", "many")])).is_err());
        let failure = check(&options(&[("wait_policy", "spin")])).unwrap_err();
        assert!(failure.message.contains("passive"), "{failure}");
        assert!(check(&options(&[("wait_policy", "passive")])).is_ok());
        assert!(check(&options(&[("what", "ever")])).is_ok());
    }
}
