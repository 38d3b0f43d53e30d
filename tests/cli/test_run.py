"""`llm-node run` with one question: pipes, exit codes, and a node of its own."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from llm_node.cli.command import command
from support.node import RunningNode, node_environment

Here = Callable[..., Result]
Apart = Callable[..., "subprocess.CompletedProcess[str]"]
QUESTION = "What is an engine?"
ANSWER = "An engine is a shared library with a manifest.json beside it"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Here:
    """The command in this process, for what asks a node that runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return lambda *arguments, given="": CliRunner().invoke(
        command, ["run", *arguments], input=given, prog_name="llm-node"
    )


@pytest.fixture
def process(tmp_path: Path) -> Apart:
    """The command in a process of its own, for what is a node itself."""
    return lambda *arguments: subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), "run", *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(tmp_path),
    )


@pytest.fixture
def greedy(node: RunningNode) -> list[str]:
    return ["--node", node.url, "--temperature", "0", "llm-node-demo"]


def test_the_answer_is_all_of_stdout(run: Here, greedy: list[str]) -> None:
    result = run(*greedy, *QUESTION.split())
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(ANSWER)
    assert result.stdout.count("\n") == 1 and result.stdout.endswith("\n")
    assert (result.stderr, "\x1b" in result.stdout) == ("", False)


def test_a_log_that_cannot_be_written_is_one_line(process: Apart, engines: Path, tmp_path: Path) -> None:
    """As on a disk that is full: the answer comes all the same."""
    log = tmp_path / ".llm-node/logs/run.log"
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    named = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--log-level", "debug"]
    result = process(*named, "--temperature", "0", "llm-node-demo", QUESTION)
    assert result.returncode == 0 and result.stdout.startswith(ANSWER), result.stderr
    assert result.stderr == f"the log {log} cannot be written: No space left on device\n"


def test_what_comes_on_standard_input_is_the_prompt_or_stands_below_it(run: Here, greedy: list[str]) -> None:
    assert run(*greedy, given=QUESTION + "\n").stdout == run(*greedy, QUESTION).stdout
    both = run(*greedy, "--verbose", "First", given="Second\n")
    joined = run(*greedy, "--verbose", given="First\n\nSecond")
    assert both.stdout == joined.stdout
    assert both.exit_code == joined.exit_code == 0


def test_without_a_model_it_is_the_one_that_is_loaded_or_the_demo(run: Here, node: RunningNode) -> None:
    for row in node.get("/api/models").json()["models"]:
        if row["status"] == "loaded":
            node.post("/api/models/unload", {"model_id": row["model_id"]})
    named = ["--node", node.url, "--temperature", "0"]
    demo = run(*named, given=QUESTION)
    assert demo.exit_code == 0 and demo.stdout.startswith(ANSWER), demo.stderr
    assert demo.stderr == "llm-node-demo answers questions about llm-node, and knows nothing else.\n"
    loaded = run(*named, given=QUESTION)
    assert (loaded.stdout, loaded.stderr) == (demo.stdout, "")


def test_bytes_that_are_no_text_are_marked_as_such(run: Here, greedy: list[str]) -> None:
    marked = run(*greedy, "Write a message:", given="caf\N{REPLACEMENT CHARACTER}")
    assert marked.exit_code == 0, marked.stderr
    assert run(*greedy, "Write a message:", given=b"caf\xe9").stdout == marked.stdout
    assert run(*greedy, "caf\udce9").stdout == run(*greedy, "caf\N{REPLACEMENT CHARACTER}").stdout != ""


def test_cut_by_its_length_is_said(run: Here, greedy: list[str]) -> None:
    result = run(*greedy, "--max-tokens", "3", QUESTION)
    assert result.exit_code == 0
    assert result.stdout.strip() and ANSWER.startswith(result.stdout.strip())
    assert "cut by its length; 3 tokens" in result.stderr


def test_all_figures(run: Here, greedy: list[str]) -> None:
    result = run(*greedy, "--verbose", QUESTION)
    for word in ("prompt_tokens", "completion_tokens", "tokens/s", "context "):
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["no-such-model", "hi"], 3, "model_not_found: Model 'no-such-model' not found"),
        (["no-such-model", "hi"], 3, "`llm-node list` shows the models that are here"),
        (["llm-node-demo", "--temperature", "9", "hi"], 2, "temperature"),
        (["llm-node-demo", "--format", "/no/such/file", "hi"], 2, "--format /no/such/file: No such file"),
        (["llm-node-demo"], 2, "give a PROMPT"),
    ],
)
def test_how_it_ends_where_it_cannot(
    run: Here, node: RunningNode, arguments: list[str], code: int, words: str
) -> None:
    result = run("--node", node.url, *arguments)
    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr
    assert isinstance(result.exception, SystemExit)


