"""Models for benchmarks: real shapes, random weights, written once into a cache.

The speed of a transformer does not depend on what its weights say, so nothing has to be downloaded. The
tokenizer works like those of real models (SentencePiece BPE with byte fallback), and there is a chat
template, so that both servers turn the same text into the same number of tokens.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

from benches import ROOT

STORIES = ROOT.parent / "shared" / "models" / "stories260K.gguf"
DEMO = ROOT / "python" / "llm_node" / "demo" / "llm-node-demo.gguf"

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- message['role'] + ': ' + message['content'] + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'assistant: ' -}}{%- endif -%}"
)
ALPHABET = "▁abcdefghijklmnopqrstuvwxyz"
WEIGHT_DEVIATION = 0.02
ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Shape:
    """The numbers of a llama-shaped model whose output projection is its embedding."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    hidden: int
    vocab: int
    context: int = 8192

    @property
    def head_width(self) -> int:
        return self.width // self.heads

    def cache_bytes_per_token(self) -> int:
        """Keys and values in f16."""
        return 2 * self.layers * self.kv_heads * self.head_width * 2

    def matrices(self) -> Iterator[tuple[str, int, int]]:
        """Name, rows and columns of each."""
        cache = self.kv_heads * self.head_width
        yield "token_embd", self.vocab, self.width
        for layer in range(self.layers):
            block = f"blk.{layer}"
            yield f"{block}.attn_q", self.width, self.width
            yield f"{block}.attn_k", cache, self.width
            yield f"{block}.attn_v", cache, self.width
            yield f"{block}.attn_output", self.width, self.width
            yield f"{block}.ffn_gate", self.hidden, self.width
            yield f"{block}.ffn_up", self.hidden, self.width
            yield f"{block}.ffn_down", self.width, self.hidden


VOCABULARIES = {"32k": 32_000, "49k": 49_152, "128k": 128_256, "152k": 151_936}
SHAPES = {
    "15M": Shape(layers=6, width=288, heads=6, kv_heads=6, hidden=768, vocab=32_000),
    "135M": Shape(layers=30, width=576, heads=9, kv_heads=3, hidden=1536, vocab=49_152),
    "360M": Shape(layers=32, width=960, heads=15, kv_heads=5, hidden=2560, vocab=49_152),
    "1B": Shape(layers=16, width=2048, heads=32, kv_heads=8, hidden=8192, vocab=128_256),
    "8B": Shape(layers=32, width=4096, heads=32, kv_heads=8, hidden=14_336, vocab=128_256),
}
QUANTISATIONS = {
    # The type, the bytes of a block's integers, and the deviation of uniformly random ones.
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 32, 73.9),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, 16, 4.61),
}
BLOCK = 32


FIRST_WORD = 3 + 256
"""Before the words come the tokens of control and the bytes."""


def vocabulary(size: int) -> list[bytes]:
    """Words of up to four letters of `ALPHABET`, short ones first, so that each can be merged from parts."""
    words = (
        "".join(letters) for length in (1, 2, 3, 4) for letters in itertools.product(ALPHABET, repeat=length)
    )
    return [word.encode() for word in itertools.islice(words, size)]


def add_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    control = [b"<unk>", b"<s>", b"</s>"]
    numbers = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    words = vocabulary(size - len(control) - len(numbers))
    tokens = control + numbers + words
    if len(tokens) != size:
        raise ValueError(f"a vocabulary of {size} tokens cannot be made")
    kinds = [gguf.TokenType.UNKNOWN, gguf.TokenType.CONTROL, gguf.TokenType.CONTROL]
    kinds += [gguf.TokenType.BYTE] * len(numbers) + [gguf.TokenType.NORMAL] * len(words)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    # Later words are longer, and merging prefers the higher score.
    writer.add_token_scores([0.0] * (len(control) + len(numbers)) + [float(n) for n in range(len(words))])
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)


def random_blocks(
    random: np.random.Generator, rows: int, columns: int, quantisation: str
) -> npt.NDArray[np.uint8]:
    """A matrix in blocks of a scale (f16) and integers, as bytes of shape (rows, bytes of a row)."""
    _, _, payload, deviation = QUANTISATIONS[quantisation]
    count = rows * columns // BLOCK
    blocks = np.empty((count, 2 + payload), dtype=np.uint8)
    blocks[:, :2] = np.frombuffer(np.float16(WEIGHT_DEVIATION / deviation).tobytes(), dtype=np.uint8)
    for first in range(0, count, ROWS_AT_ONCE):
        last = min(count, first + ROWS_AT_ONCE)
        blocks[first:last, 2:] = random.integers(0, 256, size=(last - first, payload), dtype=np.uint8)
    return blocks.reshape(rows, -1)


