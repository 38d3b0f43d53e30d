"""The child process that speaks to the hub, against a stand-in that the hub's own client takes for it."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_node import NodeError
from llm_node.pull import estimate
from llm_node.pull.choose import GIB
from llm_node.pull.hub import File, Hub
from llm_node.pull.job import Pulls, Wish
from llm_node.pull.store import Store
from support.hub import Behaviour, StandInHub, stand_in_hub

PARTS = 21
PART_BYTES = 200_000


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for name, value in {**hub.environment(), "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(name, value)
        yield hub


async def test_killed_at_twenty_points_it_goes_on(hub: StandInHub, tmp_path: Path) -> None:
    """Each time in the midst of a part: what is whole is not fetched again, and in the end all is right."""
    chance = random.Random(20)
    parts = [f"m-{number + 1:05}-of-{PARTS:05}.gguf" for number in range(PARTS)]
    for part in parts:
        hub.put("org/repo", part, chance.randbytes(PART_BYTES))
    folder = tmp_path / "staging"
    whole: set[str] = set()
    for point in range(PARTS):
        async with Hub() as client:
            repository = await client.repository("org/repo", None)
            assert client._process is not None
            before, hub.behaviour.served = hub.behaviour.served, {}
            is_last = point == PARTS - 1
            hub.behaviour.pause = None
            if not is_last:
                hub.behaviour.cut_after = PART_BYTES + chance.randrange(1, PART_BYTES)
                pid = client._process.pid
                hub.on_cut = lambda pid=pid: os.kill(pid, signal.SIGKILL)  # type: ignore[misc]
            try:
                for file in repository.files:
                    await client.fetch(repository, file, folder, lambda _: None)
                assert is_last
            except NodeError as fault:
                assert fault.code == "source_unreachable" and not is_last
        assert not whole & set(hub.behaviour.served), (before, hub.behaviour.served)
        whole = {part for part in parts if (folder / part).is_file()}
        for part in whole:
            assert (folder / part).read_bytes() == hub.repositories["org/repo"][part]
    assert whole == set(parts)


async def test_offline_nothing_is_asked(
    hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulls = Pulls(None, tmp_path, offline=True)  # type: ignore[arg-type]  # it is not asked
    with pytest.raises(NodeError) as caught:
        pulls.begin(Wish("org/repo"))
    assert caught.value.code == "offline"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    async with Hub() as client:
        with pytest.raises(NodeError) as caught:
            await client.repository("org/repo", None)
    assert caught.value.code == "offline" and "HF_HUB_OFFLINE=0" in caught.value.message
    assert hub.behaviour.asked == []


async def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch, hub: StandInHub) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    async with Hub() as client:
        with pytest.raises(NodeError) as caught:
            await client.repository("org/repo", None)
    assert caught.value.code == "source_unreachable"
    assert caught.value.message.startswith("http://127.0.0.1:9 cannot be reached: Connection refused. ")
    assert "HTTPS_PROXY" in caught.value.message and "HF_ENDPOINT" in caught.value.message


async def test_a_header_is_read_as_far_as_it_goes(hub: StandInHub) -> None:
    """As those of large vocabularies: 1 MiB, then twice as much, and never all of the file."""

    def text(value: bytes) -> bytes:
        return len(value).to_bytes(8, "little") + value

    def field(key: bytes, value: bytes) -> bytes:
        return text(key) + (8).to_bytes(4, "little") + text(value)

    fields = field(b"general.description", bytes(2 << 20)) + field(b"general.architecture", b"llama")
    counts = (0).to_bytes(8, "little") + (2).to_bytes(8, "little")
    hub.put("org/repo", "m-Q4_0.gguf", b"GGUF" + (3).to_bytes(4, "little") + counts + fields + bytes(9 << 20))
    async with Hub() as client:
        repository = await client.repository("org/repo", None)
        prefix, header = await estimate._header(client, repository, repository.files[0])
    assert header["architecture"] == "llama" and len(prefix) == 4 << 20
    assert hub.behaviour.served["m-Q4_0.gguf"] <= 8 << 20


async def test_what_is_fetched_is_of_harmless_kinds(hub: StandInHub) -> None:
    for name in ("a-Q4_0.gguf", "config.json", "model.bin", "run.py", ".hidden.gguf", "x/../y.gguf"):
        hub.put("org/repo", name, b"GGUF0000")
    async with Hub() as client:
        found = await client.repository("org/repo", None)
        assert [file.path for file in found.files] == ["a-Q4_0.gguf", "config.json"]
        assert await client.head(found, found.files[0], 4) == b"GGUF"
        with pytest.raises(NodeError) as caught:
            await client.fetch(found, File("gone.gguf", 1), Path("/nowhere"), lambda _: None)
        assert caught.value.code == "model_not_found"


async def test_a_pull_that_is_given_up_ends_its_process(hub: StandInHub, tmp_path: Path) -> None:
    import threading

    hub.put("org/repo", "m.gguf", bytes(400_000))
    hub.behaviour = Behaviour(pause=threading.Event())
    client = Hub()
    async with client:
        found = await client.repository("org/repo", None)
        fetching = asyncio.create_task(client.fetch(found, found.files[0], tmp_path, lambda _: None))
        await asyncio.to_thread(hub.behaviour.begun.wait, 30)
        fetching.cancel()
    assert client._process is not None and client._process.returncode is not None
    hub.behaviour.pause.set()  # type: ignore[union-attr]


def test_a_full_disk_is_told_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(8 * GIB, 4 * GIB, 4 * GIB))  # type: ignore[attr-defined]
    store = Store(tmp_path)
    store.check_room(GIB)
    with pytest.raises(NodeError) as caught:
        store.check_room(3 * GIB)
    assert caught.value.code == "disk_full"
    assert "3.0 GiB are to be fetched and 2.0 GiB left free" in caught.value.message
    assert "has 4.0 GiB" in caught.value.message


def test_only_what_lies_in_the_models_folder_is_deleted(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    outside = tmp_path / "outside.gguf"
    outside.write_bytes(b"GGUF")
    with pytest.raises(NodeError):
        store.what_goes([str(outside)])
    assert outside.exists()
