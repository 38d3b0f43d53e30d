"""Many streams at once: none lost, none mixed up, none outliving its client or its node."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.engines import fake_engine
from support.node import RunningNode, alive, running_node
from support.streams import Alone, greedy, session, stream, text_of

STORY = (
    ", there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)
CONCURRENT = 64


async def wait_for(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        await asyncio.sleep(0.02)


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


@pytest.mark.parametrize("streams", [16, CONCURRENT])
async def test_concurrent_greedy_equals_alone(
    node: RunningNode, alone: Alone, model: str, streams: int
) -> None:
    """None lost, none mixed up: every stream of many gives what its prompt gives alone."""
    names = ("Lily", "Tom", "Max", "Anna", "Ben", "Sue", "Tim", "Mia")
    ends = ("the dog", "a cat", "his mom", "her dad", "the park", "a big tree", "the red ball", "a bird")
    bodies = [greedy(model, f"{name} saw {end}", 40) for name in names for end in ends][:streams]
    async with session() as client:
        together = await asyncio.gather(*(text_of(client, node.url, body) for body in bodies))
    assert len({text for text, _ in together}) > streams // 4, "the prompts tell nothing apart"
    for body, (text, reason) in zip(bodies, together, strict=True):
        alone.assert_said(body, text, reason)


async def test_seeded_streams_repeat(node: RunningNode, model: str) -> None:
    """Equal seeds give equal answers, other seeds others."""

    def ask(seed: int) -> dict[str, object]:
        return {"model": model, "prompt": "The", "temperature": 1.5, "seed": seed, "max_tokens": 32}

    async with session() as client:
        first = [await text_of(client, node.url, ask(seed)) for seed in range(4)]
        again = [await text_of(client, node.url, ask(seed)) for seed in range(4)]
    assert first == again
    assert len(set(first)) > 1


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose one model takes 20 s for an answer, whatever the machine: longer than any test waits."""
    root = tmp_path_factory.mktemp("unhurried")
    fake_engine(root / "engines", defines={"FAKE_STEP_US": 10_000})
    (root / "models").mkdir()
    (root / "models/unhurried.toy").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(root / "engines"), "--models-dir", str(root / "models")]
    with running_node(root / "node", [*arguments, "--gpu-backend", "cpu", "--speculation", "off"]) as node:
        assert node.post("/api/models/load", {"model_id": "unhurried"}).status == 200
        yield node


UNHURRIED = {"model": "unhurried", "prompt": "The", "max_tokens": 2000, "ignore_eos": True}


async def test_a_client_that_leaves_frees_its_sequence(unhurried: RunningNode) -> None:
    async with session() as client:
        for _ in range(4):
            stream_of = stream(client, unhurried.url, UNHURRIED)
            await anext(stream_of)
            assert running(unhurried, "unhurried") >= 1
            await stream_of.aclose()
    await wait_for(lambda: running(unhurried, "unhurried") == 0)


async def test_a_client_that_leaves_before_the_answer(unhurried: RunningNode) -> None:
    """Not streaming: the connection is dropped while the node still computes."""
    async with session() as client:
        answer = asyncio.ensure_future(client.post(f"{unhurried.url}/v1/completions", json=UNHURRIED))
        await wait_for(lambda: running(unhurried, "unhurried") == 1)
        answer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
    await wait_for(lambda: running(unhurried, "unhurried") == 0)


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


async def test_a_killed_worker_is_a_typed_error_and_comes_back(unhurried: RunningNode) -> None:
    async with session() as client:
        under_way = stream(client, unhurried.url, UNHURRIED)
        await anext(under_way)
        os.kill(unhurried.workers()[0], signal.SIGKILL)
        rest = [chunk async for chunk in under_way]
    assert rest[-1]["error"]["code"] == "engine_crashed"
    assert "signal 9" in rest[-1]["error"]["message"] or "SIGKILL" in rest[-1]["error"]["message"]
    assert unhurried.get("/healthz").status == 200
    deadline = time.monotonic() + 20
    while True:
        answer = unhurried.post("/v1/completions", {**UNHURRIED, "max_tokens": 4})
        if answer.status == 200:
            break
        assert answer.json()["error"]["code"] == "engine_crashed"
        assert int(answer.headers["Retry-After"]) >= 1
        assert time.monotonic() < deadline
        await asyncio.sleep(0.3)
