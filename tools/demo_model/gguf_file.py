"""The model as a GGUF file: writing it, and reading the weights back as they will be used.

Nothing is permuted: model.py already turns the pairs that llama.cpp turns.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import tokenizer
from gguf.quants import dequantize
from model import Shape

LAYER_TENSORS = {
    "attention_norm": "attn_norm",
    "q": "attn_q",
    "k": "attn_k",
    "v": "attn_v",
    "o": "attn_output",
    "ffn_norm": "ffn_norm",
    "gate": "ffn_gate",
    "up": "ffn_up",
    "down": "ffn_down",
}

BLOCK = 32
SCALES = np.linspace(0.8, 1.25, 46)
"""Tried for each block, times its usual scale, which puts the largest weight at the end of the range."""


def q5_0(matrix: np.ndarray) -> np.ndarray:
    """Blocks of a scale (f16), 32 high bits and 32 times 4 low bits, as bytes, a row for each of the matrix.

    Of each block the scale is taken that leaves the smallest squares of errors.
    """
    blocks = matrix.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)[:, 0]
    error = np.full(len(blocks), np.inf)
    scale, number = np.zeros(len(blocks), np.float16), np.zeros(blocks.shape, np.int8)
    for part in SCALES:
        tried = (largest / -16 * part).astype(np.float16)
        step = tried.astype(np.float32)[:, None]
        rounded = np.rint(np.divide(blocks, step, out=np.zeros_like(blocks), where=step != 0)).clip(-16, 15)
        left = ((rounded * step - blocks) ** 2).sum(-1)
        better = left < error
        error[better], scale[better], number[better] = left[better], tried[better], rounded[better]
    bits = (number + 16).astype(np.uint8)
    high = np.packbits(bits >> 4, axis=-1, bitorder="little")
    low = (bits[:, :16] & 15) | ((bits[:, 16:] & 15) << 4)
    return np.concatenate([scale[:, None].view(np.uint8), high, low], -1).reshape(len(matrix), -1)


def write(
    path: Path, weights: dict[str, np.ndarray], shape: Shape, tokens: tokenizer.Tokenizer, version: str
) -> None:
    """Matrices become Q5_0 and the gains F32. The output projection is the embedding, so it is not stored."""
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name("llm-node demo")
    writer.add_author("The llm-node authors")
    writer.add_version(version)
    writer.add_license("Apache-2.0")
    writer.add_description(
        "A very small chat model that answers questions about llm-node, trained by tools/demo_model."
    )
    writer.add_size_label(f"{sum(value.size for value in weights.values()) / 1e6:.1f}M")
    writer.add_languages(["en"])
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.epsilon)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q5_0)
    _write_tokenizer(writer, tokens)

    def add(name: str, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value, np.float32)
        if value.ndim == 1:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, q5_0(value), raw_dtype=gguf.GGMLQuantizationType.Q5_0)

    add("token_embd.weight", weights["embedding"])
    add("output_norm.weight", weights["norm"])
    for layer in range(shape.layers):
        for ours, theirs in LAYER_TENSORS.items():
            add(f"blk.{layer}.{theirs}.weight", weights[ours][layer].T)  # GGUF has [out, in]
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_tokenizer(writer: gguf.GGUFWriter, tokens: tokenizer.Tokenizer) -> None:
    pieces = tokens.pieces
    kinds = []
    for token in range(pieces.get_piece_size()):
        if pieces.is_unknown(token):
            kinds.append(gguf.TokenType.UNKNOWN)
        elif pieces.is_control(token):
            kinds.append(gguf.TokenType.CONTROL)
        elif pieces.is_byte(token):
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([pieces.id_to_piece(token).encode() for token in range(len(kinds))])
    writer.add_token_scores([pieces.get_score(token) for token in range(len(kinds))])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokens.begin)
    writer.add_eos_token_id(tokens.end)
    writer.add_eot_token_id(tokens.end)
    writer.add_unk_token_id(pieces.unk_id())
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.CHAT_TEMPLATE)


def read(path: Path) -> tuple[dict[str, np.ndarray], Shape, list[str]]:
    """The weights as the engine sees them, after quantisation; the shape; the vocabulary."""
    reader = gguf.GGUFReader(str(path))

    def number(key: str) -> float:
        field = reader.get_field(f"llama.{key}")
        assert field is not None, key
        return field.contents()

    shape = Shape(
        vocab=int(number("vocab_size")),
        width=int(number("embedding_length")),
        layers=int(number("block_count")),
        heads=int(number("attention.head_count")),
        kv_heads=int(number("attention.head_count_kv")),
        hidden=int(number("feed_forward_length")),
        context=int(number("context_length")),
        rope_base=float(number("rope.freq_base")),
        epsilon=float(number("attention.layer_norm_rms_epsilon")),
    )
    tensors = {
        tensor.name: np.asarray(dequantize(tensor.data, tensor.tensor_type)) for tensor in reader.tensors
    }
    weights = {"embedding": tensors["token_embd.weight"], "norm": tensors["output_norm.weight"]}
    for ours, theirs in LAYER_TENSORS.items():
        weights[ours] = np.stack([tensors[f"blk.{layer}.{theirs}.weight"].T for layer in range(shape.layers)])
    field = reader.get_field("tokenizer.ggml.tokens")
    assert field is not None
    return weights, shape, field.contents()
