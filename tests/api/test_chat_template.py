"""Chat templates that are broken, missing, or given in place of a model's own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.node import PROGRAM, Answer, RunningNode, node_environment, running_node

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a", "name": "ada"}]}
NAMES = "{% for m in messages %}[{{ m.name }}] {{ m.content }}{% endfor %}"
CHATML = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def node(engines: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with models whose own template is no Jinja: `broken`, and two that get another one."""
    folder = tmp_path_factory.mktemp("templates")
    whole, begin = demo_model.read_bytes(), b"{%- for message in messages"
    assert begin in whole
    (folder / "models").mkdir()
    (folder / "models/broken.gguf").write_bytes(whole.replace(begin, begin.replace(b"for", b"fro")))
    for name in ("names", "plain"):
        (folder / f"models/{name}.gguf").symlink_to("broken.gguf")
    (folder / "names.jinja").write_text(NAMES)
    places = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    templates = ["--chat-template", f"names={folder}/names.jinja", "--chat-template", "plain=chatml"]
    options = ["--gpu-backend", "cpu", "--demo-model", "no"]
    with running_node(folder / "node", [*places, *templates, *options]) as running:
        yield running


def prompt(node: RunningNode, model: str) -> Answer:
    return node.post("/apply-template", {"model": model, **CHAT})


def test_a_broken_one_is_compiled_once_when_the_model_is_loaded(node: RunningNode) -> None:
    """Each compilation would complain of it in the log. The model has lost its chat, and nothing else."""
    chat = {"model": "broken", **CHAT}
    for path in ("/v1/chat/completions", "/v1/chat/completions", "/apply-template"):
        answer = node.post(path, chat)
        assert answer.status == 400, answer.body
        assert answer.json()["error"]["code"] == "unsupported_feature"
    plain = {"model": "broken", "prompt": "a", "max_tokens": 1}
    assert node.post("/v1/completions", plain).status == 200
    assert node.log_text().count("chat template cannot be read") == 1


def test_each_model_may_have_one_of_its_own(node: RunningNode) -> None:
    assert prompt(node, "names").json()["prompt"] == "[ada] a"
    assert prompt(node, "plain").json()["prompt"] == CHATML
    assert node.get("/props?model=names").json()["chat_template"] == NAMES
    assert node.post("/v1/chat/completions", {"model": "names", "max_tokens": 2, **CHAT}).status == 200


def test_a_load_may_bring_one(node: RunningNode) -> None:
    node.reload("broken", chat_template="chatml")
    assert prompt(node, "broken").json()["prompt"] == CHATML
    again = node.post("/api/models/load", {"model_id": "broken", "chat_template": NAMES})
    assert again.status == 200, again.body  # it is loaded anew
    assert prompt(node, "broken").json()["prompt"] == "[ada] a"
    node.post("/api/models/unload", {"model_id": "broken"})
    for wrong, words in (("{% fro %}", "cannot be read"), ("no-such-name", "chatml")):
        refused = node.post("/api/models/load", {"model_id": "broken", "chat_template": wrong})
        error = refused.json()["error"]
        assert (refused.status, error["param"]) == (400, "chat_template") and words in error["message"], error


def test_a_user_s_name_is_shown_or_named(node: RunningNode) -> None:
    """By what the template does with it."""
    asked = {**CHAT, "max_tokens": 1}
    for model, named in (("names", None), ("plain", "messages.name")):
        for stream in (False, True):
            answer = node.post("/v1/chat/completions", {"model": model, "stream": stream, **asked})
            assert (answer.status, answer.headers.get("X-LLM-Node-Ignored")) == (200, named), answer.body


def test_a_file_that_is_none_ends_the_command(tmp_path: Path) -> None:
    command = [PROGRAM, "--chat-template", f"a={tmp_path}/missing.jinja", "--port", "0"]
    got = subprocess.run(command, capture_output=True, text=True, env=node_environment(tmp_path), timeout=60)
    assert got.returncode != 0 and "missing.jinja" in got.stderr, got.stderr
