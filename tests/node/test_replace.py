"""A model that is loaded is wanted otherwise, or its engine has changed: no request fails of it."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node

MIB = 1 << 20
SECONDS = 60


@contextmanager
def node_of(folder: Path, *more: str, **defines: Any) -> Iterator[RunningNode]:
    fake_engine(folder / "engines", "toy", defines={"FAKE_STEP_US": 2000, **defines})
    (folder / "models").mkdir()
    (folder / "models/a.toy").write_text(f"TOY1\nestimate_bytes={85 * MIB}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    limits = ["--gpu-backend", "cpu", "--cache-tokens", "512", "--max-sequences", "4"]
    with running_node(folder / "node", [*places, *limits, *more]) as node:
        yield node


def row(node: RunningNode) -> dict[str, Any]:
    (found,) = (each for each in node.get("/api/models").json()["models"] if each["model_id"] == "a")
    model: dict[str, Any] = found
    return model


def wait_for(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + SECONDS
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ask(node: RunningNode, tokens: int) -> int:
    body = {"model": "a", "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True}
    answer = node.post("/v1/completions", body, timeout=120)
    assert answer.status == 200, answer.body
    count: int = answer.json()["usage"]["completion_tokens"]
    return count


@contextmanager
def in_use(node: RunningNode) -> Iterator[None]:
    """Clients ask all the time, and one has a long answer; none of them fails."""
    is_over = threading.Event()

    def client(_: int) -> int:
        times = 0
        while not is_over.is_set():
            assert ask(node, 5) == 5
            times += 1
        return times

    with ThreadPoolExecutor(4) as clients:
        long = clients.submit(ask, node, 400)
        wait_for(lambda: row(node).get("requests"))
        others = [clients.submit(client, number) for number in range(3)]
        try:
            yield
        finally:
            is_over.set()
        assert long.result() == 400
        assert all(other.result() > 0 for other in others)


@pytest.mark.parametrize("limit", ["300M", "150M"])
def test_another_option_is_loaded_beside_the_old_where_both_have_room(tmp_path: Path, limit: str) -> None:
    with node_of(tmp_path, "--vram-limit", limit) as node:
        assert node.post("/api/models/load", {"model_id": "a"}).status == 200
        (old,) = node.workers()
        other = {"model_id": "a", "threads": 3}
        is_beside = limit == "300M"
        planned = node.post("/api/models/plan", other).json()
        assert planned["verdict"] == ("fits" if is_beside else "after_unloading"), planned
        seen: set[int] = set()
        with in_use(node), ThreadPoolExecutor(1) as loads:
            loading = loads.submit(node.post, "/api/models/load", other, timeout=120)
            while not loading.done():
                seen.add(len(row(node).get("workers", ())))
            answer = loading.result()
            assert answer.status == 200, answer.body
            wait_for(lambda: len(node.workers()) == 1)
        assert node.workers() != [old] and row(node)["options"]["threads"] == 3
        assert (2 in seen) == is_beside, seen
        (host,) = node.get("/api/system").json()["devices"]
        assert [holder["model_id"] for holder in host["holders"]] == ["a"]


def test_what_cannot_be_loaded_so_leaves_the_old_one_alone(tmp_path: Path) -> None:
    with node_of(tmp_path, "--vram-limit", "300M") as node:
        assert node.post("/api/models/load", {"model_id": "a"}).status == 200
        old = node.workers()
        # The next load takes more than there is, and more than its engine says.
        (tmp_path / "models/a.toy").write_text(f"TOY1\nestimate_bytes={85 * MIB}\ntakes_bytes={600 * MIB}\n")
        with in_use(node):
            refused = node.post("/api/models/load", {"model_id": "a", "threads": 3}, timeout=120)
            assert (refused.status, refused.json()["error"]["code"]) == (507, "oom_vram"), refused.body
        wait_for(lambda: len(node.workers()) == 1)
        assert (node.workers(), row(node)["status"]) == (old, "loaded")


def test_a_model_whose_engine_was_built_anew_is_loaded_with_that(tmp_path: Path) -> None:
    with node_of(tmp_path) as node:
        assert node.post("/api/models/load", {"model_id": "a", "threads": 2}).status == 200
        (old,) = node.workers()
        assert node.get("/api/engines?refresh=true", timeout=120).status == 200
        newer = fake_engine(tmp_path / "newer", "toy", defines={"FAKE_STEP_US": 1999})
        with in_use(node):
            # As a package manager does it: beside the old one, and then in its place.
            for file in newer.iterdir():
                beside = tmp_path / f"engines/toy/cpu/{file.name}.new"
                shutil.copy(file, beside)
                beside.replace(beside.with_suffix(""))
            assert node.get("/api/engines?refresh=true", timeout=120).status == 200
            wait_for(lambda: len(node.workers()) == 1 and node.workers() != [old])
        assert row(node)["options"]["threads"] == 2
        assert "'a' is loaded anew: its engine, toy, has changed" in node.log_text()
