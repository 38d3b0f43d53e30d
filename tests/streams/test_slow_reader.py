"""What becomes of text on its way: equal to the answer that is not streamed, whatever it is made of and
however fast the client reads; and a client that does not read costs nobody but itself.

The engine is `benches/null_engine`, whose answers are known beforehand: the alphabet, again and again.
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_node.api import sse
from support.node import RunningNode, running_node

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
CONTEXT = 100_000
NASTY = '"\\\x00\x01\x08\x0c\x1b\x1f\x7f\x85\u2028\u2029\ufeff\ufffdé語한🦙\U0001d518\U0010ffff</script>'


@pytest.fixture(scope="module")
def null_node(
    repository: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningNode]:
    """A node with the engine that costs nothing, one that is just too fast to read by, and the Markov one."""
    root = tmp_path_factory.mktemp("null")
    engines, models = root / "engines", root / "models"
    shutil.copytree(samples, engines)
    subprocess.run(
        ["make", "-C", str(repository / "benches/null_engine"), f"OUT={engines}"],
        check=True,
        capture_output=True,
    )
    models.mkdir()
    (models / "null.null").write_text("any file at all")
    generator = random.Random(7)
    words = ["".join(generator.choices(NASTY, k=generator.randint(1, 6))) for _ in range(500)]
    (models / "nasty.txt").write_text(" ".join(words), encoding="utf-8")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(root / "node", [*arguments, "--demo-model", "no", "--keep-alive", "1"]) as node:
        options = {"step_us": "50"}
        load = {"model_id": "null", "max_sequences": 16, "context_length": CONTEXT, "options": options}
        assert node.post("/api/models/load", load).status == 200
        yield node


def body(**changes: Any) -> dict[str, Any]:
    return {"model": "null", "prompt": " ", "temperature": 0, "ignore_eos": True, **changes}


def events(node: RunningNode, request: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of an answer, each of which is written exactly as Python's `json` writes it."""
    answer = node.post("/v1/completions", {**request, "stream": True})
    assert answer.status == 200, answer.body
    *chunks, done, rest = answer.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    found = [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]
    assert [sse.frame(each) for each in found] == [chunk + b"\n\n" for chunk in chunks]
    return found


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_are_streamed_as_they_are_answered(null_node: RunningNode, seed: int) -> None:
    """All 256 bytes are equally likely: control characters, quotes, and what is no UTF-8 at all."""
    level = {str(token): -10 for token in (*range(ord("a"), ord("z") + 1), ord(" "))}
    request = body(temperature=2, seed=seed, logit_bias=level, max_tokens=500)
    whole = null_node.post("/v1/completions", request).json()["choices"][0]["text"]
    assert text_of(events(null_node, request)) == whole
    assert any(character < " " for character in whole)
    assert "�" in whole


@pytest.mark.parametrize("prompt", ["a", "b", "語", '"', "\\", "🦙"])
def test_any_characters_are_streamed_as_they_are_answered(null_node: RunningNode, prompt: str) -> None:
    request = {"model": "nasty", "prompt": prompt, "n": 2, "max_tokens": 60}
    whole = null_node.post("/v1/completions", request).json()
    chunks = events(null_node, request)
    for choice in whole["choices"]:
        assert text_of(chunks, choice["index"]) == choice["text"]
    assert set("".join(choice["text"] for choice in whole["choices"])) & set(NASTY)


def test_a_token_is_an_event_for_who_keeps_up(null_node: RunningNode) -> None:
    chunks = events(null_node, body(max_tokens=100))
    assert text_of(chunks) == (ALPHABET * 4)[:100]
    assert len(chunks) == 101  # and the one that ends it


def test_http_1_0_gets_no_chunks(null_node: RunningNode) -> None:
    data = json.dumps(body(max_tokens=27, stream=True)).encode()
    with socket.create_connection(null_node.address, timeout=30) as client:
        head = f"POST /v1/completions HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n"
        client.sendall(head.encode() + data)
        answer = b""
        while more := client.recv(65536):
            answer += more
    head_of_answer, _, rest = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head_of_answer
    *chunks, done, end = rest.split(b"\n\n")
    assert (done, end) == (b"data: [DONE]", b"")
    assert text_of([json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]) == ALPHABET


def test_a_connection_is_kept_for_the_next_answer(null_node: RunningNode) -> None:
    data = json.dumps(body(max_tokens=5, stream=True)).encode()
    with socket.create_connection(null_node.address, timeout=30) as client:
        for _ in range(3):
            head = f"POST /v1/completions HTTP/1.1\r\nHost: node\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode() + data)
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                more = client.recv(65536)
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.count(b'"finish_reason":"length"') == 1


def running(node: RunningNode) -> int:
    (entry,) = [each for each in node.get("/api/models").json()["models"] if each["model_id"] == "null"]
    return int(entry["requests"])


def slow_client(node: RunningNode, request: dict[str, Any]) -> socket.socket:
    """Has sent its request, and reads nothing by itself."""
    client = socket.socket()
    client.settimeout(60)
    client.connect(node.address)
    data = json.dumps({**request, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: node\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    return client


async def test_who_reads_late_gets_everything_in_fewer_events(null_node: RunningNode) -> None:
    """The connection's buffers are full long before the answer ends; what came then is merged."""
    tokens = 60_000
    with slow_client(null_node, body(max_tokens=tokens)) as client:
        deadline = time.monotonic() + 60
        while await asyncio.to_thread(running, null_node):
            assert time.monotonic() < deadline, "the answer waits for its reader"
            await asyncio.sleep(0.05)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            more = await asyncio.to_thread(client.recv, 1 << 20)
            assert more
            answer += more
    lines = [line for line in answer.split(b"\n") if line.startswith(b"data: {")]
    chunks = [json.loads(line[6:]) for line in lines]
    assert text_of(chunks) == (ALPHABET * (tokens // len(ALPHABET) + 1))[:tokens]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(chunks) < tokens / 2


async def test_who_never_reads_is_cut_off_and_nobody_else_notices(null_node: RunningNode) -> None:
    """The others' streams are whole, and its sequences are free long before its answers are."""
    # Eight answers, of tokens that are three bytes each as U+FFFD: the sooner it is over.
    forever = body(max_tokens=CONTEXT - 10, logit_bias={"255": 100}, n=8)
    with slow_client(null_node, forever) as client:
        others = [asyncio.to_thread(events, null_node, body(max_tokens=2000)) for _ in range(6)]
        for chunks in await asyncio.gather(*others):
            assert text_of(chunks) == (ALPHABET * 75)[:2000]
            assert len(chunks) == 2001
        deadline = time.monotonic() + 60
        while await asyncio.to_thread(running, null_node):
            assert time.monotonic() < deadline, "the stream of a client that does not read goes on"
            await asyncio.sleep(0.05)
        with pytest.raises(ConnectionResetError):
            while await asyncio.to_thread(client.recv, 1 << 20):
                pass
    assert "wait for a client that does not read" in null_node.log_text()
