//! From the host's parameters to llama.cpp's: how large a context becomes, and how its sequences share
//! the cache. Pure.

use llm_node_sdk::{ContextParams, Failure};

use crate::cut::Pass;
use crate::llama::{ContextSettings, DeviceRows};
use crate::options::{CacheMode, ContextOptions, DevicePolicy};

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
/// Candidates of a row that stays on the device, where the options leave it open.
const CANDIDATES: u32 = 128;
/// From so many sequences on, rows stay on a GPU. Not measured yet.
const DEVICE_ROWS_FROM: u32 = 8;

/// What of a model a plan depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub(crate) n_context_train: u32,
    pub(crate) attention_window: u32,
    pub(crate) recurrent: bool,
    /// Layers are to go to devices.
    pub(crate) on_devices: bool,
}

/// A context to be made.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) settings: ContextSettings,
    pub(crate) context_length: u32,
    pub(crate) max_rows: u32,
    /// What llama.cpp takes for one physical pass.
    pub(crate) pass: Pass,
}

/// Does copying whole rows from a GPU cost more than finding the best tokens there?
fn device_rows_pay(sequences: u32) -> bool {
    sequences >= DEVICE_ROWS_FROM
}

/// Do rows stay on the device, if it can do that?
fn device_rows(facts: Facts, sequences: u32, rollback: u32, options: &ContextOptions) -> Option<DeviceRows> {
    let wanted = match options.device_rows {
        DevicePolicy::Off => false,
        DevicePolicy::On => true,
        DevicePolicy::Auto => facts.on_devices && device_rows_pay(sequences),
    };
    // The snapshots by which recurrent models take tokens back are made within one call of llama.cpp.
    let snapshots = facts.recurrent && rollback > 0;
    (wanted && !snapshots).then(|| DeviceRows {
        candidates: options.device_candidates.unwrap_or(CANDIDATES),
        only_on_gpu: options.device_rows == DevicePolicy::Auto,
    })
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
    let max_rows = (if params.max_rows == 0 { sequences } else { params.max_rows }).min(n_batch);
    let device_rows = device_rows(facts, sequences, params.rollback, options);
    // The rows of a pool that stay on the device must fit into one pass.
    let least = if device_rows.is_some() { sequences.max(max_rows) } else { sequences };
    let n_ubatch = options.n_ubatch.unwrap_or(PASS).max(least).min(n_batch);
    // llama.cpp tries several ways for a window, and for recurrent layers takes as many tokens of each.
    let any = unified && !facts.recurrent && facts.attention_window == 0;

    Ok(Plan {
        context_length: length.min(u32::try_from(per_sequence).unwrap_or(u32::MAX)),
        max_rows,
        pass: if any { Pass::Any(n_ubatch as usize) } else { Pass::Even(n_ubatch as usize) },
        settings: ContextSettings {
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
            flash_attention: options.flash_attention,
            pooling: None,
            device_rows,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts =
        Facts { n_context_train: 4096, attention_window: 0, recurrent: false, on_devices: false };

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
    fn what_llama_cpp_would_assert_is_refused_or_raised() {
        let too_many = ContextParams { max_sequences: 257, ..ContextParams::default() };
        assert!(plan(FACTS, &too_many, &ContextOptions::default(), 2).is_err());
        let huge = ContextParams { cache_tokens: 1 << 40, ..ContextParams::default() };
        assert!(plan(FACTS, &huge, &ContextOptions::default(), 2).is_err());
        let small = ContextParams { max_sequences: 8, max_batch_tokens: 1, ..ContextParams::default() };
        let plan = made(&small, ContextOptions { n_ubatch: Some(1), ..ContextOptions::default() });
        assert_eq!((plan.settings.n_batch, plan.settings.n_ubatch), (8, 8));
    }

    #[test]
    fn rows_stay_on_a_gpu_that_serves_many() {
        let rows = |facts: Facts, max_sequences: u32, rollback: u32, device_rows: DevicePolicy| {
            let params = ContextParams { max_sequences, rollback, ..ContextParams::default() };
            let options = ContextOptions { device_rows, ..ContextOptions::default() };
            plan(facts, &params, &options, 2).unwrap().settings.device_rows
        };
        let gpu = Facts { on_devices: true, ..FACTS };
        assert_eq!(rows(FACTS, 64, 0, DevicePolicy::Auto), None);
        assert_eq!(rows(gpu, DEVICE_ROWS_FROM - 1, 0, DevicePolicy::Auto), None);
        assert!(rows(gpu, DEVICE_ROWS_FROM, 0, DevicePolicy::Auto).is_some_and(|rows| rows.only_on_gpu));
        assert_eq!(rows(gpu, 64, 0, DevicePolicy::Off), None);
        assert!(rows(FACTS, 1, 0, DevicePolicy::On).is_some_and(|rows| !rows.only_on_gpu));
        let recurrent = Facts { recurrent: true, ..gpu };
        assert!(rows(recurrent, 8, 0, DevicePolicy::On).is_some());
        assert_eq!(rows(recurrent, 8, 4, DevicePolicy::On), None);
    }

    #[test]
    fn rows_that_stay_fit_into_one_pass() {
        let params = ContextParams { max_sequences: 2, max_rows: 700, ..ContextParams::default() };
        let options = ContextOptions { device_rows: DevicePolicy::On, ..ContextOptions::default() };
        let plan = made(&params, options);
        assert_eq!((plan.settings.n_ubatch, plan.pass), (700, Pass::Any(700)));
        assert_eq!(made(&params, ContextOptions::default()).settings.n_ubatch, PASS);
    }
}
