//! The Rust mirror against the header: a C program prints the size and offset of every member and the
//! value of every constant, and Rust prints its own. The two lists must be one.
//!
//! The lists themselves cannot go stale: a Rust member that is missing from its list does not compile,
//! and a struct or constant of the header that is missing fails `nothing_is_left_out`.
//!
//! Needs a C and a C++ compiler: `$CC` and `$CXX`, or `cc` and `c++`.
#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use llm_node_abi::*;

fn compiler(variable: &str, fallback: &str) -> Command {
    Command::new(std::env::var(variable).unwrap_or_else(|_| fallback.to_owned()))
}

/// A directory of this test's own, below cargo's.
fn scratch(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn member_size<T, M>(_: fn(*const T) -> *const M) -> usize {
    size_of::<M>()
}

macro_rules! structs {
    ($($name:ident { $($member:ident),+ $(,)? })+) => {
        /// Lines of "struct size alignment" and "struct.member offset size", from Rust.
        fn rust_structs() -> Vec<String> {
            let mut lines = Vec::new();
            $(
                lines.push(format!("{} {} {}", stringify!($name), size_of::<$name>(), align_of::<$name>()));
                $(lines.push(format!(
                    "{}.{} {} {}",
                    stringify!($name),
                    stringify!($member),
                    std::mem::offset_of!($name, $member),
                    // SAFETY: never called: only its type is looked at.
                    member_size::<$name, _>(|p| unsafe { &raw const (*p).$member }),
                ));)+
            )+
            lines
        }

        /// The same from C.
        const C_STRUCTS: &str = concat!($(
            "STRUCT(", stringify!($name), ")\n",
            $("MEMBER(", stringify!($name), ", ", stringify!($member), ")\n",)+
        )+);

        const STRUCTS: &[&str] = &[$(stringify!($name)),+];

        /// Does not compile if a member is missing above.
        #[allow(dead_code)]
        fn every_member_is_listed() {
            $(let _ = |value: $name| { let $name { $($member: _),+ } = value; };)+
        }
    };
}

structs! {
    EngineStr { data, len }
    EngineOption { key, value }
    EngineInfo { abi_version, engine_id, version }
    EngineHost { struct_size, abi_version, name, version, private_data, log, set_error, get_extension }
    EngineConfig {
        struct_size, n_threads, host, engine_dir, gpu_backend, vram_limit_bytes, ram_limit_bytes, context_length,
        max_tokens, options, n_options,
    }
    TokenLogprob { token_id, logprob, text, text_len }
    TokenResult { text, text_len, token_id, flags, logprob, finish, top, n_top }
    EngineModelParams { struct_size, gpu_layers, path, devices, n_devices, options, n_options, progress, user }
    EngineModelInfo {
        struct_size, flags, architecture, format, quantization, n_parameters, size_bytes, n_vocab, n_context,
        n_embedding, max_streams,
    }
    EngineModels { struct_size, load, unload, info, meta_count, meta_get }
    EngineDevice { struct_size, kind, name, description, bus_id, total_bytes, free_bytes }
    EngineMemoryUse { device, reserved, weights, cache, compute, cache_per_token, cache_per_sequence }
    EngineMemory { struct_size, device_count, device_get, estimate, usage }
    EngineVocab {
        struct_size, n_tokens, bytes, offsets, attributes, bos, eos, eot, pad, sep, mask, adds_bos, adds_eos,
    }
    EngineTokenizer { struct_size, vocab, tokenize, detokenize, chat_template }
    EngineAdapters { struct_size, load, unload }
    EngineBias { token, bias }
    EnginePick {
        struct_size, stage, uses, n_candidates, repeat_penalty, frequency_penalty, presence_penalty, temperature,
        top_p, min_p, top_k, n_bias, bias, history, n_history, masks, uniforms,
    }
    EngineContextParams {
        struct_size, max_sequences, context_length, max_batch_tokens, max_rows, rollback, cache_tokens, options,
        n_options,
    }
    EngineContextInfo {
        struct_size, flags, max_sequences, context_length, max_batch_tokens, max_rows, max_in_flight, max_rollback,
        max_candidates, cache_page, n_decode_sizes, reserved, cache_tokens, decode_sizes,
    }
    EngineSlice { sequence, position, n_tokens, n_rows, tokens, pick, adapter, adapter_scale, reserved }
    EngineBatch { struct_size, n_slices, slice_stride, slices }
    EngineRow { stage, dtype, n, token, logprob, log_sum, log_sum_t, reserved, ids, logits }
    EngineBatching {
        struct_size, create, destroy, info, step, collect, fetch, cancel, seq_copy, seq_remove, seq_range, cache_free,
        seq_save, seq_restore,
    }
    EngineRequest {
        struct_size, max_tokens, tokens, n_tokens, text, text_len, pick, seed, stop, n_stop, adapter, adapter_scale,
        priority, fill_mask, on_token, user,
    }
    EngineStreaming { struct_size, generate }
    EngineEvent { request, status, reserved, token }
    EngineServing { struct_size, submit, poll, cancel }
    EngineEmbedParams { struct_size, pooling, inputs, lengths, n_inputs }
    EngineEmbedding { struct_size, embed }
}

macro_rules! constants {
    ($($name:ident $(. $field:tt)?),+ $(,)?) => {
        fn rust_constants() -> Vec<String> {
            vec![$(format!("{} {}", stringify!($name), i64::from($name $(. $field)?))),+]
        }
        const C_CONSTANTS: &str = concat!($("CONSTANT(", stringify!($name), ")\n"),+);
        const CONSTANTS: &[&str] = &[$(stringify!($name)),+];
    };
}

constants! {
    ENGINE_ABI_VERSION,
    ERR_OK.0, ERR_OOM_VRAM.0, ERR_OOM_RAM.0, ERR_MODEL_CORRUPT.0, ERR_TIMEOUT.0, ERR_CANCELLED.0, ERR_UNSUPPORTED.0,
    ERR_INTERNAL.0, ERR_ABI_MISMATCH.0, ERR_LOAD_FAILED.0, ERR_INVALID_ARGUMENT.0, ERR_NOT_FOUND.0,
    ERR_BUFFER_TOO_SMALL.0, ERR_CACHE_FULL.0, ERR_DEVICE_LOST.0,
    ENGINE_TOKEN_NONE, ENGINE_TOKEN_PREVIOUS,
    ENGINE_LOG_DEBUG, ENGINE_LOG_INFO, ENGINE_LOG_WARN, ENGINE_LOG_ERROR,
    ENGINE_RESULT_ID, ENGINE_RESULT_LOGPROB,
    ENGINE_FINISH_STOP, ENGINE_FINISH_LENGTH, ENGINE_FINISH_CANCELLED,
    ENGINE_MODEL_GENERATES, ENGINE_MODEL_EMBEDS, ENGINE_MODEL_RANKS, ENGINE_MODEL_RECURRENT,
    ENGINE_DEVICE_HOST, ENGINE_DEVICE_CPU, ENGINE_DEVICE_GPU, ENGINE_DEVICE_INTEGRATED, ENGINE_DEVICE_OTHER,
    ENGINE_ATTR_CONTROL, ENGINE_ATTR_EOG, ENGINE_ATTR_BYTE, ENGINE_ATTR_UNUSED,
    ENGINE_TOKENIZE_ADD_SPECIAL, ENGINE_TOKENIZE_PARSE_SPECIAL,
    ENGINE_STAGE_LOGITS, ENGINE_STAGE_TOP, ENGINE_STAGE_TOKEN,
    ENGINE_PICK_REPEAT, ENGINE_PICK_FREQUENCY, ENGINE_PICK_PRESENCE, ENGINE_PICK_BIAS, ENGINE_PICK_MASK,
    ENGINE_PICK_LATE_MASK, ENGINE_PICK_TEMPERATURE, ENGINE_PICK_TOP_K, ENGINE_PICK_TOP_P, ENGINE_PICK_MIN_P,
    ENGINE_CONTEXT_SHARE, ENGINE_CONTEXT_ASYNC, ENGINE_CONTEXT_CHAIN, ENGINE_CONTEXT_LATE_MASK,
    ENGINE_CONTEXT_MIX_ADAPTER,
    ENGINE_F32, ENGINE_F16, ENGINE_BF16,
    ENGINE_POOL_MODEL, ENGINE_POOL_MEAN, ENGINE_POOL_CLS, ENGINE_POOL_LAST, ENGINE_POOL_RANK,
}

macro_rules! texts {
    ($($name:ident),+ $(,)?) => {
        fn rust_texts() -> Vec<String> {
            vec![$(format!("{} {}", stringify!($name), $name.to_str().unwrap())),+]
        }
        const C_TEXTS: &str = concat!($("TEXT(", stringify!($name), ")\n"),+);
        const TEXTS: &[&str] = &[$(stringify!($name)),+];
    };
}

texts! {
    ENGINE_EXT_MODELS, ENGINE_EXT_MEMORY, ENGINE_EXT_TOKENIZER, ENGINE_EXT_ADAPTERS, ENGINE_EXT_BATCH,
    ENGINE_EXT_SERVE, ENGINE_EXT_STREAM, ENGINE_EXT_EMBED,
}

#[test]
fn rust_and_c_agree_on_every_member_and_constant() {
    let directory = scratch("layout");
    let (source, program) = (directory.join("layout.c"), directory.join("layout"));
    let text = format!(
        "#include \"engine_api.h\"\n#include <stdio.h>\n\
         #define STRUCT(T) printf(\"%s %zu %zu\\n\", #T, sizeof(T), _Alignof(T));\n\
         #define MEMBER(T, m) printf(\"%s.%s %zu %zu\\n\", #T, #m, offsetof(T, m), sizeof(((T *)0)->m));\n\
         #define CONSTANT(c) printf(\"%s %lld\\n\", #c, (long long)(c));\n\
         #define TEXT(t) printf(\"%s %s\\n\", #t, t);\n\
         int main(void) {{\n{C_STRUCTS}{C_CONSTANTS}{C_TEXTS}return 0;\n}}\n"
    );
    std::fs::write(&source, text).unwrap();
    let status = compiler("CC", "cc")
        .args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I", HEADER_DIR, "-o"])
        .args([&program, &source])
        .status()
        .expect("a C compiler");
    assert!(status.success(), "the layout program does not compile");

    let output = Command::new(&program).output().unwrap();
    let c: Vec<String> = String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect();
    let rust: Vec<String> = [rust_structs(), rust_constants(), rust_texts()].concat();
    assert_eq!(rust.len(), c.len());
    for (rust, c) in rust.iter().zip(&c) {
        assert_eq!(rust, c, "Rust on the left, C on the right");
    }
}

/// Every struct ends where its last member ends, so that a new member always enlarges `struct_size`.
#[test]
fn no_struct_has_padding_at_its_end() {
    let mut sizes = BTreeMap::new();
    let mut ends: BTreeMap<String, usize> = BTreeMap::new();
    for line in rust_structs() {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |i: usize| words[i].parse::<usize>().unwrap();
        match words[0].split_once('.') {
            None => drop(sizes.insert(words[0].to_owned(), number(1))),
            Some((name, member)) => {
                if member == "struct_size" {
                    assert_eq!(number(1), 0, "{name}");
                }
                let end = ends.entry(name.to_owned()).or_default();
                *end = (*end).max(number(1) + number(2));
            }
        }
    }
    assert_eq!(sizes, ends);
}

/// Every struct, enumerator, `#define`d number and id of the header is compared above.
#[test]
fn nothing_is_left_out() {
    let macros = ["ENGINE_API_H", "ENGINE_API", "ENGINE_HAS", "ENGINE_CAN"];
    let mut missing = Vec::new();
    for line in HEADER.lines() {
        let line = line.trim_start();
        if let Some(rest) = line.strip_prefix("typedef struct ") {
            let mut words = rest.split_whitespace();
            let name = words.next().unwrap();
            if words.next() == Some("{") && !STRUCTS.contains(&name) {
                missing.push(name);
            }
        } else if let Some(rest) = line.strip_prefix("#define ") {
            let name = rest.split([' ', '(']).next().unwrap();
            if !macros.contains(&name) && !CONSTANTS.contains(&name) && !TEXTS.contains(&name) {
                missing.push(name);
            }
        } else if line.starts_with("ERR_") || line.starts_with("ENGINE_") {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap();
            if words.next() == Some("=") && !CONSTANTS.contains(&name) {
                missing.push(name);
            }
        }
    }
    assert!(missing.is_empty(), "in the header, but not compared: {missing:?}");
}

#[test]
fn header_compiles_cleanly_under_every_standard() {
    let directory = scratch("standards");
    let source = directory.join("header.c");
    std::fs::write(&source, "#include \"engine_api.h\"\n#include \"engine_api.h\"\n").unwrap();
    let warnings = ["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I", HEADER_DIR];
    for (variable, fallback, language, standard) in
        [("CC", "cc", "c", "-std=c99"), ("CC", "cc", "c", "-std=c11"), ("CXX", "c++", "c++", "-std=c++17")]
    {
        let output = compiler(variable, fallback)
            .args(["-x", language, standard])
            .args(warnings)
            .args(if language == "c" { &["-Wmissing-prototypes", "-Wstrict-prototypes"][..] } else { &[] })
            .arg(&source)
            .stdin(Stdio::null())
            .output()
            .expect("a compiler");
        assert!(output.status.success(), "{standard}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn codes_have_the_names_of_the_header() {
    assert_eq!(ERR_CACHE_FULL.to_string(), "ERR_CACHE_FULL");
    assert_eq!(Code(4711).to_string(), "unknown code 4711");
    assert_eq!(Code::ALL.len(), 15);
}
