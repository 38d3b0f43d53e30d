"""What happens to one model, or at the door, is nothing to a stream of another model, to who asks how the
node is, or to who loads another model."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node
from support.streams import greedy, session, stream, text_of

CALM = greedy("calm", "once", 150)
"""Takes about 0.6 s."""

AT_ONCE = float(os.environ.get("TESTS_AT_ONCE", "5"))
"""Seconds within which a report must be there. Half a second on a machine that does nothing else; what is
wrong takes until a deadline of the node, which are longer."""

REPORTS = ("/v1/models", "/api/models", "/api/system", "/api/engines", "/healthz")

LOAD_TIMEOUT = 12
STEP_TIMEOUT = 12

ENGINES: dict[str, dict[str, str | int | None]] = {
    "calm": {"FAKE_STEP_US": 4000, "FAKE_EOG_EVERY": 0},
    "slow-questions": {"FAKE_EMBED_US": 3_000_000},
    "hung-load": {"FAKE_HANG_IN_LOAD": None},
    "hung-init": {"FAKE_HANG_IN_INIT": None},
    "hung-step": {"FAKE_HANG_ON_BYTE": 120},
    "hung-stream": {"FAKE_HANG_ON_BYTE": 120, "FAKE_NO_BATCH": None},
    "hung-generate": {"FAKE_HANG_IN_GENERATE": None, "FAKE_NO_EXTENSIONS": None},
    "crash": {"FAKE_CRASH_ON_BYTE": 120},
    "exit": {"FAKE_EXIT_IN_INIT": None},
    "nan": {"FAKE_NAN_LOGITS": None},
    "large": {},
    "forks": {"FAKE_FORK_IN_INIT": None, "FAKE_STEP_US": 20_000, "FAKE_EOG_EVERY": 0},
}


MODELS = {"large": f"TOY1\nestimate_bytes={1 << 30}\ntakes_bytes={1 << 30}\n"}
"""Those with more to say than that they are models."""


def put(folder: Path, name: str) -> None:
    """The engine of that name, and a model of the same name."""
    fake_engine(folder / "engines", name, defines=ENGINES[name], manifest={"formats": [name]})
    (folder / f"models/{name}.{name}").write_text(MODELS.get(name, "TOY1\n"))


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory, llama_cpp: Path) -> Iterator[RunningNode]:
    """A node with a calm model that is loaded, and engines that misbehave, each with a format of its own."""
    folder = tmp_path_factory.mktemp("crowd")
    (folder / "models").mkdir()
    for name in ENGINES:
        put(folder, name)
    for name in ("other.calm", "still.forks", "dying.forks"):
        (folder / "models" / name).write_text("TOY1\n")
    for number in range(20):
        (folder / f"models/hung-{number}.hung-load").write_text("TOY1\n")
    (folder / "engines/llama_cpp").mkdir()
    (folder / "engines/llama_cpp/cpu").symlink_to(llama_cpp)
    arguments = [
        *("--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")),
        *("--gpu-backend", "cpu", "--load-timeout", str(LOAD_TIMEOUT), "--step-timeout", str(STEP_TIMEOUT)),
    ]
    with running_node(folder, arguments) as running:
        running.reload("calm")
        yield running


def worker(node: RunningNode, model: str) -> int:
    """The process of a loaded model."""
    for row in node.get("/api/system").json()["workers"]:
        if row["model_id"] == model:
            return int(row["pid"])
    raise AssertionError(f"{model} has no worker")


async def post(client: aiohttp.ClientSession, node: RunningNode, path: str, body: Any) -> int:
    with contextlib.suppress(aiohttp.ClientConnectionError):
        async with client.post(node.url + path, json=body) as reply:
            await reply.read()
            return reply.status
    return 0


@contextlib.asynccontextmanager
async def under_way(*tasks: Awaitable[Any]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """These run beside what follows, and are given up after it."""
    running = [asyncio.ensure_future(task) for task in tasks]
    await asyncio.sleep(0.3)
    try:
        yield running
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


async def ask(client: aiohttp.ClientSession, node: RunningNode, model: str, prompt: str) -> int:
    return await post(client, node, "/v1/completions", greedy(model, prompt, 5))


Hostile = Callable[[aiohttp.ClientSession, RunningNode], contextlib.AbstractAsyncContextManager[Any]]


def slow_questions(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    body = {"model": "slow-questions", "input": "x"}
    return under_way(*(post(client, node, "/v1/embeddings", body) for _ in range(20)))


def hung_loads(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    loads = (
        post(client, node, "/api/models/load", {"model_id": name})
        for name in ["hung-init", *(f"hung-{number}" for number in range(20))]
    )
    return under_way(*loads)


@contextlib.asynccontextmanager
async def a_worker_that_stands_still(client: aiohttp.ClientSession, node: RunningNode) -> AsyncIterator[None]:
    assert await post(client, node, "/api/models/load", {"model_id": "still"}) == 200
    pid = worker(node, "still")
    async with under_way(*(ask(client, node, "still", "ab") for _ in range(4))):
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.asynccontextmanager
async def a_worker_that_dies_beside_its_helper(
    client: aiohttp.ClientSession, node: RunningNode
) -> AsyncIterator[None]:
    assert await post(client, node, "/api/models/load", {"model_id": "dying"}) == 200
    async with under_way(*(ask(client, node, "dying", "ab") for _ in range(4))):
        os.kill(worker(node, "dying"), signal.SIGKILL)
        yield


def hung_calls(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    names = ("hung-step", "hung-stream", "hung-generate")
    return under_way(*(ask(client, node, name, "abx") for name in names for _ in range(3)))


def crashes(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    names = ("crash", "exit", "nan")
    return under_way(*(ask(client, node, name, "abx") for name in names for _ in range(3)))


def prompts_without_end(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    texts = (
        "A" * 2_000_000,
        "the dog saw " * 1_000_000,
        "\n" * 1_000_000,
        "\N{CJK UNIFIED IDEOGRAPH-4E00}" * 500_000,
    )
    return under_way(*(ask(client, node, "llm-node-demo", text) for text in texts))


def bodies_of_many_parts(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    messages = [{"role": "user", "content": "x"}] * 300_000
    many = {"model": "calm", "prompt": ["x"] * 256, "n": 128, "max_tokens": 1}
    return under_way(
        post(client, node, "/v1/chat/completions", {"model": "calm", "messages": messages}),
        post(client, node, "/v1/completions", many),
        post(client, node, "/v1/completions", {"model": "calm", "prompt": list(range(300_000))}),
    )


@contextlib.asynccontextmanager
async def silent_connections(client: aiohttp.ClientSession, node: RunningNode) -> AsyncIterator[None]:
    host, port = node.address
    opened = []
    try:
        for number in range(400):
            _, writer = await asyncio.open_connection(host, port)
            opened.append(writer)
            if number % 2:
                writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        yield
    finally:
        for writer in opened:
            writer.close()


def what_is_no_http(client: aiohttp.ClientSession, node: RunningNode) -> Any:
    host, port = node.address
    noises = (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9\r\n\r\n", b"\x00" * 4096)

    async def shout() -> None:
        for number in range(300):
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                reader, writer = await asyncio.open_connection(host, port)
                writer.write(noises[number % 3] + b"\r\n\r\n")
                await asyncio.wait_for(reader.read(4096), 1)
                writer.close()

    return under_way(shout())


HOSTILE: list[Hostile] = [
    slow_questions,
    hung_loads,
    a_worker_that_stands_still,
    a_worker_that_dies_beside_its_helper,
    hung_calls,
    crashes,
    prompts_without_end,
    bodies_of_many_parts,
    silent_connections,
    what_is_no_http,
]


@pytest.mark.parametrize("hostile", HOSTILE, ids=lambda each: each.__name__)
async def test_all_else_goes_on(crowd: RunningNode, hostile: Hostile) -> None:
    async with session() as client:
        expected = await text_of(client, crowd.url, CALM)
        assert expected[1] == "length"
        slowest: dict[str, float] = {}

        async def look(path: str) -> None:
            asked = time.monotonic()
            try:
                async with client.get(crowd.url + path) as reply:
                    assert reply.status == 200, await reply.text()
            finally:
                slowest[path] = max(slowest.get(path, 0), time.monotonic() - asked)

        async def look_again(path: str) -> None:
            while True:
                await look(path)
                await asyncio.sleep(0.05)

        async with hostile(client, crowd):
            async with under_way(*map(look_again, REPORTS)):
                for _ in range(3):
                    assert await text_of(client, crowd.url, CALM) == expected
            await asyncio.wait_for(asyncio.gather(*map(look, REPORTS)), AT_ONCE)
            for path in ("/api/models/load", "/api/models/unload"):
                asked = post(client, crowd, path, {"model_id": "other"})
                assert await asyncio.wait_for(asked, AT_ONCE) == 200, path
        print(hostile.__name__, {path: round(seconds, 3) for path, seconds in slowest.items()})
        assert max(slowest.values()) <= AT_ONCE, slowest


def slices(pid: int, name: str) -> set[int]:
    """For how long at a time the threads of that name want the processor, in nanoseconds."""
    found = set()
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (thread / "comm").read_text().strip() == name:
                told = re.search(r"^se\.slice\s*:\s*(\d+)$", (thread / "sched").read_text(), re.MULTILINE)
                found.add(int(told[1]) if told else 0)
    return found


def kernel() -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", os.uname().release)[:2])


@pytest.mark.skipif(kernel() < (6, 12), reason="no thread of this kernel chooses its slice: Linux 6.12")
def test_tokens_do_not_wait_behind_a_load_on_the_same_core(crowd: RunningNode) -> None:
    """The threads that they pass ask for short slices of the processor."""
    crowd.reload("calm")
    (usual,) = slices(os.getpid(), Path("/proc/self/comm").read_text().strip())
    if usual == 0:
        pytest.skip("this kernel does not tell of slices: CONFIG_SCHED_DEBUG")
    assert slices(worker(crowd, "calm"), "scheduler") == {100_000}
    assert slices(crowd.process.pid, "worker-reader") == {100_000}
    assert usual > 100_000


# ---- how long it takes, on a machine that does nothing else: make soak ------------------------------

quiet = pytest.mark.skipif("SOAK_SECONDS" not in os.environ, reason="measures times: make soak")


@quiet
async def test_embeddings_under_way_hold_no_report_up(crowd: RunningNode) -> None:
    async with session() as client, slow_questions(client, crowd) as asked:
        took = []
        for _ in range(100):
            began = time.monotonic()
            async with client.get(f"{crowd.url}/api/system") as reply:
                await reply.read()
            took.append(time.monotonic() - began)
            await asyncio.sleep(0.01)
        assert not all(task.done() for task in asked), "they are under way"
    print(f"/api/system: {1000 * sum(took) / len(took):.1f} ms, {1000 * max(took):.1f} ms at most")
    assert max(took) < 0.05


LOADS = """
import http.client, sys

