//! What one thread takes to pick one token. `target/criterion/sample_*/*/new/estimates.json` holds
//! the figures, in nanoseconds per row.
//!
//! One row is used again and again, so that it lies in the processor's cache, as a row that an engine
//! on the same machine has just written does.

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use llm_node_core::{
    request::Sampling,
    sample::{Forbidden, Occurrences, Sampler, rng},
};

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
        ("min_p", Sampling { min_p: 0.05, ..Sampling::default() }, None),
        ("top_p_only", Sampling { top_p: 0.95, ..Sampling::default() }, None),
        ("pure_temperature", Sampling { temperature: 0.8, ..Sampling::default() }, None),
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

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    targets = sample
}
criterion_main!(benches);
