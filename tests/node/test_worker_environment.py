"""Where a worker runs: what its environment has for the libraries in it and what it lacks, that nothing lying
about gets in its way, what its engine is refused, and which threads loading leaves in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import llm_node
from support.engines import confined_engine
from support.node import RunningNode, node_environment, running_node

OURS = {"GOMP_SPINCOUNT": "10000", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "GGML_NO_BACKTRACE": "1"}
KEPT = {
    "CUDA_VISIBLE_DEVICES": "0",
    "OMP_NUM_THREADS": "1",
    "LC_TIME": "C",
    "XDG_CACHE_HOME": "/nowhere",
    "MALLOC_ARENA_MAX": "2",
}
LEFT_OUT = {
    "HF_TOKEN": "secret",
    "OPENAI_API_KEY": "secret",
    "NVIDIA_API_KEY": "secret",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "MY_OWN_CREDENTIAL": "secret",
    "SSH_AUTH_SOCK": "/nowhere",
    "HTTPS_PROXY": "http://name:secret@proxy",
    "PYTHONSTARTUP": "/nowhere",
}


def make_confined(folder: Path) -> tuple[Path, Path]:
    """Folders of engines and models, with an engine that says what it may do and what it sees."""
    engines, models = folder / "engines", folder / "models"
    confined_engine(engines)
    models.mkdir()
    (models / "it.confined").write_text("")
    return engines, models


@contextlib.contextmanager
def confined(folder: Path, *more: str, **keywords: Any) -> Iterator[RunningNode]:
    """A node with it."""
    engines, models = make_confined(folder)
    where = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(folder / "node", [*where, *more], **keywords) as node:
        yield node


def answer(node: RunningNode, prompt: str) -> dict[str, str]:
    """What the engine says to each word of a prompt."""
    body = {"model": "it", "prompt": prompt, "temperature": 0, "max_tokens": 1000}
    reply = node.post("/v1/completions", body)
    assert reply.status == 200, reply.body
    lines = reply.json()["choices"][0]["text"].splitlines()
    return dict(line.split(": ", 1) for line in lines)


def variables(node: RunningNode, *names: str) -> dict[str, str]:
    return answer(node, " ".join(f"environment={name}" for name in names))


@pytest.mark.parametrize(
    "theirs", [{}, {"GLIBC_TUNABLES": "glibc.malloc.check=1"}, {"OMP_WAIT_POLICY": "passive"}]
)
def test_what_somebody_chose_stays(tmp_path: Path, theirs: dict[str, str]) -> None:
    wanted = {**OURS, **theirs}
    if "OMP_WAIT_POLICY" in theirs:
        wanted["GOMP_SPINCOUNT"] = "(unset)"
    with confined(tmp_path, environment=theirs) as node:
        assert variables(node, *wanted) == wanted


def test_a_worker_has_what_engines_need_and_no_secret(tmp_path: Path) -> None:
    named = ["--engine-env", "MY_OWN_SWITCH", "--engine-env", "ABSENT"]
    environment = {**KEPT, **LEFT_OUT, "MY_OWN_SWITCH": "on", "LLM_NODE_QUEUE_LIMIT": "5"}
    with confined(tmp_path, *named, environment=environment) as node:
        assert variables(node, *KEPT) == KEPT
        assert variables(node, "LLM_NODE_QUEUE_LIMIT") == {"LLM_NODE_QUEUE_LIMIT": "(unset)"}
        assert variables(node, *LEFT_OUT) == dict.fromkeys(LEFT_OUT, "(unset)")
        assert variables(node, "MY_OWN_SWITCH", "ABSENT") == {"MY_OWN_SWITCH": "on", "ABSENT": "(unset)"}


def test_an_engine_reaches_neither_its_node_nor_anybody_else(tmp_path: Path) -> None:
    """The attempts of `rust/worker/tests/child.rs` with a real node for a parent, and some that only it can
    see to. The node was started with a socket that it did not ask for, as a service manager may do."""
    here, there = socket.socketpair()
    with here, there, confined(tmp_path, inherited=[there.fileno()]) as node:
        for table in ("forbidden", "of_node"):
            said = answer(node, table)
            assert said, table
            assert {name: what for name, what in said.items() if what != "refused"} == {}
        said = answer(node, "needed")
        assert {name: what for name, what in said.items() if what != "allowed"} == {}
        # Who runs the node still sees what it takes.
        (worker,) = node.workers()
        assert "VmRSS" in Path(f"/proc/{worker}/status").read_text()


DEADLY = "import os; os._exit(99)"
DEADLY_IN_A_WORKER = f"""
import sys
if any("_core" in argument for argument in sys.orig_argv):
    {DEADLY}
