//! Models that are not plain attention: a state that cannot be cut back, a sliding window, an encoder.
//! Their weights are random, so that only sameness is tested.
#![allow(clippy::unwrap_used, reason = "a failing call fails the test")]

mod support;

use std::path::{Path, PathBuf};
use std::ptr;

use llm_node_abi as abi;
use support::gguf::{N_VOCAB, Value, write};
use support::{Model, Params, engine, greedy};

const WIDTH: u64 = 32;
const INNER: u64 = 64;

fn tensors(layers: u64, outer: &[(&str, &[u64])], inner: &[(&str, &[u64])]) -> Vec<(String, Vec<u64>)> {
    let mut all: Vec<(String, Vec<u64>)> =
        outer.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    for layer in 0..layers {
        all.extend(inner.iter().map(|(name, shape)| (format!("blk.{layer}.{name}"), shape.to_vec())));
    }
    all
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn recurrent(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("mamba.gguf");
    let vocab = u64::from(N_VOCAB);
    write(
        &path,
        "mamba",
        &[
            ("context_length", Value::Number(512)),
            ("embedding_length", Value::Number(32)),
            ("block_count", Value::Number(2)),
            ("feed_forward_length", Value::Number(0)),
            ("attention.head_count", Value::Number(0)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
            ("ssm.conv_kernel", Value::Number(4)),
            ("ssm.inner_size", Value::Number(64)),
            ("ssm.state_size", Value::Number(16)),
            ("ssm.time_step_rank", Value::Number(2)),
            (".tokenizer.chat_template", Value::Text("{{ messages }}")),
            (".tokenizer.chat_template.tool_use", Value::Text("{{ tools }}")),
        ],
        &tensors(
            2,
            &[("token_embd.weight", &[WIDTH, vocab]), ("output_norm.weight", &[WIDTH])],
            &[
                ("attn_norm.weight", &[WIDTH]),
                ("ssm_in.weight", &[WIDTH, 2 * INNER]),
                ("ssm_conv1d.weight", &[4, INNER]),
                ("ssm_conv1d.bias", &[INNER]),
                ("ssm_x.weight", &[INNER, 2 + 2 * 16]),
                ("ssm_dt.weight", &[2, INNER]),
                ("ssm_dt.bias", &[INNER]),
                ("ssm_a", &[16, INNER]),
                ("ssm_d", &[INNER]),
                ("ssm_out.weight", &[INNER, WIDTH]),
            ],
        ),
    );
    path
}

fn sliding(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("gemma3.gguf");
    let vocab = u64::from(N_VOCAB);
    write(
        &path,
        "gemma3",
        &[
            ("context_length", Value::Number(1024)),
            ("embedding_length", Value::Number(32)),
            ("block_count", Value::Number(6)),
            ("feed_forward_length", Value::Number(64)),
            ("attention.head_count", Value::Number(4)),
            ("attention.head_count_kv", Value::Number(2)),
            ("attention.key_length", Value::Number(8)),
            ("attention.value_length", Value::Number(8)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
            ("attention.sliding_window", Value::Number(32)),
        ],
        &tensors(
            6,
            &[("token_embd.weight", &[WIDTH, vocab]), ("output_norm.weight", &[WIDTH])],
            &[
                ("attn_norm.weight", &[WIDTH]),
                ("attn_q.weight", &[WIDTH, 32]),
                ("attn_k.weight", &[WIDTH, 16]),
                ("attn_v.weight", &[WIDTH, 16]),
                ("attn_output.weight", &[32, WIDTH]),
                ("attn_q_norm.weight", &[8]),
                ("attn_k_norm.weight", &[8]),
                ("post_attention_norm.weight", &[WIDTH]),
                ("ffn_norm.weight", &[WIDTH]),
                ("ffn_gate.weight", &[WIDTH, INNER]),
                ("ffn_up.weight", &[WIDTH, INNER]),
                ("ffn_down.weight", &[INNER, WIDTH]),
                ("post_ffw_norm.weight", &[WIDTH]),
            ],
        ),
    );
    path
}

#[test]
fn an_estimate_is_of_the_file_as_it_is_now() {
    let folder = folder();
    let (engine, _turn) = engine();
    let weights = |path: &Path| engine.estimate(path, None)[0].weights;
    let first = recurrent(&folder);
    let before = weights(&first);
    assert_eq!(weights(&first), before, "what was read once says the same again");
    let other = sliding(&folder);
    let after = weights(&other);
    assert_ne!(before, after);
    std::fs::rename(&other, &first).unwrap();
    assert_eq!(weights(&first), after, "the file was replaced");
    std::fs::write(&first, "no model").unwrap();
    assert_eq!(engine.try_load(&first).err(), Some(abi::ERR_MODEL_CORRUPT));
}

fn encoder(folder: &tempfile::TempDir, pooling: u32) -> PathBuf {
    let path = folder.path().join("bert.gguf");
    let vocab = u64::from(N_VOCAB);
    let mut outer: Vec<(&str, &[u64])> = vec![
        ("token_types.weight", &[WIDTH, 1]),
        ("position_embd.weight", &[WIDTH, 128]),
        ("token_embd_norm.weight", &[WIDTH]),
        ("token_embd_norm.bias", &[WIDTH]),
    ];
    let embeddings = [WIDTH, vocab];
    outer.push(("token_embd.weight", &embeddings));
    if pooling == abi::ENGINE_POOL_RANK {
        outer.push(("cls.output.weight", &[WIDTH, 1]));
        outer.push(("cls.output.bias", &[1]));
    }
    write(
        &path,
        "bert",
        &[
            ("context_length", Value::Number(128)),
            ("embedding_length", Value::Number(32)),
            ("block_count", Value::Number(2)),
            ("feed_forward_length", Value::Number(64)),
            ("attention.head_count", Value::Number(4)),
            ("attention.layer_norm_epsilon", Value::Float(1e-5)),
            ("attention.causal", Value::Flag(false)),
            ("pooling_type", Value::Number(pooling)),
            (".tokenizer.ggml.token_type_count", Value::Number(1)),
        ],
        &tensors(
            2,
            &outer,
            &[
                ("attn_q.weight", &[WIDTH, WIDTH]),
                ("attn_k.weight", &[WIDTH, WIDTH]),
                ("attn_v.weight", &[WIDTH, WIDTH]),
                ("attn_output.weight", &[WIDTH, WIDTH]),
                ("attn_output_norm.weight", &[WIDTH]),
                ("attn_output_norm.bias", &[WIDTH]),
                ("ffn_up.weight", &[WIDTH, INNER]),
                ("ffn_down.weight", &[INNER, WIDTH]),
                ("layer_output_norm.weight", &[WIDTH]),
                ("layer_output_norm.bias", &[WIDTH]),
            ],
        ),
    );
    path
}

fn prompt(length: usize) -> Vec<i32> {
    (0..length).map(|index| 3 + (index * 37 % 256) as i32).collect()
}

fn close(left: &[f32], right: &[f32]) {
    let scale = right.iter().fold(1.0_f32, |most, value| most.max(value.abs()));
    let worst = left.iter().zip(right).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-3 * scale, "rows differ by {worst} of {scale}");
}

/// The row after a prompt, in a context of its own.
fn scratch(model: &Model<'_>, params: Params, tokens: &[i32]) -> Vec<f32> {
    model.context(params).run(&[(0, tokens)]).remove(0)
}

#[test]
fn a_recurrent_state_is_taken_back_whole_or_not_at_all() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&recurrent(&folder)).unwrap();
    assert_ne!(model.info().flags & abi::ENGINE_MODEL_RECURRENT, 0);
    for options in [&[("cache_mode", "unified")], &[("cache_mode", "split")]] {
        let params = Params { sequences: 3, length: 256, options, ..Params::default() };
        let tokens = prompt(20);
        let expected = scratch(&model, params, &tokens);
        let mut context = model.context(params);
        assert_eq!(context.info().max_rollback, 0);
        let rows = context.run(&[(2, &tokens[..12]), (0, &tokens[..15])]);
        assert_eq!(rows.len(), 2);
        assert_eq!(context.remove(0, 10), abi::ERR_UNSUPPORTED);
        assert_eq!(context.copy(0, 1, 10), abi::ERR_UNSUPPORTED);
        assert_eq!((context.range(0), context.range(1)), ((0, 15), (0, 0)));
        assert_eq!(context.copy(0, 1, 15), abi::ERR_OK);
        // Source and copy go on, each on its own.
        let rows = context.run(&[(0, &[5]), (1, &tokens[15..]), (2, &tokens[12..])]);
        close(&rows[1], &expected);
        close(&rows[2], &expected);
        assert!(context.remove(1, 0).is_ok());
        close(&context.run(&[(1, &tokens)]).remove(0), &expected);
    }
}

