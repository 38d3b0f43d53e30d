"""Others take memory beside the node: models that answer nothing give some back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.gpu import Gpu
from support.groups import unprivileged, within
from support.node import RunningNode, running_node

MIB = 1 << 20
GIB = 1 << 30


@contextmanager
def node_of(
    folder: Path,
    models: Mapping[str, str],
    *more: str,
    backend: str = "cpu",
    environment: Mapping[str, str] | None = None,
    prefix: list[str] | None = None,
) -> Iterator[RunningNode]:
    fake_engine(folder / "engines", "toy", backend=backend)
    (folder / "models").mkdir()
    for model, text in models.items():
        (folder / f"models/{model}.toy").write_text(f"TOY1\n{text}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    arguments = [*places, "--gpu-backend", backend, "--monitor-interval", "200", *more]
    with running_node(folder / "node", arguments, environment=environment, prefix=prefix or []) as node:
        yield node


def load(node: RunningNode, model: str, **options: Any) -> dict[str, Any]:
    answer = node.post("/api/models/load", {"model_id": model, **options})
    assert answer.status == 200, answer.body
    loaded: dict[str, Any] = answer.json()
    return loaded


def loaded(node: RunningNode) -> set[str]:
    rows = node.get("/api/models").json()["models"]
    return {row["model_id"] for row in rows if row["status"] == "loaded"}


def told(node: RunningNode) -> list[tuple[str, str, str]]:
    incidents = node.get("/api/incidents").json()["incidents"]
    return [(it["severity"], it["kind"], it["model_id"]) for it in incidents]


def wait_for(node: RunningNode, models: set[str]) -> None:
    deadline = time.monotonic() + 60
    while loaded(node) != models:
        assert time.monotonic() < deadline, (loaded(node), told(node))
        time.sleep(0.05)


def test_a_gpu_that_others_fill_up(tmp_path: Path) -> None:
    """Of 8 GiB 256 MiB are to be left to others; pressure is where less than half of that is free."""
    gpu = Gpu(tmp_path)
    models = {"large": f"estimate_bytes={MIB}", "pinned": "estimate_bytes=9", "busy": "estimate_bytes=9"}
    more = ("--engine-option", "step_us=20000", "--vram-limit", "4M")
    with node_of(tmp_path, models, *more, backend="cuda", environment=gpu.environment) as node:
        small = {"cache_tokens": 2048, "max_sequences": 1}
        load(node, "pinned", pin=True, **small)
        load(node, "busy", **small)
        before = load(node, "large")["facts"]
        asked = {"model": "busy", "prompt": "x", "max_tokens": 1200, "ignore_eos": True, "stream": True}
        answers: list[bytes] = []
        client = threading.Thread(
            target=lambda: answers.append(node.post("/v1/completions", asked, timeout=120).body)
        )
        client.start()
        gpu.shows(8 * GIB - 200 * MIB)
        time.sleep(4)
        assert told(node) == [], "it is not too little yet"
        began = time.monotonic()
        gpu.shows(8 * GIB - 100 * MIB)
        wait_for(node, {"busy", "pinned"})
        assert time.monotonic() - began >= 6, "three seconds before each step"
        assert told(node) == [("warning", "pressure", "large")] * 2
        words = "100MB of NVIDIA Fake are free, and 0.3GB are to be left to others, who take more"
        smaller, goes = f"'large' gets a smaller context: {words}", f"'large' goes: {words}"
        log = node.log_text()
        assert 0 < log.index(smaller) < log.index(goes), log
        assert (before["context_length"], before["max_sequences"] > 1) == (2048, True)
        assert "'large' has a context of 2048 tokens now, and 1 sequences" in log
        assert node.get("/api/system").json()["events"]["pressure"] == 2
        time.sleep(4)
        assert loaded(node) == {"busy", "pinned"}
        client.join()
        assert answers[0].count(b"data: {") > 100 and b'"length"' in answers[0], "no answer is cut"


def test_a_container_that_others_fill_up(tmp_path: Path) -> None:
    if unprivileged():
        pytest.skip("needs root, for a mount namespace")
    groups = tmp_path / "groups"
    groups.mkdir()
    (groups / "memory.max").write_text(f"{4 * GIB}\n")

    def used(count: int) -> None:
        fresh = groups / "fresh"
        fresh.write_text(f"{count}\n")
        fresh.replace(groups / "memory.current")

    used(0)
    models = dict.fromkeys(["idle", "pinned"], f"takes_bytes={20 * MIB}")
    small = ("--cache-tokens", "512", "--max-sequences", "2")
    with node_of(tmp_path, models, *small, prefix=within(groups)) as node:
        load(node, "pinned", pin=True)
        load(node, "idle")
        # 1 GiB is to be left to others.
        used(4 * GIB - 600 * MIB)
        time.sleep(4)
        assert (loaded(node), told(node)) == ({"idle", "pinned"}, [])
        used(4 * GIB - 400 * MIB)
        wait_for(node, {"pinned"})
        assert told(node) == [("warning", "pressure", "idle")]
        words = "'idle' goes: 0.3GB of host are free, and 1GB are to be left to others, who take more"
        assert words in node.log_text()
        time.sleep(4)
        assert loaded(node) == {"pinned"}
        used(0)
        load(node, "idle")
        assert loaded(node) == {"idle", "pinned"}
