"""What goes wrong with downloads in other programs, each by the name under which people reported it."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import gguf
import pytest

from llm_node import NodeError
from llm_node.pull import link
from llm_node.pull.hub import Hub
from llm_node.pull.name import Link
from support.hub import Behaviour, StandInHub, sha256, stand_in_hub
from support.models import requantized
from support.node import RunningNode, node_environment, running_node

PROGRAM = Path(sys.executable).with_name("llm-node")
REPOSITORY = "org/Split"
SMALL_DISK = 8 << 20


@pytest.fixture(scope="module")
def parts(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A model in several files."""
    folder = tmp_path_factory.mktemp("parts")
    requantized(demo_model, folder / "big-Q8_0.gguf", gguf.GGMLQuantizationType.Q8_0, tensors_per_file=20)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def hub(parts: dict[str, bytes]) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for name, content in parts.items():
            hub.put(REPOSITORY, name, content)
        yield hub


@pytest.fixture
def hub_here(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StandInHub:
    """For the process of the tests and its children."""
    for name, value in {**hub.environment(), "HF_HOME": str(tmp_path / "hf")}.items():
        monkeypatch.setenv(name, value)
    return hub


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK}", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("making a small file system is for root; test_hub.py has one whose room is made up")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def node_of(folder: Path, engines: Path, hub: StandInHub) -> AbstractContextManager[RunningNode]:
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    return running_node(folder, arguments, environment=hub.environment())


def left_over(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.suffix in (".incomplete", ".part", ".lock")]


def eventually(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_resume_is_not_lost_with_the_node_and_orphans_do_not_fill_the_disk(
    engines: Path, hub: StandInHub, parts: dict[str, bytes], tmp_path: Path
) -> None:
    """The node is killed in the midst of a pull, three times, each time at another place."""
    chance = random.Random(18)
    models = tmp_path / "node/.llm-node/models"
    whole: set[str] = set()
    for _ in range(3):
        *first, last = [len(content) for name, content in parts.items() if name not in whole][:2]
        hub.behaviour = Behaviour(cut_after=sum(first) + chance.randrange(1, last))
        with node_of(tmp_path / "node", engines, hub) as node:
            cut = threading.Event()
            hub.on_cut = lambda pid=node.process.pid, cut=cut: (os.kill(pid, signal.SIGKILL), cut.set())
            begun = node.post("/api/models/pull", {"model": REPOSITORY, "stream": False})
            assert begun.status == 202
            assert cut.wait(60)
            node.process.wait(30)
        assert not whole & {name for name, count in hub.behaviour.served.items() if count > 1 << 20}
        whole = {path.name for path in (models / ".pulling").rglob("*.gguf")}
    hub.on_cut = lambda: None
    hub.behaviour = Behaviour()
    listed = subprocess.run(
        [PROGRAM, "list"], capture_output=True, text=True, check=True, env=node_environment(tmp_path / "node")
    )
    assert " % pulled" in listed.stdout, "what was stopped is shown"
    with node_of(tmp_path / "node", engines, hub) as node:
        (stopped,) = node.get("/api/models/pulls").json()["pulls"]
        assert (stopped["event"], stopped["model"]) == ("stopped", REPOSITORY)
        assert b'"ready"' in node.post("/api/models/pull", {"model": REPOSITORY}).body
    for name, content in parts.items():
        assert (models / REPOSITORY / name).read_bytes() == content
    assert left_over(models) == []


def test_rm_knows_what_is_there_of_a_stopped_pull(engines: Path, hub: StandInHub, tmp_path: Path) -> None:
    hub.behaviour.pause = threading.Event()
    with node_of(tmp_path / "node", engines, hub) as node:
        begun = node.post("/api/models/pull", {"model": REPOSITORY, "stream": False}).json()
        eventually(lambda: node.get("/api/models/pulls").json()["pulls"][0]["event"] == "progress")
        node.request("DELETE", f"/api/models/pulls/{begun['pull_id']}")
        hub.behaviour.pause.set()
        staged = tmp_path / "node/.llm-node/models/.pulling/org/Split"
        assert staged.is_dir()
        done = subprocess.run(
            [PROGRAM, "rm", "--node", node.url, "-y", REPOSITORY],
            capture_output=True,
            text=True,
            check=False,
            env=node_environment(tmp_path / "node"),
        )
        assert done.returncode == 0, done.stderr
        assert not staged.exists()


@pytest.mark.parametrize("typed", [["rm", "-y"], ["pull", "--discard"]])
def test_what_another_process_pulls_just_now_is_not_deleted(
    engines: Path, hub: StandInHub, parts: dict[str, bytes], tmp_path: Path, typed: list[str]
) -> None:
    """Two commands without a node that runs: each is one of its own."""
    hub.behaviour.pause = threading.Event()
    named = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    environment = node_environment(tmp_path, **hub.environment())
    pull = [PROGRAM, "pull", REPOSITORY, *named]
    with subprocess.Popen(pull, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment) as pulling:
        try:
            assert hub.behaviour.begun.wait(60)
            staged = tmp_path / ".llm-node/models/.pulling" / REPOSITORY
            eventually(lambda: list(staged.rglob("*.incomplete")))
            refused = subprocess.run(
                [PROGRAM, *typed, REPOSITORY, *named],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=environment,
            )
            assert refused.returncode == 2, refused.stderr
            assert f"another process pulls '{REPOSITORY}' just now" in refused.stderr
            hub.behaviour.pause.set()
            _, said = pulling.communicate(timeout=60)
            assert pulling.returncode == 0, said.decode()
        finally:
            hub.behaviour.pause.set()
            pulling.kill()
    for name, content in parts.items():
        assert (tmp_path / ".llm-node/models" / REPOSITORY / name).read_bytes() == content


def test_a_second_process_shows_how_far_the_first_is(
    engines: Path, hub: StandInHub, demo_model: Path, tmp_path: Path
) -> None:
    """It fetches nothing itself, and both end well."""
    requantized(demo_model, tmp_path / "one-F16.gguf", gguf.GGMLQuantizationType.F16)
    content = (tmp_path / "one-F16.gguf").read_bytes()
    hub.put("org/One", "one-F16.gguf", content)
    hub.behaviour.pause = threading.Event()
    command = [PROGRAM, "pull", "org/One", "--engines-dir", engines, "--gpu-backend", "cpu"]
    environment = node_environment(tmp_path, **hub.environment())

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
        )

    with start() as first:
        try:
            assert hub.behaviour.begun.wait(60)
            staged = tmp_path / ".llm-node/models/.pulling/org/One"
            eventually(lambda: sum(it.stat().st_size for it in staged.rglob("*.incomplete")) >= 1 << 20)
            with start() as second:
                assert second.stderr is not None
                assert second.stderr.readline() == "waiting for another pull\n"
                assert re.fullmatch(r"[1-5]0 %\n", second.stderr.readline()), "half of it is there"
                hub.behaviour.pause.set()
                _, said = second.communicate(timeout=60)
                assert second.returncode == 0, said
            _, said = first.communicate(timeout=60)
            assert first.returncode == 0, said
        finally:
            hub.behaviour.pause.set()
            first.kill()
    assert hub.behaviour.served["one-F16.gguf"] < 2 * len(content)


