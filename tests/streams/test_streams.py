"""Many streams at once: none lost, none mixed up, none outliving its client or its node."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import aiohttp
import pytest

from support.node import RunningNode, alive, running_node

STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
CONCURRENT = 64
TIE = 0.02


@pytest.fixture(params=["llm-node-demo", "stories260K"])
def model(request: pytest.FixtureRequest, models: Path) -> str:
    """The demo model, and stories260K where there is one."""
    if request.param != "llm-node-demo":
        request.getfixturevalue("stories")
    return str(request.param)


async def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


async def stream(
    client: aiohttp.ClientSession, url: str, body: dict[str, object]
) -> AsyncIterator[dict[str, object]]:
    async with client.post(f"{url}/v1/completions", json={**body, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])


async def text_of(client: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[str, str | None]:
    text, reason = "", None
    async for chunk in stream(client, url, body):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:  # type: ignore[attr-defined]
            text += choice["text"]
            reason = choice["finish_reason"] or reason
    return text, reason


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


def running(node: RunningNode, model: str) -> int:
    """Sequences that the model holds now."""
    for entry in node.get("/api/models").json()["models"]:
        if entry["model_id"] == model:
            return int(entry["requests"])
    raise AssertionError(f"{model} is not listed")


async def test_the_story(node: RunningNode, stories: Path) -> None:
    async with session() as client:
        body = {"model": "stories260K", "prompt": "Once upon a time", "temperature": 0, "max_tokens": 80}
        text, _ = await text_of(client, node.url, body)
    assert text.startswith(STORY)


async def greedy(
    client: aiohttp.ClientSession, url: str, model: str, prompt: str, tokens: int
) -> tuple[list[str], list[float]]:
    """The tokens of a greedy answer, and by how much each was likelier than the next best (nats)."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "logprobs": 2}
    picked: list[str] = []
    margins: list[float] = []
    async for chunk in stream(client, url, body):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:  # type: ignore[attr-defined]
            if choice["logprobs"]:
                picked += choice["logprobs"]["tokens"]
                best = [sorted(each.values(), reverse=True) for each in choice["logprobs"]["top_logprobs"]]
                margins += [each[0] - each[1] for each in best]
    return picked, margins


def assert_same_or_tied(alone: tuple[list[str], list[float]], together: list[str]) -> None:
    """Equal, or parted at a tie: a batch adds floats up in another order than a single sequence does,
    and what a KV cache in half precision makes of that stays below this margin."""
    tokens, margins = alone
    for position, (one, other) in enumerate(zip(tokens, together, strict=False)):
        if one != other:
            assert margins[position] < TIE, (position, margins[position], tokens, together)
            return
    assert len(tokens) == len(together)


@pytest.mark.parametrize("streams", [16, CONCURRENT])
async def test_concurrent_greedy_equals_alone(node: RunningNode, model: str, streams: int) -> None:
    """None lost, none mixed up: every stream of many gives what its prompt gives alone."""
    names = ("Lily", "Tom", "Max", "Anna", "Ben", "Sue", "Tim", "Mia")
    ends = ("the dog", "a cat", "his mom", "her dad", "the park", "a big tree", "the red ball", "a bird")
    prompts = [f"{name} saw {end}" for name in names for end in ends][:streams]
    async with session() as client:
        together = await asyncio.gather(*(greedy(client, node.url, model, each, 40) for each in prompts))
        alone = [await greedy(client, node.url, model, each, 40) for each in prompts]
    assert len({"".join(tokens) for tokens, _ in alone}) > streams // 4, "the prompts tell nothing apart"
    for one, (other, _) in zip(alone, together, strict=True):
        assert_same_or_tied(one, other)


async def test_seeded_streams_repeat(node: RunningNode, model: str) -> None:
    """Equal seeds give equal answers, other seeds others."""

    def ask(seed: int) -> dict[str, object]:
        return {"model": model, "prompt": "The", "temperature": 1.5, "seed": seed, "max_tokens": 32}

    async with session() as client:
        first = [await text_of(client, node.url, ask(seed)) for seed in range(4)]
        again = [await text_of(client, node.url, ask(seed)) for seed in range(4)]
    assert first == again
    assert len(set(first)) > 1


async def test_a_client_that_leaves_frees_its_sequence(node: RunningNode) -> None:
    model = "llm-node-demo"
    node.post("/api/models/load", {"model_id": model})
    async with session() as client:
        for _ in range(4):
            body = {"model": model, "prompt": "The", "max_tokens": 400, "ignore_eos": True}
            stream_of = stream(client, node.url, body)
            await anext(stream_of)
            assert running(node, model) >= 1
            await stream_of.aclose()
    await wait_for(lambda: running(node, model) == 0)


async def test_a_client_that_leaves_before_the_answer(node: RunningNode) -> None:
    """Not streaming: the connection is dropped while the node still computes."""
    model = "llm-node-demo"
    body = {"model": model, "prompt": "The", "max_tokens": 400, "ignore_eos": True}
    async with session() as client:
        with pytest.raises(asyncio.TimeoutError):
            await client.post(
                f"{node.url}/v1/completions", json=body, timeout=aiohttp.ClientTimeout(total=0.15)
            )
    await wait_for(lambda: running(node, model) == 0)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_no_worker_outlives_its_node(
    engines: Path, models: Path, tmp_path: Path, number: signal.Signals
) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(tmp_path, arguments) as node:
        assert node.post("/api/models/load", {"model_id": "llm-node-demo"}).status == 200
        workers = node.workers()
        assert workers
        async with session() as client:
            body = {"model": "llm-node-demo", "prompt": "The", "max_tokens": 500, "ignore_eos": True}
            under_way = [stream(client, node.url, body) for _ in range(4)]
            for each in under_way:
                await anext(each)
            began = time.monotonic()
            os.kill(node.process.pid, number)
            code = await asyncio.to_thread(node.process.wait, 10)
            assert time.monotonic() - began < 10
            assert code == (-signal.SIGKILL if number == signal.SIGKILL else 0), node.log_text()
            await wait_for(lambda: not any(alive(pid) for pid in workers), 5)


async def test_a_killed_worker_is_a_typed_error_and_comes_back(
    engines: Path, models: Path, tmp_path: Path
) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(tmp_path, arguments) as node:
        node.post("/api/models/load", {"model_id": "llm-node-demo"})
        body = {"model": "llm-node-demo", "prompt": "The", "max_tokens": 500, "ignore_eos": True}
        async with session() as client:
            under_way = stream(client, node.url, body)
            await anext(under_way)
            os.kill(node.workers()[0], signal.SIGKILL)
            rest = [chunk async for chunk in under_way]
        assert rest[-1]["error"]["code"] == "engine_crashed"  # type: ignore[index]
        assert "signal 9" in rest[-1]["error"]["message"] or "SIGKILL" in rest[-1]["error"]["message"]  # type: ignore[index]
        assert node.get("/healthz").status == 200
        await asyncio.sleep(0)
        deadline = time.monotonic() + 20
        while True:
            answer = node.post(
                "/v1/completions", {"model": "llm-node-demo", "prompt": "The", "max_tokens": 4}
            )
            if answer.status == 200:
                break
            assert answer.json()["error"]["code"] == "engine_crashed"
            assert int(answer.headers["Retry-After"]) >= 1
            assert time.monotonic() < deadline
            await asyncio.sleep(0.3)
