"""How a node ends: answers under way have the time that was promised, no more; no worker outlives it."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.node import RunningNode, after, alive, running_node
from support.streams import session, stream

SIGNALS = [signal.SIGTERM, signal.SIGINT]
STEP_SECONDS = 0.01


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an engine of so much per token, whatever the machine, and a model for it."""
    root = tmp_path_factory.mktemp("slow")
    fake_engine(root / "engines", defines={"FAKE_STEP_US": int(STEP_SECONDS * 1e6)})
    (root / "models").mkdir()
    (root / "models/slow.toy").write_bytes(b"TOY1")
    return root


@contextmanager
def draining_node(slow: Path, folder: Path, seconds: float, **more: Any) -> Iterator[RunningNode]:
    arguments = ["--engines-dir", str(slow / "engines"), "--models-dir", str(slow / "models")]
    arguments += ["--gpu-backend", "cpu", "--speculation", "off", "--drain-timeout", str(seconds)]
    with running_node(folder, arguments, **more) as node:
        assert node.post("/api/models/load", {"model_id": "slow"}).status == 200
        yield node


def body(seconds: float) -> dict[str, Any]:
    return {"model": "slow", "prompt": "The", "max_tokens": int(seconds / STEP_SECONDS), "ignore_eos": True}


def wait_until_draining(node: RunningNode) -> None:
    while node.get("/readyz").status == 200:
        time.sleep(0.02)


def stays_open(connection: http.client.HTTPConnection) -> bool:
    """May another request follow on it?"""
    connection.request("GET", "/healthz")
    answer = connection.getresponse()
    answer.read()
    return not answer.will_close


async def rest_of(under_way: AsyncIterator[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk async for chunk in under_way]


@pytest.mark.parametrize("number", SIGNALS)
async def test_a_signal_lets_answers_end_and_takes_no_new_ones(
    slow: Path, tmp_path: Path, number: signal.Signals
) -> None:
    with draining_node(slow, tmp_path, seconds=60) as node:
        async with session() as client:
            under_way = stream(client, node.url, body(3))
            await anext(under_way)
            kept = http.client.HTTPConnection(*node.address)
            assert stays_open(kept)
            whole = asyncio.create_task(asyncio.to_thread(node.post, "/v1/completions", body(3)))
            await asyncio.sleep(0.5)
            os.kill(node.process.pid, number)
            await asyncio.to_thread(wait_until_draining, node)
            for method, path, sent in (
                ("POST", "/v1/completions", body(1)),
                ("POST", "/v1/completions", {**body(1), "stream": True}),
                ("POST", "/api/models/load", {"model_id": "slow"}),
                ("GET", "/v1/models", None),
                ("GET", "/readyz", None),
            ):
                refused = node.request(method, path, sent)
                assert (refused.status, refused.json()["error"]["code"]) == (503, "shutting_down"), path
                assert int(refused.headers["Retry-After"]) >= 1
            assert not stays_open(kept), "what comes next is for another node"
            assert node.get("/healthz").status == 200
            chunks = await rest_of(under_way)
            assert not any("error" in chunk for chunk in chunks)
            assert chunks[-1]["choices"][0]["finish_reason"] == "length"
            assert (await whole).json()["choices"][0]["finish_reason"] == "length"
        assert await asyncio.to_thread(node.process.wait, 30) == 0, "it ends when they have, long before 60 s"


async def test_the_drain_is_as_long_as_it_says(slow: Path, tmp_path: Path) -> None:
    with draining_node(slow, tmp_path, seconds=3) as node:
        workers = node.workers()
        async with session() as client:
            under_way = stream(client, node.url, body(20))
            await anext(under_way)
            began = time.monotonic()
            os.kill(node.process.pid, signal.SIGTERM)
            chunks = await rest_of(under_way)
        assert time.monotonic() - began >= 3
        assert chunks[-1]["error"]["code"] == "shutting_down", json.dumps(chunks[-1])
        assert await asyncio.to_thread(node.process.wait, 30) == 0
        assert time.monotonic() - began < 20
        assert not [pid for pid in workers if alive(pid)]


@pytest.mark.parametrize(("first", "second"), [*zip(SIGNALS, SIGNALS, strict=True), (15, signal.SIGINT)])
async def test_a_second_signal_ends_it_and_its_workers_first(
    slow: Path, tmp_path: Path, first: int, second: signal.Signals
) -> None:
    with draining_node(slow, tmp_path, seconds=600) as node:
        workers = node.workers()
        assert workers
        async with session() as client:
            under_way = stream(client, node.url, body(20))
            await anext(under_way)
            os.kill(node.process.pid, first)
            await asyncio.sleep(0.5)
            assert node.process.poll() is None
            os.kill(node.process.pid, second)
            chunks = await rest_of(under_way)
            code = await asyncio.to_thread(node.process.wait, 30)
            outlived = [pid for pid in workers if alive(pid)]
        assert code == 128 + second
        assert not outlived
        assert chunks[-1]["error"]["code"] == "shutting_down", json.dumps(chunks[-1])


async def test_two_signals_at_once_are_one(slow: Path, tmp_path: Path) -> None:
    """`timeout` sends its signal to the process and to its group."""
    with draining_node(slow, tmp_path, seconds=600) as node:
        async with session() as client:
            under_way = stream(client, node.url, body(2))
            await anext(under_way)
            for _ in range(2):
                os.kill(node.process.pid, signal.SIGTERM)
            chunks = await rest_of(under_way)
        assert "error" not in chunks[-1], chunks[-1]
        assert await asyncio.to_thread(node.process.wait, 30) == 0


IN_A_TERMINAL = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(os.open(sys.argv[1], os.O_RDWR), termios.TIOCSCTTY, 0)
os.execvp(sys.argv[2], sys.argv[2:])
"""


async def test_a_terminal_that_closes_ends_the_node_that_was_started_in_it(
    slow: Path, tmp_path: Path
) -> None:
    ours, theirs = os.openpty()
    prefix = [sys.executable, "-c", IN_A_TERMINAL, os.ttyname(theirs)]
    with draining_node(slow, tmp_path, seconds=60, prefix=prefix) as node:
        async with session() as client:
            under_way = stream(client, node.url, body(1))
            await anext(under_way)
            os.kill(node.process.pid, signal.SIGHUP)
            await asyncio.to_thread(wait_until_read_again, node)
            os.close(theirs)
            os.close(ours)
            assert "error" not in (await rest_of(under_way))[-1]
        assert await asyncio.to_thread(node.process.wait, 30) == 0


def wait_until_read_again(node: RunningNode) -> None:
    deadline = time.monotonic() + 30
    while "read again: nothing is another" not in node.log_text():
        assert time.monotonic() < deadline, node.log_text()
        time.sleep(0.02)


@pytest.mark.parametrize("prefix", [[], after("trap '' HUP")], ids=["plain", "as nohup starts it"])
async def test_a_hang_up_ends_nothing(slow: Path, tmp_path: Path, prefix: list[str]) -> None:
    with draining_node(slow, tmp_path, seconds=1, prefix=prefix) as node:
        async with session() as client:
            under_way = stream(client, node.url, body(1))
            await anext(under_way)
            os.kill(node.process.pid, signal.SIGHUP)
            await asyncio.to_thread(wait_until_read_again, node)
            assert "error" not in (await rest_of(under_way))[-1]
        assert node.get("/readyz").status == 200