#[test]
fn a_recurrent_state_is_saved_and_restored() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&recurrent(&folder)).unwrap();
    for options in [&[("cache_mode", "unified")], &[("cache_mode", "split")]] {
        let params = Params { sequences: 3, length: 256, options, ..Params::default() };
        let tokens = prompt(30);
        let expected = scratch(&model, params, &tokens);
        let mut context = model.context(params);
        context.run(&[(0, &tokens[..15]), (1, &tokens[..20])]);
        // Two sequences with one state, until either goes on.
        assert_eq!(context.copy(0, 2, 15), abi::ERR_OK);
        let state = context.save(2).unwrap();
        assert!(context.remove(0, 0).is_ok());
        assert_eq!(context.restore(0, &state), abi::ERR_OK);
        assert_eq!(context.restore(2, &state), abi::ERR_INVALID_ARGUMENT);
        assert_eq!((context.range(0), context.range(2)), ((0, 15), (0, 15)));
        assert_eq!(context.remove(0, 10), abi::ERR_UNSUPPORTED);
        let rows =
            context.run(&[(0, &tokens[15..]), (1, &tokens[20..]), (2, &[9, 9, 9, 9, 9, 9, 9, 9, 9, 9])]);
        close(&rows[0], &expected);
        close(&rows[1], &expected);
        // With its place full, and in the place of one that is gone.
        for sequence in [2, 0, 1] {
            assert!(context.remove(sequence, 0).is_ok());
            assert_eq!(context.restore(sequence, &state), abi::ERR_OK);
        }
        for row in context.run(&[(0, &tokens[15..]), (1, &tokens[15..]), (2, &tokens[15..])]) {
            close(&row, &expected);
        }
    }
}