def silence(rows: npt.NDArray[np.uint8], quantisation: str) -> None:
    """Make the weights of these rows zero, by their blocks' scales."""
    _, _, payload, _ = QUANTISATIONS[quantisation]
    rows.reshape(len(rows), -1, 2 + payload)[:, :, :2] = 0


def write_random(path: Path, name: str, shape: Shape, quantisation: str) -> Path:
    """Write a model of that shape; the same arguments give the same file."""
    kind, file_type, _, _ = QUANTISATIONS[quantisation]
    if any(columns % BLOCK for _, _, columns in shape.matrices()):
        raise ValueError(f"rows of {name} do not fall into blocks of {BLOCK}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    random = np.random.Generator(np.random.PCG64(1))
    writer = gguf.GGUFWriter(str(unfinished), "llama")
    writer.add_name(name)
    writer.add_description("Random weights, for benchmarks.")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.hidden)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_width)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(file_type)
    add_tokenizer(writer, shape.vocab)
    for tensor, rows, columns in shape.matrices():
        blocks = random_blocks(random, rows, columns, quantisation)
        if tensor == "token_embd":
            # Nothing speaks for these tokens, so greedy answers are whole words: llama-server fails a
            # request whose text is no valid UTF-8.
            silence(blocks[:FIRST_WORD], quantisation)
        writer.add_tensor(f"{tensor}.weight", blocks, raw_dtype=kind)
    norms = ["output_norm"]
    norms += [f"blk.{layer}.{part}" for layer in range(shape.layers) for part in ("attn_norm", "ffn_norm")]
    for norm in norms:
        writer.add_tensor(f"{norm}.weight", np.ones(shape.width, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)
    return path


def with_chat_template(source: Path, target: Path) -> Path:
    """A copy of a model that has no chat template, with one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    reader = gguf.GGUFReader(str(source))
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(str(unfinished), architecture)
    for field in reader.fields.values():
        if field.name == "general.architecture" or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    if gguf.Keys.Tokenizer.CHAT_TEMPLATE not in reader.fields:
        writer.add_chat_template(CHAT_TEMPLATE)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(target)
    return target


@dataclass(frozen=True)
class Model:
    """A file, and what a load generator has to know of it."""

    name: str
    path: Path
    vocab: int
    layers: int
    cache_bytes_per_token: int
    note: str = ""

    @property
    def size(self) -> int:
        return self.path.stat().st_size


def describe(path: Path, name: str, note: str = "") -> Model:
    fields = gguf.GGUFReader(str(path)).fields

    def number(key: str) -> int:
        return int(fields[f"llama.{key}"].contents())

    layers, heads = number("block_count"), number("attention.head_count")
    kv_heads = number("attention.head_count_kv") if "llama.attention.head_count_kv" in fields else heads
    head_width = number("embedding_length") // heads
    return Model(
        name=name,
        path=path,
        vocab=len(fields["tokenizer.ggml.tokens"].data),
        layers=layers,
        cache_bytes_per_token=2 * layers * kv_heads * head_width * 2,
        note=note,
    )


def random_model(folder: Path, size: str, quantisation: str = "q8_0", vocab: str | None = None) -> Model:
    """The model of that size, made if it is not there."""
    shape = SHAPES[size]
    if vocab is not None:
        shape = Shape(**{**vars(shape), "vocab": VOCABULARIES[vocab]})
    name = "-".join(["random", size, *([f"v{vocab}"] if vocab else []), quantisation])
    path = folder / f"{name}.gguf"
    if not path.is_file():
        print(f"writing {name} ...", flush=True)
        write_random(path, name, shape, quantisation)
    return describe(path, name)


def small_model(folder: Path) -> Model:
    """A model whose engine costs next to nothing: stories260K, or the demo model where that is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    if STORIES.is_file():
        path = folder / "stories260K.gguf"
        if not path.is_file():
            with_chat_template(STORIES, path)
        return describe(path, "stories260K")
    path = folder / "demo.gguf"
    if not path.is_file():
        shutil.copyfile(DEMO, path)
    return describe(path, "demo", note="the demo model (3.8 M) in place of stories260K, which is not here")
