"""Drafts on a real node: the demo model with itself as draft model, and with none."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.node import RunningNode, running_node

MODEL = "llm-node-demo"
TWIN = "twin"
STRANGER = "stranger"

KEPT: dict[str, Any] = {
    "response_format": {
        "type": "json_schema",
        "json_schema": {
            "name": "it",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "engines": {
                        "type": "array",
                        "items": {"type": "object", "properties": {"kind": {"enum": ["steam", "diesel"]}}},
                        "minItems": 2,
                    }
                },
                "required": ["engines"],
            },
        },
    }
}
"""A form whose answers repeat themselves, so that there is something to guess."""
PROMPTS = (
    "An engine is",
    "How do I add an engine? How do I add an engine? How do I add",
    "one two three four one two three four one two",
)


@pytest.fixture(scope="module")
def node(engines: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with the demo model, a copy of it, and a copy that spells one token differently."""
    folder = tmp_path_factory.mktemp("speculation")
    models = folder / "models"
    models.mkdir()
    shutil.copy(demo_model, models / f"{TWIN}.gguf")
    content = demo_model.read_bytes()
    own, other = (struct.pack("<Q", len(word.encode())) + word.encode() for word in ("▁engine", "▁enjine"))
    assert content.count(own) == 1
    (models / f"{STRANGER}.gguf").write_bytes(content.replace(own, other))
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(folder / "node", [*arguments, "--threads", "1"]) as running:
        yield running


def answers(node: RunningNode) -> tuple[list[str], int, int]:
    """The texts, and how many tokens of them were guessed right and wrong."""
    texts, right, wrong = [], 0, 0
    for prompt in PROMPTS:
        drawn: dict[str, Any] = {"temperature": 0.9, "seed": 7}
        for settings in ({"temperature": 0}, drawn, {"temperature": 0, **KEPT}, {**drawn, **KEPT}):
            body = {"model": MODEL, "prompt": prompt, "max_tokens": 48, **settings}
            answer = node.post("/v1/completions", body)
            assert answer.status == 200, answer.body
            texts.append(answer.json()["choices"][0]["text"])
            details = answer.json()["usage"]["completion_tokens_details"]
            right += details["accepted_prediction_tokens"]
            wrong += details["rejected_prediction_tokens"]
    return texts, right, wrong


def reserved(node: RunningNode) -> int:
    return sum(device["reserved_bytes"] for device in node.get("/api/system").json()["devices"])


def test_drafts_change_no_answer_and_a_draft_model_is_accounted_for(node: RunningNode) -> None:
    alone = node.reload(MODEL, speculation="off")
    without, (expected, *guessed) = reserved(node), answers(node)
    assert guessed == [0, 0]
    node.reload(MODEL, speculation="lookup")
    texts, right, wrong = answers(node)
    assert texts == expected
    assert right + wrong > 0
    together = node.reload(MODEL, draft_model=TWIN)
    texts, right, wrong = answers(node)
    assert texts == expected
    assert right > wrong >= 0, "it is the same model"
    assert "draft model failed" not in node.log_text()

    def weights(loaded: dict[str, Any]) -> int:
        return sum(use["weights_bytes"] for use in loaded["memory"])

    assert weights(together) == 2 * weights(alone)
    assert reserved(node) >= without + weights(alone)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ({"draft_model": STRANGER}, "invalid_request", "enjine"),
        ({"draft_model": "no-such-model"}, "model_not_found", "no-such-model"),
        ({"draft_model": TWIN, "speculation": "off"}, "invalid_request", "exclude"),
    ],
)
def test_a_draft_model_that_cannot_be_used_is_refused(
    node: RunningNode, options: dict[str, Any], code: str, words: str
) -> None:
    node.post("/api/models/unload", {"model_id": MODEL})
    answer = node.post("/api/models/load", {"model_id": MODEL, **options})
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == (code, "draft_model"), error
    assert words in error["message"]


def test_the_node_has_a_draft_model_for_all(engines: Path, demo_model: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--draft-model", str(demo_model)]
    with running_node(tmp_path, arguments) as node:
        both = node.reload(MODEL)
        off = node.reload(MODEL, speculation="off")
        assert json.dumps(both["memory"]) != json.dumps(off["memory"])
