"""Clients in Python that bring much with them, each in a program of its own, against a model whose words are
known. `make clients` installs them into `.cache/clients`, apart from all else.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


def said_by(program: Path, folder: Path, python: Path, *arguments: str) -> Any:
    """What a program prints last."""
    got = subprocess.run(
        [python, program, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=node_environment(folder, LITELLM_LOCAL_MODEL_COST_MAP="True"),
    )
    assert got.returncode == 0, got.stderr
    return json.loads(got.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("client", "api"),
    [
        *((client, api) for client in ("litellm_", "langchain_") for api in APIS),
        ("llama_index_", "openai"),
    ],
)
def test_a_stream_and_a_loop_with_tools(
    python: Path, scripted: RunningNode, repository: Path, tmp_path: Path, client: str, api: str
) -> None:
    program = repository / f"tests/clients/programs/{client}.py"
    found = said_by(program, tmp_path, python, scripted.url, api)
    assert found["streamed"] == "then STOP more"
    assert found["ran"] == [["get_weather", {"city": "Ulm"}], ["now", {}]]
    assert found["answer"] == "It rains."


@pytest.mark.parametrize("api", APIS)
def test_litellm_knows_the_errors(
    python: Path, scripted: RunningNode, repository: Path, tmp_path: Path, api: str
) -> None:
    """By a prompt that is too long its users shorten their chats; of Ollama's LiteLLM knows no such error."""
    program = repository / "tests/clients/programs/litellm_errors_.py"
    long = "BadRequestError" if api == "ollama" else "ContextWindowExceededError"
    wanted = {"long": long, "model": "NotFoundError", "value": "BadRequestError"}
    assert said_by(program, tmp_path, python, scripted.url, api) == wanted
