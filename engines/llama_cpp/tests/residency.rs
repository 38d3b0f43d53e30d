//! What is in memory: weights that llama.cpp repacks for the processor once, and of a cache what was written.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a failing call fails the test")]

mod support;

use std::path::{Path, PathBuf};

use llm_node_abi as abi;
use support::gguf::{Kind, N_VOCAB, Value, write_as};
use support::{Params, engine};

const WIDTH: u64 = 256;
const INNER: u64 = 16 * 1024;
const LAYERS: u64 = 4;

/// Some 28 MB, nearly all of them weights that are repacked where the processor has a kernel for that.
fn wide(folder: &tempfile::TempDir) -> PathBuf {
    written(folder, Kind::Q4_0, INNER)
}

/// A model nearly all of whose weights are of this kind.
fn written(folder: &tempfile::TempDir, kind: Kind, inner: u64) -> PathBuf {
    let path = folder.path().join("wide.gguf");
    let mut tensors = vec![
        ("token_embd.weight".to_owned(), vec![WIDTH, u64::from(N_VOCAB)]),
        ("output_norm.weight".to_owned(), vec![WIDTH]),
    ];
    for layer in 0..LAYERS {
        let shapes: [(&str, &[u64]); 9] = [
            ("attn_norm", &[WIDTH]),
            ("attn_q", &[WIDTH, WIDTH]),
            ("attn_k", &[WIDTH, WIDTH]),
            ("attn_v", &[WIDTH, WIDTH]),
            ("attn_output", &[WIDTH, WIDTH]),
            ("ffn_norm", &[WIDTH]),
            ("ffn_gate", &[WIDTH, inner]),
            ("ffn_up", &[WIDTH, inner]),
            ("ffn_down", &[inner, WIDTH]),
        ];
        let named = |(name, shape): &(&str, &[u64])| (format!("blk.{layer}.{name}.weight"), shape.to_vec());
        tensors.extend(shapes.iter().map(named));
    }
    let values = [
        ("context_length", Value::Number(512)),
        ("embedding_length", Value::Number(WIDTH as u32)),
        ("block_count", Value::Number(LAYERS as u32)),
        ("feed_forward_length", Value::Number(inner as u32)),
        ("attention.head_count", Value::Number(4)),
        ("attention.head_count_kv", Value::Number(4)),
        ("rope.dimension_count", Value::Number(64)),
        ("attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
    ];
    write_as(kind, &path, "llama", &values, &tensors);
    path
}

/// Bytes of a file that are in this process's memory as they are mapped.
fn resident(path: &Path) -> u64 {
    let mut inside = false;
    let mut sum = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some(rest) = line.strip_prefix("Rss:") {
            let kilobytes: u64 = rest.trim().strip_suffix(" kB").unwrap().parse().unwrap();
            sum += if inside { kilobytes * 1024 } else { 0 };
        } else if line.split_whitespace().next().is_some_and(|first| first.contains('-')) {
            inside = line.ends_with(path.to_str().unwrap());
        }
    }
    sum
}

/// Bytes of memory of this process that are no file's.
fn private() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

fn weights(uses: &[abi::EngineMemoryUse]) -> u64 {
    uses.iter().map(|memory| memory.weights).sum()
}

#[test]
fn what_is_repacked_is_in_memory_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = wide(&folder);
    let size = std::fs::metadata(&path).unwrap().len();
    let (engine, _turn) = engine();
    let model = engine.try_load(&path).unwrap();
    let params = Params { sequences: 1, length: 256, cache: 256, ..Params::default() };
    let mut context = model.context(params);
    let before = resident(&path);
    let prompt: Vec<i32> = (3..40).collect();
    let row = context.run(&[(0, &prompt)]).remove(0);
    assert!(
        row.iter().all(|logit| logit.is_finite()) && row.iter().any(|logit| (logit - row[0]).abs() > 0.0)
    );
    // The same weight is never counted twice, though it may have another size once repacked.
    let counted = weights(&model.usage());
    let estimated = weights(&engine.estimate(&path, None));
    assert_eq!(counted, estimated);
    assert!(counted * 10 >= size * 8 && counted * 10 <= size * 13, "{counted} of a file of {size}");
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // Attention and embeddings are used as the file has them: 4.5 MB.
        assert!(before < size / 3 && resident(&path) < size / 3, "{before}, {} of {size}", resident(&path));
        return;
    }
    eprintln!("skipped: whether this processor has its weights repacked is not known ({before} of {size})");
}

#[test]
fn weights_that_are_used_as_they_lie_are_in_pages_of_their_own() {
    let modes = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").unwrap_or_default();
    if modes.is_empty() || modes.contains("[never]") {
        eprintln!("skipped: the kernel gives no huge pages");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // 55 MB of numbers that no processor has repacked.
    let path = written(&folder, Kind::F32, 4096);
    let size = std::fs::metadata(&path).unwrap().len();
    let (engine, _turn) = engine();
    let prompt: Vec<i32> = (3..40).collect();
    let mapped = [abi::EngineOption { key: c"load_mode".as_ptr(), value: c"mmap".as_ptr() }];
    let run = |options: &[abi::EngineOption]| {
        let model = engine.try_load_with(&path, options).unwrap();
        let mut context =
            model.context(Params { sequences: 1, length: 256, cache: 256, ..Params::default() });
        let row = context.run(&[(0, &prompt)]).remove(0);
        (row, resident(&path), weights(&model.usage()))
    };
    let (row, there, counted) = run(&mapped);
    let (same, left, moved) = run(&[]);
    assert_eq!((row, counted), (same, moved));
    assert!(there > size * 3 / 4 && left < size / 4, "{there} and {left} of {size}");
}

#[test]
fn a_cache_is_in_memory_as_far_as_it_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let (engine, _turn) = engine();
    let model = engine.try_load(&wide(&folder)).unwrap();
    let before = private();
    let mut context =
        model.context(Params { sequences: 128, length: 512, cache: 1 << 16, ..Params::default() });
    let prompt: Vec<i32> = (3..40).collect();
    context.run(&[(0, &prompt)]);
    let cache: u64 = model.usage().iter().map(|memory| memory.cache).sum();
    let grown = private().saturating_sub(before);
    assert!(cache >= 256 << 20 && grown < cache / 2, "{grown} of {cache}");
}