def test_the_disk_is_looked_at_before_anything_is_fetched(
    engines: Path, hub: StandInHub, small_disk: Path, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            PROGRAM,
            "pull",
            REPOSITORY,
            "--models-dir",
            small_disk,
            "--engines-dir",
            engines,
            "--gpu-backend",
            "cpu",
        ],
        capture_output=True,
        text=True,
        check=False,
        env=node_environment(tmp_path, **hub.environment()),
    )
    assert done.returncode == 4, done.stderr
    assert "disk_full" in done.stderr and "left free" in done.stderr
    assert max(hub.behaviour.served.values()) <= 1 << 20, "headers alone"
    assert not list(small_disk.rglob("*.gguf"))


def test_a_folder_that_cannot_be_written_is_named(
    engines: Path, hub: StandInHub, demo_model: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "mine.gguf").write_bytes(demo_model.read_bytes())
    is_root = os.geteuid() == 0
    if is_root:  # whom no right stops
        bind = f"mount --bind {models} {models} && mount -o remount,ro,bind {models}"
        if subprocess.run(["sh", "-c", bind], capture_output=True, check=False).returncode != 0:
            pytest.skip("nothing can be mounted here")
    else:
        models.chmod(0o555)
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu", "--models-dir", str(models)]
    try:
        with running_node(tmp_path / "node", arguments, environment=hub.environment()) as node:
            pulled = node.post("/api/models/pull", {"model": REPOSITORY}).body.decode()
            removed = node.post("/api/models/remove", {"model": "mine"}).body.decode()
    finally:
        if is_root:
            subprocess.run(["umount", "-l", str(models)], check=True)
        else:
            models.chmod(0o755)
    for said in (pulled, removed):
        assert '"invalid_request"' in said and "cannot be written: " in said, said
        assert str(models) in said and "or name another --models-dir" in said, said
    assert (models / "mine.gguf").is_file()


