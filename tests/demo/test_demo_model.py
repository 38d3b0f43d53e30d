"""The demo model answers what it was made to answer, through the whole node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.node import RunningNode, running_node

MOST_BYTES = 3_000_000
CHECKS = json.loads(
    (Path(__file__).parents[2] / "tools/demo_model/questions_check.json").read_text(encoding="utf-8")
)


def test_it_is_small(demo_model: Path) -> None:
    assert demo_model.stat().st_size <= MOST_BYTES


@pytest.mark.parametrize("check", CHECKS, ids=[check["question"] for check in CHECKS])
def test_answer(node: RunningNode, check: dict[str, str]) -> None:
    body = {
        "model": "llm-node-demo",
        "messages": [{"role": "user", "content": check["question"]}],
        "temperature": 0,
    }
    (choice,) = node.post("/v1/chat/completions", body).json()["choices"]
    assert check["contains"] in choice["message"]["content"]
    assert choice["finish_reason"] == "stop"


def test_its_first_answer_leaves_nothing_to_warn_of(engines: Path, tmp_path: Path) -> None:
    """What the engine only tries out, to see what memory it takes, concerns nobody."""
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        body = {"model": "llm-node-demo", "messages": [{"role": "user", "content": "What is an engine?"}]}
        assert node.post("/v1/chat/completions", body).status == 200
        log = node.log_text()
    assert "is loaded" in log
    assert "WARNING" not in log, log
