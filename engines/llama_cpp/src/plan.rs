//! From the host's parameters to llama.cpp's: how large a context becomes, and how its sequences share
//! the cache. Pure.

use llm_node_sdk::{ContextParams, Failure};

use crate::llama::{CacheType, ContextSettings};
use crate::options::{CacheMode, ContextOptions};

/// llama.cpp's own limit (LLAMA_MAX_SEQ).
const MOST_SEQUENCES: u32 = 256;
/// llama.cpp rounds caches up to this many cells.
const CELLS: u32 = 256;
/// Tokens per step where the host leaves it open.
const BATCH: u32 = 2048;
/// Tokens per physical pass: llama.cpp's own default.
const PASS: u32 = 512;
/// Ids that a unified cache has at least.
const POOL_SEQUENCES: u32 = 32;
/// Up to here a unified cache costs less than it gives: one fused pass, shared prefixes.
const FEW_SEQUENCES: u32 = 4;

/// Heads narrower than this go without flash attention: ggml's CPU kernel takes such rows number by number,
/// up to three times as long in an answer as matrix products do, and those for CUDA and Metal do not take them.
const NARROW_HEAD: u32 = 16;

/// What of a model a plan depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) n_context_train: u32,
    pub(crate) attention_window: u32,
    pub(crate) recurrent: bool,
    /// Numbers of a key in each head, where that is known.
    pub(crate) head_width: Option<u32>,
}

/// A context to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) settings: ContextSettings,
    /// A unified cache beside a split one, where the two are in the host's memory: see `prefill`.
    pub(crate) prefill_pool: Option<ContextSettings>,
    pub(crate) context_length: u32,
    pub(crate) max_rows: u32,
}

fn padded(cells: u64) -> u64 {
    cells.div_ceil(u64::from(CELLS)) * u64::from(CELLS)
}

