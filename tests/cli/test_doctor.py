"""`llm-node doctor`: what stands in the way is named, with what to do, and ends it with 1."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.engines import fake_engine
from support.gpu import Gpu
from support.node import PROGRAM, node_environment, running_node

CONTAINER = 'mount --bind "$GROUPS_OF_A_TEST" /sys/fs/cgroup && exec "$@"'


def run(
    home: Path, *arguments: str, prefix: list[str] | None = None, **changes: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(prefix or []), str(PROGRAM), "doctor", *arguments],
        env=node_environment(home, **changes),
        capture_output=True,
        text=True,
        check=False,
    )


def test_all_is_well(tmp_path: Path, engines: Path) -> None:
    done = run(tmp_path, "--gpu-backend", "cpu", "--engines-dir", str(engines))
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    assert all(line.startswith(("ok    ", "warn  ")) for line in lines)
    assert any(line.startswith("ok    engine llama_cpp for cpu: version ") for line in lines)
    assert "ok    1 model can be loaded: see `llm-node list`" in lines


def test_a_node_that_runs_is_looked_at(tmp_path: Path, engines: Path) -> None:
    """With its own folders and backend, which nobody has to name again."""
    arguments = ["--gpu-backend", "cpu", "--engines-dir", str(engines)]
    with running_node(tmp_path, arguments) as node:
        done = run(tmp_path)
        assert done.returncode == 0, done.stdout
        lines = done.stdout.splitlines()
        assert f"ok    a node runs at {node.url}: its engines and models are looked at" in lines
        assert any(line.startswith("ok    engine llama_cpp for cpu: version ") for line in lines)


def test_what_stands_in_the_way_is_a_failure_and_says_what_to_do(tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "broken", defines={"FAKE_MISSING_SYMBOL": None})
    done = run(tmp_path, "--json", "--gpu-backend", "cpu", "--engines-dir", str(tmp_path / "engines"))
    assert done.returncode == 1
    findings = json.loads(done.stdout)["findings"]
    (failure,) = [finding["message"] for finding in findings if finding["level"] == "fail"]
    assert failure.startswith("engine broken for cpu: ") and "engine_generate" in failure
    without_gpu = run(tmp_path, "--engines-dir", str(tmp_path / "engines"), CUDA_VISIBLE_DEVICES="")
    assert without_gpu.returncode == 1
    assert "choose --gpu-backend" in without_gpu.stdout


@pytest.mark.parametrize(("persistence", "word"), [(1, "on"), (0, "off")])
def test_a_gpu_and_its_driver_are_looked_at(
    tmp_path: Path, engines: Path, persistence: int, word: str
) -> None:
    gpu = Gpu(tmp_path)
    gpu.shows(3 << 30, PERSISTENCE=persistence)
    done = run(tmp_path, "--engines-dir", str(engines), **gpu.environment)
    driver = f"driver 999.0.fake, NVML 13.999.0.fake, persistence mode {word}"
    assert f"ok    GPU 0 NVIDIA Fake: 8.0 GiB, 5.0 GiB free; {driver}" in done.stdout
    assert "ok    models run on cuda" in done.stdout
    # The engine that there is was built for something else.
    assert done.returncode == 1 and "fail  " in done.stdout
    on_cpu = run(tmp_path, "--gpu-backend", "cpu", "--engines-dir", str(engines), **gpu.environment)
    assert "warn  models run on the CPU though there is a GPU: choose --gpu-backend cuda" in on_cpu.stdout
    assert on_cpu.returncode == 0


def test_a_wrong_path_is_a_finding_too(tmp_path: Path) -> None:
    done = run(tmp_path, "--gpu-backend", "cpu", "--models-dir", str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert (
        f"fail  --models-dir {tmp_path / 'nowhere'}: no such folder; make it, or name another" in done.stdout
    )


def test_a_wrong_settings_file_is_a_finding_and_all_else_is_looked_at(tmp_path: Path, engines: Path) -> None:
    file = tmp_path / ".llm-node/config.toml"
    file.parent.mkdir()
    file.write_text("prot = 3001\n")
    done = run(tmp_path, "--gpu-backend", "cpu", "--engines-dir", str(engines))
    assert done.returncode == 1
    first, *others = done.stdout.splitlines()
    assert first.startswith("fail  the settings file is left out here: unknown setting 'prot' in ")
    assert first.endswith("; did you mean port?")
    assert any(line.startswith("ok    engine llama_cpp for cpu: version ") for line in others)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('host = "0.0.0.0"', "0.0.0.0 is reached by other machines"),
        ('[models."x"]\nchat_template = "/no/such"', "/no/such: No such file"),
        ('api_key_file = "/no/such"', "the file of keys /no/such cannot be read"),
    ],
)
def test_what_no_node_starts_with_is_a_finding(
    tmp_path: Path, engines: Path, content: str, words: str
) -> None:
    (tmp_path / "c.toml").write_text(content)
    named = ["--config", str(tmp_path / "c.toml"), "--gpu-backend", "cpu", "--engines-dir", str(engines)]
    done = run(tmp_path, *named)
    assert done.returncode == 1, done.stdout
    (failure,) = [line for line in done.stdout.splitlines() if line.startswith("fail")]
    assert words in failure


def test_a_node_that_does_not_answer_is_a_finding(tmp_path: Path, engines: Path) -> None:
    named = ["--node", "http://127.0.0.1:1", "--gpu-backend", "cpu", "--engines-dir", str(engines)]
    done = run(tmp_path, *named)
    assert done.returncode == 1
    assert "fail  the node at http://127.0.0.1:1 cannot be reached" in done.stdout
    assert "ok    1 model can be loaded" in done.stdout


@pytest.mark.parametrize(("flag", "words"), [("-v", "addresses"), ("-d", "memory for its data")])
def test_a_limit_of_a_process_is_named(tmp_path: Path, engines: Path, flag: str, words: str) -> None:
    prefix = ["sh", "-c", f'ulimit {flag} 4194304; exec "$@"', "sh"]
    done = run(tmp_path, "--gpu-backend", "cpu", "--engines-dir", str(engines), prefix=prefix)
    assert f"warn  a process may have 4.0 GiB of {words}" in done.stdout, done.stdout
    assert f"raise it (ulimit {flag} unlimited)" in done.stdout


def test_a_cache_that_cannot_be_read_is_named(tmp_path: Path, engines: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    found = run(
        tmp_path, "--gpu-backend", "cpu", "--engines-dir", str(engines), OLLAMA_MODELS=str(tmp_path / "loop")
    )
    assert f"warn  models of ollama in {tmp_path}/loop are not seen: Too many levels of" in found.stdout
    assert "--caches without ollama" in found.stdout


def test_a_containers_limit_is_named(tmp_path: Path, engines: Path) -> None:
    if sys.platform != "linux" or subprocess.run(["unshare", "-m", "true"], check=False).returncode != 0:
        pytest.skip("needs root, for a mount namespace")
    groups = tmp_path / "groups"
    (groups / "memory").mkdir(parents=True)
    (groups / "memory.max").write_text(f"{256 << 20}\n")
    (groups / "memory.current").write_text("0\n")
    prefix = ["unshare", "-m", "sh", "-c", CONTAINER, "sh"]
    arguments = ["--gpu-backend", "cpu", "--engines-dir", str(engines)]
    done = run(tmp_path, *arguments, prefix=prefix, GROUPS_OF_A_TEST=str(groups))
    assert "warn  this container may use 256.0 MiB of the machine's " in done.stdout