async def test_a_disk_that_is_full_in_the_midst_is_not_tried_again(
    hub_here: StandInHub, small_disk: Path, tmp_path: Path
) -> None:
    """Somebody else filled it meanwhile."""
    hub_here.put("org/Large", "large-Q4_0.gguf", b"GGUF" + bytes(SMALL_DISK))
    async with Hub() as client:
        repository = await client.repository("org/Large", None)
        with pytest.raises(NodeError) as caught:
            await client.fetch(repository, repository.files[0], small_disk / "hub", lambda _: None)
    assert caught.value.code == "disk_full"
    source = Link(f"{hub_here.files_url}/files/org/Large/large-Q4_0.gguf", "large")
    (small_disk / "link").mkdir()
    for left in (small_disk / "hub").rglob("*.incomplete"):
        left.unlink()
    with pytest.raises(NodeError) as caught:
        await link.fetch(source, small_disk / "link/large.gguf.part", lambda _: None)
    assert caught.value.code == "disk_full"
    fetched = [line for line in hub_here.behaviour.asked if line.startswith("GET /files/")]
    assert len(fetched) == 2, "each of them once"


async def test_a_transfer_that_stalls_is_made_anew(
    hub_here: StandInHub, parts: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after a change of the network: nothing comes any more, and nothing ends."""
    monkeypatch.setenv("HF_HUB_DOWNLOAD_TIMEOUT", "1")
    monkeypatch.setattr(link, "SILENCE_SECONDS", 1.0)
    name, content = max(parts.items(), key=lambda item: len(item[1]))
    hub_here.behaviour = Behaviour(silent_at=len(content) // 2)
    async with Hub() as client:
        repository = await client.repository(REPOSITORY, None)
        file = next(file for file in repository.files if file.path == name)
        await client.fetch(repository, file, tmp_path / "hub", lambda _: None)
    assert (tmp_path / "hub" / name).read_bytes() == content
    assert hub_here.behaviour.silent_at is None
    hub_here.behaviour.awake.set()

    hub_here.behaviour = Behaviour(silent_at=len(content) // 2)
    source = Link(f"{hub_here.files_url}/files/{REPOSITORY}/{name}", "m", sha256(content))
    await link.fetch(source, tmp_path / "m.part", lambda _: None)
    assert (tmp_path / "m.part").read_bytes() == content
    assert hub_here.behaviour.silent_at is None
    hub_here.behaviour.awake.set()


def test_a_file_in_the_models_folder_is_never_silently_unseen(engines: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    for name in (
        "weights.bin",
        "ORG/REPO/mmproj-F16.gguf",
        "a/b/c/d/deep-Q4_0.gguf",
        "snap/model.safetensors",
    ):
        (models / name).parent.mkdir(parents=True, exist_ok=True)
        (models / name).write_bytes(b"GGUF")
    (models / "README.md").write_text("no model")
    (models / "empty.gguf").mkdir()
    os.mkfifo(models / "pipe.gguf")
    os.mkfifo(models / "other")
    (models / "unplugged").symlink_to(tmp_path / "no such disk")
    (models / "round.gguf").symlink_to("round.gguf")
    folders = ["--models-dir", str(models), "--engines-dir", str(engines), "--demo-model", "no"]
    command = [PROGRAM, "list", *folders, "--gpu-backend", "cpu"]
    environment = node_environment(tmp_path)
    listed = subprocess.run([*command, "--all"], capture_output=True, text=True, check=True, env=environment)
    why = {line.split("  ")[0]: line for line in listed.stdout.splitlines() if line.startswith(str(models))}
    assert "no engine here reads .bin files" in why[str(models / "weights.bin")]
    assert "a part of another model" in why[str(models / "ORG/REPO/mmproj-F16.gguf")]
    assert "too deep" in why[str(models / "a/b/c/d/deep-Q4_0.gguf")]
    assert "config.json" in why[str(models / "snap/model.safetensors")]
    assert "README" not in listed.stdout and str(models / "other") not in why
    assert "a folder, and no model is found in it" in why[str(models / "empty.gguf")]
    assert "a pipe, a socket or a device" in why[str(models / "pipe.gguf")]
    assert f"a link to {tmp_path / 'no such disk'}, and nothing is there" in why[str(models / "unplugged")]
    assert "it cannot be looked at: Too many levels" in why[str(models / "round.gguf")]
    usual = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert "8 more files are not listed: `llm-node list --all` says why" in usual.stderr
