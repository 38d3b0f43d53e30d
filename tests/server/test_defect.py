"""A defect ends a node that serves, with a code of its own, so that whoever keeps it running starts it again.
A program that uses `Node` lives on."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import pytest

from llm_node.errors import Exit
from llm_node.node import Node, NodeError
from llm_node.node import node as node_module
from llm_node.settings import Settings
from support import defect
from support.engines import fake_engine
from support.node import alive, running_node

TESTS = Path(__file__).parents[1]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """With an engine and a model."""
    fake_engine(tmp_path / "engines")
    (tmp_path / "models").mkdir()
    (tmp_path / "models/toy.toy").write_bytes(b"TOY1")
    return tmp_path


def test_it_ends_with_a_code_of_its_own(home: Path) -> None:
    folders = ["--engines-dir", str(home / "engines"), "--models-dir", str(home / "models")]
    with running_node(
        home,
        ["--gpu-backend", "cpu", *folders],
        program=[sys.executable, "-m", "support.defect"],
        environment={"PYTHONPATH": str(TESTS)},
    ) as node:
        assert node.post("/api/models/load", {"model_id": "toy"}).status == 200
        workers = node.workers()
        assert workers
        assert node.stop(signal.SIGUSR1) == Exit.DEFECT
        assert not any(alive(pid) for pid in workers)
        assert node.log_text().endswith(f"Error: {defect.WORDS}\n"), node.log_text()


async def test_a_program_that_uses_it_lives_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "Supervisor", defect.Defective)
    settings = Settings(
        home=home, gpu_backend="cpu", engines_dir=(home / "engines",), models_dir=home / "models", caches=()
    )
    async with Node(settings) as node:
        node.check_ready()
        await node.load("toy")
        defect.Defective.last.break_down()
        fault = await asyncio.wait_for(node.ended_by_defect(), 10)
        assert (fault.code, fault.message) == ("internal", defect.WORDS)
        assert not node.is_ready
        for call in (node.models(), node.load("toy"), anext(node.generate("toy", {}))):
            with pytest.raises(NodeError) as caught:
                await call
            assert caught.value is fault
        with pytest.raises(NodeError, match=defect.WORDS):
            node.check_ready()
    with pytest.raises(NodeError, match="going down"):
        await node.models()
