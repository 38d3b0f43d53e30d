//! Rows that stay on the device: what comes of them is compared with the whole rows, which are fetched,
//! and these with the rows of a context that gives all of them to the host.
//!
//! Layers are on a GPU where the engine reports one, else the processor plays the device.
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::path::PathBuf;

use llm_node_abi as abi;
use support::gguf::{plain, recurrent, sliding};
use support::{Context, Model, Params, demo, engine_on_gpu, greedy, model_params, on_gpu, stories};

type Options = &'static [(&'static str, &'static str)];

/// Short passes, and a cache in full precision, so that rows depend little on their company.
macro_rules! options {
    ($cache_mode:literal, $device_rows:literal $(, $more:expr)*) => {
        &[
            $($more,)*
            ("cache_mode", $cache_mode),
            ("device_rows", $device_rows),
            ("n_ubatch", "64"),
            ("flash_attention", "off"),
            ("cache_type_k", "f32"),
            ("cache_type_v", "f32"),
        ]
    };
}

const UNIFIED: Options = options!("unified", "on");
const SPLIT: Options = options!("split", "on");
const UNIFIED_OFF: Options = options!("unified", "off");
const SPLIT_OFF: Options = options!("split", "off");
/// A pool of which a window loses nothing: what slides out of it makes room at other times, depending on
/// how a step is cut.
const KEPT: Options = options!("unified", "on", ("swa_full", "on"));
const KEPT_OFF: Options = options!("unified", "off", ("swa_full", "on"));

fn params(sequences: u32, options: Options) -> Params {
    Params { sequences, length: 512, rows: sequences.max(8) * 2, batch: 512, options, ..Params::default() }
}

/// How far rows may lie apart that were computed in different company. Other rows are units away.
fn tolerance(model: &Model<'_>) -> f32 {
    // SAFETY: the engine gives terminated texts.
    let quantised = unsafe { CStr::from_ptr(model.info().quantization) } != c"F32";
    // Devices multiply in lower precision. Quantised weights make products of quantised activations, in
    // which the last bit of a float is a step.
    if on_gpu() || quantised { 0.5 } else { 2e-3 }
}

fn close(left: &[f32], right: &[f32], tolerance: f32, what: &str) {
    assert_eq!(left.len(), right.len());
    let worst = left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < tolerance, "{what}: rows differ by {worst}");
}

/// One slice of a step.
struct Want {
    sequence: u32,
    tokens: Vec<i32>,
    rows: u32,
    candidates: u32,
}

/// Runs a step, compares each row with the whole of it, and gives the whole rows. Every second step
/// fetches before it collects.
fn step(context: &Context<'_>, wants: &[Want], early: bool) -> Vec<Vec<f32>> {
    let slices: Vec<(u32, u32, &[i32], u32)> = wants
        .iter()
        .map(|want| (want.sequence, context.end(want.sequence), want.tokens.as_slice(), want.rows))
        .collect();
    let candidates: Vec<u32> = wants.iter().map(|want| want.candidates).collect();
    let ticket = context.submit_for(&slices, &candidates).unwrap();
    let asked: Vec<u32> =
        wants.iter().flat_map(|want| std::iter::repeat_n(want.candidates, want.rows as usize)).collect();
    let most = context.info().max_candidates;
    let fetch = |row: usize| context.fetch(ticket, row).unwrap();
    let before: Vec<Vec<f32>> = if early { (0..asked.len()).map(fetch).collect() } else { Vec::new() };
    let described = context.describe(ticket, asked.len()).unwrap();
    // Rows are read only after all of them were fetched: nothing may write over what was described.
    let whole: Vec<Vec<f32>> =
        (0..asked.len()).rev().map(fetch).collect::<Vec<_>>().into_iter().rev().collect();
    assert!(!early || before == whole);
    for ((row, whole), &candidates) in described.iter().zip(&whole).zip(&asked) {
        if row.stage == abi::ENGINE_STAGE_LOGITS {
            // SAFETY: the row is that long.
            let logits = unsafe { std::slice::from_raw_parts(row.logits.cast::<f32>(), row.n as usize) };
            assert!(logits == whole.as_slice());
            assert!(candidates == 0, "these rows have few equals, and can be decided");
            continue;
        }
        assert_eq!((row.stage, row.dtype), (abi::ENGINE_STAGE_TOP, abi::ENGINE_F32));
        let n = row.n as usize;
        let wanted = candidates.min(most) as usize;
        // The smallest that stayed may have equals; in these rows there are few.
        assert!(n <= wanted && n + 3 > wanted, "{n} of {wanted}");
        // SAFETY: as the header says.
        let (ids, logits) = unsafe {
            (std::slice::from_raw_parts(row.ids, n), std::slice::from_raw_parts(row.logits.cast::<f32>(), n))
        };
        let mut best: Vec<usize> = (0..whole.len()).collect();
        best.sort_by(|a, b| whole[*b].partial_cmp(&whole[*a]).unwrap().then(a.cmp(b)));
        let best: Vec<i32> = best[..n].iter().map(|&id| id as i32).collect();
        assert_eq!(ids, best);
        assert!(ids.iter().zip(logits).all(|(&id, logit)| whole[id as usize].to_bits() == logit.to_bits()));
        let sum: f64 = whole.iter().map(|logit| f64::from(*logit).exp()).sum();
        assert!((f64::from(row.log_sum) - sum.ln()).abs() < 1e-4, "{} {}", row.log_sum, sum.ln());
    }
    whole
}

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 33) % u64::from(limit)) as u32
    }
}