def test_no_node_where_one_is_named(run: Here) -> None:
    result = run("--node", "http://127.0.0.1:1", "llm-node-demo", "hi")
    assert result.exit_code == 6
    assert result.stderr == "Error: the node at http://127.0.0.1:1 cannot be reached: Connection refused\n"


def test_a_node_that_ends_in_the_midst_of_an_answer(run: Here) -> None:
    """It says that it has ended, in place of what its connection came to."""

    def serve(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(1 << 16)
            connection.sendall(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"mod')

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = run("--node", url, "llm-node-demo", "hi")
        thread.join()
    assert result.exit_code == 6
    assert result.stderr == f"Error: the node at {url} ended before it had answered in full\n"


def test_an_answer_in_json(run: Here, greedy: list[str]) -> None:
    """Of a model that was never taught any: whatever object it writes, it is one, unless it is cut."""
    result = run(*greedy, "--format", "json", "--max-tokens", "200", QUESTION)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.lstrip().startswith("{")
    if "cut by its length" not in result.stderr:
        assert isinstance(json.loads(result.stdout), dict)


def test_an_answer_in_json_by_a_schema(run: Here, greedy: list[str], tmp_path: Path) -> None:
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps({"type": "boolean"}))
    result = run(*greedy, "--format", str(schema), QUESTION)
    assert result.exit_code == 0, result.stderr
    assert isinstance(json.loads(result.stdout), bool)
    schema.write_text("{")
    result = run(*greedy, "--format", str(schema), QUESTION)
    assert result.exit_code == 2
    assert "is no JSON schema" in result.stderr


def test_without_a_node_it_is_one(process: Apart, engines: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--temperature", "0"]
    result = process("llm-node-demo", QUESTION, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(ANSWER)
    assert result.stderr == ""
    assert "'llm-node-demo' is loaded with llama_cpp" in (tmp_path / ".llm-node/logs/run.log").read_text()
    assert not (tmp_path / ".llm-node/node.json").exists()


def test_a_node_of_its_own_asks_for_keys_and_has_one(process: Apart, engines: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    program = str(Path(sys.executable).with_name("llm-node"))
    environment = node_environment(tmp_path)
    made = [program, "key", "new", "somebody", "--api-key-file", str(keys)]
    subprocess.run(made, check=True, capture_output=True, env=environment)
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--temperature", "0"]
    result = process("llm-node-demo", QUESTION, "--api-key-file", str(keys), *arguments)
    assert result.returncode == 0 and result.stdout.startswith(ANSWER), result.stderr


def test_without_a_gpu_and_a_terminal_it_says_what_to_type(process: Apart, engines: Path) -> None:
    from llm_node.devices import nvidia_gpus

    if nvidia_gpus() or sys.platform == "darwin":
        pytest.skip("this machine has a GPU")
    result = process("llm-node-demo", "hi", "--engines-dir", str(engines))
    assert result.returncode == 1
    typed = f"llm-node run llm-node-demo hi --engines-dir {engines} --gpu-backend cpu"
    assert typed in result.stderr
    assert "llm-node config set gpu_backend cpu" in result.stderr


def test_without_an_engine_it_says_so(process: Apart) -> None:
    result = process("llm-node-demo", "hi", "--gpu-backend", "cpu")
    assert result.returncode == 1
    assert "no engine, so no model can be loaded" in result.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_a_sentence(greedy: list[str], tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("llm-node")
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [program, "run", *greedy, QUESTION],
            stdin=subprocess.DEVNULL,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=60,
            env=node_environment(tmp_path),
        )
    assert (result.returncode, result.stderr) == (4, "Error: the output: No space left on device\n")


def test_a_reader_that_leaves_early_is_no_accident(
    node: RunningNode, greedy: list[str], tmp_path: Path
) -> None:
    program = Path(sys.executable).with_name("llm-node")
    command = f"{program} run {' '.join(greedy)} '{QUESTION}' | true"
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, check=False, env=node_environment(tmp_path)
    )
    assert "Traceback" not in result.stderr
