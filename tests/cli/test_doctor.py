"""`llm-node doctor`: what stands in the way is named, with what to do, and ends it with 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llm_node import devices
from llm_node.version import __version__
from support.engines import fake_engine
from support.gpu import Gpu
from support.hub import sha256, stand_in_hub
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


def of_another_user(home: Path, *places: Path) -> list[str]:
    """Closes folders to whoever runs the prefix that this gives. Who runs the tests may be root, whom no
    right stops: folders are then another user's, and the prefix takes away root's right to pass over that."""
    for place in places:
        place.chmod(0o700 if os.geteuid() == 0 else 0)
        if os.geteuid() == 0:
            os.chown(place, 65534, 65534)
    if os.geteuid() != 0:
        return []
    rights = "-dac_override,-dac_read_search"
    prefix = ["setpriv", f"--bounding-set={rights}", f"--inh-caps={rights}"]
    if not shutil.which("setpriv") or subprocess.run([*prefix, "ls", str(home)], check=False).returncode:
        pytest.skip("setpriv of util-linux cannot take rights away here")
    return prefix


def test_folders_that_another_user_closed_are_passed_over_and_named(
    tmp_path: Path, engines: Path, demo_model: Path
) -> None:
    hub, studio, ollama = (
        tmp_path / name for name in (".cache/huggingface/hub", ".lmstudio/models", ".ollama/models")
    )
    digest = sha256(demo_model.read_bytes())
    for repository in ("models--org--Open", "models--org--Closed"):
        snapshot = hub / repository / "snapshots/c0ffee"
        snapshot.mkdir(parents=True)
        shutil.copy(demo_model, snapshot / "model-Q4_0.gguf")
    (studio / "publisher/Model").mkdir(parents=True)
    (ollama / "blobs").mkdir(parents=True)
    shutil.copy(demo_model, ollama / f"blobs/sha256-{digest}")
    closed = (hub / "models--org--Closed", ollama)
    prefix = of_another_user(tmp_path, *closed)
    named = ["--gpu-backend", "cpu", "--engines-dir", str(engines)]
    try:
        done = run(tmp_path, *named, prefix=prefix)
        assert done.returncode == 0, done.stdout
        for program, place in zip(("hub", "ollama"), closed, strict=True):
            words = f"warn  models of {program} in {place} are not seen: Permission denied; let this user"
            assert words in done.stdout, done.stdout
        assert f"ok    models of lm-studio are looked for in {studio}" in done.stdout
        listed = subprocess.run(
            [*prefix, str(PROGRAM), "list", *named],
            env=node_environment(tmp_path),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "org/Open:Q4_0" in listed.stdout and "Closed" not in listed.stdout
    finally:
        for place in closed:
            place.chmod(0o700)


def test_a_report_tells_neither_keys_nor_models_nor_whose_home_it_is(
    tmp_path: Path, engines: Path, demo_model: Path
) -> None:
    home = tmp_path / "home-of-somebody"
    models = home / ".llm-node/models"
    (models / "secret-org/secret-repo").mkdir(parents=True)
    (models / "secret-org/secret-repo/secret-Q4_0.gguf").write_bytes(demo_model.read_bytes()[:5000])
    (models / "secret-broken.gguf").write_bytes(b"GGUF")
    (home / ".ollama/models").mkdir(parents=True)
    (home / ".llm-node/config.toml").write_text(
        'port = 3456\n[models."secret-org/secret-repo"]\naliases = ["secret-name"]\n'
    )
    named = ["--gpu-backend", "cpu", "--engines-dir", str(engines)]
    done = run(home, "--report", *named, HF_TOKEN="hf_secret", LLM_NODE_API_KEY="sk-secret")
    first, version, changed, *found, last = done.stdout.splitlines()
    assert (first, last) == ("```text", "```")
    assert version.startswith(f"llm-node {__version__} (engine ABI ") and "Python 3." in version
    assert "port" in changed and "gpu_backend" in changed
    assert any(line.startswith("ok    engine llama_cpp for cpu: version ") for line in found)
    assert "warn  a model: model_corrupt" in found
    assert "ok    models of ollama are looked for in ~/.ollama/models" in found
    assert any(line.endswith(" are left for models in MODELS_DIR") for line in found)
    assert any(line.startswith("ok    installed by ") for line in found)
    with (home / ".llm-node/config.toml").open("a") as file:
        file.write('chat_template = "/no/such"\n')
    wrong = run(home, "--report", *named)
    assert 'fail  chat_template in [models."MODEL"]: /no/such' in wrong.stdout, wrong.stdout
    for private in ("secret", str(home), "somebody", "sk-"):
        assert private not in done.stdout + wrong.stdout
    together = run(home, "--report", "--json", *named)
    assert together.returncode == 2 and "--report is a text" in together.stderr


def test_what_is_wrong_in_the_settings_file_is_not_reported_word_by_word(
    tmp_path: Path, engines: Path
) -> None:
    file = tmp_path / ".llm-node/config.toml"
    file.parent.mkdir()
    file.write_text('[models."secret"]\nno_such = 1\n')
    done = run(tmp_path, "--report", "--gpu-backend", "cpu", "--engines-dir", str(engines))
    assert "fail  the settings file is left out here: something in it is wrong" in done.stdout
    assert "secret" not in done.stdout


@pytest.mark.parametrize(
    ("token", "level", "words"),
    [
        ("", "ok", "without a token, which models with terms of their own need"),
        ("hf_right", "ok", "and takes the token"),
        ("hf_wrong", "fail", "and does not know the token: set another HF_TOKEN, or run `hf auth login`"),
    ],
)
def test_the_hub_is_asked_on_wish(tmp_path: Path, engines: Path, token: str, level: str, words: str) -> None:
    named = ["--gpu-backend", "cpu", "--engines-dir", str(engines)]
    with stand_in_hub() as hub:
        hub.tokens.add("hf_right")
        environment = {**hub.environment(), "HF_TOKEN": token}
        without = run(tmp_path, *named, **environment)
        assert hub.behaviour.asked == [] and "the hub" not in without.stdout
        done = run(tmp_path, "--online", *named, **environment)
    (line,) = [line for line in done.stdout.splitlines() if "the hub" in line]
    assert line.startswith(f"{level:<5} the hub answers at {hub.url}") and line.endswith(words), line
    assert done.returncode == (1 if level == "fail" else 0)
    assert "hf_" not in done.stdout


def test_a_hub_that_is_not_reached_is_a_failure_and_offline_it_is_not_asked(
    tmp_path: Path, engines: Path
) -> None:
    named = ["--gpu-backend", "cpu", "--engines-dir", str(engines), "--online"]
    done = run(tmp_path, *named, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_DISABLE_XET="1")
    assert done.returncode == 1
    assert "fail  the hub is of no use here: http://127.0.0.1:9 cannot be reached: " in done.stdout
    offline = run(tmp_path, *named, "--offline", "yes", HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.returncode == 0
    assert "warn  the hub is not asked, and nothing is fetched: --offline yes" in offline.stdout


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


@pytest.mark.skipif(bool(devices.nvidia_gpus()), reason="NVML tells of GPUs here")
def test_gpus_that_an_engine_alone_knows_are_looked_at(tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "toy", backend="vulkan", defines={"FAKE_DEVICES": 2})
    done = run(tmp_path, "--gpu-backend", "vulkan", "--engines-dir", str(tmp_path / "engines"))
    assert done.returncode == 0, done.stdout
    for index in (0, 1):
        assert f"ok    GPU {index} a toy device: 8.0 GiB, 8.0 GiB free; an engine tells of it" in done.stdout


@pytest.mark.skipif(bool(devices.nvidia_gpus()), reason="NVML tells of GPUs here")
def test_an_engine_that_knows_no_gpu_is_a_warning(tmp_path: Path) -> None:
    fake_engine(tmp_path / "engines", "toy", backend="vulkan", defines={"FAKE_NO_MEMORY": None})
    done = run(tmp_path, "--gpu-backend", "vulkan", "--engines-dir", str(tmp_path / "engines"))
    assert "warn  no engine tells of a GPU for vulkan, so models count on the host's memory" in done.stdout