#[test]
fn a_window_is_copied_saved_and_restored() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&sliding(&folder)).unwrap();
    let kinds: [&'static [(&str, &str)]; 3] = [
        &[("cache_mode", "unified"), ("n_ubatch", "32")],
        &[("cache_mode", "split"), ("n_ubatch", "32")],
        &[("cache_mode", "unified"), ("n_ubatch", "32"), ("swa_full", "on")],
    ];
    for options in kinds {
        let params = Params { sequences: 3, length: 768, options, ..Params::default() };
        let tokens = prompt(640);
        let expected = scratch(&model, params, &tokens);
        let mut context = model.context(params);
        context.run(&[(0, &tokens[..600]), (1, &tokens[..500])]);
        let (begin, end) = context.range(0);
        let state = context.save(0).unwrap();
        assert!(context.remove(0, 0).is_ok());
        let free = context.free();
        assert_eq!(context.restore(2, &state), abi::ERR_OK);
        let (restored, restored_end) = context.range(2);
        // The next token looks at itself and the 31 before it.
        assert!(
            begin <= restored && restored <= 600 - 31 && restored_end == end,
            "{begin}..{end} {restored}..{restored_end} {options:?}"
        );
        assert_eq!(context.free(), free - 600);
        if options.contains(&("cache_mode", "split")) {
            assert_eq!(context.copy(2, 0, 600), abi::ERR_OK);
            let rows = context.run(&[(0, &tokens[600..]), (1, &tokens[500..]), (2, &tokens[600..])]);
            for row in &rows {
                close(row, &expected);
            }
        } else {
            let rows = context.run(&[(1, &tokens[500..]), (2, &tokens[600..])]);
            for row in &rows {
                close(row, &expected);
            }
        }
    }
}

#[test]
fn chat_templates_are_found_by_name() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&recurrent(&folder)).unwrap();
    let mut source = abi::EngineStr { data: ptr::null(), len: 0 };
    for (name, text) in [(None, "{{ messages }}"), (Some(c"tool_use"), "{{ tools }}")] {
        // SAFETY: as the header says.
        let found = unsafe {
            let name = name.map_or(ptr::null(), std::ffi::CStr::as_ptr);
            let code = engine.tokenizer.chat_template.unwrap()(model.raw, name, &raw mut source);
            assert_eq!(code, abi::ERR_OK);
            std::slice::from_raw_parts(source.data.cast::<u8>(), source.len)
        };
        assert_eq!(found, text.as_bytes());
    }
}

