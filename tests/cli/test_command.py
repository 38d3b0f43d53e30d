"""The command: what goes to stdout, what to stderr, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llm_node.version import ABI_VERSION, __version__
from support.engines import compile_library
from support.gguf import write_gguf
from support.node import RunningNode, node_environment, running_node
from support.node import command as command_at

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
        (("engnies",), {}, "there is no command 'engnies'; did you mean engines"),
        (("stop", "--all", "x"), {}, "name models, or --all and none"),
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


def test_list(run: Run, demo_model: Path) -> None:
    result = run("list")
    assert result.returncode == 0, result.stderr
    (row,) = result.stdout.splitlines()[1:]
    assert row.split()[:3] == ["llm-node-demo", "llama", "gguf"]
    (model,) = json.loads(run("list", "--json").stdout)["models"]
    assert model["model_id"] == "llm-node-demo"
    assert json.loads(run("list", "--json", "--demo-model", "no").stdout) == {"models": []}


def test_models_is_a_former_name_of_list(run: Run) -> None:
    former, listed = run("models", "--json"), run("list", "--json")
    assert former.stdout == listed.stdout != ""
    verbs = run("--help").stdout.partition("Commands:")[2]
    assert "  list " in verbs and "  models" not in verbs


def test_serving_on_auto_without_a_gpu_says_what_to_do(run: Run) -> None:
    from llm_node.devices import nvidia_gpus

    if nvidia_gpus() or sys.platform == "darwin":
        pytest.skip("this machine has a GPU")
    result = run("--port", "0")
    assert result.returncode == 1
    assert "gpu_not_found" in result.stderr
    assert "use this CPU:  llm-node --port 0 --gpu-backend cpu" in result.stderr
    asked = run("run", "llm-node-demo", "What is it?", "--", "-x")
    words = "use this CPU:  llm-node run llm-node-demo 'What is it?' --gpu-backend cpu -- -x"
    assert words in asked.stderr, "with all that was typed"


def test_a_port_in_use_is_said(run: Run, node: RunningNode) -> None:
    port = node.url.rsplit(":", 1)[1]
    result = run("--port", port, "--gpu-backend", "cpu")
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in result.stderr
    assert "another --port" in result.stderr


def test_beside_a_kubernetes_service_of_its_name_it_starts(tmp_path: Path) -> None:
    service = {"LLM_NODE_PORT": "tcp://10.96.3.7:3000", "LLM_NODE_SERVICE_HOST": "10.96.3.7"}
    with running_node(tmp_path, ["--gpu-backend", "cpu"], environment=service) as started:
        assert "Kubernetes Service is: LLM_NODE_PORT, LLM_NODE_SERVICE_HOST" in started.log_text()


@pytest.fixture(scope="module")
def mistaken(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose settings file was broken after it had started."""
    folder = tmp_path_factory.mktemp("mistaken")
    with running_node(folder, ["--engines-dir", str(engines), "--gpu-backend", "cpu"]) as running:
        running.extra["home"] = folder
        (folder / ".llm-node/config.toml").write_text("port = \n")
        yield running


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["ps"], "MODEL"),
        (["list"], "llm-node-demo"),
        (["engines"], "llama_cpp"),
        (["logs"], "GET /readyz"),
        (["stop", "--all"], ""),
    ],
)
def test_a_broken_settings_file_stops_nobody_who_asks_the_node(
    mistaken: RunningNode, arguments: list[str], shown: str
) -> None:
    done = command_at(mistaken, *arguments)
    assert done.returncode == 0, done.stderr
    assert shown in done.stdout
    file = mistaken.extra["home"] / ".llm-node/config.toml"
    assert done.stderr.startswith(f"Warning: {file} is not TOML: ")
    assert "The settings file is left out.\n" in done.stderr


def test_what_the_file_decides_waits_for_a_right_one(mistaken: RunningNode) -> None:
    for arguments in (["serve"], ["config", "check"], ["pull", "org/repo"], ["rm", "-y", "x"]):
        done = command_at(mistaken, *arguments)
        assert done.returncode == 2, arguments
        assert "config.toml is not TOML: " in done.stderr and "Warning" not in done.stderr


# ---- what is wrong with a path is said before anything starts ------------------------------------------


