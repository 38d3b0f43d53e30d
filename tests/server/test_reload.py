"""SIGHUP: what is read again is taken over as a whole or not at all, and nobody who asks notices."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from llm_node.keys import Scope, add
from support.engines import fake_engine
from support.node import RunningNode, running_node

SAID = re.compile(r"(read again: .*|nothing is changed: .*)")


@dataclass
class Reloading:
    """A node, and what it reads."""

    node: RunningNode
    folder: Path
    key: str
    said: int = field(default=0)

    @property
    def config(self) -> Path:
        return self.folder / "config.toml"

    @property
    def keys(self) -> Path:
        return self.folder / "keys"

    def read_again(self) -> str:
        """What the log says of it."""
        self.node.process.send_signal(signal.SIGHUP)
        self.said += 1
        deadline = time.monotonic() + 30
        while len(lines := SAID.findall(self.node.log_text())) < self.said:
            assert time.monotonic() < deadline, self.node.log_text()
            time.sleep(0.02)
        return str(lines[-1])

    def model(self, name: str) -> dict[str, Any]:
        models = self.node.get("/api/models", key=self.key).json()["models"]
        (found,) = [model for model in models if model["model_id"] == name]
        return dict(found)

    def load(self, model: str) -> dict[str, Any]:
        answer = self.node.post("/api/models/load", {"model_id": model}, key=self.key)
        assert answer.status == 200, answer.body
        return dict(answer.json())


@pytest.fixture
def reloading(tmp_path: Path) -> Iterator[Reloading]:
    fake_engine(tmp_path / "engines", "toy")
    (tmp_path / "models").mkdir()
    for model in "ab":
        (tmp_path / f"models/{model}.toy").write_text("TOY1\n")
    (tmp_path / "config.toml").write_text('max_wait = 7\n[models."a"]\ncontext_length = 64\n')
    key = add(tmp_path / "keys", "me", Scope.ADMIN)
    arguments = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    arguments += ["--config", str(tmp_path / "config.toml"), "--api-key-file", str(tmp_path / "keys")]
    with running_node(tmp_path / "node", [*arguments, "--gpu-backend", "cpu"]) as node:
        yield Reloading(node, tmp_path, key)


def test_what_is_said_of_nobody_is_named(reloading: Reloading) -> None:
    tables = '[models."nobody"]\npin = true\n[models."b.toy"]\npin = true\n[models."B"]\n'
    reloading.config.write_text(f'default_model = "nope"\nalias = ["x=none", "y=a", "b:latest=a"]\n{tables}')
    reloading.read_again()
    words = (
        "[models.\"nobody\"] in the settings counts for nobody: Model 'nobody' not found",
        "[models.\"B\"] in the settings counts for nobody: Model 'B' not found; did you mean 'b'?",
        'for nobody: the name is "b"',
        "default_model in the settings: Model 'nope' not found",
        "alias x in the settings: Model 'none' not found",
        "alias b:latest of 'a' in the settings counts for nobody: it is a name of 'b' itself",
    )
    deadline = time.monotonic() + 30
    while not all(said in reloading.node.log_text() for said in words):
        assert time.monotonic() < deadline, reloading.node.log_text()
        time.sleep(0.02)
    assert "alias y " not in reloading.node.log_text()


def test_what_is_another_is_taken_over_and_said(reloading: Reloading) -> None:
    node = reloading.node
    assert reloading.load("a")["facts"]["context_length"] == 64
    pid = reloading.model("a")["pid"]
    assert node.post("/v1/completions", {"model": "x", "prompt": "T"}, key=reloading.key).status == 404
    table = 'context_length = 128\npin = true\naliases = ["x"]'
    reloading.config.write_text(f'max_wait = 5\ndefault_model = "b"\n[models."a"]\n{table}\n')
    app = add(reloading.keys, "app", Scope.INFERENCE)
    assert node.get("/v1/models", key=app).status == 401
    fake_engine(reloading.folder / "engines", "another")
    assert reloading.read_again().split(": ", 1)[1].split("; ") == [
        "default_model: none -> b",
        "max_wait: 7 -> 5, from the next start on",
        'models."a".context_length: 64 -> 128',
        'models."a".pin: none -> true',
        'models."a".aliases: none -> x',
        "key app (inference): added",
    ]
    assert node.get("/v1/models", key=app).status == 200
    asked = {"model": "x", "prompt": "T", "max_tokens": 2}
    assert node.post("/v1/completions", asked, key=app).status == 200
    loaded = reloading.model("a")
    assert (loaded["pid"], loaded["facts"]["context_length"], loaded["pinned"]) == (pid, 64, True)
    unload = {"model_id": "a"}
    assert node.post("/api/models/unload", unload, key=reloading.key).status == 200
    assert node.post("/v1/completions", {"prompt": "T", "max_tokens": 2}, key=app).json()["model"] == "b"
    assert reloading.load("x")["facts"]["context_length"] == 128
    deadline = time.monotonic() + 30
    while len(node.get("/api/engines", key=reloading.key).json()["engines"]) < 2:
        assert time.monotonic() < deadline
    assert reloading.read_again() == "read again: max_wait: 7 -> 5, from the next start on"
    reloading.keys.write_text("\n".join(reloading.keys.read_text().splitlines()[:1]))
    assert reloading.read_again().endswith("; key app: removed")
    assert node.get("/v1/models", key=app).status == 401


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("config.toml", "max_wiat = 5", "unknown setting 'max_wiat'"),
        ("config.toml", '[models."b"]\npin = true\nchat_template = "no.jinja"', "no.jinja: No such file"),
        ("keys", "one admin", "line 1: expected NAME SCOPE HASH"),
    ],
)
def test_where_anything_is_wrong_nothing_is_changed(
    reloading: Reloading, file: str, text: str, words: str
) -> None:
    reloading.load("b")
    if file == "keys":
        reloading.config.write_text('[models."b"]\npin = true\n')
    (reloading.folder / file).write_text(text)
    assert words in reloading.read_again()
    assert reloading.model("b")["pinned"] is False, "and the key is good still"
    reloading.config.write_text('[models."b"]\npin = true\n')
    (reloading.folder / "keys").unlink()
    new = add(reloading.keys, "new", Scope.ADMIN)
    assert reloading.read_again().endswith("key me: removed")
    reloading.key = new
    assert reloading.model("b")["pinned"] is True
