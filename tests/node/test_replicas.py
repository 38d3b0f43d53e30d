"""A model with several workers, each on a GPU of its own: a fake NVML's, of which there are two."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.engines import FAKES, compile_library, fake_engine
from support.node import RunningNode, command, load, running_node
from support.streams import session, stream

GIB = 1 << 30
SIZE = f"TOY1\nestimate_bytes={6 * GIB}\n"
GPUS = [f"GPU-00000000-0000-0000-0000-{gpu:012}" for gpu in range(2)]
SECONDS = 60


@contextmanager
def two_gpus(folder: Path, *more: str, models: Mapping[str, str], **defines: Any) -> Iterator[RunningNode]:
    fake_engine(folder / "engines", "toy", backend="cuda", defines={"FAKE_DEVICES": 2, **defines})
    (folder / "models").mkdir()
    for model, text in models.items():
        (folder / f"models/{model}.toy").write_text(text)
    library = compile_library(FAKES / "fake_nvml.c", folder / "nvml/libnvidia-ml.so.1")
    environment = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_DEVICES": "2"}
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    more = (*more, "--gpu-backend", "cuda", "--speculation", "off")
    with running_node(folder / "node", [*places, *more], environment=environment) as node:
        node.extra["home"] = folder / "node"
        yield node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[RunningNode]:
    with two_gpus(tmp_path, models={"a": SIZE, "b": SIZE}, FAKE_STEP_US=10_000) as node:
        yield node


def state(node: RunningNode, model: str) -> dict[str, Any]:
    models = node.get("/api/models").json()["models"]
    found: dict[str, Any] = next(each for each in models if each["model_id"] == model)
    return found


def workers(node: RunningNode, model: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = state(node, model).get("workers", [])
    return found


def wait_for(
    node: RunningNode, model: str, is_it: Callable[[list[dict[str, Any]]], bool]
) -> list[dict[str, Any]]:
    deadline = time.monotonic() + SECONDS
    while not is_it(found := workers(node, model)):
        assert time.monotonic() < deadline, state(node, model)
        time.sleep(0.02)
    return found


def both_answer(found: list[dict[str, Any]]) -> bool:
    return [worker["status"] for worker in found] == ["loaded", "loaded"]


def reserved(node: RunningNode) -> list[int]:
    devices = node.get("/api/system").json()["devices"]
    return [device["reserved_bytes"] // GIB for device in devices if device["kind"] == "gpu"]


def body(number: int, tokens: int) -> dict[str, Any]:
    prompt = f"Request {number} of many"
    return {"model": "a", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}


def test_each_worker_has_a_gpu_of_its_own_and_an_unload_ends_all(node: RunningNode) -> None:
    assert load(node, "a", replicas=2)["status"] == "loaded"
    found = wait_for(node, "a", both_answer)
    assert sorted(worker["devices"] for worker in found) == [[gpu] for gpu in GPUS]
    assert sorted(node.workers()) == sorted(worker["pid"] for worker in found)
    assert reserved(node) == [6, 6]
    row = state(node, "a")
    assert (row["status"], sorted(row["devices"]), row["options"]["replicas"]) == (
        "loaded",
        GPUS,
        2,
    )
    planned = node.post("/api/models/plan", {"model_id": "a", "replicas": 2}).json()
    taken = [need["required_bytes"] // GIB for need in planned["devices"]]
    assert (planned["verdict"], taken) == ("loaded", [6, 6]), planned
    planned = node.post("/api/models/plan", {"model_id": "b", "replicas": 2}).json()
    assert [need["required_bytes"] // GIB for need in planned["devices"]] == [6, 6], planned
    shown = command(node, "ps").stdout
    assert re.search(
        r"^a +loaded .*\n +worker 1 +loaded +GPU \d .*\n +worker 2 +loaded +GPU \d ", shown, re.M
    )
    # It is what it is: nothing is loaded anew.
    load(node, "a", replicas=2)
    load(node, "a")
    assert {worker["pid"] for worker in workers(node, "a")} == {worker["pid"] for worker in found}
    assert node.post("/api/models/unload", {"model_id": "a"}).status == 200
    assert (node.workers(), reserved(node), state(node, "a")["status"]) == ([], [0, 0], "available")


def test_one_worker_has_no_list_of_them_and_another_number_is_a_load_anew(node: RunningNode) -> None:
    load(node, "a")
    (one,) = node.workers()
    assert "workers" not in state(node, "a")
    load(node, "a", replicas=2)
    # It answers until another does, and its place is the next one's then.
    wait_for(node, "a", lambda found: both_answer(found) and one not in {it["pid"] for it in found})
    load(node, "a", replicas=1)
    wait_for(node, "a", lambda found: not found)
    assert len(node.workers()) == 1


def test_a_model_makes_room_with_all_its_workers(node: RunningNode) -> None:
    load(node, "a", replicas=2)
    wait_for(node, "a", both_answer)
    load(node, "b")
    # Whichever of its GPUs is free first.
    assert (len(node.workers()), sorted(reserved(node))) == (1, [0, 6])
    assert state(node, "a")["status"] == "available"


def test_more_workers_than_gpus_are_refused(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[models."b"]\nreplicas = 3\n')
    with two_gpus(tmp_path, "--config", str(config), models={"a": SIZE, "b": SIZE}) as node:
        load(node, "a")
        for model in ("a", "b"):
            body = {"model_id": model, "replicas": 3}
            answer = node.post("/api/models/load", body if model == "a" else {"model_id": model})
            error = answer.json()["error"]
            assert (answer.status, error["code"], error["param"]) == (400, "invalid_request", "replicas")
            assert error["message"].endswith("replicas = 3 needs as many GPUs, and this node has 2")
            planned = node.post("/api/models/plan", body)
            assert (planned.status, planned.json()["error"]) == (400, error), "as a load is refused"
        assert state(node, "a")["status"] == "loaded", "it has gone for nothing"


def test_on_the_cpu_there_is_one(tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "toy")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/a.toy").write_text("TOY1\n")
    places = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    with running_node(tmp_path / "node", [*places, "--gpu-backend", "cpu"]) as node:
        load(node, "a", replicas=1)
        for way in ("load", "plan"):
            answer = node.post(f"/api/models/{way}", {"model_id": "a", "replicas": 2})
            assert (answer.status, answer.json()["error"]["param"]) == (400, "replicas"), way
            assert "computes on the CPU, all of which one worker uses" in answer.json()["error"]["message"]


async def begun(
    client: aiohttp.ClientSession, url: str, number: int, tokens: int, began: asyncio.Event
) -> str | None:
    """The text of a whole stream; None: it broke off."""
    text = ""
    async for chunk in stream(client, url, body(number, tokens)):
        began.set()
        if "error" in chunk:
            return None
        text += chunk["choices"][0]["text"]
    return text


async def test_a_worker_that_is_killed_costs_its_own_answers_alone(node: RunningNode) -> None:
    load(node, "a", replicas=2)
    before = wait_for(node, "a", both_answer)
    count, tokens = 50, 500
    async with session() as client:
        starts = [asyncio.Event() for _ in range(count)]
        asking = [
            asyncio.create_task(begun(client, node.url, number, tokens, began))
            for number, began in enumerate(starts)
        ]
        async with asyncio.timeout(SECONDS):
            await asyncio.gather(*(began.wait() for began in starts))
        under_way = {worker["pid"]: worker["requests"] for worker in workers(node, "a")}
        assert sum(under_way.values()) == count and min(under_way.values()) >= count // 3, under_way
        killed = before[0]["pid"]
        os.kill(killed, signal.SIGKILL)
        # The other answers at once.
        answers = await asyncio.gather(
            *(begun(client, node.url, 100 + n, 4, asyncio.Event()) for n in range(8))
        )
        assert None not in answers
        assert state(node, "a")["status"] == "loaded"
        texts = await asyncio.gather(*asking)
        assert texts.count(None) == under_way[killed]
        again = [number for number, text in enumerate(texts) if text is not None][:3]
        alone = [await begun(client, node.url, number, tokens, asyncio.Event()) for number in again]
        assert alone == [texts[number] for number in again]
    after = await asyncio.to_thread(wait_for, node, "a", both_answer)
    assert killed not in {worker["pid"] for worker in after}, "another took its place"
    assert sorted(worker["devices"] for worker in after) == [[gpu] for gpu in GPUS]
    assert reserved(node) == [6, 6]


async def test_a_conversation_stays_with_the_worker_that_has_its_beginning(node: RunningNode) -> None:
    load(node, "a", replicas=2)
    wait_for(node, "a", both_answer)
    beginnings = [letter * 1500 for letter in "xy"]

    async def turn(client: aiohttp.ClientSession, prompt: str, tokens: int, began: asyncio.Event) -> int:
        cached = 0
        more = {"stream_options": {"include_usage": True}}
        async for chunk in stream(client, node.url, {**body(0, tokens), "prompt": prompt, **more}):
            began.set()
            if chunk.get("usage"):
                cached = chunk["usage"]["prompt_tokens_details"]["cached_tokens"]
        return cached

    async with session() as client:
        began = asyncio.Event()
        first = asyncio.create_task(turn(client, beginnings[0], 200, began))
        await began.wait()
        # While one is busy the other gets what begins otherwise.
        assert await turn(client, beginnings[1], 4, asyncio.Event()) == 0
        assert await first == 0
        for more in ("!", "?"):
            for beginning in beginnings:
                assert await turn(client, beginning + more, 4, asyncio.Event()) >= 1024

    def both_keep(found: list[dict[str, Any]]) -> bool:
        return min(worker["occupancy"]["kept_tokens"] for worker in found) >= 1500

    await asyncio.to_thread(wait_for, node, "a", both_keep)  # a worker tells it a moment later
