//! Writes tiny models of random weights, to have one of each shape that the engine must tell apart.

use std::path::Path;

pub(crate) enum Value {
    Number(u32),
    Float(f32),
    Flag(bool),
    Text(&'static str),
}

/// Three specials and a token for each byte.
pub(crate) const N_VOCAB: u32 = 259;
/// A token for each byte, "aa", an end, and a token for each byte by its number.
pub(crate) const N_PAIRS: u32 = 514;

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

    /// Keys that a vocabulary of bytes takes: [`Self::bytes`].
    const BYTES: u64 = 4;

    fn bytes(&mut self) {
        self.text("tokenizer.ggml.model");
        self.u32(8);
        self.text("llama");
        self.array("tokenizer.ggml.tokens", 8, N_VOCAB);
        for name in ["<unk>", "<s>", "</s>"] {
            self.text(name);
        }
        for byte in 0..=255_u8 {
            self.text(&format!("<0x{byte:02X}>"));
        }
        self.array("tokenizer.ggml.scores", 6, N_VOCAB);
        for _ in 0..N_VOCAB {
            self.u32(0);
        }
        self.array("tokenizer.ggml.token_type", 5, N_VOCAB);
        for token in 0..N_VOCAB {
            self.u32(match token {
                0 => 2,
                1 | 2 => 3,
                _ => 6,
            });
        }
    }

    /// Keys that a vocabulary of byte pairs takes: [`Self::pairs`].
    const PAIRS: u64 = 6;

    fn pairs(&mut self, pre: &str) {
        // Each byte has a printable character of its own, as in GPT-2.
        let mut next = 256;
        let letters: Vec<char> = (0..=255_u8)
            .map(|byte| match byte {
                33..=126 | 161..=172 | 174..=255 => char::from(byte),
                _ => {
                    next += 1;
                    char::from_u32(next - 1).unwrap()
                }
            })
            .collect();
        self.text("tokenizer.ggml.model");
        self.u32(8);
        self.text("gpt2");
        self.text("tokenizer.ggml.pre");
        self.u32(8);
        self.text(pre);
        self.array("tokenizer.ggml.tokens", 8, N_PAIRS);
        for letter in &letters {
            self.text(&letter.to_string());
        }
        self.text("aa");
        self.text("<|end|>");
        for byte in 0..=255_u8 {
            self.text(&format!("<0x{byte:02X}>"));
        }
        self.array("tokenizer.ggml.token_type", 5, N_PAIRS);
        for token in 0..N_PAIRS {
            self.u32(match token {
                ..257 => 1,
                257 => 3,
                _ => 6,
            });
        }
        self.array("tokenizer.ggml.merges", 8, 1);
        self.text("a a");
        self.text("tokenizer.ggml.eos_token_id");
        self.u32(4);
        self.u32(257);
    }
}

/// How the weights of the feed-forward parts are stored; all others are numbers of 32 bits.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    F32,
    /// Blocks of 32 numbers of 4 bits and a scale.
    Q4_0,
}

impl Kind {
    fn of(self, name: &str) -> Self {
        if name.contains(".ffn_") && !name.contains("norm") { self } else { Self::F32 }
    }

    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4_0 => 2,
        }
    }

    fn size(self, numbers: u64) -> u64 {
        match self {
            Self::F32 => numbers * 4,
            Self::Q4_0 => numbers / 32 * 18,
        }
    }
}

/// A model of `architecture`; keys without a dot in front belong to it, tensors are (name, shape).
pub(crate) fn write(
    path: &Path,
    architecture: &str,
    values: &[(&str, Value)],
    tensors: &[(String, Vec<u64>)],
) {
    write_as(Kind::F32, path, architecture, values, tensors);
}

/// The smallest model there is, with a vocabulary of byte pairs whose words are found as `pre` says.
#[allow(dead_code, reason = "each test program uses its part")]
pub(crate) fn write_pairs(path: &Path, pre: &str) {
    let width = 32;
    let tensors: Vec<(String, Vec<u64>)> = [
        ("token_embd.weight", vec![width, u64::from(N_PAIRS)]),
        ("output_norm.weight", vec![width]),
        ("blk.0.attn_norm.weight", vec![width]),
        ("blk.0.attn_q.weight", vec![width, width]),
        ("blk.0.attn_k.weight", vec![width, width]),
        ("blk.0.attn_v.weight", vec![width, width]),
        ("blk.0.attn_output.weight", vec![width, width]),
        ("blk.0.ffn_norm.weight", vec![width]),
        ("blk.0.ffn_gate.weight", vec![width, width]),
        ("blk.0.ffn_up.weight", vec![width, width]),
        ("blk.0.ffn_down.weight", vec![width, width]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .to_vec();
    let values = [
        ("context_length", Value::Number(512)),
        ("embedding_length", Value::Number(32)),
        ("block_count", Value::Number(1)),
        ("feed_forward_length", Value::Number(32)),
        ("attention.head_count", Value::Number(1)),
        ("attention.layer_norm_rms_epsilon", Value::Float(1e-5)),
        ("rope.dimension_count", Value::Number(32)),
    ];
    write_all(Kind::F32, Some(pre), path, "llama", &values, &tensors);
}

/// The same with weights of that kind.
pub(crate) fn write_as(
    kind: Kind,
    path: &Path,
    architecture: &str,
    values: &[(&str, Value)],
    tensors: &[(String, Vec<u64>)],
) {
    write_all(kind, None, path, architecture, values, tensors);
}

/// `pre`: with a vocabulary of byte pairs; else of bytes.
fn write_all(
    kind: Kind,
    pre: Option<&str>,
    path: &Path,
    architecture: &str,
    values: &[(&str, Value)],
    tensors: &[(String, Vec<u64>)],
) {
    let mut writer = Writer(b"GGUF\x03\0\0\0".to_vec());
    writer.u64(tensors.len() as u64);
    writer.u64(values.len() as u64 + 1 + if pre.is_some() { Writer::PAIRS } else { Writer::BYTES });
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
    match pre {
        Some(pre) => writer.pairs(pre),
        None => writer.bytes(),
    }

    let mut offset = 0;
    for (name, shape) in tensors {
        writer.text(name);
        writer.u32(shape.len() as u32);
        for length in shape {
            writer.u64(*length);
        }
        writer.u32(kind.of(name).number());
        writer.u64(offset);
        offset += kind.of(name).size(shape.iter().product()).next_multiple_of(32);
    }
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state
    };
    for (name, shape) in tensors {
        writer.0.resize(writer.0.len().next_multiple_of(32), 0);
        if let Kind::Q4_0 = kind.of(name) {
            for _ in 0..shape.iter().product::<u64>() / 32 {
                writer.0.extend_from_slice(&0x2400_u16.to_le_bytes()); // one 64th, in half precision
                writer.0.extend_from_slice(&draw().to_le_bytes());
                writer.0.extend_from_slice(&draw().to_le_bytes());
            }
            continue;
        }
        for _ in 0..shape.iter().product::<u64>() {
            let random = (draw() >> 40) as f32 / (1 << 24) as f32 - 0.5;
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
