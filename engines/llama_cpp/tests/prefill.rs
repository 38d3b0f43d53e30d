//! Prompts that come in one step to a split cache are read together in a pool. Nobody sees it in the answers.
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use llm_node_abi as abi;
use support::{Context, LOG, Model, Params, demo, engine, stories};

// Models with narrow heads would go without flash attention, and so without a pool.
const POOL: &[(&str, &str)] = &[("cache_mode", "split"), ("flash_attention", "on")];
const NO_POOL: &[(&str, &str)] =
    &[("cache_mode", "split"), ("flash_attention", "on"), ("prefill_pool", "off")];
const WORDS: &str = "Once upon a time there was a little girl who had a big red ball and a small dog. She went to \
    the park with her mom, and they saw an engine which loads a model and serves it to many people at once. The \
    dog was happy, and the girl said to the people that one day she would like to read the whole book to him.";

fn params(options: &'static [(&'static str, &'static str)]) -> Params {
    Params { sequences: 8, length: 512, rows: 64, options, ..Params::default() }
}

fn models() -> impl Iterator<Item = PathBuf> {
    stories().into_iter().chain([demo()])
}

/// Each sequence has other words, so that a mistaken place shows.
fn prompt(model: &Model<'_>, sequence: u32, length: usize) -> Vec<i32> {
    let tokens = model.tokenize(WORDS.as_bytes(), true);
    tokens.iter().copied().cycle().skip(7 * sequence as usize).take(length).collect()
}

/// Lines of the log that say what a pool takes: bytes, and bytes set aside.
fn pools() -> Vec<(u64, u64)> {
    let log = LOG.lock().unwrap();
    let lines = log.iter().filter_map(|line| line.split_once("prefill pool: ")).map(|(_, line)| {
        let numbers: Vec<u64> = line.split(' ').filter_map(|word| word.parse().ok()).collect();
        (numbers[1], numbers[2])
    });
    lines.collect()
}

/// Sequence, length and rows of each slice.
type Step = &'static [(u32, usize, u32)];

/// The rows of a step, and of three that follow.
fn answers(
    model: &Model<'_>,
    options: &'static [(&'static str, &'static str)],
    slices: Step,
) -> Vec<Vec<f32>> {
    let mut context = model.context(params(options));
    // A sequence that goes on, in the middle of the ids.
    let old = prompt(model, 3, 30);
    context.run(&[(3, &old)]);
    let prompts: Vec<Vec<i32>> =
        slices.iter().map(|(sequence, length, _)| prompt(model, *sequence, *length)).collect();
    let full: Vec<(u32, u32, &[i32], u32)> = slices
        .iter()
        .zip(&prompts)
        .map(|((sequence, _, rows), prompt)| (*sequence, context.end(*sequence), prompt.as_slice(), *rows))
        .collect();
    let wanted: u32 = slices.iter().map(|(_, _, rows)| rows).sum();
    let ticket = context.submit(&full).unwrap();
    let mut rows = context.collect(ticket, wanted as usize).unwrap();
    for (sequence, length, _) in slices {
        let held = if *sequence == 3 { 30 } else { 0 };
        assert_eq!(context.range(*sequence), (0, held + *length as u32));
    }
    for _ in 0..3 {
        let next: Vec<(u32, &[i32])> = slices.iter().map(|(sequence, _, _)| (*sequence, &old[..1])).collect();
        rows.extend(context.run(&next));
    }
    rows
}

#[test]
fn a_pool_changes_no_answer() {
    let (engine, _turn) = engine();
    // In whatever order, of whatever length, with several rows and with none.
    let steps: &[(Step, bool)] = &[
        (&[(0, 40, 1), (1, 40, 1)], true),
        (&[(7, 12, 1), (0, 50, 1), (5, 63, 1), (2, 1, 1)], true),
        (&[(6, 70, 3), (3, 5, 2), (1, 9, 9), (4, 100, 0), (0, 90, 1)], true),
        // More than fit: the last are read as ever.
        (&[(0, 300, 1), (1, 180, 1), (2, 200, 1), (4, 31, 1)], true),
        // Nothing to gain: alone, of one length and long, of one length and few.
        (&[(0, 40, 1)], false),
        (&[(0, 40, 1), (3, 40, 1)], false),
        (&[(0, 64, 1), (1, 64, 1)], false),
        (&[(0, 20, 1), (1, 20, 1)], false),
    ];
    for path in models() {
        let model = engine.try_load(&path).unwrap();
        // Floats are added up in another order, and where weights are quantised, activations are rounded.
        let most = if path == demo() { 0.5 } else { 0.1 };
        for (slices, is_pooled) in steps {
            let before = pools().len();
            let expected = answers(&model, NO_POOL, slices);
            assert_eq!(pools().len(), before, "it was off");
            let found = answers(&model, POOL, slices);
            assert_eq!(pools().len(), before + usize::from(*is_pooled), "{slices:?}");
            assert_eq!(found.len(), expected.len());
            for (index, (one, other)) in found.iter().zip(&expected).enumerate() {
                let worst = one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(worst < most, "row {index} of {slices:?} in {path:?} differs by {worst}");
            }
        }
    }
    let all = pools();
    assert!(all.iter().all(|(taken, aside)| taken <= aside), "{all:?}");
}

#[test]
fn a_pool_is_part_of_what_a_context_takes() {
    let (engine, _turn) = engine();
    let model = engine.try_load(&demo()).unwrap();
    let compute = |options| {
        let _context = model.context(params(options));
        model.usage()[0].compute
    };
    let (with, without) = (compute(POOL), compute(NO_POOL));
    assert!(with > 2 * without, "{with} {without}");
}

#[test]
fn a_step_that_is_cancelled_in_the_pool_leaves_its_sequences_empty() {
    let (engine, _turn) = engine();
    let model = engine.try_load(&demo()).unwrap();
    let context = model.context(params(POOL));
    let prompts: Vec<Vec<i32>> = (0..8).map(|index| prompt(&model, index, 55 + index as usize)).collect();
    let slices: Vec<(u32, u32, &[i32], u32)> =
        (0..).zip(&prompts).map(|(sequence, prompt)| (sequence, 0, prompt.as_slice(), 1)).collect();
    let shared = Shared(&context);
    let is_over = AtomicBool::new(false);
    let mut cancelled = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                shared.cancel();
                std::thread::yield_now();
            }
        });
        for _ in 0..1000 {
            match context.submit(&slices) {
                Err(code) => {
                    assert_eq!(code, abi::ERR_CANCELLED);
                    assert!((0..8).all(|sequence| context.range(sequence) == (0, 0)));
                    cancelled += 1;
                }
                Ok(ticket) => {
                    assert_eq!(context.collect(ticket, 8).unwrap().len(), 8);
                    for sequence in 0..8 {
                        assert!(context.remove(sequence, 0).is_ok());
                    }
                }
            }
            if cancelled > 3 {
                break;
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    assert!(cancelled > 0, "no step was under way when it was cancelled");
    let rows = context.submit(&slices).and_then(|ticket| context.collect(ticket, 8)).unwrap();
    assert_eq!(rows.len(), 8);
}

/// A context of which another thread calls nothing but cancel, as the header allows.
struct Shared<'a>(&'a Context<'a>);

// SAFETY: see there.
unsafe impl Sync for Shared<'_> {}

impl Shared<'_> {
    fn cancel(&self) {
        self.0.cancel();
    }
}