fn some_tokens(dice: &mut Dice, count: u32) -> Vec<i32> {
    (0..count).map(|_| 3 + dice.below(250) as i32).collect()
}

/// Steps of all kinds on two contexts of which one leaves its rows on the device.
fn compare(model: &Model<'_>, sequences: u32, on: Options, off: Options, moves: bool) {
    let (device, host) = (model.context(params(sequences, on)), model.context(params(sequences, off)));
    assert_eq!(host.info().max_candidates, 0);
    assert!(device.info().max_candidates > 0, "rows do not stay on the device");
    let mut dice = Dice(u64::from(sequences));
    let max_rows = device.info().max_rows;
    let tolerance = tolerance(model);
    for round in 0..24 {
        let mut wants = Vec::new();
        let (mut tokens, mut rows) = (0, 0);
        // Rounds of plain decoding with everybody in between, so that graphs are used again.
        let plain = round % 4 >= 2;
        for sequence in 0..sequences {
            if !plain && dice.below(3) == 0 {
                continue;
            }
            let (count, wanted) = match if plain { 0 } else { dice.below(8) } {
                0..=3 => (1, 1),
                4 => (4, 4),
                5 => (3, 2),
                6 => (30 + dice.below(120), 1),
                _ => (5 + dice.below(20), 0),
            };
            if device.end(sequence) + count > 500 {
                for context in [&device, &host] {
                    assert_eq!(context.remove(sequence, 0), abi::ERR_OK);
                }
            }
            if tokens + count > 512 || rows + wanted > max_rows {
                continue;
            }
            (tokens, rows) = (tokens + count, rows + wanted);
            wants.push(Want {
                sequence,
                tokens: some_tokens(&mut dice, count),
                rows: wanted,
                candidates: [0, 1, 40, 1000][dice.below(4) as usize],
            });
        }
        if wants.is_empty() {
            continue;
        }
        // The host's order is not llama.cpp's.
        let length = wants.len();
        wants.rotate_left(dice.below(length as u32) as usize);
        let got = step(&device, &wants, round % 2 == 0);
        let slices: Vec<(u32, u32, &[i32], u32)> = wants
            .iter()
            .map(|want| (want.sequence, host.end(want.sequence), want.tokens.as_slice(), want.rows))
            .collect();
        let ticket = host.submit(&slices).unwrap();
        let expected = host.collect(ticket, got.len()).unwrap();
        let names = wants.iter().flat_map(|want| std::iter::repeat_n(want.sequence, want.rows as usize));
        for ((got, expected), sequence) in got.iter().zip(&expected).zip(names) {
            close(got, expected, tolerance, &format!("round {round}, sequence {sequence} of {sequences}"));
        }
        if moves && sequences > 1 {
            let (from, to) = (dice.below(sequences), dice.below(sequences));
            let end = device.end(from);
            if from == to || end == 0 {
                continue;
            }
            let kind = dice.below(3);
            for context in [&device, &host] {
                match kind {
                    0 => {
                        assert_eq!(context.remove(to, 0), abi::ERR_OK);
                        assert_eq!(context.copy(from, to, end), abi::ERR_OK);
                    }
                    1 => {
                        let state = context.save(from).unwrap();
                        assert_eq!(context.remove(from, 0), abi::ERR_OK);
                        assert_eq!(context.restore(from, &state), abi::ERR_OK);
                    }
                    _ => assert_eq!(context.remove(from, end / 2), abi::ERR_OK),
                }
            }
        }
    }
}

