//! Damaged model files are refused with a code and a message, and never take the process down.
//!
//! Every case runs in a child of this test, so that a crash names its case instead of ending the run.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "a test and its child")]

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use llm_node_abi as abi;
use support::{ERRORS, Params, engine, stories};

/// Set in the child: the folder of its files.
const CHILD: &str = "LLAMA_ENGINE_DAMAGED";
const FILES_PER_CHILD: usize = 64;

/// Loads each file of a folder, in the child.
#[test]
fn child() {
    let Some(folder) = std::env::var_os(CHILD) else { return };
    let (engine, _turn) = engine();
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for path in files {
        println!("case {}", path.file_name().unwrap().to_str().unwrap());
        ERRORS.lock().unwrap().clear();
        match engine.try_load(&path) {
            Ok(model) => {
                // A flipped bit may leave a model that works, or one that only looks it.
                let _ = model.tokenize(b"Once upon a time", true);
                if let Ok(context) =
                    model.try_context(Params { sequences: 2, length: 256, ..Params::default() })
                {
                    let _ = context.submit(&[(0, 0, &[1, 2, 3], 1)]).map(|ticket| context.collect(ticket, 1));
                }
                println!("loaded");
            }
            Err(code) => {
                let errors = ERRORS.lock().unwrap();
                println!("refused {} {}", code.0, errors.last().unwrap());
                assert!(
                    [abi::ERR_MODEL_CORRUPT, abi::ERR_LOAD_FAILED, abi::ERR_UNSUPPORTED, abi::ERR_OOM_RAM]
                        .contains(&code),
                    "{code}"
                );
            }
        }
    }
    println!("done");
}

/// What became of each case.
fn load_all(cases: &[(String, Vec<u8>)]) -> Vec<String> {
    let mut outcomes = Vec::new();
    for chunk in cases.chunks(FILES_PER_CHILD) {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in chunk {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        outcomes.extend(child_of(folder.path()));
    }
    outcomes
}

fn child_of(folder: &Path) -> Vec<String> {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(CHILD, folder)
        .env("GGML_NO_BACKTRACE", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<String> = text
        .lines()
        .skip_while(|line| !line.contains("case "))
        .take_while(|line| !line.starts_with("done"))
        .map(str::to_owned)
        .collect();
    if std::env::var_os("SHOW").is_some() {
        eprintln!("{}", lines.join("\n"));
    }
    assert!(
        output.status.success(),
        "{} at {}\n{}",
        output.status,
        lines.last().map_or("start", String::as_str),
        String::from_utf8_lossy(&output.stderr)
    );
    lines.into_iter().filter(|line| !line.contains("case ")).collect()
}

/// Where the tensors begin: everything before is header.
fn header_length(bytes: &[u8]) -> usize {
    // The weights of this model are 260 K floats.
    bytes.len() - 260_032 * 4
}

fn all_refused(outcomes: &[String], count: usize) {
    assert_eq!(outcomes.len(), count);
    for outcome in outcomes {
        assert!(outcome.starts_with("refused"), "{outcome}");
    }
}

#[test]
fn truncated_files_are_refused() {
    let Some(path) = stories() else { return };
    let bytes = std::fs::read(path).unwrap();
    let header = header_length(&bytes) + 64 * 1024;
    let mut cases: Vec<(String, Vec<u8>)> = (0..header.min(bytes.len()))
        .step_by(256)
        .map(|length| (format!("{length:08}"), bytes[..length].to_vec()))
        .collect();
    for length in [1, 3, 4, 7, 8, 15, 16, 23, 24, 25, 32, bytes.len() - 1] {
        cases.push((format!("{length:08}x"), bytes[..length].to_vec()));
    }
    all_refused(&load_all(&cases), cases.len());
}

/// A sequence of numbers that is the same in every run.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }
}

#[test]
fn random_bytes_are_refused() {
    let mut numbers = Numbers(1);
    let mut cases = vec![("empty".to_owned(), Vec::new())];
    for index in 0..24 {
        let mut bytes: Vec<u8> = (0..4096).map(|_| numbers.next() as u8).collect();
        // Half of them look like a model for the first eight bytes.
        if index % 2 == 0 {
            bytes[..8].copy_from_slice(b"GGUF\x03\0\0\0");
        }
        cases.push((format!("{index:02}"), bytes));
    }
    all_refused(&load_all(&cases), cases.len());
}

#[test]
fn flipped_bits_do_no_harm() {
    let Some(path) = stories() else { return };
    let bytes = std::fs::read(path).unwrap();
    let header = header_length(&bytes);
    let flips: usize = std::env::var("FLIPS").ok().and_then(|n| n.parse().ok()).unwrap_or(256);
    let mut numbers = Numbers(std::env::var("SEED").ok().and_then(|n| n.parse().ok()).unwrap_or(2));
    let cases: Vec<(String, Vec<u8>)> = (0..flips)
        .map(|index| {
            let mut damaged = bytes.clone();
            // Mostly where keys and counts are.
            let range = if index % 4 == 0 { header } else { 2048 };
            let place = numbers.next() as usize % range;
            let bit = numbers.next() % 8;
            damaged[place] ^= 1 << bit;
            (format!("{index:04}-byte{place}-bit{bit}"), damaged)
        })
        .collect();
    assert_eq!(load_all(&cases).len(), cases.len());
}

/// Where a key's value begins: behind the key and its type.
fn value_of(bytes: &[u8], key: &str) -> usize {
    let found = bytes.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
    found + key.len() + 4
}

#[test]
fn absurd_numbers_are_refused() {
    let Some(path) = stories() else { return };
    let bytes = std::fs::read(path).unwrap();
    let mut cases = Vec::new();
    let mut put = |name: &str, place: usize, value: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[place..place + value.len()].copy_from_slice(value);
        cases.push((name.to_owned(), damaged));
    };
    for (name, value) in [("max", u64::MAX), ("huge", 1 << 62), ("many", 1 << 32), ("some", 1 << 20)] {
        put(&format!("tensors-{name}"), 8, &value.to_le_bytes());
        put(&format!("keys-{name}"), 16, &value.to_le_bytes());
        put(&format!("key-length-{name}"), 24, &value.to_le_bytes());
        // The array's own type comes before its length.
        put(&format!("tokens-{name}"), value_of(&bytes, "tokenizer.ggml.tokens") + 4, &value.to_le_bytes());
        put(&format!("scores-{name}"), value_of(&bytes, "tokenizer.ggml.scores") + 4, &value.to_le_bytes());
    }
    for version in [0_u32, 1, 4, 0x0300_0000, u32::MAX] {
        put(&format!("version-{version}"), 4, &version.to_le_bytes());
    }
    for key in [
        "llama.block_count",
        "llama.embedding_length",
        "llama.feed_forward_length",
        "llama.attention.head_count",
        "llama.attention.head_count_kv",
    ] {
        for value in [0_u32, 1, 3, 513, 1 << 20, 1 << 31, u32::MAX] {
            put(&format!("{key}-{value}"), value_of(&bytes, key), &value.to_le_bytes());
        }
    }
    all_refused(&load_all(&cases), cases.len());
}
