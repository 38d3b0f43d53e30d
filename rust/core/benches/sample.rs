//! What one thread takes to pick one token, beside what a naive chain takes, and what several threads take for
//! many. `target/criterion/sample_*/*/new/estimates.json` holds the figures, in nanoseconds per row.
//!
//! One row is used again and again, so that it lies in the processor's cache, as a row that an engine
//! on the same machine has just written does.

use std::{hint::black_box, num::NonZeroUsize, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use llm_node_core::{
    engine::Row,
    request::Sampling,
    sample::{Forbidden, Job, Occurrences, Sampler, Samplers, rng},
};
use llm_node_cpu::Crew;

/// SmolLM2, Llama 3, Qwen 2.5 and Gemma 3.
const VOCABULARIES: [usize; 4] = [49_152, 128_256, 151_936, 262_144];
/// Standard deviation of the logits: that of large models lies between 2 and 3.
const SPREAD: f32 = 2.5;

/// Logits with a normal distribution, by Box and Muller.
fn gaussian(length: usize) -> Vec<f32> {
    (0..length as u64)
        .map(|id| {
            let radius = (-2.0 * (1.0 - rng::uniform(1, 2 * id)).ln()).sqrt();
            SPREAD * radius * (std::f32::consts::TAU * rng::uniform(1, 2 * id + 1)).cos()
        })
        .collect()
}

fn sample(criterion: &mut Criterion) {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let usual = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() };
    let penalised =
        Sampling { repeat_penalty: 1.1, frequency_penalty: 0.1, presence_penalty: 0.1, ..usual.clone() };
    let cases = [
        ("greedy", greedy.clone(), None),
        ("top_k_40_top_p_min_p_temp", usual, None),
        ("top_k_40", Sampling { top_k: 40, ..Sampling::default() }, None),
        ("top_k_1000", Sampling { top_k: 1000, ..Sampling::default() }, None),
        ("min_p", Sampling { min_p: 0.05, ..Sampling::default() }, None),
        ("top_p_only", Sampling { top_p: 0.95, ..Sampling::default() }, None),
        ("pure_temperature", Sampling { temperature: 0.8, ..Sampling::default() }, None),
        ("logprob", greedy.clone(), Some(0)),
        ("logprobs_top20", greedy, Some(20)),
        ("penalties", penalised, None),
    ];
    let forbidden = Forbidden::default();
    for (name, sampling, logprobs) in cases {
        let mut group = criterion.benchmark_group(format!("sample/{name}"));
        for n_vocab in VOCABULARIES {
            let row = gaussian(n_vocab);
            // 256 different tokens.
            let history: Vec<_> = (0..256).map(|it| it * (n_vocab as i32 / 256) + it % 64).collect();
            let occurrences = Occurrences::of(&history);
            let mut sampler = Sampler::default();
            let mut position = 0;
            group.bench_with_input(BenchmarkId::from_parameter(n_vocab), &row, |bencher, row| {
                bencher.iter(|| {
                    position += 1;
                    let uniform = rng::uniform(7, position);
                    sampler.pick(black_box(row), &sampling, &occurrences, &forbidden, uniform, logprobs)
                });
            });
        }
        group.finish();
    }
}

/// What a chain over all tokens takes: a list of them with their logits, the 40 best of it by selection, and all
/// of it by a sort.
fn naive(criterion: &mut Criterion) {
    let list = |row: &[f32]| (0u32..).zip(row.iter().copied()).collect::<Vec<_>>();
    let best_first = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1);
    for n_vocab in VOCABULARIES {
        let row = gaussian(n_vocab);
        criterion.bench_with_input(BenchmarkId::new("naive/select_40", n_vocab), &row, |bencher, row| {
            bencher.iter(|| {
                let mut all = list(black_box(row));
                all.select_nth_unstable_by(39, best_first);
                all.truncate(40);
                all.sort_unstable_by(best_first);
                all
            });
        });
        criterion.bench_with_input(BenchmarkId::new("naive/softmax_sort", n_vocab), &row, |bencher, row| {
            bencher.iter(|| {
                let mut all = list(black_box(row));
                all.sort_unstable_by(best_first);
                let max = all[0].1;
                let sum: f32 = all.iter().map(|it| (it.1 - max).exp()).sum();
                for it in &mut all {
                    it.1 = (it.1 - max).exp() / sum;
                }
                all
            });
        });
    }
}

/// All rows of a step, of 128 k logits each, on one thread and with a crew of as many as there are cores: a step
/// has done nothing else by then, so they are free.
fn rows(criterion: &mut Criterion) {
    let sampling = Sampling { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.05, ..Sampling::default() };
    let (occurrences, forbidden) = (Occurrences::default(), Forbidden::default());
    let row = Row::Whole(gaussian(128_256).into());
    let cores = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    for (name, size) in [("rows/one_thread", NonZeroUsize::MIN), ("rows/crew", cores)] {
        let Ok(mut crew) = Crew::new(size, "bench") else { continue };
        let mut samplers = Samplers::new(size.get());
        for n in [1, 6, 16, 64] {
            let job = |position| Job {
                row: &row,
                sampling: &sampling,
                occurrences: &occurrences,
                mask: None,
                uniform: rng::uniform(7, position),
                logprobs: None,
            };
            let jobs: Vec<_> = (0..n).map(job).collect();
            criterion.bench_with_input(BenchmarkId::new(name, n), &jobs, |bencher, jobs| {
                bencher.iter(|| samplers.pick(Some(&mut crew), black_box(jobs), &forbidden).count());
            });
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = sample, naive, rows
}
criterion_main!(benches);