#[test]
fn what_slid_out_of_the_window_cannot_come_back() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&sliding(&folder)).unwrap();
    for mode in ["unified", "split"] {
        let options: &'static [(&str, &str)] = if mode == "unified" {
            &[("cache_mode", "unified"), ("n_ubatch", "32")]
        } else {
            &[("cache_mode", "split"), ("n_ubatch", "32")]
        };
        let params = Params { sequences: 2, length: 768, options, ..Params::default() };
        let tokens = prompt(600);
        let mut context = model.context(params);
        assert_eq!(context.info().max_rollback, 0);
        let last = context.run(&[(0, &tokens)]).remove(0);
        let (begin, end) = context.range(0);
        assert!(begin > 100 && end == 600, "{begin}..{end}");

        // Too far back: the window before that position is gone.
        assert_eq!(context.remove(0, begin), abi::ERR_UNSUPPORTED);
        assert_eq!(context.copy(0, 1, begin), abi::ERR_UNSUPPORTED);
        assert_eq!(context.range(0), (begin, 600));
        // Not so far: all that the next token looks at is there.
        let near = 590.max(begin + 40);
        let copied = context.copy(0, 1, near);
        // A pool could not recycle what two sequences share.
        assert_eq!(copied, if mode == "split" { abi::ERR_OK } else { abi::ERR_UNSUPPORTED });
        assert!(context.remove(0, near).is_ok());
        let again = context.run(&[(0, &tokens[near as usize..]), (1, &[9])]);
        close(&again[0], &last);
        assert!(context.remove(0, 0).is_ok());
        assert_eq!(context.range(0), (0, 0));
    }
    // With everything kept it is as if there were no window.
    let options = &[("swa_full", "on"), ("n_ubatch", "32")];
    let params = Params { sequences: 1, length: 768, options, ..Params::default() };
    let tokens = prompt(600);
    let mut context = model.context(params);
    assert_eq!(context.info().max_rollback, u32::MAX);
    let last = context.run(&[(0, &tokens)]).remove(0);
    assert!(context.remove(0, 20).is_ok());
    close(&context.run(&[(0, &tokens[20..])]).remove(0), &last);
    assert_eq!(greedy(&last), greedy(&context.collect(2, 1).unwrap()[0]));
}

fn embed(model: &Model<'_>, pooling: u32, inputs: &[Vec<i32>]) -> Result<Vec<Vec<f32>>, abi::Code> {
    let pointers: Vec<*const i32> = inputs.iter().map(Vec::as_ptr).collect();
    let lengths: Vec<usize> = inputs.iter().map(Vec::len).collect();
    let params = abi::EngineEmbedParams {
        struct_size: size_of::<abi::EngineEmbedParams>() as u32,
        pooling,
        inputs: pointers.as_ptr(),
        lengths: lengths.as_ptr(),
        n_inputs: inputs.len(),
    };
    let width = model.info().n_embedding as usize;
    let mut vectors = vec![f32::NAN; width * inputs.len()];
    // SAFETY: as the header says.
    let code = unsafe {
        model.engine.embed.embed.unwrap()(model.raw, &raw const params, vectors.as_mut_ptr(), vectors.len())
    };
    if code.is_ok() { Ok(vectors.chunks(width).map(<[f32]>::to_vec).collect()) } else { Err(code) }
}

#[test]
fn an_encoder_embeds_and_does_not_generate() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&encoder(&folder, abi::ENGINE_POOL_MEAN)).unwrap();
    let info = model.info();
    assert_eq!((info.flags, info.n_embedding), (abi::ENGINE_MODEL_EMBEDS, 32));
    assert_eq!(model.try_context(Params::default()).err(), Some(abi::ERR_UNSUPPORTED));

    let inputs: Vec<Vec<i32>> = (1..=128).map(prompt).collect();
    for pooling in [abi::ENGINE_POOL_MODEL, abi::ENGINE_POOL_MEAN, abi::ENGINE_POOL_CLS] {
        let many = embed(&model, pooling, &inputs).unwrap();
        assert!(many.iter().flatten().all(|value| value.is_finite()));
        for index in [0, 7, 63, 64, 127] {
            close(&embed(&model, pooling, &inputs[index..=index]).unwrap()[0], &many[index]);
        }
    }
    assert_eq!(embed(&model, abi::ENGINE_POOL_MODEL, &[prompt(129)]).err(), Some(abi::ERR_INVALID_ARGUMENT));
    assert_eq!(embed(&model, abi::ENGINE_POOL_RANK, &inputs).err(), Some(abi::ERR_UNSUPPORTED));
}

