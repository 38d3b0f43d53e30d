"""The shapes of log-probabilities, made in Rust of patterns, against what Python makes of the numbers.

The engine is `benches/null_engine`, with all 256 bytes as tokens: most are no UTF-8 by themselves.
"""

from __future__ import annotations

import codecs
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_node.api.conversation import dump
from llm_node.api.openai import shapes
from llm_node.node import Event, Node, NodeError
from llm_node.settings import Settings

Alternative = tuple[bytes, float]
END = b"<end>"
Picked = tuple[bytes, float, list[Alternative]]

# The numbers themselves: bytes and log-probability of each token, and of its alternatives.
NUMBERS = "[<each>[<bytes>,<logprob>,[<top>[<bytes>,<logprob>]</top>]]</each>]"


def text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def chat(tokens: Sequence[Picked]) -> dict[str, Any]:
    def token(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": text(data), "logprob": logprob, "bytes": list(data)}

    content = [
        {**token(data, logprob), "top_logprobs": [token(other, value) for other, value in top]}
        for data, logprob, top in tokens
    ]
    return {"content": content, "refusal": None}


def plain(tokens: Sequence[Picked]) -> dict[str, Any]:
    return {
        "tokens": [name(data) for data, _, _ in tokens],
        "token_logprobs": [logprob for _, logprob, _ in tokens],
        "top_logprobs": [best(top) for _, _, top in tokens],
        # The end of the answer is no text, where the model goes on after it.
        "text_offset": offsets([b"" if data == END else data for data, _, _ in tokens]),
    }


def name(data: bytes) -> str:
    """Its text, or its bytes where it has none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def best(top: Sequence[Alternative]) -> dict[str, float]:
    """By name. No two tokens of this vocabulary have the same one."""
    found = {name(data): logprob for data, logprob in top}
    assert len(found) == len(top)
    return found


def offsets(tokens: Sequence[bytes]) -> list[int]:
    """Where each token's first byte is, in characters of the whole text; of a token without bytes, how many
    characters are complete."""
    found, so_far = [], b""
    for data in tokens:
        complete = codecs.getincrementaldecoder("utf-8")("replace").decode(so_far)
        found.append(len(text(so_far + data[:1])) - 1 if data else len(complete))
        so_far += data
    return found


def numbers(event: Event) -> list[Picked]:
    return [
        (bytes(data), logprob, [(bytes(other), value) for other, value in top])
        for data, logprob, top in json.loads(event.fill(NUMBERS))
    ]


async def ending(node: Node, seed: int) -> Event:
    """That of a whole answer, which has all of it."""
    level = [[token, -10.0] for token in b"abcdefghijklmnopqrstuvwxyz "]
    sampling = {"temperature": 3.0, "seed": seed, "bias": level}
    request = {
        "prompt": {"text": " "},
        "max_tokens": 300,
        "ignore_eos": True,
        "sampling": sampling,
        "logprobs": 20,
    }
    async with node.open("null", [request], whole=True) as generation:
        events = [event async for batch in generation for _, event in batch]
    (found,) = [event for event in events if event.kind == "finished"]
    return found


async def test_patterns_make_what_python_makes(repository: Path, tmp_path: Path) -> None:
    make = ["make", "-C", str(repository / "benches/null_engine"), f"OUT={tmp_path / 'engines'}"]
    subprocess.run(make, check=True, capture_output=True)
    (tmp_path / "models").mkdir()
    (tmp_path / "models/null.null").write_text("any file at all")
    folders: Any = {"engines_dir": (tmp_path / "engines",), "models_dir": tmp_path / "models", "caches": ()}
    async with Node(Settings(**folders, gpu_backend="cpu")) as node:
        for seed in range(4):
            event = await ending(node, seed)
            tokens = numbers(event)
            assert len(tokens) == 300
            assert all(len(top) == 20 for _, _, top in tokens)
            assert any("\ufffd" in text(data) for data, _, _ in tokens)
            for pattern, shape in ((shapes.CHAT_LOGPROBS, chat), (shapes.PLAIN_LOGPROBS, plain)):
                assert event.fill(pattern).decode() == dump(shape(tokens))
        with pytest.raises(NodeError, match="pattern") as caught:
            event.fill("<each><nothing></each>")
        assert caught.value.code == "invalid_request"
