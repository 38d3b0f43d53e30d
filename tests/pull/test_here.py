"""Files that are here already under another name: their sha256 tells, and nothing is fetched again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest

from support.hub import Behaviour, StandInHub, sha256, stand_in_hub
from support.models import requantized
from support.node import RunningNode, command, running_node
from support.watch import watched

REPOSITORY = "org/Named-GGUF"
MODEL = f"{REPOSITORY}:Q8_0"
FILE = "named-Q8_0.gguf"


@pytest.fixture(scope="module")
def content(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("file") / FILE
    requantized(demo_model, path, gguf.GGMLQuantizationType.Q8_0)
    return path.read_bytes()


@pytest.fixture(scope="module")
def parts(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The same in several files."""
    folder = tmp_path_factory.mktemp("parts")
    requantized(demo_model, folder / "big-Q8_0.gguf", gguf.GGMLQuantizationType.Q8_0, tensors_per_file=20)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def hub(content: bytes, parts: dict[str, bytes]) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        hub.put(REPOSITORY, FILE, content)
        for name, part in parts.items():
            hub.put("org/Split", name, part)
        yield hub


@pytest.fixture(scope="module")
def node(engines: Path, hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    home = tmp_path_factory.mktemp("node")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(home, arguments, environment=hub.environment()) as running:
        running.extra.update(home=home, models=home / ".llm-node/models")
        yield running


@pytest.fixture(autouse=True)
def bare(node: RunningNode, hub: StandInHub) -> Iterator[None]:
    """Nothing is here, and the hub has been asked nothing."""
    hub.behaviour = Behaviour()
    yield
    for place in (node.extra["models"], *(node.extra["home"] / each for each in (".cache", ".ollama"))):
        shutil.rmtree(place, ignore_errors=True)


def blob_of(program: str, home: Path, content: bytes, name: str | None = None) -> Path:
    """A file in a program's cache, called by its hash, that no model of that program leads to."""
    digest = name or sha256(content)
    place = {
        "hub": home / ".cache/huggingface/hub/models--other--Repo/blobs" / digest,
        "llama-cpp": home / ".cache/llama.cpp/models--other--Repo/blobs" / digest,
        "ollama": home / ".ollama/models/blobs" / f"sha256-{digest}",
    }[program]
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return place


def pull(node: RunningNode, model: str, **more: Any) -> list[dict[str, Any]]:
    answer = node.post("/api/models/pull", {"model": model, **more})
    assert answer.status == 200, answer.body
    lines = answer.body.decode().splitlines()
    events = [json.loads(line[5:]) for line in lines if line.startswith("data: {")]
    assert events[-1]["event"] == "ready", events
    return events


def why(events: list[dict[str, Any]]) -> list[str]:
    (resolved,) = [event for event in events if event["event"] == "resolved"]
    return list(resolved["why"])


def has_fetched(hub: StandInHub, name: str, content: bytes) -> bool:
    """All of a file, and not its header alone."""
    return hub.behaviour.served.get(name, 0) >= len(content)


def answers(node: RunningNode, model: str) -> int:
    question = [{"role": "user", "content": "What is an engine?"}]
    return node.post("/v1/chat/completions", {"model": model, "messages": question, "max_tokens": 2}).status


@pytest.mark.parametrize("program", ["hub", "llama-cpp", "ollama"])
def test_the_same_gguf_is_not_twice_on_one_disk(
    node: RunningNode, hub: StandInHub, content: bytes, program: str
) -> None:
    home: Path = node.extra["home"]
    blob = blob_of(program, home, content)
    with watched(blob.parent) as cache:
        events = pull(node, MODEL)
        assert why(events)[-1] == f"It is here already, and is not fetched: {blob}"
        assert not has_fetched(hub, FILE, content)
        row = events[-1]["row"]
        own = node.extra["models"] / REPOSITORY / FILE
        assert (row["model_id"], row["files"]) == (MODEL, [str(own)])
        assert own.is_symlink() and own.resolve() == blob.resolve()
        assert answers(node, "named") == 200

        shown = command(node, "show", MODEL, "--verify")
        assert shown.returncode == 0, shown.stderr
        assert f"{own}, a link to {blob.resolve()}" in shown.stdout
        assert sha256(content) in shown.stdout and f"{FILE}: right" in shown.stdout
        assert MODEL in command(node, "list").stdout

        hub.put(REPOSITORY, FILE, newer := content[:-1] + bytes([content[-1] ^ 1]))
        try:
            pull(node, MODEL, update=True)
            assert own.read_bytes() == newer and not own.is_symlink()
        finally:
            hub.put(REPOSITORY, FILE, content)
        pull(node, MODEL, update=True)
        assert own.is_symlink(), "what was before is still there"

        removed = command(node, "rm", "-y", MODEL)
        words = f"{MODEL} is off the list; its files are still in {blob.parent.resolve()}"
        assert (removed.returncode, removed.stderr.strip()) == (0, words)
        assert not own.parent.exists()
        assert cache.changes() == []
    assert blob.read_bytes() == content


def test_what_has_vanished_since_is_not_found_and_is_fetched_anew(
    node: RunningNode, hub: StandInHub, content: bytes
) -> None:
    blob = blob_of("ollama", node.extra["home"], content)
    pull(node, MODEL)
    blob.unlink()
    answer = node.post("/v1/completions", {"model": MODEL, "prompt": "a"})
    error = answer.json()["error"]
    assert (answer.status, error["code"]) == (404, "model_not_found")
    assert f"`llm-node pull {MODEL}` fetches it" in error["message"]
    unlisted = node.get("/api/models?all=true").json()["unlisted"]
    (link,) = [it for it in unlisted if it["path"].endswith(FILE)]
    assert link["why"] == f"it is a link to {blob}, and nothing is there"
    pull(node, MODEL)
    own = node.extra["models"] / REPOSITORY / FILE
    assert has_fetched(hub, FILE, content) and not own.is_symlink() and own.read_bytes() == content


def test_a_file_of_another_size_is_not_it(node: RunningNode, hub: StandInHub, content: bytes) -> None:
    """As one that another program has fetched in part."""
    blob = blob_of("hub", node.extra["home"], content[:-1], sha256(content))
    pull(node, MODEL)
    assert has_fetched(hub, FILE, content) and blob.read_bytes() == content[:-1]
    assert (node.extra["models"] / REPOSITORY / FILE).read_bytes() == content


def test_our_own_file_has_a_further_name(node: RunningNode, hub: StandInHub, content: bytes) -> None:
    """It takes its room once, and stays for one name when the other is deleted."""
    hub.put("org/Again", "again-Q8_0.gguf", content)
    try:
        pull(node, MODEL)
        hub.behaviour = Behaviour()
        events = pull(node, "org/Again:Q8_0")
    finally:
        del hub.repositories["org/Again"]
    first = node.extra["models"] / REPOSITORY / FILE
    again = node.extra["models"] / "org/Again/again-Q8_0.gguf"
    assert why(events)[-1] == f"It is here already, and is not fetched: {first}"
    assert not has_fetched(hub, "again-Q8_0.gguf", content)
    assert again.samefile(first) and not again.is_symlink()
    assert node.post("/api/models/remove", {"model": MODEL}).json() == {
        "model_id": MODEL,
        "status": "removed",
    }
    assert again.read_bytes() == content and answers(node, "org/Again") == 200


def test_of_a_model_in_parts_those_that_are_missing_are_fetched(
    node: RunningNode, hub: StandInHub, parts: dict[str, bytes]
) -> None:
    first, *others = parts
    blob = blob_of("hub", node.extra["home"], parts[first])
    events = pull(node, "org/Split")
    assert why(events)[-1] == f"It is here already, and is not fetched: {blob}"
    home = node.extra["models"] / "org/Split"
    assert [path.name for path in home.glob("*.gguf") if path.is_symlink()] == [first]
    assert all((home / name).read_bytes() == content for name, content in parts.items())
    assert others and all(hub.behaviour.served[name] >= len(parts[name]) for name in others)
    assert answers(node, "org/Split") == 200


def test_what_a_link_leads_to_may_be_here(node: RunningNode, hub: StandInHub, content: bytes) -> None:
    blob = blob_of("ollama", node.extra["home"], content)
    events = pull(node, f"{hub.files_url}/files/{REPOSITORY}/{FILE}", sha256=sha256(content))
    assert why(events) == [f"It is here already, and is not fetched: {blob}"]
    assert hub.behaviour.asked == []
    assert events[-1]["row"]["model_id"] == "named-Q8_0" and answers(node, "named-Q8_0") == 200
