"""Which GPUs models lie on, and which their workers see: those of a fake NVML."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.gpu import Gpu
from support.node import PROGRAM, RunningNode, load, running_node

GIB = 1 << 30
MODELS = {"a": 6, "b": 6, "large": 11, "huge": 40}
"""In GiB. A GPU has 8."""


def uuid(gpu: int) -> str:
    return f"GPU-00000000-0000-0000-0000-{gpu:012}"


def part(gpu: int, instance: int) -> str:
    return f"MIG-00000000-0000-0000-{instance:04}-{gpu:012}"


@contextmanager
def node_with(folder: Path, *more: str, visible: str | None = None, **gpus: object) -> Iterator[RunningNode]:
    """`gpus`: lines of the fake NVML's state. `visible`: the operator's own list."""
    fake_engine(
        folder / "engines", "toy", backend="cuda", defines={"FAKE_DEVICES": 4, "FAKE_TELL_DEVICES": None}
    )
    (folder / "models").mkdir()
    for model, size in MODELS.items():
        (folder / f"models/{model}.toy").write_text(f"TOY1\nestimate_bytes={size * GIB}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    wanted = ["--gpu-backend", "cuda", "--speculation", "off", "--monitor-interval", "50"]
    gpu = Gpu(folder)
    gpu.shows(0, **gpus)
    environment = {**gpu.environment, **({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})}
    with running_node(folder / "node", [*places, *wanted, *more], environment=environment) as node:
        yield node


def refused(node: RunningNode, **options: Any) -> dict[str, Any]:
    answer = node.post("/api/models/load", {"model_id": "a", **options})
    assert answer.status == 400, answer.body
    error: dict[str, Any] = answer.json()["error"]
    return error


def held(node: RunningNode) -> list[int]:
    """GiB of each GPU."""
    devices: list[Mapping[str, Any]] = node.get("/api/system").json()["devices"]
    return [round(device["reserved_bytes"] / GIB) for device in devices if device["kind"] != "host"]


def seen(node: RunningNode) -> list[str]:
    """What each worker that loaded a model saw, in their order."""
    return re.findall(r"the toy starts, and sees (\S+)", node.log_text())


def test_each_model_has_a_gpu_of_its_own_and_one_that_fits_on_none_lies_on_two(tmp_path: Path) -> None:
    with node_with(tmp_path, DEVICES=2) as node:
        assert load(node, "a")["devices"] == [uuid(0)]
        assert load(node, "b")["devices"] == [uuid(1)]
        assert (held(node), seen(node)) == ([6, 6], [uuid(0), uuid(1)])
        shown = subprocess.run(
            [PROGRAM, "ps", "--node", node.url], capture_output=True, text=True, check=True
        )
        assert re.search(r"^b +loaded +GPU 1 ", shown.stdout, re.MULTILINE), shown.stdout
        ids = [device["id"] for device in node.get("/api/system").json()["devices"]]
        assert ids == [uuid(0), uuid(1), "host"]
        # Whoever only looks at an engine sees none.
        assert "the toy is looked at, and sees -1" in node.log_text()
        deadline = time.monotonic() + 30
        planned = node.post("/api/models/plan", {"model_id": "large"}).json()
        while planned["verdict"] == "after_waiting":  # who has just been loaded stays for a moment
            assert time.monotonic() < deadline, planned
            planned = node.post("/api/models/plan", {"model_id": "large"}).json()
        assert planned["verdict"] == "after_unloading"
        assert [need["id"] for need in planned["devices"]] == [uuid(0), uuid(1)]
        assert {leaver["model_id"] for leaver in planned["unload"]} == {"a", "b"}
        loaded = load(node, "large")
        assert loaded["devices"] == [uuid(0), uuid(1)]
        assert [use["device"] for use in loaded["memory"]] == ["TOY0", "TOY1"]
        assert seen(node)[-1] == f"{uuid(0)},{uuid(1)}"
        assert len(node.workers()) == 1
        answer = node.post("/api/models/load", {"model_id": "huge"})
        error = answer.json()["error"]
        assert (answer.status, error["code"]) == (507, "oom_vram")
        # What both would have to hold together, and what they have together.
        assert error["message"] == "Insufficient VRAM: required 42.1GB, available 15.5GB"
        assert [device["id"] for device in error["devices"]] == [uuid(0), uuid(1)]


def test_gpus_are_named_or_counted(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'[models."b"]\ndevices = ["{uuid(1)}"]\n')
    with node_with(tmp_path, "--config", str(config), DEVICES=3) as node:
        there = "this node has " + ", ".join(f"{gpu} ({uuid(gpu)}, NVIDIA Fake)" for gpu in range(3))
        message = refused(node, devices=["GPU-0000"])["message"]
        assert message == f"Model 'a': 'GPU-0000' in devices is the beginning of several; {there}"
        assert load(node, "b")["devices"] == [uuid(1)]
        assert load(node, "a", devices=[2])["devices"] == [uuid(2)]
        # It lies there: nothing is loaded anew.
        workers = node.workers()
        load(node, "a", devices=1)
        load(node, "a", devices=[uuid(2)])
        assert node.workers() == workers
        assert load(node, "a", devices=2)["devices"] == [uuid(0), uuid(2)]
        assert held(node) == [3, 6, 3]
        assert load(node, "a", devices=[uuid(0)])["devices"] == [uuid(0)]
        for devices, message in [
            (4, f"devices = 4 was asked for, and {there}"),
            ([7], f"devices names '7', and {there}"),
            (["GPU-7f"], f"devices names 'GPU-7f', and {there}"),
            ([1, uuid(1)], f"devices names {uuid(1)} twice"),
        ]:
            error = refused(node, devices=devices)
            assert (error["code"], error["param"]) == ("invalid_request", "devices")
            assert error["message"] == f"Model 'a': {message}"
        error = refused(node, devices=3, replicas=2)
        assert error["message"].endswith("3 devices cannot be shared out evenly among replicas = 2")
        for devices in (0, [], "0", [True]):
            assert refused(node, devices=devices)["param"].startswith("devices")
        assert held(node) == [6, 6, 0], "it has gone for nothing"


def test_each_gpu_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with node_with(tmp_path, "--vram-limit", f"{uuid(0)}=4G,1=7G,GPU-f=1G", DEVICES=3) as node:
        system = node.get("/api/system").json()
        assert system["vram_limit_bytes"] == {uuid(0): 4 * GIB, "1": 7 * GIB, "GPU-f": GIB}
        limits = [device["limit_bytes"] for device in system["devices"] if device["kind"] != "host"]
        assert limits[:2] == [4 * GIB, 7 * GIB]
        assert limits[2] > 7 * GIB, "nobody limits it"
        there = ", ".join(uuid(gpu) for gpu in range(3))
        assert f"vram_limit: nothing is limited by 'GPU-f', for models go to: {there}" in node.log_text()
        answer = node.post("/api/models/load", {"model_id": "a", "devices": [0]})
        assert answer.status == 507
        assert answer.json()["error"]["message"] == "Insufficient VRAM: required 6.1GB, available 4GB"
        assert load(node, "a", devices=[1])["devices"] == [uuid(1)]
        assert load(node, "b")["devices"] == [uuid(2)], "where there is room for it"


def test_several_workers_share_the_gpus_that_are_named(tmp_path: Path) -> None:
    with node_with(tmp_path, DEVICES=4) as node:
        load(node, "a", replicas=2, devices=[1, 3])
        load(node, "b", replicas=1)
        rows = node.get("/api/models").json()["models"]
        (row,) = [row for row in rows if row["model_id"] == "a"]
        assert {device for worker in row["workers"] for device in worker["devices"]} <= {uuid(1), uuid(3)}


def test_a_worker_has_one_part_of_a_gpu(tmp_path: Path) -> None:
    with node_with(tmp_path, DEVICES=2, TOTAL=32 * GIB, MIG_1=2) as node:
        devices = [device for device in node.get("/api/system").json()["devices"] if device["kind"] != "host"]
        assert [device["id"] for device in devices] == [uuid(0), part(1, 0), part(1, 1)]
        assert [device["kind"] for device in devices] == ["gpu", "mig", "mig"]
        assert [device["total_bytes"] // GIB for device in devices] == [32, 16, 16]
        assert load(node, "a")["devices"] == [uuid(0)], "the one with most room"
        assert load(node, "b", devices=[2])["devices"] == [part(1, 1)]
        assert (held(node), seen(node)[-1]) == ([6, 0, 6], part(1, 1))
        answer = node.post("/api/models/load", {"model_id": "huge"})
        assert answer.json()["error"]["message"] == "Insufficient VRAM: required 40.1GB, available 31.3GB"
        for devices in ([1, 2], 2):
            assert "a worker uses one part (MIG) of a GPU" in refused(node, devices=devices)["message"]


def test_eight_gpus_are_used_one_after_the_other(tmp_path: Path) -> None:
    with node_with(tmp_path, DEVICES=8) as node:
        for number in range(8):
            (tmp_path / f"models/m{number}.toy").write_text(f"TOY1\nestimate_bytes={6 * GIB}\n")
        lie_on = [load(node, f"m{number}")["devices"] for number in range(8)]
        assert sorted(lie_on) == [[uuid(gpu)] for gpu in range(8)]
        assert (held(node), len(set(seen(node)))) == ([6] * 8, 8)
        assert len(load(node, "large")["devices"]) == 2
        assert len(node.workers()) == 7, "two went for it"


@pytest.mark.parametrize(
    ("visible", "ids"), [(f"{uuid(2)},0", [uuid(0), uuid(2)]), (part(1, 1), [part(1, 1)])]
)
def test_what_the_operator_gave_is_all_there_is(tmp_path: Path, visible: str, ids: list[str]) -> None:
    with node_with(tmp_path, visible=visible, DEVICES=3, TOTAL=16 * GIB, MIG_1=2) as node:
        devices = node.get("/api/system").json()["devices"]
        assert [device["id"] for device in devices] == [*ids, "host"]
        assert load(node, "a")["devices"] == ids[:1]
        assert seen(node) == ids[:1]
