"""What a worker's environment has for the libraries in it, and leaves alone where somebody chose; and which
threads they leave in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.node import RunningNode, running_node

OURS = {"GOMP_SPINCOUNT": "10000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "GGML_NO_BACKTRACE": "1"}


def environment_of_worker(node: RunningNode) -> dict[str, str]:
    assert node.post("/api/models/load", {"model_id": "llm-node-demo", "max_sequences": 1}).status == 200
    (worker,) = node.workers()
    pairs = Path(f"/proc/{worker}/environ").read_text().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


@pytest.mark.parametrize(
    "theirs", [{}, {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"OMP_WAIT_POLICY": "passive"}]
)
def test_what_somebody_chose_stays(engines: Path, tmp_path: Path, theirs: dict[str, str]) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments, environment=theirs) as node:
        found = environment_of_worker(node)
    wanted = {**OURS, **theirs}
    if "OMP_WAIT_POLICY" in theirs:
        del wanted["GOMP_SPINCOUNT"]
        assert "GOMP_SPINCOUNT" not in found
    assert {name: found.get(name) for name in wanted} == wanted


def test_loading_leaves_no_threads_behind(engines: Path, tmp_path: Path) -> None:
    """Where there is AMX, ggml repacks weights with all processors, and the idle team of that would make
    libgomp put all others to sleep at each barrier. Its threads have the name of the one that made them."""
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", [*arguments, "--threads", "1"]) as node:
        environment_of_worker(node)
        (worker,) = node.workers()
        names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{worker}/task").iterdir()]
        assert len(names) == len(set(names)), names