#[test]
fn a_ranker_gives_one_number_for_each_pair() {
    let folder = folder();
    let (engine, _turn) = engine();
    let model = engine.try_load(&encoder(&folder, abi::ENGINE_POOL_RANK)).unwrap();
    let info = model.info();
    assert_eq!((info.flags, info.n_embedding), (abi::ENGINE_MODEL_RANKS, 1));
    let inputs: Vec<Vec<i32>> = (2..20).map(prompt).collect();
    for pooling in [abi::ENGINE_POOL_MODEL, abi::ENGINE_POOL_RANK] {
        let many = embed(&model, pooling, &inputs).unwrap();
        for (input, expected) in inputs.iter().zip(&many) {
            close(&embed(&model, pooling, std::slice::from_ref(input)).unwrap()[0], expected);
        }
    }
    assert_eq!(embed(&model, abi::ENGINE_POOL_MEAN, &inputs).err(), Some(abi::ERR_UNSUPPORTED));
}

/// Reads with one half and writes with the other.
fn encoder_decoder(folder: &tempfile::TempDir) -> PathBuf {
    let path = folder.path().join("t5.gguf");
    let mut all = vec![("token_embd.weight".to_owned(), vec![WIDTH, u64::from(N_VOCAB)])];
    for half in ["enc", "dec"] {
        all.push((format!("{half}.output_norm.weight"), vec![WIDTH]));
        all.push((format!("{half}.blk.0.attn_rel_b.weight"), vec![4, 32]));
        let mut parts = vec!["attn_q", "attn_k", "attn_v", "attn_o"];
        let mut norms = vec!["attn_norm", "ffn_norm"];
        if half == "dec" {
            parts.extend(["cross_attn_q", "cross_attn_k", "cross_attn_v", "cross_attn_o"]);
            norms.push("cross_attn_norm");
        }
        for part in parts {
            all.push((format!("{half}.blk.0.{part}.weight"), vec![WIDTH, WIDTH]));
        }
        for norm in norms {
            all.push((format!("{half}.blk.0.{norm}.weight"), vec![WIDTH]));
        }
        for (part, shape) in [
            ("ffn_up", vec![WIDTH, INNER]),
            ("ffn_gate", vec![WIDTH, INNER]),
            ("ffn_down", vec![INNER, WIDTH]),
        ] {
            all.push((format!("{half}.blk.0.{part}.weight"), shape));
        }
    }
    write(
        &path,
        "t5",
        &[
            ("context_length", Value::Number(512)),
            ("embedding_length", Value::Number(32)),
            ("block_count", Value::Number(1)),
            ("feed_forward_length", Value::Number(64)),
            ("attention.head_count", Value::Number(4)),
            ("attention.key_length", Value::Number(8)),
            ("attention.value_length", Value::Number(8)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-6)),
            ("attention.layer_norm_epsilon", Value::Float(1e-6)),
            ("attention.relative_buckets_count", Value::Number(32)),
            ("decoder_start_token_id", Value::Number(0)),
        ],
        &all,
    );
    path
}

/// llama.cpp would load them, and stop at an assertion once they are asked something.
#[test]
fn kinds_of_models_that_nothing_can_be_done_with_are_refused_in_words() {
    let folder = folder();
    let (engine, _turn) = engine();
    for (path, words) in [
        (encoder_decoder(&folder), "(t5) is an encoder-decoder model"),
        (encoder(&folder, 0), "(bert) is an encoder whose file names no pooling"),
    ] {
        let (code, said) = engine.refusal(&path);
        assert_eq!(code, abi::ERR_UNSUPPORTED, "{said}");
        assert!(said.contains(words), "{said}");
        assert_eq!(engine.try_load(&path).err(), Some(abi::ERR_UNSUPPORTED));
    }
}

#[test]
fn an_architecture_that_llama_cpp_does_not_know_is_unsupported() {
    let folder = folder();
    let (engine, _turn) = engine();
    let path = folder.path().join("strange.gguf");
    write(&path, "nemotron-of-tomorrow", &[("context_length", Value::Number(1))], &[]);
    assert_eq!(engine.try_load(&path).err(), Some(abi::ERR_UNSUPPORTED));
    let said = support::ERRORS.lock().unwrap().last().cloned().unwrap();
    assert!(said.contains("nemotron-of-tomorrow"), "{said}");
}
