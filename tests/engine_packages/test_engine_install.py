"""`llm-node engine install`, `list` and `remove`, in environments of their own and without an index."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llm_node import installation
from support.environment import Environment, wheel
from support.node import running_node

PACKAGE = "llm-node-engine-sample-markov-cpu"


def listed(environment: Environment) -> list[tuple[str, list[str]]]:
    result = environment.run("engine", "list", "--json")
    assert result.returncode == 0, result.stderr
    return [(it["name"], it["engines"]) for it in json.loads(result.stdout)["packages"]]


def test_a_wheel_comes_and_goes_and_a_node_that_runs_sees_it(
    environment: Environment, sample: Path, tmp_path: Path
) -> None:
    program = [environment.python, "-c", "from llm_node.cli import main; main()"]
    with running_node(environment.home, ["--gpu-backend", "cpu"], program=program) as node:
        assert listed(environment) == []
        result = environment.run("engine", "install", "--yes", str(sample))
        assert result.returncode == 0, result.stderr
        assert f"{environment.python} -m pip install {sample}" in result.stderr
        assert f"the node at {node.url} has looked for it" in result.stderr
        assert listed(environment) == [(PACKAGE, ["sample_markov/cpu"])]
        (engine,) = node.get("/api/engines").json()["engines"]
        assert engine["status"] == "loaded"
    result = environment.run("engine", "remove", "--yes", PACKAGE)
    assert result.returncode == 0, result.stderr
    assert listed(environment) == [] and environment.engines() == []


def test_a_name_is_an_extra_and_without_one_it_is_what_the_machine_needs(
    environment: Environment, repository: Path, tmp_path: Path
) -> None:
    """The package is a stand-in of the real one's name: a machine without a GPU needs the CPU's."""
    from llm_node.devices import nvidia_gpus

    if nvidia_gpus():
        pytest.skip("this machine has a GPU")
    entry = b"[llm_node.engines]\nx = llm_node_engine_llama_cpu\n"
    made = wheel(
        tmp_path,
        "llm-node-engine-llama-cpu",
        "1.0.9",
        {
            "llm_node_engine_llama_cpu/engines/llama_cpp/cpu/manifest.json": b"{}",
            "llm_node_engine_llama_cpu-1.0.9.dist-info/entry_points.txt": entry,
            "llm_node_engine_llama_cpu/__init__.py": b"",
        },
    )
    for arguments in ([], ["cpu"]):
        result = environment.run("engine", "install", "-y", *arguments, PIP_FIND_LINKS=str(made.parent))
        assert result.returncode == 0, result.stderr
        assert "pip install 'llm-node[cpu]'" in result.stderr
        assert ("This machine needs the engine for cpu" in result.stderr) == (not arguments)
        assert listed(environment) == [("llm-node-engine-llama-cpu", ["llama_cpp/cpu"])]
        removed = environment.run("engine", "remove", "-y", "cpu")
        assert removed.returncode == 0, removed.stderr
        assert listed(environment) == []


def test_a_folder_is_copied_to_where_nodes_look(
    environment: Environment, samples: Path, tmp_path: Path
) -> None:
    folder, empty = samples / "sample_markov/cpu", tmp_path / "empty"
    empty.mkdir()
    for _ in range(2):  # the second time in place of the first
        result = environment.run("engine", "install", "-y", str(folder))
        assert result.returncode == 0, result.stderr
    place = environment.home / ".llm-node/engines/sample_markov/cpu"
    assert environment.engines() == [("sample_markov", "loaded", str(place))]
    assert environment.run("engine", "install", "-y", str(place)).returncode == 2
    assert environment.run("engine", "install", "-y", str(empty)).returncode == 2


def test_nothing_is_run_unasked_and_a_failure_is_one(environment: Environment, tmp_path: Path) -> None:
    unasked = environment.run("engine", "install", "cpu")
    assert unasked.returncode == 2 and "-y says yes" in unasked.stderr
    failed = environment.run("engine", "install", "-y", "no-such-engine", PIP_FIND_LINKS=str(tmp_path))
    assert failed.returncode == 1 and "the command has ended with 1" in failed.stderr
    unknown = environment.run("engine", "remove", "-y", "aiohttp")
    assert unknown.returncode == 2 and "no engine package" in unknown.stderr


@pytest.mark.parametrize(
    ("kind", "files", "is_virtual", "has_pip", "has_uv"),
    [
        ("uv-tool", ["uv-receipt.toml"], True, False, True),
        ("pipx", ["pipx_metadata.json"], True, False, False),
        ("pip", [], True, True, True),
        ("uv", [], True, False, True),
        ("system", [], True, False, False),
        ("system", ["lib/EXTERNALLY-MANAGED"], False, True, True),
        ("pip", [], False, True, False),
    ],
)
def test_how_llm_node_was_installed(
    tmp_path: Path, kind: str, files: list[str], is_virtual: bool, has_pip: bool, has_uv: bool
) -> None:
    (tmp_path / "lib").mkdir()
    for file in files:
        (tmp_path / file).write_text("")
    found = installation.of(tmp_path, tmp_path / "lib", is_virtual=is_virtual, has_pip=has_pip, has_uv=has_uv)
    assert found.kind == kind
    assert found.may_change == (kind != "system")


@pytest.mark.parametrize(
    ("kind", "extra", "wheel_", "gone", "newest"),
    [
        ("pip", "P -m pip install llm-node[cpu]", "P -m pip install e.whl", "P -m pip uninstall --yes e",
         "P -m pip install --upgrade llm-node e"),
        ("uv", "uv pip install --python P llm-node[cpu]", "uv pip install --python P e.whl",
         "uv pip uninstall --python P e", "uv pip install --python P --upgrade llm-node e"),
        ("uv-tool", "uv tool install --force llm-node[cpu]", "uv tool install --force --with e.whl llm-node",
         "uv tool install --force llm-node", "uv tool upgrade llm-node"),
        ("pipx", "pipx inject llm-node llm-node-engine-llama-cpu~=1.0", "pipx inject llm-node e.whl",
         "pipx uninject llm-node e", "pipx upgrade --include-injected llm-node"),
    ],
)  # fmt: skip
def test_commands(kind: installation.Kind, extra: str, wheel_: str, gone: str, newest: str) -> None:
    here = installation.Installation(kind, "P")
    assert " ".join(here.add("llm-node[cpu]")) == extra
    assert " ".join(here.add("e.whl")) == wheel_
    assert " ".join(here.remove("e")) == gone
    assert " ".join(here.update("e")) == newest
