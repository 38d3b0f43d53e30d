"""Clients in Python that bring much with them, each in a program of its own, against a model whose words are
known. `make clients` installs them into `.cache/clients`, apart from all else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import RunningNode, node_environment
from support.scripted import scripted_node

APIS = ("openai", "anthropic", "ollama")


@pytest.fixture(scope="module")
def python(repository: Path) -> Path:
    found = repository / ".cache/clients/bin/python"
    if not found.is_file():
        pytest.skip("the clients are not installed: run `make clients`")
    return found


@pytest.fixture(scope="module")
def scripted(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    with scripted_node(engines, tmp_path_factory.mktemp("clients")) as node:
        yield node


@pytest.mark.parametrize(
    ("client", "api"),
    [
        *(
            (client, api)
            for client in ("litellm_", "langchain_")
            for api in ("openai", "anthropic", "ollama")
        ),
        ("llama_index_", "openai"),
    ],
)
def test_a_stream_and_a_loop_with_tools(
    python: Path, scripted: RunningNode, repository: Path, tmp_path: Path, client: str, api: str
) -> None:
    program = repository / f"tests/clients/programs/{client}.py"
    got = subprocess.run(
        [python, program, scripted.url, api],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=node_environment(tmp_path, LITELLM_LOCAL_MODEL_COST_MAP="True"),
    )
    assert got.returncode == 0, got.stderr
    found = json.loads(got.stdout.splitlines()[-1])
    assert found["streamed"] == "then STOP more"
    assert found["ran"] == [["get_weather", {"city": "Ulm"}], ["now", {}]]
    assert found["answer"] == "It rains."
