"""Each program of examples/ does what it says, against a real node and in this process."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from support.node import RunningNode

TESTED = {"chat.py", "chat.sh", "in_process.py"}


def run(*command: str, url: str = "") -> str:
    environment = {**os.environ, "LLM_NODE_URL": url}
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=110, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_example_is_tested_and_listed(repository: Path) -> None:
    programs = {path.name for path in (repository / "examples").iterdir()} - {"README.md"}
    assert programs == TESTED
    listed = set(re.findall(r"\[`([^`/]+)`\]", (repository / "examples/README.md").read_text()))
    assert listed == TESTED


def test_openai_client(repository: Path, node: RunningNode) -> None:
    answer = run(sys.executable, str(repository / "examples/chat.py"), "What is an engine?", url=node.url)
    assert "shared library" in answer


def test_curl(repository: Path, node: RunningNode) -> None:
    if not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("needs curl and bash")
    lines = run(str(repository / "examples/chat.sh"), "What is an engine?", url=node.url).splitlines()
    assert json.loads(lines[0])["engines"][0]["id"] == "llama_cpp"
    assert json.loads(lines[1])["status"] == "loaded"
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    text = [json.loads(event)["choices"][0]["delta"].get("content") or "" for event in events[:-1]]
    assert "".join(text).strip()


def test_in_process(repository: Path, llama_cpp: Path) -> None:
    answer = run(sys.executable, str(repository / "examples/in_process.py"), str(llama_cpp))
    assert "engines/<id>/<gpu_backend>/" in answer
