"""GPUs that NVML knows nothing of: what an engine says of its devices is what models are placed by."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_node import devices
from llm_node.node import Node
from llm_node.pull import estimate
from llm_node.pull.choose import Machine, Need
from llm_node.settings import Settings
from support.engines import fake_engine
from support.node import Answer, RunningNode, command, running_node

GIB = 1 << 30
MODELS = {"a": 3, "b": 6, "huge": 40}
"""In GiB. A GPU has 8."""
SECONDS = 20

pytestmark = pytest.mark.skipif(bool(devices.nvidia_gpus()), reason="NVML tells of GPUs here")


@contextmanager
def node_with(
    folder: Path, *more: str, backend: str = "vulkan", free: tuple[int, ...] = (), **defines: Any
) -> Iterator[RunningNode]:
    """`free`: GiB of each GPU."""
    fake_engine(folder / "engines", "toy", backend=backend, defines={"FAKE_DEVICES": 2, **defines})
    if free:
        shows(folder, *free, backend=backend)
    (folder / "models").mkdir()
    for model, size in MODELS.items():
        (folder / f"models/{model}.toy").write_text(f"TOY1\nestimate_bytes={size * GIB}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    wanted = ["--gpu-backend", backend, "--speculation", "off", "--monitor-interval", "50"]
    with running_node(folder / "node", [*places, *wanted, *more]) as node:
        yield node


def shows(folder: Path, *free: int, backend: str = "vulkan") -> None:
    lines = "\n".join(str(gib * GIB) for gib in free)
    file = folder / f"engines/toy/{backend}/free_bytes"
    file.with_suffix(".new").write_text(lines)
    file.with_suffix(".new").rename(file)


def load(node: RunningNode, model: str) -> Answer:
    return node.post("/api/models/load", {"model_id": model})


def gpus(node: RunningNode) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = node.get("/api/system").json()["devices"]
    return [row for row in rows if row["kind"] != "host"]


def gpus_once(node: RunningNode, count: int) -> list[dict[str, Any]]:
    deadline = time.monotonic() + SECONDS
    while len(found := gpus(node)) != count:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("backend", ["vulkan", "rocm"])
def test_a_model_lies_on_the_gpu_with_room_and_a_limit_holds_there(tmp_path: Path, backend: str) -> None:
    with node_with(tmp_path, "--vram-limit", "7G", backend=backend, free=(2, 8)) as node:
        rows = gpus_once(node, 2)
        assert [row["name"] for row in rows] == ["a toy device"] * 2
        assert [row["free_bytes"] // GIB for row in rows] == [2, 8]
        assert [row["limit_bytes"] for row in rows] == [7 * GIB] * 2
        assert load(node, "b").status == 200
        assert [row["reserved_bytes"] // GIB for row in gpus(node)] == [0, 6]
        refused = load(node, "huge")
        assert (refused.status, refused.json()["error"]["code"]) == (507, "oom_vram")


def test_a_load_looks_at_what_is_free_then(tmp_path: Path) -> None:
    """Nothing is loaded, so nobody has looked since the start; others have taken the first GPU meanwhile."""
    with node_with(tmp_path, free=(8, 7)) as node:
        gpus_once(node, 2)
        shows(tmp_path, 1, 7)
        planned = node.post("/api/models/plan", {"model_id": "b"}).json()
        assert (planned["verdict"], planned["basis"]) == ("fits", "engine")
        assert load(node, "b").status == 200
        assert [row["reserved_bytes"] // GIB for row in gpus(node)] == [0, 6]


def test_a_worker_that_answers_says_what_is_free(tmp_path: Path) -> None:
    with node_with(tmp_path, free=(8, 1)) as node:
        gpus_once(node, 2)
        assert load(node, "a").status == 200
        shows(tmp_path, 4, 1)
        deadline = time.monotonic() + SECONDS
        while gpus(node)[0]["free_bytes"] != 4 * GIB:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert gpus(node)[0]["foreign_bytes"] >= GIB // 2, "the toy takes nothing: it is somebody else's"


def test_a_gpu_without_memory_of_its_own_takes_the_host_s(tmp_path: Path) -> None:
    with node_with(tmp_path, FAKE_DEVICES=1, FAKE_DEVICE_KIND="ENGINE_DEVICE_INTEGRATED") as node:
        (row,) = gpus_once(node, 1)
        assert (row["kind"], row["account"]) == ("unified", "host")
        assert load(node, "a").status == 200
        (host,) = (row for row in node.get("/api/system").json()["devices"] if row["kind"] == "host")
        assert host["reserved_bytes"] >= 3 * GIB


def test_a_mac_s_gpu_can_use_so_much_of_the_host_s_memory_as_its_engine_says(tmp_path: Path) -> None:
    """llama.cpp calls Metal's a GPU, and says how much of the memory it may have."""
    defines = {"FAKE_DEVICES": 1, "FAKE_DEVICE_BYTES": f"{4 * GIB}ULL", "FAKE_TELL_DEVICES": None}
    with node_with(tmp_path, backend="metal", **defines) as node:
        node.extra["home"] = tmp_path / "node"
        (row,) = gpus_once(node, 1)
        assert (row["kind"], row["account"], row["name"]) == ("unified", "host", "a toy device")
        (host,) = (row for row in node.get("/api/system").json()["devices"] if row["kind"] == "host")
        assert host["limit_bytes"] == 4 * GIB
        started = node.log_text().count("the toy starts")
        assert load(node, "b").json()["error"]["code"] == "oom_ram"
        assert load(node, "a").status == 200
        assert node.log_text().count("the toy starts") == started + 3, (
            "two loads, and what would fit in place of the first: nobody looks at the GPU again"
        )
        done = command(node, "doctor")
        assert "GPU 0 a toy device: its memory is the host's; an engine tells of it" in done.stdout, done


def test_an_engine_that_does_not_tell_how_much_it_has_leaves_the_host_s(tmp_path: Path) -> None:
    with node_with(tmp_path, "--vram-limit", "5G", FAKE_DEVICE_BYTES="0ULL") as node:
        error = load(node, "b").json()["error"]
        assert error["code"] == "oom_vram"
        assert gpus(node) == []
        assert load(node, "a").status == 200


@pytest.mark.parametrize(
    ("defines", "has_gpu_memory"), [({"FAKE_DEVICES": 2}, True), ({"FAKE_DEVICE_BYTES": "0ULL"}, False)]
)
def test_a_pull_counts_on_what_an_engine_tells(
    tmp_path: Path, defines: dict[str, Any], has_gpu_memory: bool
) -> None:
    """Where nobody tells of memory of GPUs, models take the host's."""

    async def machine() -> Machine:
        fake_engine(tmp_path / "engines", "toy", backend="vulkan", defines=defines)
        settings = Settings(engines_dir=(tmp_path / "engines",), models_dir=tmp_path, gpu_backend="vulkan")
        async with Node(settings) as node:
            return await estimate.machine(node)

    found = asyncio.run(machine())
    assert (found.has_gpu_memory, found.on_cpu) == (has_gpu_memory, False)
    most = 2 * 8 * GIB if has_gpu_memory else devices.host().total_bytes
    assert most // 2 < found.bytes <= most
    assert found.fits(Need(GIB, GIB)) and not found.fits(Need(found.bytes + 1, 0))


def test_an_engine_that_dies_when_it_is_asked_takes_nothing_with_it(tmp_path: Path) -> None:
    with node_with(tmp_path, FAKE_CRASH_IN_INIT=None) as node:
        assert load(node, "a").status >= 500
        assert "engine 'toy' does not tell of its devices" in node.log_text()
        assert node.get("/readyz").status == 200
