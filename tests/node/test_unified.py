"""GPUs that share the host's memory: NVML says nothing of theirs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from support.gpu import GIB, Gpu, node_on
from support.node import RunningNode, command

LIMIT = 3 * GIB // 2
"""Room for one model of the two."""


def load(node: RunningNode, model: str) -> Any:
    return node.post("/api/models/load", {"model_id": model})


def devices(node: RunningNode) -> dict[str, Any]:
    return {device["id"]: device for device in node.get("/api/system").json()["devices"]}


def workers_of(node: RunningNode, model: str) -> list[Any]:
    (row,) = [row for row in node.get("/api/models").json()["models"] if row["model_id"] == model]
    return list(row.get("workers") or [row])


def visible(pid: int) -> str:
    variables = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return next(each.split("=", 1)[1] for each in variables if each.startswith("CUDA_VISIBLE_DEVICES="))


def test_a_gpu_and_the_host_have_one_account(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    gpu.shows(0, UNIFIED=1)
    with node_on(gpu, tmp_path, "--max-wait", "0", "--vram-limit", str(LIMIT)) as node:
        shared = devices(node)
        name = next(name for name in shared if name.startswith("GPU-"))
        assert (shared[name]["kind"], shared[name]["account"]) == ("unified", "host")
        assert (shared[name]["total_bytes"], shared[name]["limit_bytes"]) == (0, 0)
        assert (shared["host"]["account"], shared["host"]["limit_bytes"]) == ("host", LIMIT)
        assert load(node, "a").status == 200
        held = devices(node)
        assert held[name]["holders"] == []
        (holder,) = held["host"]["holders"]
        assert holder["model_id"] == "a"
        assert GIB <= holder["bytes"] == held["host"]["reserved_bytes"] < LIMIT
        (worker,) = workers_of(node, "a")
        assert worker["devices"] == [name]
        assert visible(worker["pid"]) == name
        refused = load(node, "b")
        error = refused.json()["error"]
        assert (refused.status, error["code"]) == (507, "oom_vram")
        assert error["message"].startswith("Insufficient VRAM: required ")
        assert [device["id"] for device in error["devices"]] == ["host"]
        planned = node.post("/api/models/plan", {"model_id": "b"}).json()
        assert [device["id"] for device in planned["devices"]] == ["host"]
        assert "GPU 0 NVIDIA Fake: its memory is the host's\n" in command(node, "ps").stdout
        metrics = node.get("/metrics").body.decode()
        rows = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))
        assert float(rows['llm_node_device_bytes{device="host",what="limit"}']) == LIMIT
        assert float(rows['llm_node_device_bytes{device="host",what="weights"}']) > 0
        assert name not in metrics


def test_workers_lie_on_gpus_of_their_own_and_count_once_each(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    gpu.shows(0, UNIFIED=1, DEVICES=2)
    with node_on(gpu, tmp_path, "--max-wait", "0", "--vram-limit", str(3 * GIB)) as node:
        loaded = node.post("/api/models/load", {"model_id": "a", "replicas": 2})
        assert loaded.status == 200, loaded.body
        deadline = time.monotonic() + 60
        while len(workers := [it for it in workers_of(node, "a") if it["status"] == "loaded"]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        names = [worker["devices"] for worker in workers]
        assert len({name for (name,) in names}) == 2
        assert [visible(worker["pid"]) for worker in workers] == [name for (name,) in names]
        assert 2 * GIB <= devices(node)["host"]["reserved_bytes"] < 3 * GIB
        assert load(node, "b").status == 507
