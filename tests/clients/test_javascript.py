"""The official clients in JavaScript, driven by node, against a model whose words are known."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import RunningNode
from support.scripted import scripted_node

UNREACHED = ("ENOTFOUND", "ECONNREFUSED", "ETIMEDOUT", "EAI_AGAIN", "ENETUNREACH", "ECONNRESET")
"""How npm says that it reaches no registry."""


@pytest.fixture(scope="module")
def program(repository: Path) -> Path:
    """The script, with what it needs beside it; installed once."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    source, folder = repository / "tests/js", repository / ".cache/js"
    folder.mkdir(parents=True, exist_ok=True)
    lock = (source / "package-lock.json").read_text()
    for name in ("package.json", "clients.mjs"):
        shutil.copy(source / name, folder / name)
    installed = folder / "installed.json"
    if not installed.is_file() or installed.read_text() != lock:
        (folder / "package-lock.json").write_text(lock)
        command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]
        got = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if any(word in got.stderr for word in UNREACHED):
            pytest.skip("npm reaches no registry")
        assert got.returncode == 0, got.stderr
        installed.write_text(lock)
    return folder / "clients.mjs"


@pytest.fixture(scope="module")
def scripted(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with scripted_node(engines, tmp_path_factory.mktemp("javascript")) as node:
        yield node


def test_the_lock_file_names_no_registry(repository: Path) -> None:
    lock = json.loads((repository / "tests/js/package-lock.json").read_text())
    assert len(lock["packages"]) > 4
    assert not [name for name, package in lock["packages"].items() if "resolved" in package]
    assert all("integrity" in package for name, package in lock["packages"].items() if name)


@pytest.mark.parametrize("client", ["openai", "anthropic", "ollama", "ai"])
def test_a_stream_and_a_loop_with_tools(scripted: RunningNode, program: Path, client: str) -> None:
    got = subprocess.run(
        ["node", program.name, scripted.url, client], cwd=program.parent, capture_output=True, text=True
    )
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout)
    assert found["streamed"] == found["whole"] == "then STOP more"
    assert found["ran"] == [["get_weather", {"city": "Ulm"}], ["now", {}]]
    assert found["answer"] == "It rains."