@pytest.mark.parametrize("near", ["engines/llama_cpp", "engines/llama_cpp/cpu", ""])
def test_an_engines_folder_that_is_off_by_a_level(
    run: Run, tmp_path: Path, llama_cpp: Path, near: str
) -> None:
    (tmp_path / "engines/llama_cpp").mkdir(parents=True)
    (tmp_path / "engines/llama_cpp/cpu").symlink_to(llama_cpp)
    for verb in ([], ["engines"]):
        result = run("--engines-dir", str(tmp_path / near), "--gpu-backend", "cpu", "--port", "0", *verb)
        assert result.returncode == 2
        assert f"there are no engines in it; name {tmp_path / 'engines'}, which" in result.stderr


@pytest.mark.parametrize(
    ("flag", "name", "words"),
    [
        ("--engines-dir", "absent", ["no such folder", "make it, or name another"]),
        ("--engines-dir", "file", ["this is a file", "name a folder"]),
        ("--engines-dir", "loop", ["cannot be looked at"]),
        ("--models-dir", "absent", ["no such folder", "make it, or name another"]),
        ("--models-dir", "file", ["this is a file", "name a folder"]),
        ("--models-dir", "file/below", ["no such folder"]),
        ("--models-dir", "loop", ["cannot be looked at"]),
        ("--draft-model", "absent", ["no such file", "same vocabulary"]),
    ],
)
def test_a_path_that_leads_nowhere(run: Run, tmp_path: Path, flag: str, name: str, words: list[str]) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    path = tmp_path / name
    result = run(flag, str(path), "--gpu-backend", "cpu", "--port", "0")
    assert result.returncode == 2
    for word in [f"{flag} {path}: ", *words]:
        assert word in result.stderr


def test_a_folder_without_the_right_to_read_it(run: Run, tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "locked").mkdir(mode=0)
    result = run("--models-dir", str(tmp_path / "locked"), "--gpu-backend", "cpu", "--port", "0")
    assert result.returncode == 2
    assert "cannot be read: Permission denied; give the user" in result.stderr


def test_a_home_that_cannot_be_looked_into(run: Run, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    result = run("list", HOME=str(tmp_path / "loop"))
    assert result.returncode == 2
    assert "cannot be looked for" in result.stderr
    assert "Set HOME" in result.stderr
    result = run("list", "--home", str(tmp_path), HOME=str(tmp_path / "loop"))
    assert result.returncode == 0, result.stderr


# ---- what a node says once it listens --------------------------------------------------------------------


def greeting(tmp_path: Path, *arguments: str) -> tuple[str, str]:
    """What it says, and what the command that it names answers."""
    with running_node(tmp_path / "node", ["--gpu-backend", "cpu", *arguments]) as started:
        deadline = time.monotonic() + 60
        while (said := started.log_text()).partition("models:")[2].count("\n\n") < 2:
            assert time.monotonic() < deadline, said
            time.sleep(0.05)
        command = re.search(r"^  (curl .*\n.*)$", said, re.MULTILINE)
        if command is None:
            return said, ""
        shell = ["sh", "-c", command[1]]
        return said, subprocess.run(shell, capture_output=True, text=True, check=True, timeout=120).stdout


def test_the_command_that_it_names_works(tmp_path: Path, engines: Path) -> None:
    said, answer = greeting(tmp_path, "--engines-dir", str(engines))
    assert "or in the terminal:\n  llm-node run llm-node-demo\n" in said
    (address,) = re.findall(r"^or in a browser:\n  (http://127\.0\.0\.1:\d+/)$", said, re.MULTILINE)
    assert f"listens on {address.removesuffix('/')} " in said
    assert "Ask it something:" in said
    assert answer.rstrip().endswith("data: [DONE]")
    assert '"content"' in answer


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({}, ["/v1/completions", "Have it go on with a text:", "client.completions.create"]),
        ({"pooling_type": 1}, ["/v1/embeddings", "turn a text into a vector:", "client.embeddings.create"]),
    ],
)
def test_a_model_is_not_asked_for_what_it_is_not_for(
    tmp_path: Path, engines: Path, numbers: dict[str, int], words: list[str]
) -> None:
    """The file is a header alone: what it answers is not the point here."""
    write_gguf(tmp_path / "it's.gguf", "llama", **numbers)
    folders = ["--engines-dir", str(engines), "--models-dir", str(tmp_path)]
    said, answer = greeting(tmp_path, *folders, "--demo-model", "no", "--web", "no")
    for word in words:
        assert word in said
    assert "chat/completions" not in said and "browser" not in said
    assert "it's" in answer, "the shell broke the command"


