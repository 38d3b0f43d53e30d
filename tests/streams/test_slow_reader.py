"""What becomes of text on its way: equal to the answer that is not streamed, whatever it is made of and
however fast the client reads; and a client that does not read costs nobody but itself.

The engine is `benches/null_engine`, whose answers are known beforehand: the alphabet, again and again.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

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
    with running_node(root / "node", [*arguments, "--demo-model", "no", "--ping-interval", "1"]) as node:
        options = {"step_us": "50"}
        load = {"model_id": "null", "max_sequences": 16, "context_length": CONTEXT, "options": options}
        assert node.post("/api/models/load", load).status == 200
        yield node


CHAT = {"prompt": None, "messages": [{"role": "user", "content": "a"}]}
PATHS = {"plain": "/v1/completions", "chat": "/v1/chat/completions"}
WITH_LOGPROBS = [("plain", {"logprobs": 0}), ("chat", {**CHAT, "logprobs": True})]


def body(**changes: Any) -> dict[str, Any]:
    wanted = {"model": "null", "prompt": " ", "temperature": 0, "ignore_eos": True, **changes}
    return {key: value for key, value in wanted.items() if value is not None}


def events(node: RunningNode, request: dict[str, Any], path: str = "/v1/completions") -> list[dict[str, Any]]:
    """The chunks of an answer, each of which is written exactly as Python's `json` writes it."""
    answer = node.post(path, {**request, "stream": True})
    assert answer.status == 200, answer.body
    *chunks, done, rest = answer.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    # On a busy machine there may be silences, which a comment breaks.
    chunks = [chunk for chunk in chunks if chunk != b": keep-alive"]
    found = [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks]
    assert [sse.EVENTS.frame(each) for each in found] == [chunk + b"\n\n" for chunk in chunks]
    return found


def text_of(chunks: list[dict[str, Any]], index: int = 0) -> str:
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    return "".join(choice["text"] for choice in choices if choice["index"] == index)


