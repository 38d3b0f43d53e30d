"""The command: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_node.node import ABI_VERSION, __version__
from support.node import RunningNode, node_environment, running_node

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(Path(sys.executable).with_name("llm-node")), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env=node_environment(tmp_path, **environment),
        )

    return run


def test_version(run: Run) -> None:
    result = run("--version")
    assert result.stdout == f"llm-node {__version__} (engine ABI {ABI_VERSION})\n"
    assert (result.stderr, result.returncode) == ("", 0)


def test_help_names_every_setting(run: Run) -> None:
    from llm_node.settings import ALL

    shown = "".join(run("--help").stdout.split())
    for setting in ALL:
        assert setting.flag in shown
        assert setting.environment in shown


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("--vram-limit", "8X"), {}, "--vram-limit: expected a size"),
        (("--vram-limt", "8G"), {}, "--vram-limit"),
        ((), {"LLM_NODE_VRAM_LIMT": "8G"}, "did you mean LLM_NODE_VRAM_LIMIT"),
        (("engnies",), {}, "engnies"),
        (("engines", "--port", "x"), {}, "--port: expected"),
    ],
)
def test_a_wrong_setting_is_said_and_ends_with_2(
    run: Run, arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    result = run(*arguments, **environment)
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stdout == ""


def test_header(run: Run) -> None:
    result = run("engine", "header")
    header = Path(result.stdout.removesuffix("\n"))
    assert "#define ENGINE_ABI_VERSION" in header.read_text()
    assert result.returncode == 0


def test_sdk(run: Run) -> None:
    result = run("engine", "sdk")
    folder = Path(result.stdout.removesuffix("\n"))
    assert (folder / "Cargo.toml").is_file() and (folder.parent / "abi/src/lib.rs").is_file()
    assert result.returncode == 0


def test_engines(run: Run, engines: Path) -> None:
    result = run("--engines-dir", str(engines), "--gpu-backend", "cpu", "engines")
    assert result.returncode == 0, result.stderr
    heading, row = result.stdout.splitlines()
    assert heading.split()[:4] == ["ENGINE", "VERSION", "BACKEND", "STATUS"]
    assert row.split()[0] == "llama_cpp"
    assert row.split()[2:4] == ["cpu", "loaded"]


def test_engines_as_json_with_the_setting_after_the_verb(run: Run, engines: Path) -> None:
    result = run("engines", "--json", "--engines-dir", str(engines))
    (engine,) = json.loads(result.stdout)["engines"]
    assert (engine["id"], engine["status"]) == ("llama_cpp", "loaded")


def test_no_engines_is_an_empty_table_and_a_hint(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("engines", "--engines-dir", str(tmp_path / "empty"))
    assert result.returncode == 0
    assert len(result.stdout.splitlines()) == 1
    assert "--engines-dir" in result.stderr


def test_models(run: Run, demo_model: Path) -> None:
    result = run("models")
    assert result.returncode == 0, result.stderr
    (row,) = result.stdout.splitlines()[1:]
    assert row.split()[:3] == ["llm-node-demo", "llama", "gguf"]
    (model,) = json.loads(run("models", "--json").stdout)["models"]
    assert model["model_id"] == "llm-node-demo"
    assert json.loads(run("models", "--json", "--demo-model", "no").stdout) == {"models": []}


def test_serving_on_auto_without_a_gpu_says_what_to_do(run: Run) -> None:
    from llm_node.devices import nvidia_gpus

    if nvidia_gpus() or sys.platform == "darwin":
        pytest.skip("this machine has a GPU")
    result = run("--port", "0")
    assert result.returncode == 1
    assert "gpu_not_found" in result.stderr
    assert "--gpu-backend cpu" in result.stderr


def test_a_port_in_use_is_said(run: Run, node: RunningNode) -> None:
    port = node.url.rsplit(":", 1)[1]
    result = run("--port", port, "--gpu-backend", "cpu")
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr


def test_beside_a_kubernetes_service_of_its_name_it_starts(tmp_path: Path) -> None:
    service = {"LLM_NODE_PORT": "tcp://10.96.3.7:3000", "LLM_NODE_SERVICE_HOST": "10.96.3.7"}
    with running_node(tmp_path, ["--gpu-backend", "cpu"], environment=service) as started:
        assert "Kubernetes Service is: LLM_NODE_PORT, LLM_NODE_SERVICE_HOST" in started.log_text()
