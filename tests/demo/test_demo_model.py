"""The demo model answers what it was made to answer, through the whole node."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from support.node import RunningNode

MOST_BYTES = 6_000_000
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
