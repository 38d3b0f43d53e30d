"""Repositories of safetensors: pulled where an engine here reads them, whole, and nothing beside."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import snapshot_engine
from support.hub import Behaviour, StandInHub, sha256, stand_in_hub
from support.node import RunningNode, running_node

REPOSITORY = "org/Shards-0.6B"
MODEL = f"{REPOSITORY}:safetensors"
INDEX = "model.safetensors.index.json"
SHARDS = tuple(f"model-0000{part}-of-00003.safetensors" for part in (1, 2, 3))
BESIDE = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt")
NOT_WANTED = (
    "README.md",
    "consolidated.safetensors",
    "modeling_sharded.py",
    "onnx/model.safetensors",
    "pytorch_model.bin",
    "training_args.json",
)
WEIGHTS = 50_000
"""Of each file."""


def shard(name: str) -> bytes:
    """Weights in 16 bits, behind the header that says so."""
    tensor = {"dtype": "F16", "shape": [WEIGHTS // 100, 100], "data_offsets": [0, 2 * WEIGHTS]}
    header = json.dumps({"__metadata__": {"format": "pt"}, f"of.{name}": tensor}).encode()
    return len(header).to_bytes(8, "little") + header + name.encode().ljust(2 * WEIGHTS, b".")


def repository(architecture: str = "sharded") -> dict[str, bytes]:
    files = {name: shard(name) for name in (*SHARDS, "consolidated.safetensors", "onnx/model.safetensors")}
    config = {"model_type": architecture, "max_position_embeddings": 2048}
    index = {"metadata": {}, "weight_map": {f"layer.{part}": name for part, name in enumerate(SHARDS)}}
    texts = {name: b"{}" for name in (*BESIDE, *NOT_WANTED) if name not in files}
    return {**texts, **files, "config.json": json.dumps(config).encode(), INDEX: json.dumps(index).encode()}


@pytest.fixture
def hub() -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for name, content in repository().items():
            hub.put(REPOSITORY, name, content)
        yield hub


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    engines = tmp_path_factory.mktemp("engines")
    snapshot_engine(engines)
    return engines


@pytest.fixture
def node(readers: Path, hub: StandInHub, tmp_path: Path) -> Iterator[RunningNode]:
    arguments = ["--engines-dir", str(readers), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments, environment=hub.environment()) as running:
        running.extra["folder"] = tmp_path / "node/.llm-node/models" / REPOSITORY
        running.extra["home"] = tmp_path / "node"
        yield running


def pull(node: RunningNode, model: str = REPOSITORY) -> list[dict[str, Any]]:
    answer = node.post("/api/models/pull", {"model": model})
    assert answer.status == 200, answer.body
    lines = answer.body.decode().splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("data: {")]


def row(node: RunningNode) -> dict[str, Any]:
    (found,) = [it for it in node.get("/api/models").json()["models"] if it["model_id"] == MODEL]
    return dict(found)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def whole(hub: StandInHub) -> set[str]:
    """Files of which more than the header was sent."""
    return {name for name, count in hub.behaviour.served.items() if count >= 2 * WEIGHTS}


def answer_of(node: RunningNode) -> str:
    said = node.post("/v1/completions", {"model": "shards-0.6b", "prompt": "How much?", "max_tokens": 4})
    assert said.status == 200, said.body
    return str(said.json()["choices"][0]["text"])


def test_all_of_it_comes_and_nothing_else_and_an_engine_loads_it(node: RunningNode, hub: StandInHub) -> None:
    table = node.post("/api/models/pull", {"model": REPOSITORY, "dry_run": True}).json()
    assert [(it["version"], it["fits"]) for it in table["versions"]] == [("safetensors", True)]
    assert whole(hub) == set(), "for the plan the headers are enough"

    events = pull(node)
    assert events[-1]["event"] == "ready", events
    (resolved,) = [event for event in events if event["event"] == "resolved"]
    what, needs, beyond = resolved["why"]
    assert what == f"{REPOSITORY}: safetensors, 0.3 MiB in {len(SHARDS) + 1 + len(BESIDE)} files."
    assert needs.startswith("It needs ") and "2,048 tokens" in needs, "of its own longest context"
    assert beyond == "There is no larger version."
    assert events[-1]["row"]["model_id"] == MODEL

    folder: Path = node.extra["folder"]
    assert names(folder) == {*SHARDS, *BESIDE, INDEX}
    noted = json.loads((folder / ".pull.json").read_text())["files"]
    files = repository()
    for name in (*SHARDS, *BESIDE, INDEX):
        assert (folder / name).read_bytes() == files[name]
    assert {name: noted[name]["sha256"] for name in SHARDS} == {name: sha256(files[name]) for name in SHARDS}
    assert (row(node)["format"], row(node)["size_bytes"]) == (
        "safetensors",
        sum(len(files[name]) for name in SHARDS),
    )
    assert answer_of(node) == f"{sum(len(files[name]) for name in SHARDS)} bytes in 3 files"

    hub.behaviour = Behaviour()
    assert pull(node)[-1]["event"] == "ready"
    assert hub.behaviour.asked == [], "it is here"


@pytest.mark.parametrize("where", ["on the hub", "here"])
def test_a_shard_that_is_missing_is_named(node: RunningNode, hub: StandInHub, where: str) -> None:
    if where == "on the hub":
        content = hub.repositories[REPOSITORY].pop(SHARDS[1])
        error = pull(node)[-1]["error"]
        assert error["code"] == "model_corrupt"
        assert f"{INDEX} names {SHARDS[1]}, which is not there" in error["message"]
        assert whole(hub) == set()
        hub.put(REPOSITORY, SHARDS[1], content)
        assert pull(node)[-1]["event"] == "ready"
        return
    assert pull(node)[-1]["event"] == "ready"
    (node.extra["folder"] / SHARDS[2]).unlink()
    assert f"{SHARDS[2]} is missing" in row(node)["error"]["message"]
    refused = node.post("/v1/completions", {"model": MODEL, "prompt": "a"})
    assert refused.json()["error"]["code"] == "model_corrupt" and SHARDS[2] in refused.body.decode()
    hub.behaviour = Behaviour()
    assert pull(node)[-1]["event"] == "ready"
    assert whole(hub) == {SHARDS[2]}, "the others are as they should be"
    assert answer_of(node).endswith(" in 3 files")


def test_the_hash_of_each_shard_counts(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.wrong_sha256 = {SHARDS[2]}
    error = pull(node)[-1]["error"]
    assert error["code"] == "checksum_mismatch" and error["message"].startswith(SHARDS[2])
    assert not node.extra["folder"].exists(), "half of a model is none"
    hub.behaviour = Behaviour()
    assert pull(node)[-1]["event"] == "ready"
    assert whole(hub) == {SHARDS[2]}, "what was right is kept"


def test_so_does_that_of_the_small_files(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.wrong_sha256 = {"tokenizer.json"}
    error = pull(node)[-1]["error"]
    assert error["code"] == "checksum_mismatch" and error["message"].startswith(
        "tokenizer.json has the git id"
    )
    hub.behaviour = Behaviour()
    assert pull(node)[-1]["event"] == "ready"
    newer = hub.repositories[REPOSITORY]["config.json"].replace(b"2048", b"1024")
    hub.put(REPOSITORY, "config.json", newer)
    hub.commit = "beef" * 10
    hub.behaviour = Behaviour()
    updated = node.post("/api/models/pull", {"model": REPOSITORY, "update": True})
    assert b'"ready"' in updated.body
    assert (node.extra["folder"] / "config.json").read_bytes() == newer, "of as many bytes as before"
    assert row(node)["context_length"] == 1024
    assert whole(hub) == set(), "the weights are as they were"


def test_killed_in_the_midst_it_goes_on(readers: Path, hub: StandInHub, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(readers), "--gpu-backend", "cpu"]
    models = tmp_path / ".llm-node/models"
    hub.behaviour.cut_after = len(shard(SHARDS[0])) + WEIGHTS
    with running_node(tmp_path, arguments, environment=hub.environment()) as node:
        cut, pid = threading.Event(), node.process.pid
        hub.on_cut = lambda: (os.kill(pid, signal.SIGKILL), cut.set())
        assert node.post("/api/models/pull", {"model": REPOSITORY, "stream": False}).status == 202
        assert cut.wait(60)
        node.process.wait(30)
    hub.on_cut = lambda: None
    assert not (models / REPOSITORY).exists()
    kept = {path.name for path in (models / ".pulling").rglob("*.safetensors")}
    assert kept == {SHARDS[0]}
    hub.behaviour = Behaviour()
    with running_node(tmp_path, arguments, environment=hub.environment()) as node:
        (stopped,) = node.get("/api/models/pulls").json()["pulls"]
        assert stopped["event"] == "stopped" and stopped["bytes"] >= len(shard(SHARDS[0]))
        assert pull(node)[-1]["event"] == "ready"
        assert whole(hub) == set(SHARDS[1:])
        assert answer_of(node).endswith(" in 3 files")
    assert not list((models / ".pulling").rglob("*.safetensors"))


def test_rm_takes_all_of_it(node: RunningNode) -> None:
    assert pull(node)[-1]["event"] == "ready"
    assert node.post("/api/models/remove", {"model": "shards-0.6b"}).status == 200
    assert not node.extra["folder"].exists()
    assert MODEL not in node.get("/api/models").body.decode()


def test_another_architecture_is_refused_by_its_config(node: RunningNode, hub: StandInHub) -> None:
    hub.put(REPOSITORY, "config.json", repository("alien")["config.json"])
    error = pull(node)[-1]["error"]
    assert (error["code"], whole(hub)) == ("architecture_mismatch", set())
    assert "'alien'" in error["message"]


def test_where_no_engine_reads_it_what_was_made_from_it_is_named(
    engines: Path, hub: StandInHub, tmp_path: Path
) -> None:
    hub.put(f"{REPOSITORY}-GGUF", "a-Q4_0.gguf", b"GGUF")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(tmp_path, arguments, environment=hub.environment()) as node:
        error = pull(node)[-1]["error"]
    assert (error["code"], whole(hub)) == ("format_mismatch", set())
    assert f"{REPOSITORY}-GGUF" in error["message"]


def test_what_the_cache_of_the_hub_holds_is_found_and_not_fetched_again(
    node: RunningNode, hub: StandInHub
) -> None:
    """Shards lie in the cache as blobs; a snapshot of it is a model, whose files are links."""
    files = repository()
    home = node.extra["home"] / ".cache/huggingface/hub/models--other--Same"
    place = home / "snapshots/abc"
    (home / "blobs").mkdir(parents=True)
    place.mkdir(parents=True)
    for name in (*SHARDS, *BESIDE, INDEX):
        blob = home / "blobs" / sha256(files[name] + name.encode() * (name not in SHARDS))
        blob.write_bytes(files[name])
        (place / name).symlink_to(blob)
    found = {it["model_id"]: it for it in node.get("/api/models").json()["models"]}
    assert found["other/Same:safetensors"]["origin"] == "hub"
    said = node.post("/v1/completions", {"model": "other/Same", "prompt": "a", "max_tokens": 4})
    assert said.json()["choices"][0]["text"].endswith(" in 3 files")
    assert pull(node)[-1]["event"] == "ready"
    assert whole(hub) == set()
    assert (node.extra["folder"] / SHARDS[0]).is_symlink()
    assert answer_of(node).endswith(" in 3 files")