fn models() -> impl Iterator<Item = PathBuf> {
    stories().into_iter().chain([demo()])
}

#[test]
fn rows_on_the_device_are_the_rows() {
    let (engine, _turn) = engine_on_gpu();
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        for sequences in [1, 2, 7, 32] {
            compare(&model, sequences, UNIFIED, UNIFIED_OFF, true);
            compare(&model, sequences, SPLIT, SPLIT_OFF, true);
        }
    }
}

#[test]
fn a_large_vocabulary_is_narrowed_step_by_step() {
    let (engine, _turn) = engine_on_gpu();
    let folder = tempfile::tempdir().unwrap();
    // With something left over at the end of each step, and without.
    for n_vocab in [50_257, 32_768] {
        let path = plain(&folder, n_vocab);
        let model = engine.try_load(&path).unwrap();
        compare(&model, 5, UNIFIED, UNIFIED_OFF, true);
        compare(&model, 3, SPLIT, SPLIT_OFF, true);
    }
}

#[test]
fn other_shapes_cut_their_steps_otherwise() {
    let (engine, _turn) = engine_on_gpu();
    let folder = tempfile::tempdir().unwrap();
    for path in [recurrent(&folder), sliding(&folder)] {
        let model = engine.try_load(&path).unwrap();
        compare(&model, 5, KEPT, KEPT_OFF, false);
        compare(&model, 5, SPLIT, SPLIT_OFF, false);
    }
}

#[test]
fn rows_outlive_what_is_not_a_step() {
    let (engine, _turn) = engine_on_gpu();
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        for options in [UNIFIED, SPLIT] {
            let context = model.context(params(4, options));
            let mut dice = Dice(1);
            // In a split cache the hole makes two calls of it.
            let wants: Vec<Want> = [0, 1, 3]
                .map(|sequence| Want { sequence, tokens: some_tokens(&mut dice, 9), rows: 2, candidates: 20 })
                .into();
            let whole = step(&context, &wants, false);
            let ticket = 1;
            assert_eq!(context.copy(0, 2, 9), abi::ERR_OK);
            let state = context.save(1).unwrap();
            assert_eq!(context.remove(1, 0), abi::ERR_OK);
            assert_eq!(context.restore(1, &state), abi::ERR_OK);
            assert_eq!(context.remove(3, 4), abi::ERR_OK);
            // A step that is refused is none.
            assert_eq!(context.submit(&[(3, 9, &[5], 1)]), Err(abi::ERR_INVALID_ARGUMENT));
            for (row, whole) in whole.iter().enumerate() {
                assert!(context.fetch(ticket, row).unwrap() == *whole);
            }
            let described = context.describe(ticket, whole.len()).unwrap();
            for (row, whole) in described.iter().zip(&whole) {
                // SAFETY: there is at least one candidate.
                assert_eq!(unsafe { *row.ids }, greedy(whole));
            }
            assert_eq!(context.fetch(ticket, whole.len()), Err(abi::ERR_INVALID_ARGUMENT));
            assert_eq!(context.fetch(ticket + 1, 0), Err(abi::ERR_INVALID_ARGUMENT));
            // A step without rows ends them.
            let silent = context.submit(&[(0, 9, &[5, 6], 0)]).unwrap();
            assert_eq!(context.fetch(silent, 0), Err(abi::ERR_INVALID_ARGUMENT));
        }
    }
}

