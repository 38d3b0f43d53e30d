"""Models for tests, as real GGUF files: the demo model with other metadata, and one whose words are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from support import bert

TEMPLATE = "tokenizer.chat_template"
NORMAL, CONTROL, USER_DEFINED = (
    gguf.TokenType.NORMAL,
    gguf.TokenType.CONTROL,
    gguf.TokenType.USER_DEFINED,
)


def with_template(source: Path, into: Path, template: str | None) -> Path:
    """A copy of a model that has another chat template, or none."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(into), architecture)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", TEMPLATE):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=inner)
    if template is not None:
        writer.add_chat_template(template)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    _finish(writer)
    return into


def requantized(
    source: Path, into: Path, kind: gguf.GGMLQuantizationType, *, tensors_per_file: int = 0
) -> None:
    """A copy of a model with its matrices stored in another way; in several files of so many tensors each, if
    there is a number."""
    reader = gguf.GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(into), architecture, split_max_tensors=tensors_per_file)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key in ("general.architecture", "general.file_type"):
            continue
        value = field.types[0]
        inner = field.types[-1] if value == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), value, sub_type=inner)
    for tensor in reader.tensors:
        data = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if data.ndim < 2:
            writer.add_tensor(tensor.name, data)
        else:
            writer.add_tensor(tensor.name, gguf.quants.quantize(data, kind), raw_dtype=kind)
    _finish(writer)


def talker(
    into: Path,
    words: Sequence[tuple[str, int]],
    follows: Mapping[str | int, str | int],
    template: str,
    *,
    context: int = 512,
) -> Path:
    """A model whose next token depends on the current one alone, by `follows`; after others comes `</s>`.

    Its vocabulary is `<unk>`, `<s>`, `</s>`, all bytes from number 3 on, and `words` with their types.
    """
    texts = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{byte:02X}>" for byte in range(256)),
        *(text for text, _ in words),
    ]
    types = [
        gguf.TokenType.UNKNOWN,
        CONTROL,
        CONTROL,
        *[gguf.TokenType.BYTE] * 256,
        *(kind for _, kind in words),
    ]
    count = len(texts)
    width = (count + 31) // 32 * 32
    gain = 30.0 / np.sqrt(width)
    output = np.zeros((count, width), np.float32)
    output[2, :] = 0.5 * gain
    for one, other in follows.items():
        row, column = (it if isinstance(it, int) else texts.index(it) for it in (other, one))
        output[row, column] += gain

    writer = gguf.GGUFWriter(str(into), "llama")
    writer.add_name(into.stem)
    writer.add_context_length(context)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(32)
    writer.add_head_count(width // 32)
    writer.add_head_count_kv(width // 32)
    writer.add_rope_dimension_count(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(count)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores([-0.01 * index for index in range(count)])
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(template)
    # Attention and the middle layer add nothing: what is left is the table.
    embedding = np.zeros((count, width), np.float32)
    embedding[np.arange(count), np.arange(count)] = 1
    writer.add_tensor("token_embd.weight", embedding)
    for name in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(width, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float32))
    for name in ("ffn_gate", "ffn_up"):
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros((32, width), np.float32))
    writer.add_tensor("blk.0.ffn_down.weight", np.zeros((width, 32), np.float32))
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    writer.add_tensor("output.weight", output)
    _finish(writer)
    return into


ENCODER_VOCABULARY = (
    *bert.SPECIAL,
    *(chr(code) for code in range(ord("a"), ord("z") + 1)),
    *(f"##{chr(code)}" for code in range(ord("a"), ord("z") + 1)),
)
"""Of the encoders that are made here: letters."""


def encoder(into: Path, *, ranks: bool, scores: bool = True, pair_template: str | None = None) -> Path:
    """A tiny BERT with random weights, which embeds texts or, as a reranker, gives each pair a score; without
    `scores` a reranker lacks the layer that does."""
    weights = bert.random_weights(len(ENCODER_VOCABULARY))
    if not scores:
        weights = {name: values for name, values in weights.items() if not name.startswith("classifier")}
    return bert.write(into, weights, ENCODER_VOCABULARY, heads=2, ranks=ranks, pair_template=pair_template)


def _finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