exec(open({{real!r}}).read())
"""


@pytest.mark.parametrize("name", ["types.py", "os.py", "linecache.py", "llm_node/__init__.py"])
def test_nothing_in_the_current_directory_takes_the_place_of_a_module(tmp_path: Path, name: str) -> None:
    path = tmp_path / "node" / name
    path.parent.mkdir(parents=True)
    path.write_text(DEADLY)
    with confined(tmp_path) as node:
        assert answer(node, "thread") == {"thread": "allowed"}


def test_nor_does_what_python_is_told_to_look_at(tmp_path: Path) -> None:
    """It counts for the node, which its user starts as they like."""
    path = tmp_path / "path"
    path.mkdir()
    for module, real in (("types", types.__file__), ("sitecustomize", os.devnull)):
        (path / f"{module}.py").write_text(DEADLY_IN_A_WORKER.format(real=real))
    environment = {"PYTHONPATH": str(path), "PYTHONINSPECT": "1", "PYTHONHOME": sys.base_prefix}
    with confined(tmp_path, environment=environment) as node:
        assert answer(node, "thread") == {"thread": "allowed"}


LOADING = """
import asyncio, pathlib, sys
sys.path.insert(0, sys.argv[1])
import llm_node
assert llm_node.__file__.startswith(sys.argv[1]), llm_node.__file__

async def load():
    engines, models = map(pathlib.Path, sys.argv[2:])
    settings = llm_node.Settings(engines_dir=(engines,), models_dir=models, gpu_backend="cpu")
    async with llm_node.Node(settings) as node:
        await node.load("it")
        (worker,) = (await node.system())["workers"]
        print(open(f"/proc/{worker['pid']}/cmdline", "rb").read())

asyncio.run(load())
"""


@pytest.mark.parametrize("flags", [[], ["-I"]], ids=["plain", "isolated"])
def test_a_worker_runs_the_package_that_its_node_runs(tmp_path: Path, flags: list[str]) -> None:
    """Here it lies in a folder that only the program knows, and another one is installed."""
    shutil.copytree(Path(llm_node.__file__).parent, tmp_path / "target/llm_node")
    folders = make_confined(tmp_path)
    program = [sys.executable, *flags, "-c", LOADING, str(tmp_path / "target"), *map(str, folders)]
    environment = node_environment(tmp_path, **({"PYTHONHOME": "/nowhere"} if flags else {}))
    result = subprocess.run(
        program, capture_output=True, text=True, check=False, env=environment, timeout=120, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert str(tmp_path / "target/llm_node/_core") in result.stdout


def test_loading_leaves_no_threads_behind(engines: Path, tmp_path: Path) -> None:
    """Where there is AMX, ggml repacks weights with all processors, and the idle team of that would make
    libgomp put all others to sleep at each barrier. Its threads have the name of the one that made them."""
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", [*arguments, "--threads", "1"]) as node:
        node.reload("llm-node-demo", max_sequences=1)
        (worker,) = node.workers()
        deadline = time.monotonic() + 30
        while True:  # one that is told to end takes its time
            names = [(task / "comm").read_text().strip() for task in Path(f"/proc/{worker}/task").iterdir()]
            if len(names) == len(set(names)):
                break
            assert time.monotonic() < deadline, names
            time.sleep(0.05)
