//! Writes tiny models of random weights, to have one of each shape that the engine must tell apart.

use std::path::{Path, PathBuf};

pub(crate) enum Value {
    Number(u32),
    Float(f32),
    Flag(bool),
    Text(&'static str),
}

/// Three specials and a token for each byte.
pub(crate) const N_VOCAB: u32 = 259;

pub(crate) const WIDTH: u64 = 32;
pub(crate) const INNER: u64 = 64;

struct Writer(Vec<u8>);

impl Writer {
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u64(text.len() as u64);
        self.0.extend_from_slice(text.as_bytes());
    }

    fn array(&mut self, key: &str, kind: u32, length: u32) {
        self.text(key);
        self.u32(9);
        self.u32(kind);
        self.u64(u64::from(length));
    }
}

/// A model of `architecture`; keys without a dot in front belong to it, tensors are (name, shape).
pub(crate) fn write(
    path: &Path,
    architecture: &str,
    values: &[(&str, Value)],
    tensors: &[(String, Vec<u64>)],
) {
    write_with(path, architecture, values, tensors, N_VOCAB);
}

/// The same with more tokens, which mean nothing.
fn write_with(
    path: &Path,
    architecture: &str,
    values: &[(&str, Value)],
    tensors: &[(String, Vec<u64>)],
    n_vocab: u32,
) {
    let mut writer = Writer(b"GGUF\x03\0\0\0".to_vec());
    writer.u64(tensors.len() as u64);
    writer.u64(values.len() as u64 + 5);
    writer.text("general.architecture");
    writer.u32(8);
    writer.text(architecture);
    for (key, value) in values {
        match key.strip_prefix('.') {
            Some(whole) => writer.text(whole),
            None => writer.text(&format!("{architecture}.{key}")),
        }
        match value {
            Value::Number(number) => {
                writer.u32(4);
                writer.u32(*number);
            }
            Value::Float(float) => {
                writer.u32(6);
                writer.u32(float.to_bits());
            }
            Value::Flag(flag) => {
                writer.u32(7);
                writer.0.push(u8::from(*flag));
            }
            Value::Text(text) => {
                writer.u32(8);
                writer.text(text);
            }
        }
    }
    writer.text("tokenizer.ggml.model");
    writer.u32(8);
    writer.text("llama");
    writer.array("tokenizer.ggml.tokens", 8, n_vocab);
    for name in ["<unk>", "<s>", "</s>"] {
        writer.text(name);
    }
    for byte in 0..=255_u8 {
        writer.text(&format!("<0x{byte:02X}>"));
    }
    for token in N_VOCAB..n_vocab {
        writer.text(&format!("more {token}"));
    }
    writer.array("tokenizer.ggml.scores", 6, n_vocab);
    for _ in 0..n_vocab {
        writer.u32(0);
    }
    writer.array("tokenizer.ggml.token_type", 5, n_vocab);
    for token in 0..n_vocab {
        writer.u32(match token {
            0 => 2,
            1 | 2 => 3,
            3..N_VOCAB => 6,
            _ => 1,
        });
    }

    let mut offset = 0;
    for (name, shape) in tensors {
        writer.text(name);
        writer.u32(shape.len() as u32);
        for length in shape {
            writer.u64(*length);
        }
        writer.u32(0);
        writer.u64(offset);
        offset += (shape.iter().product::<u64>() * 4).next_multiple_of(32);
    }
    let mut state = 1_u64;
    for (name, shape) in tensors {
        writer.0.resize(writer.0.len().next_multiple_of(32), 0);
        for _ in 0..shape.iter().product::<u64>() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
            // Norms around one keep the numbers in range; the decay of a state must be negative.
            let value = match name.as_str() {
                name if name.contains("norm.weight") => 1.0 + random * 0.2,
                name if name.ends_with("ssm_a") => -1.0 - random,
                _ => random * 0.5,
            };
            writer.u32(value.to_bits());
        }
    }
    writer.0.resize(writer.0.len().next_multiple_of(32), 0);
    std::fs::write(path, writer.0).unwrap();
}

/// Tensors outside of the layers, and those of each layer.
pub(crate) fn tensors(
    layers: u64,
    outer: &[(&str, &[u64])],
    inner: &[(&str, &[u64])],
) -> Vec<(String, Vec<u64>)> {
    let mut all: Vec<(String, Vec<u64>)> =
        outer.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect();
    for layer in 0..layers {
        all.extend(inner.iter().map(|(name, shape)| (format!("blk.{layer}.{name}"), shape.to_vec())));
    }
    all
}

/// A state that cannot be cut back.
pub(crate) fn recurrent(folder: &tempfile::TempDir) -> PathBuf {
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

/// A window of 32 positions.
pub(crate) fn sliding(folder: &tempfile::TempDir) -> PathBuf {
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

/// Plain attention and a vocabulary of any size.
pub(crate) fn plain(folder: &tempfile::TempDir, n_vocab: u32) -> PathBuf {
    let path = folder.path().join("llama.gguf");
    write_with(
        &path,
        "llama",
        &[
            ("context_length", Value::Number(1024)),
            ("embedding_length", Value::Number(32)),
            ("block_count", Value::Number(2)),
            ("feed_forward_length", Value::Number(64)),
            ("attention.head_count", Value::Number(4)),
            ("attention.head_count_kv", Value::Number(2)),
            ("attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ],
        &tensors(
            2,
            &[("token_embd.weight", &[WIDTH, u64::from(n_vocab)]), ("output_norm.weight", &[WIDTH])],
            &[
                ("attn_norm.weight", &[WIDTH]),
                ("attn_q.weight", &[WIDTH, 32]),
                ("attn_k.weight", &[WIDTH, 16]),
                ("attn_v.weight", &[WIDTH, 16]),
                ("attn_output.weight", &[32, WIDTH]),
                ("ffn_norm.weight", &[WIDTH]),
                ("ffn_gate.weight", &[WIDTH, INNER]),
                ("ffn_up.weight", &[WIDTH, INNER]),
                ("ffn_down.weight", &[INNER, WIDTH]),
            ],
        ),
        n_vocab,
    );
    path
}