/// Decides. Unless the options say otherwise, the cache is split when the host pays for the full length
/// of each sequence, *and* there are more than four of them (masks stay small) or the model has a
/// sliding window (a pool could not share prefixes). In any other case it is unified: a pool that is
/// smaller than the sum of its sequences can only be shared.
pub(crate) fn plan(
    facts: Facts,
    params: &ContextParams,
    options: &ContextOptions,
    threads: u32,
) -> Result<Plan, Failure> {
    let sequences = params.max_sequences.max(1);
    if sequences > MOST_SEQUENCES {
        return Err(Failure::invalid(format!(
            "max_sequences is {sequences}; llama.cpp takes at most {MOST_SEQUENCES}"
        )));
    }
    let length = if params.context_length == 0 { facts.n_context_train } else { params.context_length };
    if length == 0 {
        return Err(Failure::invalid("context_length is 0, and the model does not say how long its own is"));
    }
    let full = u64::from(sequences) * u64::from(length);
    let wanted = if params.cache_tokens == 0 { full } else { params.cache_tokens };
    // Positions that slid out of the window cannot be taken back unless they are kept.
    let swa_full = options.swa_full || (facts.attention_window > 0 && params.rollback > 0);
    let slides = facts.attention_window > 0 && !swa_full;
    let unified = match options.cache_mode {
        CacheMode::Unified => true,
        CacheMode::Split => false,
        CacheMode::Auto => wanted < full || (sequences <= FEW_SEQUENCES && !slides),
    };
    let (cells, per_sequence) = if unified {
        let cells = padded(wanted);
        (cells, cells)
    } else {
        let per_sequence = padded((wanted / u64::from(sequences)).max(1));
        (per_sequence * u64::from(sequences), per_sequence)
    };
    let n_ctx = u32::try_from(cells).ok().filter(|cells| i32::try_from(*cells).is_ok()).ok_or_else(|| {
        Failure::invalid(format!("a cache of {cells} tokens is more than llama.cpp can count"))
    })?;

    // In a pool an id costs a row of logits and no cache, and prefixes that are kept for later take one each.
    // (With a sliding window each would cost a window of cells, and nothing could be shared.)
    let spare = unified && !facts.recurrent && facts.attention_window == 0;
    let ids = if spare { sequences.max(POOL_SEQUENCES) } else { sequences };

    // A step must be able to hold one token of each sequence.
    let asked = if params.max_batch_tokens == 0 { BATCH } else { params.max_batch_tokens };
    let n_batch = asked.max(sequences).min(n_ctx);
    let n_ubatch = options.n_ubatch.unwrap_or(PASS).max(sequences).min(n_batch);
    let max_rows = (if params.max_rows == 0 { sequences } else { params.max_rows }).min(n_batch);

    let is_narrow = facts.head_width.is_some_and(|width| width < NARROW_HEAD);
    // llama.cpp reads a quantised V through flash attention only.
    let is_plain = matches!(options.cache_type_v, CacheType::F32 | CacheType::F16 | CacheType::Bf16);
    let flash_attention = options.flash_attention.or((is_narrow && is_plain).then_some(false));

    let settings = ContextSettings {
        n_ctx,
        n_batch,
        n_ubatch,
        n_seq_max: ids,
        // llama.cpp asserts that there is room for a row of each sequence.
        n_outputs_max: max_rows.max(ids),
        n_rs_seq: if facts.recurrent { params.rollback } else { 0 },
        n_threads: options.threads.unwrap_or(threads),
        kv_unified: unified,
        swa_full,
        cache_type_k: options.cache_type_k,
        cache_type_v: options.cache_type_v,
        flash_attention,
        pooling: None,
    };
    // Only flash attention of these types is computed in tiles.
    let is_tiled = options.cache_type_k == options.cache_type_v
        && matches!(options.cache_type_k, CacheType::F16 | CacheType::F32)
        && flash_attention != Some(false);
    let is_pooled = !unified && ids > 1 && is_tiled && !options.no_prefill_pool;
    let prefill_pool = is_pooled.then(|| ContextSettings {
        n_ctx: n_ubatch.next_multiple_of(CELLS),
        n_batch: n_ubatch,
        kv_unified: true,
        ..settings.clone()
    });

    Ok(Plan {
        context_length: length.min(u32::try_from(per_sequence).unwrap_or(u32::MAX)),
        max_rows,
        settings,
        prefill_pool,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts =
        Facts { n_context_train: 4096, attention_window: 0, recurrent: false, head_width: Some(64) };

    fn made(params: &ContextParams, options: ContextOptions) -> Plan {
        plan(FACTS, params, &options, 2).unwrap()
    }

    #[test]
    fn a_pool_that_is_too_small_for_all_is_shared() {
        let params = ContextParams {
            max_sequences: 16,
            context_length: 1024,
            cache_tokens: 4096,
            ..ContextParams::default()
        };
        let plan = made(&params, ContextOptions::default());
        assert!(plan.settings.kv_unified);
        assert_eq!((plan.settings.n_ctx, plan.context_length), (4096, 1024));
    }

    #[test]
    fn many_sequences_with_room_for_each_are_split() {
        let params = ContextParams { max_sequences: 16, context_length: 1000, ..ContextParams::default() };
        let plan = made(&params, ContextOptions::default());
        assert!(!plan.settings.kv_unified);
        assert_eq!((plan.settings.n_ctx, plan.context_length), (16 * 1024, 1000));
        assert!(plan.settings.n_outputs_max >= 16 && plan.settings.n_batch >= 16);
    }

    #[test]
    fn a_split_that_is_too_small_shortens_the_sequences() {
        let params = ContextParams {
            max_sequences: 4,
            context_length: 4096,
            cache_tokens: 2048,
            ..ContextParams::default()
        };
        let options = ContextOptions { cache_mode: CacheMode::Split, ..ContextOptions::default() };
        assert_eq!(made(&params, options).context_length, 512);
    }

    #[test]
    fn a_sliding_window_is_split_unless_all_is_kept() {
        let facts = Facts { attention_window: 512, ..FACTS };
        let few = ContextParams { max_sequences: 2, ..ContextParams::default() };
        let made =
            |params: &ContextParams| plan(facts, params, &ContextOptions::default(), 2).unwrap().settings;
        assert!(!made(&few).kv_unified && !made(&few).swa_full);
        let back = ContextParams { rollback: 8, ..few };
        assert!(made(&back).kv_unified && made(&back).swa_full);
    }

    #[test]
    fn narrow_heads_go_without_flash_attention_unless_v_is_quantised() {
        let made = |head_width, options: ContextOptions| {
            let facts = Facts { head_width, ..FACTS };
            let params = ContextParams { max_sequences: 8, ..ContextParams::default() };
            let plan = plan(facts, &params, &options, 2).unwrap();
            (plan.settings.flash_attention, plan.prefill_pool.is_some())
        };
        let auto = ContextOptions::default();
        assert_eq!(made(Some(8), auto), (Some(false), false));
        assert_eq!(made(Some(16), auto), (None, true));
        assert_eq!(made(None, auto), (None, true));
        let quantised = ContextOptions { cache_type_v: CacheType::Q8_0, ..auto };
        assert_eq!(made(Some(8), quantised).0, None);
        let asked = ContextOptions { flash_attention: Some(true), ..auto };
        assert_eq!(made(Some(8), asked), (Some(true), true));
    }

    #[test]
    fn what_llama_cpp_would_assert_is_refused_or_raised() {
        let too_many = ContextParams { max_sequences: 257, ..ContextParams::default() };
        assert!(plan(FACTS, &too_many, &ContextOptions::default(), 2).is_err());
        let huge = ContextParams { cache_tokens: 1 << 40, ..ContextParams::default() };
        assert!(plan(FACTS, &huge, &ContextOptions::default(), 2).is_err());
        let small = ContextParams { max_sequences: 8, max_batch_tokens: 1, ..ContextParams::default() };
        let plan = made(&small, ContextOptions { n_ubatch: Some(1), ..ContextOptions::default() });
        assert_eq!((plan.settings.n_batch, plan.settings.n_ubatch), (8, 8));
    }
}