/// Does the engine go as far as asked, with a pick that names something of the chain?
#[test]
fn shaped_logits_are_not_claimed() {
    let (engine, _turn) = engine_on_gpu();
    let model = engine.try_load(&demo()).unwrap();
    let context = model.context(params(2, UNIFIED));
    // SAFETY: all zero is a valid value of the struct.
    let mut pick: abi::EnginePick = unsafe { std::mem::zeroed() };
    pick.struct_size = size_of::<abi::EnginePick>() as u32;
    pick.stage = abi::ENGINE_STAGE_TOKEN;
    pick.n_candidates = 5;
    let bias = abi::EngineBias { token: 7, bias: -5.0 };
    (pick.bias, pick.n_bias) = (&raw const bias, 1);
    for (uses, stage) in [(abi::ENGINE_PICK_BIAS, 0), (abi::ENGINE_PICK_TOP_K, abi::ENGINE_STAGE_TOP)] {
        pick.uses = uses;
        let tokens = [5, 6, 7];
        let slice = abi::EngineSlice {
            sequence: 0,
            position: context.end(0),
            n_tokens: 3,
            n_rows: 1,
            tokens: tokens.as_ptr(),
            pick: &raw const pick,
            adapter: std::ptr::null_mut(),
            adapter_scale: 0.0,
            reserved: 0,
        };
        let batch = abi::EngineBatch {
            struct_size: size_of::<abi::EngineBatch>() as u32,
            n_slices: 1,
            slice_stride: size_of::<abi::EngineSlice>(),
            slices: &raw const slice,
        };
        let mut ticket = 0;
        // SAFETY: as the header says.
        let code = unsafe { context.table().step.unwrap()(context.raw, &raw const batch, &raw mut ticket) };
        assert_eq!(code, abi::ERR_OK);
        assert_eq!(context.describe(ticket, 1).unwrap()[0].stage, stage);
    }
}

#[test]
fn the_estimate_counts_what_rows_on_the_device_take() {
    let (engine, _turn) = engine_on_gpu();
    let folder = tempfile::tempdir().unwrap();
    // SAFETY: all zero is a valid value of the struct.
    let none: abi::EngineMemoryUse = unsafe { std::mem::zeroed() };
    for path in models().chain([plain(&folder, 50_257)]) {
        let path_text = CString::new(path.to_str().unwrap()).unwrap();
        let mut computed = HashMap::new();
        for options in [UNIFIED, SPLIT, UNIFIED_OFF] {
            let texts: Vec<(CString, CString)> = options
                .iter()
                .map(|(key, value)| (CString::new(*key).unwrap(), CString::new(*value).unwrap()))
                .collect();
            let raw: Vec<abi::EngineOption> = texts
                .iter()
                .map(|(key, value)| abi::EngineOption { key: key.as_ptr(), value: value.as_ptr() })
                .collect();
            let context_params = params(8, options).raw(&raw);
            let model_params = model_params(&path_text);
            let (mut estimate, mut count) = ([none; 8], 0);
            // SAFETY: as the header says.
            let code = unsafe {
                engine.memory.estimate.unwrap()(
                    &raw const model_params,
                    &raw const context_params,
                    estimate.as_mut_ptr(),
                    8,
                    &raw mut count,
                )
            };
            assert_eq!(code, abi::ERR_OK);
            let model = engine.try_load(&path).unwrap();
            let _context = model.context(params(8, options));
            let (mut usage, mut used) = ([none; 8], 0);
            // SAFETY: as the header says.
            let code =
                unsafe { engine.memory.usage.unwrap()(model.raw, usage.as_mut_ptr(), 8, &raw mut used) };
            assert_eq!(code, abi::ERR_OK);
            for expected in &estimate[..count] {
                let found = usage[..used].iter().find(|found| found.device == expected.device).unwrap();
                assert_eq!((found.cache, found.compute), (expected.cache, expected.compute), "{options:?}");
            }
            computed.insert(options, estimate[..count].iter().map(|memory| memory.compute).sum::<u64>());
        }
        // Five rows in the host's memory instead of one, for each of 32 sequence ids.
        let n_vocab = u64::from(engine.try_load(&path).unwrap().info().n_vocab);
        assert!(computed[UNIFIED] > computed[UNIFIED_OFF] + 32 * 4 * n_vocab * 4);
    }
}

#[test]
fn rows_stay_on_the_device_where_that_was_asked_for() {
    let (engine, _turn) = engine_on_gpu();
    let model = engine.try_load(&demo()).unwrap();
    let most = |sequences: u32, options: Options| {
        let params = Params { sequences, length: 256, options, ..Params::default() };
        model.context(params).info().max_candidates
    };
    assert_eq!(most(2, &[("device_rows", "on")]), 128);
    assert_eq!(most(2, &[("device_rows", "on"), ("device_candidates", "64")]), 64);
    assert_eq!(most(32, &[("device_rows", "off")]), 0);
    // By itself a GPU that serves many does, and the processor never.
    assert_eq!(most(32, &[]), if on_gpu() { 128 } else { 0 });
    let wrong = Params { sequences: 1, options: &[("device_rows", "maybe")], ..Params::default() };
    assert_eq!(model.try_context(wrong).err(), Some(abi::ERR_INVALID_ARGUMENT));
}
