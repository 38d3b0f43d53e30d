"""Engines as Python packages: found where they are installed, no code of theirs run, and gone with them."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from support.environment import Environment, node_wheel, packed
from support.node import node_environment, running_node

MODULE = "llm_node_engine_sample_markov_cpu"
MOST_BYTES = 8_000_000


def test_an_engine_is_found_where_its_package_is_and_no_code_of_it_runs(
    environment: Environment, sample: Path
) -> None:
    assert environment.engines() == []
    environment.install(sample)
    ((name, status, path),) = environment.engines()
    assert (name, status) == ("sample_markov", "loaded")
    (site,) = environment.root.glob("lib/python*/site-packages")
    assert Path(path) == site / MODULE / "engines/sample_markov/cpu"
    brought_in = environment.run("engines", flags=("-X", "importtime")).stderr
    assert "llm_node.engine_packages" in brought_in
    assert MODULE not in brought_in
    assert environment.engines("--engine-packages", "no") == []
    environment.pip("uninstall", "--yes", MODULE)
    assert environment.engines() == []


def test_a_node_that_runs_finds_what_comes_and_misses_what_goes(
    environment: Environment, sample: Path, tmp_path: Path
) -> None:
    program = [environment.python, "-c", "from llm_node.cli import main; main()"]
    with running_node(tmp_path / "node", ["--gpu-backend", "cpu"], program=program) as node:
        assert node.get("/api/engines").json() == {"engines": []}
        environment.install(sample)
        assert node.get("/api/engines").json() == {"engines": []}
        (engine,) = node.get("/api/engines?refresh=true").json()["engines"]
        assert (engine["id"], engine["status"]) == ("sample_markov", "loaded")
        environment.pip("uninstall", "--yes", MODULE)
        assert node.get("/api/engines?refresh=true").json() == {"engines": []}


def test_the_engines_folder_comes_first(environment: Environment, sample: Path, samples: Path) -> None:
    environment.install(sample)
    found = environment.engines("--engines-dir", str(samples))
    first, second = [row for row in found if row[0] == "sample_markov"]
    assert (first[1], Path(first[2])) == ("loaded", samples / "sample_markov/cpu")
    assert second[1] == "rejected"


def test_an_engine_for_another_abi_says_what_brings_the_right_one(
    environment: Environment, sample: Path
) -> None:
    environment.install(sample)
    (site,) = environment.root.glob("lib/python*/site-packages")
    manifest = site / MODULE / "engines/sample_markov/cpu/manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**content, "abi_version": "2"}))
    (engine,) = json.loads(environment.run("engines", "--json").stdout)["engines"]
    assert (engine["status"], engine["error"]["code"]) == ("rejected", "abi_mismatch")
    name = MODULE.replace("_", "-")
    assert engine["error"]["message"].endswith(f"pip install --upgrade llm-node {name}")


@pytest.mark.parametrize("code", ["raise SystemExit(7)", "import no_such_module"])
def test_a_package_that_is_of_no_use_harms_nobody(environment: Environment, code: str) -> None:
    (site,) = environment.root.glob("lib/python*/site-packages")
    information = site / "odd-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[llm_node.engines]\nodd = odd\ngone = gone.deep\n")
    (site / "odd.py").write_text(code)
    assert environment.engines() == []


def test_the_wheel_of_the_node_holds_no_engine_and_is_small() -> None:
    wheel = node_wheel()
    assert wheel.stat().st_size <= MOST_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [
        name for name in names if "llama" in name.lower() and name.endswith((".so", ".dll", ".dylib"))
    ]
    assert not [name for name in names if "node_modules" in name or "/tests/" in name]
    for needed in (
        "llm_node/demo/llm-node-demo.gguf",
        "llm_node/include/engine_api.h",
        "llm_node/rust/sdk/Cargo.toml",
        "llm_node/web/index.html",
        "llm_node/web/vendor/preact.js",
        "llm_node/web/vendor/LICENSES.txt",
    ):
        assert needed in names, needed


def test_two_wheels_are_enough_to_ask_a_model(
    environment: Environment, repository: Path, llama_cpp: Path, tmp_path: Path
) -> None:
    """`pip install WHEELS`, then `llm-node run MODEL "..."`."""
    environment.install(node_wheel(), packed(repository, llama_cpp, tmp_path))
    program = environment.root / "bin/llm-node"
    question = ["run", "llm-node-demo", "What is an engine?", "--gpu-backend", "cpu", "--temperature", "0"]
    answer = subprocess.run(
        [program, *question],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(environment.home),
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.startswith("An engine is a shared library with a manifest.json beside it")
