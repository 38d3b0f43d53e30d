"""GPUs that are lost, drivers that do not answer, and what the node says of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from support.gpu import GIB, Gpu, node_on
from support.node import RunningNode


def shown(node: RunningNode) -> dict[str, Any]:
    found: dict[str, Any] = node.get("/api/system").json()["devices"][0]
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def load(node: RunningNode, model: str) -> Any:
    return node.post("/api/models/load", {"model_id": model})


def answers(node: RunningNode, model: str) -> bool:
    asked = {"model": model, "prompt": "x", "max_tokens": 1}
    return node.post("/v1/completions", asked).status == 200


def test_how_busy_a_gpu_is_can_be_seen(tmp_path: Path) -> None:
    with node_on(Gpu(tmp_path), tmp_path) as node:
        assert shown(node)["state"] == "ok"
        wait_for(lambda: shown(node)["look"] is not None)
        assert shown(node)["look"] == {
            "utilization_percent": 87,
            "temperature_celsius": 61,
            "power_watts": 302,
            "clock_mhz": None,  # this one does not tell
        }


def test_a_lost_gpu_ends_what_lies_on_it_and_takes_nothing_more(tmp_path: Path) -> None:
    gpu = Gpu(tmp_path)
    with node_on(gpu, tmp_path, "--max-wait", "0") as node:
        assert load(node, "a").status == 200 and answers(node, "a")
        gpu.shows(GIB, LOST=0)
        wait_for(lambda: shown(node)["state"] == "lost")
        wait_for(lambda: not shown(node)["holders"])
        told = [(it["kind"], it["message"]) for it in node.get("/api/incidents").json()["incidents"]]
        assert told[0] == ("device_lost", "'a' is ended: its GPU, NVIDIA Fake, is lost")
        assert told[1][0] == "crashed" and "its GPU, NVIDIA Fake, is lost" in told[1][1]
        refused = load(node, "b")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "model_loading")
        assert "the GPU 'NVIDIA Fake' is lost" in refused.json()["error"]["message"]
        planned = node.post("/api/models/plan", {"model_id": "b"}).json()
        assert planned["verdict"] == "refused"
        # Somebody has reset it.
        gpu.shows(0)
        wait_for(lambda: shown(node)["state"] == "ok")
        assert load(node, "b").status == 200 and answers(node, "b")


@pytest.mark.parametrize("how", ["SILENT", "DEVICES"])
def test_nothing_is_loaded_while_nvml_does_not_answer(tmp_path: Path, how: str) -> None:
    gpu = Gpu(tmp_path)
    with node_on(gpu, tmp_path, "--max-wait", "1") as node:
        assert load(node, "a").status == 200
        gpu.shows(GIB, **{how: 1 if how == "SILENT" else 0})
        if how == "SILENT":
            wait_for(lambda: node.get("/readyz").status == 503)
            system = node.get("/api/system").json()
            assert 5 <= system["reading_age_seconds"] <= system["uptime_seconds"] + 1
            said = node.get("/readyz").json()["error"]["message"]
            assert "NVML has not answered for" in said
        else:
            wait_for(lambda: shown(node)["state"] == "unreadable")
        refused = load(node, "b")
        assert (refused.status, refused.json()["error"]["code"]) == (503, "model_loading")
        assert "NVML does not answer for the GPU 'NVIDIA Fake'" in refused.json()["error"]["message"]
        assert answers(node, "a"), "what is loaded is none the worse for it"
        gpu.shows(GIB)
        wait_for(lambda: node.get("/readyz").status == 200 and shown(node)["state"] == "ok")
        assert node.get("/api/system").json()["reading_age_seconds"] < 5
        assert load(node, "b").status == 200
        gpu.shows(2 * GIB, SILENT=1)
        # And with a call that never returns the node ends as always.