def test_without_an_engine_it_says_what_one_is_and_where_it_goes(tmp_path: Path) -> None:
    said, answer = greeting(tmp_path)
    assert "engines: none" in said
    assert "`llm-node engine install` brings what this machine needs" in said
    assert f"put it into {tmp_path}/node/.llm-node/engines/<id>/cpu/" in said
    assert "--engines-dir" in said
    assert answer == ""


def test_without_a_model_it_says_where_one_goes(tmp_path: Path, engines: Path) -> None:
    said, answer = greeting(tmp_path, "--engines-dir", str(engines), "--demo-model", "no")
    assert "No model yet: `llm-node pull ORG/REPO` fetches one" in said
    assert answer == ""


def test_what_a_node_lacks_is_data_as_well(tmp_path: Path, engines: Path, repository: Path) -> None:
    """A node on the CPU, with GPUs of an NVML that is not real."""
    (tmp_path / "none").mkdir()
    nvml = compile_library(repository / "tests/fakes/fake_nvml.c", tmp_path / "lib/libnvidia-ml.so.1")
    environment = {"LD_LIBRARY_PATH": str(nvml.parent), "FAKE_NVML_DEVICES": "1"}
    arguments = ["--gpu-backend", "cpu", "--demo-model", "no", "--engine-packages", "no", "--engines-dir"]
    for folder, code, command in (
        (tmp_path / "none", "no_engine", "llm-node engine install"),
        (engines, "no_model", "llm-node pull ORG/REPO"),
    ):
        with running_node(tmp_path / code, [*arguments, str(folder)], environment=environment) as node:
            first, second = node.get("/api/system").json()["advice"]
        assert (first["code"], first["command"]) == (code, command)
        assert first["text"].endswith(".")
        assert second["code"] == "gpu_unused"
        assert "GPU" in second["text"]
        assert "llm-node[cuda]" in second["command"]


def test_with_models_that_cannot_be_loaded_it_says_why(tmp_path: Path, engines: Path) -> None:
    write_gguf(tmp_path / "new.gguf", "brand-new")
    folders = ["--engines-dir", str(engines), "--models-dir", str(tmp_path)]
    said, answer = greeting(tmp_path, *folders, "--demo-model", "no")
    assert "None of these models can be loaded (architecture_mismatch): Architecture 'brand-new'" in said
    assert answer == ""


def test_engines_for_other_devices_alone_are_an_error(run: Run, engines: Path) -> None:
    """Whatever model came, such a node would serve nothing."""
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "vulkan"]
    result = run(*arguments, "--port", "0")
    assert result.returncode == 1
    assert "no engine for the GPU backend vulkan: 'llama_cpp' is for cpu" in result.stderr
    assert "Choose --gpu-backend cpu" in result.stderr
    result = run("engines", *arguments)
    assert result.returncode == 0
    assert "A node would not start: no engine for the GPU backend vulkan" in result.stderr


def test_list_says_why_one_cannot_be_loaded(run: Run, tmp_path: Path, engines: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "corrupt.gguf").write_bytes(b"GGUF\x03")
    write_gguf(models / "new.gguf", "brand-new")
    write_gguf(models / "fine.gguf", "llama")
    folders = ["--engines-dir", str(engines), "--models-dir", str(models), "--demo-model", "no"]
    result = run("list", *folders, "--gpu-backend", "cpu")
    assert result.returncode == 0, result.stderr
    heading, corrupt, fine, new = result.stdout.splitlines()
    assert heading.endswith("WHAT IS WRONG")
    assert corrupt.split()[0] == "corrupt"
    assert "model_corrupt" in corrupt
    assert "damaged at byte" in corrupt
    assert fine.split()[-1] == "available"
    assert "architecture_mismatch  Architecture 'brand-new' not supported by plugin 'llama_cpp'" in new


def test_a_defect_is_told_as_well_to_who_started_the_command() -> None:
    """As a replica of Ray Serve does, which shows it where people look."""
    code = "from llm_node.cli import command, main\ncommand.command.main = lambda **_: 1 / 0\nmain(print)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "ZeroDivisionError: division by zero\n")
    assert "Traceback" in done.stderr


def test_where_ray_is_missing_it_is_said_what_brings_it() -> None:
    code = (
        "import sys; sys.modules['ray'] = None; sys.argv = ['llm-node', 'ray', 'targets']\n"
        "from llm_node.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "Error: Ray is not installed: pip install 'llm-node[ray]'\n"
