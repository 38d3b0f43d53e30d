"""A model whose chat template is no Jinja: it has lost its chat, and nothing else."""

from __future__ import annotations

from pathlib import Path

from support.node import running_node


def test_it_is_compiled_once_when_the_model_is_loaded(
    engines: Path, demo_model: Path, tmp_path: Path
) -> None:
    """Each compilation would complain of it in the log."""
    whole, begin = demo_model.read_bytes(), b"{%- for message in messages"
    assert begin in whole
    (tmp_path / "models").mkdir()
    (tmp_path / "models/broken.gguf").write_bytes(whole.replace(begin, begin.replace(b"for", b"fro")))
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path / "models")]
    with running_node(tmp_path / "node", [*arguments, "--gpu-backend", "cpu", "--demo-model", "no"]) as node:
        chat = {"model": "broken", "messages": [{"role": "user", "content": "a"}]}
        for path in ("/v1/chat/completions", "/v1/chat/completions", "/apply-template"):
            answer = node.post(path, chat)
            assert answer.status == 400, answer.body
            assert answer.json()["error"]["code"] == "unsupported_feature"
        plain = {"model": "broken", "prompt": "a", "max_tokens": 1}
        assert node.post("/v1/completions", plain).status == 200
        assert node.log_text().count("chat template cannot be read") == 1