node = http.client.HTTPConnection(sys.argv[1])
while True:
    for path in ("load", "unload"):
        body, headers = '{"model_id": "large"}', {"Content-Type": "application/json"}
        node.request("POST", f"/api/models/{path}", body, headers)
        reply = node.getresponse()
        reply.read()
        assert reply.status == 200
    print("loaded", flush=True)
"""
"""A client of its own, so that what it does holds up nobody's reading of a stream."""


@pytest.fixture
def small_pages(tmp_path: Path) -> Iterator[RunningNode]:
    """A node whose workers fill small pages, as those of engines do that load onto a GPU.

    A virtual machine may have given its memory back to its host. A core that touches a huge page of it then
    stands still for 5 ms, whatever runs there (docs/benchmarks.md)."""
    (tmp_path / "models").mkdir()
    for name in ("calm", "large"):
        put(tmp_path, name)
    arguments = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    usual = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    with running_node(tmp_path, [*arguments, "--gpu-backend", "cpu"], environment=usual) as running:
        running.reload("calm")
        yield running


@quiet
async def test_loads_of_a_gigabyte_leave_a_stream_its_pace(small_pages: RunningNode) -> None:
    """Of the pauses between its chunks, those that 99 % stay below; by turns with loads and without."""
    node = small_pages

    async def pause(client: aiohttp.ClientSession) -> float:
        pauses, last = [], 0.0
        async for _ in stream(client, node.url, greedy("calm", "once", 1000)):
            now = time.monotonic()
            pauses.append(now - last)
            last = now
        return statistics.quantiles(pauses[1:], n=100)[98]

    host, port = node.address
    program = (sys.executable, "-c", LOADS, f"{host}:{port}")
    alone, beside, count = [], [], 0
    async with session() as client:
        for _ in range(7):
            alone.append(await pause(client))
            loads = await asyncio.create_subprocess_exec(*program, stdout=subprocess.PIPE)
            assert loads.stdout is not None
            try:
                await asyncio.sleep(0.3)
                beside.append(await pause(client))
                assert loads.returncode is None, "the loads ended: what was measured is the stream alone"
            finally:
                loads.kill()
            count += len((await loads.stdout.read()).splitlines())
            await loads.wait()
            await post(client, node, "/api/models/unload", {"model_id": "large"})
    usual, loaded = statistics.median(alone), statistics.median(beside)
    print(f"{count} loads; 99 % of pauses: {1000 * usual:.2f} ms alone, {1000 * loaded:.2f} ms beside them")
    assert count >= 7
    assert loaded <= 1.2 * usual
