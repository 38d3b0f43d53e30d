"""BERT twice: written as a GGUF file, and computed with numpy alone, so that an engine's answers have
something to be compared with. Weights have the names that Hugging Face gives them.
"""

from __future__ import annotations

import json
import re
import struct
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]
Weights = Mapping[str, Array]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD = "\N{LOWER ONE EIGHTH BLOCK}"

NAMES = {
    "embeddings.word_embeddings": "token_embd",
    "embeddings.position_embeddings": "position_embd",
    "embeddings.token_type_embeddings": "token_types",
    "embeddings.LayerNorm": "token_embd_norm",
    "attention.self.query": "attn_q",
    "attention.self.key": "attn_k",
    "attention.self.value": "attn_v",
    "attention.output.dense": "attn_output",
    "attention.output.LayerNorm": "attn_output_norm",
    "intermediate.dense": "ffn_up",
    "output.dense": "ffn_down",
    "output.LayerNorm": "layer_output_norm",
    "pooler.dense": "cls",
    "classifier": "cls.output",
}
"""Names of weights here, and in GGUF."""


def write(
    into: Path,
    weights: Weights,
    vocabulary: Sequence[str],
    *,
    heads: int,
    ranks: bool = False,
    pair_template: str | None = None,
) -> Path:
    """A GGUF file with these weights. `vocabulary`: of WordPiece, where `##` begins the rest of a word."""
    width = weights["embeddings.word_embeddings.weight"].shape[1]
    layers = 1 + max(int(found[1]) for name in weights if (found := re.match(r"encoder\.layer\.(\d+)", name)))
    writer = gguf.GGUFWriter(str(into), "bert")
    writer.add_name(into.stem)
    writer.add_context_length(len(weights["embeddings.position_embeddings.weight"]))
    writer.add_embedding_length(width)
    writer.add_block_count(layers)
    writer.add_feed_forward_length(len(weights["encoder.layer.0.intermediate.dense.bias"]))
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.RANK if ranks else gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("bert")
    writer.add_token_list([_piece(text) for text in vocabulary])
    kinds = dict.fromkeys(SPECIAL, gguf.TokenType.CONTROL)
    writer.add_token_types([kinds.get(text, gguf.TokenType.NORMAL) for text in vocabulary])
    writer.add_token_type_count(len(weights["embeddings.token_type_embeddings.weight"]))
    for name, text in (
        ("pad", "[PAD]"),
        ("unk", "[UNK]"),
        ("bos", "[CLS]"),
        ("sep", "[SEP]"),
        ("mask", "[MASK]"),
    ):
        getattr(writer, f"add_{name}_token_id")(list(vocabulary).index(text))
    writer.add_eos_token_id(list(vocabulary).index("[SEP]"))
    if pair_template is not None:
        writer.add_chat_template([{"name": "rerank", "template": pair_template}])
    for name, values in weights.items():
        if (tensor := _name(name, ranks)) is not None:
            writer.add_tensor(tensor, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return into


def _piece(text: str) -> str:
    if text in SPECIAL:
        return text
    return text[2:] if text.startswith("##") else WORD + text


def _name(name: str, ranks: bool) -> str | None:
    stem, _, kind = name.rpartition(".")
    if stem.startswith(("pooler", "classifier")) and not ranks:
        return None
    if layer := re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", stem):
        return f"blk.{layer[1]}.{NAMES[layer[2]]}.{kind}"
    return f"{NAMES[stem]}.{kind}" if stem in NAMES else None


def random_weights(vocabulary: int, *, width: int = 32, inner: int = 64, context: int = 128) -> Weights:
    """Of one layer, the same each time, large enough that texts come out different."""
    random = np.random.default_rng(5)
    shapes = {
        "embeddings.word_embeddings": (vocabulary, width),
        "embeddings.position_embeddings": (context, width),
        "embeddings.token_type_embeddings": (2, width),
        **{f"attention.self.{name}": (width, width) for name in ("query", "key", "value")},
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
        "pooler.dense": (width, width),
        "classifier": (1, width),
    }
    weights = {}
    for stem, shape in shapes.items():
        is_outside = stem.startswith(("embeddings", "pooler", "classifier"))
        name = stem if is_outside else f"encoder.layer.0.{stem}"
        weights[f"{name}.weight"] = random.standard_normal(shape) / np.sqrt(shape[1] / 4)
        if not stem.startswith("embeddings"):
            weights[f"{name}.bias"] = random.standard_normal(shape[0]) / 4
    for name in ("embeddings", "encoder.layer.0.attention.output", "encoder.layer.0.output"):
        weights[f"{name}.LayerNorm.weight"] = 1 + random.standard_normal(width) / 4
        weights[f"{name}.LayerNorm.bias"] = random.standard_normal(width) / 4
    return {name: values.astype(np.float32) for name, values in weights.items()}


def read_safetensors(path: Path) -> Weights:
    """The weights of a file that has them as 32-bit floats."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name == "__metadata__" or entry["dtype"] != "F32":
            continue
        begin, end = entry["data_offsets"]
        values = np.frombuffer(data[8 + length + begin : 8 + length + end], "<f4")
        found[name] = values.reshape(entry["shape"])
    return found


# ---- computed with numpy -----------------------------------------------------------------------------


def word_pieces(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """The tokens of a text, as uncased BERT has them, without `[CLS]` and `[SEP]`."""
    plain = unicodedata.normalize("NFD", text.lower())
    plain = "".join(letter for letter in plain if unicodedata.category(letter) != "Mn")
    tokens: list[int] = []
    for word in re.findall(r"\w+|[^\w\s]", plain):
        found: list[int] = []
        rest = word
        while rest:
            mark = "##" if found else ""
            end = next((end for end in range(len(rest), 0, -1) if mark + rest[:end] in vocabulary), 0)
            if not end:
                found = [vocabulary["[UNK]"]]
                break
            found.append(vocabulary[mark + rest[:end]])
            rest = rest[end:]
        tokens += found
    return tokens


def hidden(weights: Weights, tokens: Sequence[int], *, heads: int) -> npt.NDArray[np.float64]:
    """The vectors of the last layer, one for each token."""

    def linear(x: Any, name: str) -> Any:
        return x @ weights[f"{name}.weight"].T.astype(np.float64) + weights[f"{name}.bias"]

    def norm(x: Any, name: str) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = weights["embeddings.word_embeddings.weight"][list(tokens)].astype(np.float64)
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    layer = 0
    while f"encoder.layer.{layer}.output.dense.weight" in weights:
        name = f"encoder.layer.{layer}"
        parts = (linear(x, f"{name}.attention.self.{part}") for part in ("query", "key", "value"))
        query, key, value = (part.reshape(len(tokens), heads, -1).transpose(1, 0, 2) for part in parts)
        fits = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
        fits = np.exp(fits - fits.max(-1, keepdims=True))
        seen = (fits / fits.sum(-1, keepdims=True)) @ value
        seen = seen.transpose(1, 0, 2).reshape(len(tokens), -1)
        x = norm(x + linear(seen, f"{name}.attention.output.dense"), f"{name}.attention.output.LayerNorm")
        inner = _gelu(linear(x, f"{name}.intermediate.dense"))
        x = norm(x + linear(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        layer += 1
    found: npt.NDArray[np.float64] = x
    return found


def _gelu(x: Any) -> Any:
    """By Gauss's integral, to 1e-7 (Abramowitz and Stegun 7.1.26)."""
    z = np.abs(x) / np.sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    powers = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
    error = 1 - sum(a * t ** (n + 1) for n, a in enumerate(powers)) * np.exp(-(z**2))
    return x * (1 + np.sign(x) * error) / 2


def score(weights: Weights, tokens: Sequence[int], *, heads: int) -> float:
    """What a reranker says of a pair, from 0 to 1."""
    first = hidden(weights, tokens, heads=heads)[0]
    pooled = np.tanh(weights["pooler.dense.weight"] @ first + weights["pooler.dense.bias"])
    logit = weights["classifier.weight"] @ pooled + weights["classifier.bias"]
    return float(1 / (1 + np.exp(-logit[0])))
