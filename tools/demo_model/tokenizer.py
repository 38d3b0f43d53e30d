"""The tokenizer: a SentencePiece BPE with byte fallback, and how a conversation becomes tokens.

The layout of a conversation is written twice, here in tokens and in CHAT_TEMPLATE for those who run the
model; verify.py compares them.
"""

from __future__ import annotations

import random
from pathlib import Path

import data
import sentencepiece

SYSTEM, USER, ASSISTANT, END = "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"

MODEL = Path(__file__).with_name("tokenizer.model")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- else -%}{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] or [] -%}"
    "{%- if part['type'] == 'text' -%}{%- set parts.text = parts.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}{%- set text = parts.text -%}{%- endif -%}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|assistant|>' -}}"
    "{%- elif message['role'] in ['system', 'developer'] -%}{{- '<|system|>' -}}"
    "{%- else -%}{{- '<|user|>' -}}{%- endif -%}"
    "{{- text | trim + '<|end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def train(folder: Path, vocab: int, seed: int) -> None:
    """Writes tokenizer.model. It is committed, so that a new fact does not make a new tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    prefix = folder / "tokenizer"
    lines = prefix.with_suffix(".txt")
    lines.write_text("\n".join(data.sample_text(random.Random(seed), 6000)), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(lines),
        model_prefix=str(prefix),
        model_type="bpe",
        vocab_size=vocab,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        max_sentencepiece_length=24,
        control_symbols=[SYSTEM, USER, ASSISTANT],
        eos_piece=END,
        shuffle_input_sentence=False,
        input_sentence_size=0,
        num_threads=1,
        minloglevel=2,
    )


class Tokenizer:
    """Text to tokens and back."""

    def __init__(self, path: Path = MODEL) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.begin = self.pieces.bos_id()
        self.end = self.pieces.eos_id()
        self.system, self.user, self.assistant = (
            self.pieces.piece_to_id(name) for name in (SYSTEM, USER, ASSISTANT)
        )

    def encode(self, text: str, dropout: float = 0.0) -> list[int]:
        if dropout:
            return list(self.pieces.encode(text, enable_sampling=True, alpha=dropout))
        return list(self.pieces.encode(text))

    def decode(self, tokens: list[int]) -> str:
        return str(self.pieces.decode(tokens))

    def prompt(self, messages: list[tuple[str, str]]) -> list[int]:
        """(role, content) messages, with the beginning of the answer."""
        tokens: list[int] = []
        for role, text in messages:
            tokens += [getattr(self, role), *self.encode(text.strip()), self.end]
        return [*tokens, self.assistant]


if __name__ == "__main__":
    train(Path("build"), 1536, 7)
