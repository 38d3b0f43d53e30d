"""Text of clients who keep up is written to their sockets by Rust, past the event loop: that it happens, that
nothing overtakes, and that it ends when the client does.

The engine is `benches/null_engine`, whose answers are known beforehand: the alphabet, again and again.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from llm_node.node import Event, Frames, Node
from llm_node.settings import Settings
from support.node import RunningNode, running_node

ALPHABET = "abcdefghijklmnopqrstuvwxyz "
STEP_US = 2000
TEMPLATE = "{{ messages[-1].content }}"


@pytest.fixture(scope="module")
def folders(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Engines and models."""
    root = tmp_path_factory.mktemp("null")
    engines, models = root / "engines", root / "models"
    subprocess.run(
        ["make", "-C", str(repository / "benches/null_engine"), f"OUT={engines}"],
        check=True,
        capture_output=True,
    )
    models.mkdir()
    for name in ("null", "slow"):
        (models / f"{name}.null").write_text("any file at all")
    return engines, models


@pytest.fixture
async def node(folders: tuple[Path, Path]) -> AsyncIterator[Node]:
    engines, models = folders
    settings = Settings(
        engines_dir=(engines,), models_dir=models, gpu_backend="cpu", speculation="off", caches=()
    )
    async with Node(settings) as node:
        await node.load("null", options={"step_us": str(STEP_US)})
        yield node


class Ends:
    """A connection, seen from both sides, and what happens to its one request."""

    def __init__(self) -> None:
        self.own, self.clients = socket.socketpair()
        self.own.setblocking(False)
        self.clients.settimeout(10)
        self.passed = 0
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def event(self, index: int, event: Event) -> None: ...

    def end(self, error: Exception | None, number: int = 0) -> None:
        self.ended.set_result(error)

    def pass_on(self, data: bytes) -> None:
        self.passed += 1
        self.own.sendall(data)

    def overflow(self) -> None:
        raise AssertionError("it reads")

    def socket(self) -> int | None:
        return self.own.fileno()

    async def arrived(self) -> bytes:
        """What the client reads next. The loop goes on meanwhile, or it could not send what is waited for."""
        return await asyncio.to_thread(self.clients.recv, 1 << 16)

    def __enter__(self) -> Ends:
        return self

    def __exit__(self, *_: object) -> None:
        self.own.close()
        self.clients.close()


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    with Ends() as ends:
        yield ends


def request(tokens: int) -> dict[str, Any]:
    sampling = {"temperature": 0.0}
    return {"prompt": {"text": " "}, "max_tokens": tokens, "ignore_eos": True, "sampling": sampling}


def frames(before: bytes = b"") -> Frames:
    """Each piece of text is a JSON string with this before it."""
    delta = ([(before, "text")], b"")
    return (None, delta, None, None), None, None, [], {}, None, False, False, 0


def text(tokens: int) -> bytes:
    return "".join(f'"{letter}"' for letter in (ALPHABET * tokens)[:tokens]).encode()


async def test_text_goes_past_the_loop(node: Node, ends: Ends) -> None:
    async with node.deliver("null", [request(200)], ends, connection=ends, frames=[frames()]):
        assert await ends.ended is None
    assert ends.clients.recv(1 << 16) == text(200)
    # The first piece may come together with the beginning; nothing else waited for the loop.
    assert ends.passed <= 2


async def test_the_node_may_write_in_between(node: Node, ends: Ends) -> None:
    """Holding a client keeps its text back, whole, until the client is released."""
    writes = []
    async with node.deliver("null", [request(1000)], ends, connection=ends, frames=[frames()]) as client:
        received = await ends.arrived()
        while not ends.ended.done():
            await asyncio.sleep(0.02)
            received += await ends.arrived()
            writes.append(client.hold(0))
            ends.own.sendall(b"(")
            time.sleep(0.005)  # the loop stands still; Rust does not
            ends.own.sendall(b")")
            client.release()
    assert ends.ended.result() is None
    received += await ends.arrived()
    assert len(re.findall(rb"\(\)", received)) == len(writes) > 3
    # What was held back is one piece.
    assert received.replace(b"()", b"").replace(b'"', b"") == text(1000).replace(b'"', b"")
    # A client that has ended, of which the loop hears later, counts 0.
    assert max(writes) > writes[0] > 0