def logprobs_of(chunks: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """The lists of all chunks, one behind the other: those of a whole answer."""
    found: dict[str, list[Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            for name, entries in (choice["logprobs"] or {}).items():
                found.setdefault(name, []).extend(entries or ())
    return found


@pytest.mark.parametrize("seed", range(8))
def test_any_bytes_are_streamed_as_they_are_answered(null_node: RunningNode, seed: int) -> None:
    """All 256 bytes are equally likely: control characters, quotes, and what is no UTF-8 at all."""
    level = {str(token): -10 for token in (*range(ord("a"), ord("z") + 1), ord(" "))}
    request = body(temperature=2, seed=seed, logit_bias=level, max_tokens=500)
    whole = null_node.post("/v1/completions", request).json()["choices"][0]["text"]
    assert text_of(events(null_node, request)) == whole
    assert any(character < " " for character in whole)
    assert "�" in whole


@pytest.mark.parametrize(
    ("family", "wanted"),
    [*WITH_LOGPROBS, ("plain", {"logprobs": 20}), ("chat", {**CHAT, "logprobs": True, "top_logprobs": 20})],
)
def test_log_probabilities_of_any_bytes_are_streamed_as_they_are_answered(
    null_node: RunningNode, family: str, wanted: dict[str, Any]
) -> None:
    level = {str(token): -10 for token in (*range(ord("a"), ord("z") + 1), ord(" "))}
    request = body(temperature=2, seed=3, logit_bias=level, max_tokens=300, **wanted)
    whole = null_node.post(PATHS[family], request).json()
    chunks = events(null_node, request, PATHS[family])
    assert logprobs_of(chunks) == logprobs_of([whole])
    assert len(next(iter(logprobs_of([whole]).values()))) == 300


@pytest.mark.parametrize(
    ("family", "wanted", "texts"),
    [
        (
            "plain",
            {"logprobs": 2},
            [
                '"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[-0.011555522680282593],'
                '"top_logprobs":[{"a":-0.011555522680282593,"\\u0000":-10.011555671691895}],"text_offset":[0]},',
                '"text":"b","logprobs":{"tokens":["b"],"token_logprobs":[-0.011555522680282593],'
                '"top_logprobs":[{"b":-0.011555522680282593,"\\u0000":-10.011555671691895}],"text_offset":[1]},',
                '"text":"","logprobs":null,',
            ],
        ),
        (
            "chat",
            {**CHAT, "logprobs": True, "top_logprobs": 1},
            [
                '"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,',
                '"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.011555522680282593,'
                '"bytes":[97],"top_logprobs":[{"token":"a","logprob":-0.011555522680282593,"bytes":[97]}]}],'
                '"refusal":null},',
                '"delta":{"content":"b"},"logprobs":{"content":[{"token":"b","logprob":-0.011555522680282593,'
                '"bytes":[98],"top_logprobs":[{"token":"b","logprob":-0.011555522680282593,"bytes":[98]}]}],'
                '"refusal":null},',
                '"delta":{},"logprobs":null,',
            ],
        ),
    ],
)
def test_log_probabilities_to_the_byte(
    null_node: RunningNode, family: str, wanted: dict[str, Any], texts: list[str]
) -> None:
    answer = null_node.post(PATHS[family], {**body(max_tokens=2, **wanted), "stream": True})
    *found, _, _ = answer.body.decode().split("\n\n")
    assert len(found) == len(texts)
    for event, text in zip(found, texts, strict=True):
        assert f'"model":"null","choices":[{{"index":0,{text}"finish_reason":' in event


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
            head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
            client.sendall(head.encode() + data)
            answer = b""
            while not answer.endswith(b"\r\n0\r\n\r\n"):
                more = client.recv(65536)
                assert more, answer
                answer += more
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.count(b'"finish_reason":"length"') == 1


def running(node: RunningNode) -> int:
    """Sequences of null's that are under way."""
    (entry,) = [each for each in node.get("/api/models").json()["models"] if each["model_id"] == "null"]
    return int(entry["requests"])


def slow_client(node: RunningNode, request: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
    """Has sent its request, the answer to which has begun, and reads nothing by itself."""
    client = socket.socket()
    client.settimeout(60)
    client.connect(node.address)
    data = json.dumps({**request, "stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
    client.sendall(head.encode() + data)
    # Before that nothing is under way, as when all is done. What is looked at stays there.
    assert client.recv(1, socket.MSG_PEEK) == b"H"
    return client


async def until_it_ends(node: RunningNode) -> None:
    deadline = time.monotonic() + 60
    while await asyncio.to_thread(running, node):
        assert time.monotonic() < deadline, "the answer goes on"
        await asyncio.sleep(0.05)


async def read_late(node: RunningNode, request: dict[str, Any], path: str = "/v1/completions") -> list[bytes]:
    """The events of an answer that is read only when all of it is made."""
    with slow_client(node, request, path) as client:
        await until_it_ends(node)
        answer = b""
        while not answer.endswith(b"\r\n0\r\n\r\n"):
            more = await asyncio.to_thread(client.recv, 1 << 20)
            assert more
            answer += more
    return [line[6:] for line in answer.split(b"\n") if line.startswith(b"data: {")]


async def test_who_reads_late_gets_everything_in_fewer_events(null_node: RunningNode) -> None:
    """The connection's buffers are full long before the answer ends; what came then is merged."""
    tokens = 60_000
    chunks = [json.loads(event) for event in await read_late(null_node, body(max_tokens=tokens))]
    assert text_of(chunks) == (ALPHABET * (tokens // len(ALPHABET) + 1))[:tokens]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len(chunks) < tokens / 2


async def parsed(events: list[bytes], path: str) -> list[dict[str, Any]]:
    """What OpenAI's client makes of events, dumped again."""
    data = b"".join(b"data: %b\n\n" % event for event in events) + sse.EVENTS.last

    async def answer(_: web.Request) -> web.Response:
        return web.Response(body=data, content_type="text/event-stream")

    app = web.Application()
    app.add_routes([web.post(path, answer)])
    async with (
        TestServer(app) as server,
        openai.AsyncOpenAI(base_url=str(server.make_url("/v1")), api_key="none") as client,
    ):
        if path == PATHS["chat"]:
            messages: Any = CHAT["messages"]
            chunks: Any = await client.chat.completions.create(model="null", messages=messages, stream=True)
        else:
            chunks = await client.completions.create(model="null", prompt=" ", stream=True)
        return [chunk.model_dump(exclude_unset=True) async for chunk in chunks]


@pytest.mark.parametrize(("family", "wanted"), WITH_LOGPROBS)
async def test_who_reads_late_gets_all_log_probabilities(
    null_node: RunningNode, family: str, wanted: dict[str, Any]
) -> None:
    """They are merged as the text is. Between what fits into the connection's buffers, which differ, and what
    is too much even if merged, lie 250 KiB and no more: so the answer grows until it no longer fits."""
    for tokens in itertools.count(2000, 2000):
        request = body(max_tokens=tokens, **wanted)
        found = await read_late(null_node, request, PATHS[family])
        if len(found) < tokens:
            break
    chunks = await parsed(found, PATHS[family])
    assert chunks == [json.loads(event) for event in found]
    whole = null_node.post(PATHS[family], request).json()
    assert logprobs_of(chunks) == logprobs_of([whole])
    assert len(next(iter(logprobs_of([whole]).values()))) == tokens


@pytest.mark.parametrize("wanted", [{}, {"logprobs": 20}])
async def test_who_never_reads_is_cut_off_and_nobody_else_notices(
    null_node: RunningNode, wanted: dict[str, Any]
) -> None:
    """The others' streams are whole, and its sequences are free long before its answers are."""
    # Eight answers, of tokens that are three bytes each as U+FFFD: the sooner it is over.
    forever = body(max_tokens=CONTEXT - 10, logit_bias={"255": 100}, n=8, **wanted)
    with slow_client(null_node, forever) as client:
        others = [asyncio.to_thread(events, null_node, body(max_tokens=2000)) for _ in range(6)]
        for chunks in await asyncio.gather(*others):
            assert text_of(chunks) == (ALPHABET * 75)[:2000]
            assert 1000 < len(chunks) <= 2001  # on a busy machine some tokens share one
        await until_it_ends(null_node)
        with pytest.raises(ConnectionResetError):
            while await asyncio.to_thread(client.recv, 1 << 20):
                pass
    assert "wait for a client that does not read" in null_node.log_text()
