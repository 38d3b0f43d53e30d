"""`llm-node pull`, `search`, `list`, `rm`, and `run` of a model that is not here."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest

from support.hub import Behaviour, StandInHub, stand_in_hub
from support.models import requantized
from support.node import RunningNode, node_environment, running_node
from support.terminal import on_a_terminal

Command = Callable[..., "subprocess.CompletedProcess[str]"]
QUESTION = "What is an engine?"
ANSWER = "An engine is a shared library"


@pytest.fixture(scope="module")
def hub(demo_model: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        hub.put("org/Tiny-GGUF", "tiny-Q4_0.gguf", demo_model.read_bytes())
        hub.parameters["org/Tiny-GGUF"] = 3_800_000
        yield hub


@pytest.fixture(scope="module")
def node(engines: Path, hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("node")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(folder, arguments, environment=hub.environment()) as running:
        yield running


@pytest.fixture
def command(hub: StandInHub, tmp_path: Path) -> Command:
    return lambda *arguments: subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env=node_environment(tmp_path, **hub.environment()),
    )


def test_from_nothing_to_an_answer_and_the_second_time_nothing_is_fetched(
    command: Command, engines: Path, hub: StandInHub, tmp_path: Path
) -> None:
    """Without a node that runs: the command is one, for as long as it takes."""
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--temperature", "0"]
    first = command("run", "org/Tiny-GGUF", QUESTION, *arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith(ANSWER)
    assert "org/Tiny-GGUF: Q4_0, 2.6 MiB." in first.stderr
    assert "It needs " in first.stderr and "There is no larger version." in first.stderr
    hub.behaviour.asked.clear()
    second = command("run", "org/Tiny-GGUF", QUESTION, *arguments)
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert hub.behaviour.asked == []
    listed = command("list")
    assert "org/Tiny-GGUF:Q4_0" in listed.stdout and " own " in listed.stdout


def test_the_memory_that_models_may_take_decides(
    command: Command, engines: Path, demo_model: Path, hub: StandInHub, tmp_path: Path
) -> None:
    for kind in ("Q4_0", "Q8_0", "F16"):
        requantized(demo_model, tmp_path / f"m-{kind}.gguf", gguf.GGMLQuantizationType[kind])
        hub.put("org/Three", f"m-{kind}.gguf", (tmp_path / f"m-{kind}.gguf").read_bytes())
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    table = json.loads(command("pull", "org/Three", "--dry-run", "--json", *arguments).stdout)
    assert table["chosen"] == "Q8_0"
    small, large, _ = (row["needs_bytes"] for row in table["versions"])
    limit = ["--vram-limit", str((small + large) // 2)]
    pulled = command("pull", "org/Three", *arguments, *limit)
    assert pulled.returncode == 0, pulled.stderr
    assert "org/Three: Q4_0" in pulled.stderr
    assert "The next larger one, Q8_0, needs" in pulled.stderr and "more than there is." in pulled.stderr


def test_where_nothing_fits_well_the_least_that_is_needed_is_said(command: Command, engines: Path) -> None:
    """And what to type for it all the same. A quiet pull says nothing where all goes well."""
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    refused = command("pull", "org/Tiny-GGUF", *arguments, "--vram-limit", "1M")
    assert refused.returncode == 4, refused.stderr
    assert re.search(
        r"oom_ram: No version of it fits well\. The smallest, Q4_0, needs [\d.]+ MiB with 1,024 tokens of "
        r"context; this machine has 1\.0 MiB\. Name it to fetch it all the same: org/Tiny-GGUF:Q4_0",
        refused.stderr,
    ), refused.stderr
    named = command("pull", "org/Tiny-GGUF:Q4_0", "--quiet", *arguments, "--vram-limit", "1M")
    assert (named.returncode, named.stdout, named.stderr) == (0, "", "")


def test_a_chat_asks_before_it_fetches(engines: Path, hub: StandInHub, tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("llm-node")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    environment = node_environment(tmp_path, **hub.environment())
    with on_a_terminal([program, "run", "tiny", *arguments], environment, cwd=tmp_path) as terminal:
        terminal.expect("model_not_found")
        assert terminal.wait() == 3, "a name that says from where it is, alone"
    with on_a_terminal([program, "run", "org/Tiny-GGUF", *arguments], environment, cwd=tmp_path) as terminal:
        terminal.expect("The model is loaded for this chat alone; `llm-node serve` keeps it.")
        terminal.expect("org/Tiny-GGUF is not here. Fetch it? [Y/n]")
        terminal.type("\r")
        terminal.expect("org/Tiny-GGUF: Q4_0, 2.6 MiB.")
        terminal.expect(">>>")
        terminal.type("\x04")
        assert terminal.wait() == 0
    assert (tmp_path / ".llm-node/models/org/Tiny-GGUF/tiny-Q4_0.gguf").is_file()


def test_ctrl_c_stops_the_pull_of_a_node_that_runs_and_it_is_forgotten_on_wish(
    command: Command, node: RunningNode, hub: StandInHub, tmp_path: Path
) -> None:
    hub.behaviour = Behaviour(pause=threading.Event())
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("llm-node")), "pull", "--node", node.url, "org/Tiny-GGUF:Q4_0"],
        stderr=subprocess.PIPE,
        text=True,
        env=node_environment(tmp_path),
    )
    assert process.stderr is not None
    with process.stderr:
        while " %" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "stopped; the same command goes on from there" in process.stderr.read()
    (pull,) = node.get("/api/models/pulls").json()["pulls"]
    assert (pull["model"], pull["event"]) == ("org/Tiny-GGUF:Q4_0", "stopped")
    assert hub.behaviour.pause is not None
    hub.behaviour.pause.set()
    hub.behaviour = Behaviour()
    forgotten = command("pull", "--node", node.url, "--discard", "org/Tiny-GGUF:Q4_0")
    assert forgotten.returncode == 0, forgotten.stderr
    assert not list((node.log.parent / ".llm-node/models/.pulling").rglob("*.gguf"))
    again = command("pull", "--node", node.url, "--discard", "org/Nothing")
    assert (again.returncode, again.stderr) == (3, "Error: no pull of org/Nothing was stopped\n")


def test_a_node_that_runs_pulls(command: Command, node: RunningNode) -> None:
    pulled = command("pull", "--node", node.url, "org/Tiny-GGUF:Q4_0")
    assert pulled.returncode == 0, pulled.stderr
    assert pulled.stdout == ""
    assert "org/Tiny-GGUF:Q4_0 is here. Chat: llm-node run org/Tiny-GGUF:Q4_0" in pulled.stderr
    events = command("pull", "--node", node.url, "org/Tiny-GGUF:Q4_0", "--json")
    assert json.loads(events.stdout.splitlines()[-1])["event"] == "ready" and events.stderr == ""
    updated = command("pull", "--node", node.url, "org/Tiny-GGUF", "--update")
    assert updated.returncode == 0 and "the newest" in updated.stderr, updated.stderr
    removed = command("rm", "--node", node.url, "-y", "org/Tiny-GGUF")
    assert removed.returncode == 0 and "org/Tiny-GGUF:Q4_0 is deleted" in removed.stderr


def test_nothing_is_deleted_unasked(command: Command, node: RunningNode, demo_model: Path) -> None:
    """A script has no terminal: what it deletes, it names with -y."""
    models = node.log.parent / ".llm-node/models"
    models.mkdir(parents=True, exist_ok=True)
    file = Path(shutil.copy(demo_model, models / "mine.gguf"))
    refused = command("rm", "--node", node.url, "mine")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "-y says yes" in refused.stderr and file.is_file()
    removed = command("rm", "--node", node.url, "mine", "-y")
    assert removed.returncode == 0 and not file.exists(), removed.stderr


def test_a_terminal_is_asked_before_a_model_is_deleted(
    demo_model: Path, node: RunningNode, tmp_path: Path
) -> None:
    models = node.log.parent / ".llm-node/models"
    models.mkdir(parents=True, exist_ok=True)
    file = Path(shutil.copy(demo_model, models / "asked.gguf"))
    program = Path(sys.executable).with_name("llm-node")
    for answer in ("\r", "y\r"):
        assert file.is_file(), "Enter alone deletes nothing"
        command = [program, "rm", "--node", node.url, "asked"]
        with on_a_terminal(command, node_environment(tmp_path), cwd=tmp_path) as terminal:
            terminal.expect("Delete asked? [y/N]")
            terminal.type(answer)
            assert terminal.wait() == 0
    assert not file.exists()


def test_a_dry_run_is_a_table(command: Command, node: RunningNode) -> None:
    planned = command("pull", "--node", node.url, "org/Tiny-GGUF", "--dry-run")
    heading, row = planned.stdout.splitlines()
    assert heading.split() == ["VERSION", "SIZE", "BITS", "NEEDS", "FITS"]
    assert row.split()[0] == "Q4_0" and row.split()[-2:] == ["yes", "chosen"]
    assert planned.stderr.startswith("org/Tiny-GGUF: Q4_0, ")


def test_search(command: Command, node: RunningNode) -> None:
    found = command("search", "--node", node.url, "tiny")
    heading, first = found.stdout.splitlines()[:2]
    assert heading.split() == ["MODEL", "DOWNLOADS", "FITS"]
    assert first.split() == ["org/Tiny-GGUF", "7", "~yes"]
    assert "llm-node pull org/Tiny-GGUF" in found.stderr


def test_a_search_says_that_the_hub_is_silent(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, and answers nothing
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("llm-node")), "search", "tiny"],
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=node_environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}"),
        )
        assert process.stderr is not None
        with process.stderr:
            assert process.stderr.readline() == "the hub does not answer yet; waiting (Ctrl-C stops)\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pull", "org/Nothing"], 3, "model_not_found: "),
        (["pull", "qwen3"], 2, "neither a repository of the hub"),
        (["run", "org/Nothing", "hi"], 3, "model_not_found: "),
        (["rm", "-y", "llm-node-demo"], 1, "comes with llm-node"),
        (["rm", "-y", "no-such"], 3, "model_not_found: "),
    ],
)
def test_how_it_ends_where_it_cannot(
    command: Command, node: RunningNode, arguments: list[str], code: int, says: str
) -> None:
    ended = command(arguments[0], "--node", node.url, *arguments[1:])
    assert ended.returncode == code, ended.stderr
    assert says in ended.stderr and ended.stdout == ""


def test_a_node_without_a_gpu_fetches_what_is_named(command: Command, engines: Path) -> None:
    """Nobody chose the CPU, so nothing can be planned for it; a version that is named needs no plan."""
    refused = command("pull", "org/Tiny-GGUF", "--engines-dir", str(engines))
    if refused.returncode == 0:
        pytest.skip("this machine has a GPU")
    assert "gpu_not_found" in refused.stderr and "name the version to fetch" in refused.stderr
    named = command("pull", "org/Tiny-GGUF:Q4_0", "--engines-dir", str(engines))
    assert named.returncode == 0, named.stderr


def test_without_an_engine_it_says_what_brings_one_and_fetches_what_is_named(command: Command) -> None:
    refused = command("pull", "org/Tiny-GGUF", "--gpu-backend", "cpu", "--engine-packages", "no")
    assert refused.returncode == 1 and "engine_not_found" in refused.stderr, refused.stderr
    assert "`llm-node engine install` brings one" in refused.stderr
    assert "such as org/Tiny-GGUF:Q4_0; there are Q4_0" in refused.stderr
    named = command("pull", "org/Tiny-GGUF:Q4_0", "--gpu-backend", "cpu", "--engine-packages", "no")
    assert named.returncode == 0, named.stderr
    assert "Whether it runs here is not known." in named.stderr


def test_a_silent_pipe_beside_a_prompt_is_left_out(node: RunningNode, tmp_path: Path) -> None:
    """A program that starts others often leaves them a standard input that is open and silent."""
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("llm-node")),
            "run",
            "--node",
            node.url,
            "llm-node-demo",
            QUESTION,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=node_environment(tmp_path),
    )
    assert process.stdin is not None and process.stdout is not None and process.stderr is not None
    with process.stdin, process.stdout, process.stderr:
        assert process.wait(60) == 0  # while the pipe is open
        assert process.stdout.read().strip()
        assert "nothing came on standard input" in process.stderr.read()