async def test_who_has_left_is_written_to_no_more(node: Node, ends: Ends) -> None:
    """And Rust's copy of the socket goes at once, so that closing the connection closes it."""
    async with node.deliver("null", [request(2000)], ends, connection=ends, frames=[frames()]):
        received = await ends.arrived()
    ends.own.close()
    while more := ends.clients.recv(1 << 16):
        received += more
    assert text(2000).startswith(received)
    assert len(received) < len(text(2000)), "it was written to until the answer's end"


@pytest.mark.parametrize("gone", ["closed", "unread"])
async def test_a_client_that_is_gone_costs_nobody(node: Node, ends: Ends, gone: str) -> None:
    """What its socket does not take comes to the node as ever."""
    if gone == "closed":
        ends.clients.close()
    else:
        ends.own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    several, received = asyncio.Event(), []

    def pass_on(data: bytes) -> None:
        received.append(data)
        if len(received) > 3:
            several.set()

    ends.pass_on = pass_on  # type: ignore[method-assign]
    with Ends() as other:
        async with (
            node.deliver("null", [request(4000)], ends, connection=ends, frames=[frames(b"x" * 200)]),
            node.deliver("null", [request(200)], other, connection=other, frames=[frames()]),
        ):
            assert await other.ended is None
            assert other.clients.recv(1 << 16) == text(200)
            await asyncio.wait_for(several.wait(), 30)


@pytest.fixture(scope="module")
def served(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that breaks a silence of half a second; "slow" is slower than that, "null" is not."""
    engines, models = folders
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    arguments += ["--demo-model", "no", "--ping-interval", "0.5", "--speculation", "off"]
    with running_node(tmp_path_factory.mktemp("served"), arguments) as node:
        for model, step_us in (("null", 20_000), ("slow", 1_100_000)):
            load = {"model_id": model, "options": {"step_us": str(step_us)}, "chat_template": TEMPLATE}
            assert node.post("/api/models/load", load).status == 200
        yield node


@pytest.mark.parametrize(("model", "tokens", "is_silent"), [("null", 60, False), ("slow", 3, True)])
def test_only_silence_is_broken(served: RunningNode, model: str, tokens: int, is_silent: bool) -> None:
    """The loop knows of what is written past it, and its comments stand between events."""
    body = {"model": model, "prompt": " ", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    answer = served.post("/v1/completions", {**body, "stream": True})
    *blocks, done, rest = answer.body.split(b"\n\n")
    assert (done, rest) == (b"data: [DONE]", b"")
    comments = [block for block in blocks if block == b": keep-alive"]
    events = [json.loads(block.removeprefix(b"data: ")) for block in blocks if block != b": keep-alive"]
    assert "".join(event["choices"][0]["text"] for event in events) == (ALPHABET * 3)[:tokens]
    assert bool(comments) == is_silent


def test_official_clients_bear_a_silence(served: RunningNode) -> None:
    """What breaks it is another thing in each API, and nothing where a reader of lines would choke on it."""
    question: Any = [{"role": "user", "content": " "}]
    asked: Any = {"model": "slow", "temperature": 0, "stream": True}
    for path, body, silence in (
        ("/v1/messages", {"messages": question, "max_tokens": 2}, b'event: ping\ndata: {"type":"ping"}\n\n'),
        ("/v1/responses", {"input": " ", "max_output_tokens": 2}, b": keep-alive\n\n"),
        ("/api/chat", {"messages": question, "options": {"num_predict": 2}}, None),
    ):
        answer = served.post(path, {**asked, **body})
        assert answer.status == 200, answer.body
        broken = b"\n\n" in answer.body if silence is None else silence in answer.body
        assert broken == (silence is not None), answer.body
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0) as client:
        cold = {"temperature": 0}
        with client.messages.stream(model="slow", messages=question, max_tokens=2, extra_body=cold) as stream:
            said = [stream.get_final_text()]
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        events = client.responses.create(**asked, input=" ", max_output_tokens=2)
        said.append("".join(it.delta for it in events if it.type == "response.output_text.delta"))
    with ollama.Client(served.url) as reader:
        lines = reader.chat("slow", question, stream=True, options={"num_predict": 2})
        said.append("".join(line.message.content or "" for line in lines))
    assert said == [ALPHABET[:2]] * 3
