"""Pulling models over the API: what is chosen, what is fetched, what is refused, and how it goes on."""

from __future__ import annotations

import json
import re
import shutil
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gguf
import ollama
import pytest

from support.hub import COMMIT, Behaviour, StandInHub, sha256, stand_in_hub
from support.models import requantized, with_template
from support.node import RunningNode, running_node

KINDS = ("Q4_0", "Q8_0", "F16")
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def files(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small models: three versions of one, and one in several files."""
    folder = tmp_path_factory.mktemp("files")
    for kind in KINDS:
        requantized(demo_model, folder / f"tiny-{kind}.gguf", gguf.GGMLQuantizationType[kind])
    requantized(demo_model, folder / "big-Q8_0.gguf", gguf.GGMLQuantizationType.Q8_0, tensors_per_file=20)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def hub(files: dict[str, bytes]) -> Iterator[StandInHub]:
    with stand_in_hub() as hub:
        for name, content in files.items():
            hub.put("org/Tiny-GGUF" if name.startswith("tiny") else "org/Split", name, content)
        hub.put("org/Tiny-GGUF", "README.md", b"# Tiny")
        hub.put("org/Tiny-GGUF", "mmproj-F16.gguf", b"GGUF")
        hub.put("org/Weights", "model.safetensors", b"0" * 64)
        hub.put("org/Weights-GGUF", "w-Q4_0.gguf", files["tiny-Q4_0.gguf"])
        hub.put("org/Alien", "alien-Q4_0.gguf", _header("alien"))
        hub.put("org/Broken", "broken-Q4_0.gguf", b"PK\x03\x04" + b"0" * 2000)
        yield hub


@pytest.fixture(scope="module")
def node(engines: Path, hub: StandInHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("node")
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(folder, arguments, environment=hub.environment()) as running:
        running.extra["models"] = folder / ".llm-node/models"
        yield running


@pytest.fixture(autouse=True)
def behaves(hub: StandInHub) -> None:
    hub.behaviour = Behaviour()


def _header(architecture: str) -> bytes:
    name = b"general.architecture"
    key = len(name).to_bytes(8, "little") + name + (8).to_bytes(4, "little")
    value = len(architecture).to_bytes(8, "little") + architecture.encode()
    return (
        b"GGUF"
        + (3).to_bytes(4, "little")
        + (0).to_bytes(8, "little")
        + (1).to_bytes(8, "little")
        + key
        + value
    )


def pull(node: RunningNode, model: str, **more: Any) -> Events:
    answer = node.post("/api/models/pull", {"model": model, **more})
    assert answer.status == 200, answer.body
    lines = answer.body.decode().splitlines()
    return [json.loads(line[5:]) for line in lines if line.startswith("data: {")]


def error_of(events: Events) -> dict[str, Any]:
    error = events[-1]["error"]
    assert {"code", "message", "type", "param"} <= set(error), events
    return dict(error)


def rows(node: RunningNode) -> dict[str, dict[str, Any]]:
    return {row["model_id"]: row for row in node.get("/api/models").json()["models"]}


def pulls(node: RunningNode) -> dict[str, dict[str, Any]]:
    """The latest pull of each name."""
    return {it["model"]: it for it in node.get("/api/models/pulls").json()["pulls"]}


def remove(node: RunningNode, model: str) -> None:
    answer = node.post("/api/models/remove", {"model": model})
    assert answer.status == 200, answer.body


def under_way(node: RunningNode) -> list[str]:
    home: Path = node.extra["models"] / ".pulling"
    return sorted(path.name for path in home.rglob("*.gguf"))


def test_the_version_that_fits_is_fetched_and_three_lines_say_why(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    events = pull(node, "org/Tiny-GGUF")
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "ready" and "resolved" in kinds, events
    resolved = events[kinds.index("resolved")]
    assert resolved["version"] == "Q8_0", "the largest of at most 8.6 bits"
    what, needs, beyond = resolved["why"]
    assert re.fullmatch(r"org/Tiny-GGUF: Q8_0, \d\.\d MiB\.", what)
    assert re.fullmatch(
        r"It needs \d+\.\d MiB with [\d,]+ tokens of context; this machine has \d+\.\d GiB\.", needs
    )
    assert re.fullmatch(r"The next larger one, F16, needs \d+\.\d MiB, which is slower here\.", beyond)
    row = events[-1]["row"]
    assert (row["model_id"], row["origin"], row["status"]) == ("org/Tiny-GGUF:Q8_0", "own", "available")
    kept = node.extra["models"] / "org/Tiny-GGUF/tiny-Q8_0.gguf"
    assert kept.read_bytes() == files["tiny-Q8_0.gguf"]
    record = json.loads((kept.parent / ".pull.json").read_text())
    assert record["files"]["tiny-Q8_0.gguf"]["sha256"] == sha256(files["tiny-Q8_0.gguf"])
    assert record["why"]["Q8_0"] == resolved["why"]
    assert under_way(node) == []
    fetched = {name for name, count in hub.behaviour.served.items() if count >= len(files[name])}
    assert fetched == {"tiny-Q8_0.gguf"}

    chat = {"model": "tiny", "messages": [{"role": "user", "content": "What is an engine?"}], "max_tokens": 4}
    assert node.post("/v1/chat/completions", chat).status == 200, "by its short name"

    hub.behaviour = Behaviour()
    again = pull(node, "org/Tiny-GGUF")
    assert [event["event"] for event in again][-1] == "ready"
    assert hub.behaviour.asked == [], "it is here, so nobody is asked"
    remove(node, "org/Tiny-GGUF")
    assert not kept.parent.exists()


def test_a_dry_run_shows_the_table(node: RunningNode, hub: StandInHub, files: dict[str, bytes]) -> None:
    table = node.post("/api/models/pull", {"model": "org/Tiny-GGUF", "dry_run": True}).json()
    assert [row["version"] for row in table["versions"]] == ["Q4_0", "Q8_0", "F16"]
    assert table["chosen"] == "Q8_0" and table["model"] == "org/Tiny-GGUF:Q8_0"
    assert all(row["fits"] for row in table["versions"])
    needs = [row["needs_bytes"] for row in table["versions"]]
    assert needs == sorted(needs) and needs[0] > 0
    assert not set(hub.behaviour.served) >= set(files), "headers alone"
    named = next(it for it in pull(node, "org/Tiny-GGUF:Q8_0") if it["event"] == "resolved")
    need, of_named = (each["why"][1].partition(";")[0] for each in (table, named))
    assert need == of_named, "by the header of the chosen one, as when it is named"
    remove(node, "org/Tiny-GGUF:Q8_0")


def test_the_estimate_before_is_that_of_the_load(node: RunningNode) -> None:
    events = pull(node, "org/Tiny-GGUF:Q4_0", context_length=256)
    resolved = next(event for event in events if event["event"] == "resolved")
    needed = float(re.findall(r"needs ([\d.]+) MiB with 256 tokens", resolved["why"][1])[0])
    loaded = node.post(
        "/api/models/load", {"model_id": "org/Tiny-GGUF:Q4_0", "context_length": 256, "max_sequences": 1}
    ).json()
    came_to = sum(use["total_bytes"] for use in loaded["memory"]) / 2**20
    assert needed == pytest.approx(came_to, rel=0.05)
    remove(node, "org/Tiny-GGUF:Q4_0")


@pytest.mark.parametrize(
    ("model", "code", "says"),
    [
        ("org/Tiny-GGUF:Q6_K", "model_not_found", "there are Q4_0, Q8_0, F16"),
        ("org/Nothing", "model_not_found", "org/Nothing"),
        ("org/Tiny-GGUF@v9", "model_not_found", "v9"),
        ("org/Weights", "format_mismatch", "has no GGUF file. Made from it: org/Weights-GGUF"),
        ("org/Alien:Q4_0", "architecture_mismatch", "'alien' not supported"),
        ("org/Broken:Q4_0", "model_corrupt", "does not begin with GGUF"),
    ],
)
def test_what_cannot_be_pulled(node: RunningNode, hub: StandInHub, model: str, code: str, says: str) -> None:
    error = error_of(pull(node, model))
    assert error["code"] == code
    assert says in error["message"]
    assert under_way(node) == []
    assert sum(hub.behaviour.served.values()) <= 1 << 20, "known before anything is fetched"


def test_what_is_no_name_is_refused_at_once(node: RunningNode) -> None:
    answer = node.post("/api/models/pull", {"model": "qwen3"})
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_a_gated_model_says_what_to_do(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.gated.add("org/Tiny-GGUF")
    error = error_of(pull(node, "org/Tiny-GGUF:Q4_0"))
    assert error["code"] == "gated_model"
    assert "accept the terms on its page, then set HF_TOKEN or run `hf auth login`" in error["message"]
    assert hub.behaviour.served == {}


def test_a_file_that_is_not_what_was_promised_is_deleted(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.wrong_sha256.add("tiny-Q4_0.gguf")
    error = error_of(pull(node, "org/Tiny-GGUF:Q4_0"))
    assert error["code"] == "checksum_mismatch"
    assert error["expected"] == "0" * 64 and error["found"] in error["message"]
    assert under_way(node) == [] and "org/Tiny-GGUF:Q4_0" not in rows(node)
    hub.behaviour = Behaviour()
    assert pull(node, "org/Tiny-GGUF:Q4_0")[-1]["event"] == "ready"
    remove(node, "org/Tiny-GGUF:Q4_0")


def test_a_file_that_is_shorter_than_was_said_is_none(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.longer.add("tiny-Q4_0.gguf")
    error = error_of(pull(node, "org/Tiny-GGUF:Q4_0"))
    assert error["code"] == "source_unreachable", error
    assert "org/Tiny-GGUF:Q4_0" not in rows(node) and under_way(node) == []
    remove(node, "org/Tiny-GGUF:Q4_0")


def test_a_model_in_several_files(node: RunningNode, files: dict[str, bytes]) -> None:
    parts = sorted(name for name in files if name.startswith("big"))
    assert len(parts) > 1
    events = pull(node, "org/Split")
    assert events[-1]["event"] == "ready", events
    row = events[-1]["row"]
    assert [Path(path).name for path in row["files"]] == parts
    loaded = node.post("/api/models/load", {"model_id": "org/split"})
    assert loaded.status == 200, loaded.body
    remove(node, "org/Split")
    assert not (node.extra["models"] / "org/Split").exists()


def test_a_template_beside_the_model_comes_along(
    node: RunningNode, hub: StandInHub, demo_model: Path, tmp_path: Path
) -> None:
    """For a model whose file holds none. Without it nobody can chat with it."""
    model = with_template(demo_model, tmp_path / "old-Q4_0.gguf", None)
    template = gguf.GGUFReader(demo_model).fields["tokenizer.chat_template"].contents()
    for name in ("org/Bare", "org/Old"):
        hub.put(name, f"{name[4:].lower()}-Q4_0.gguf", model.read_bytes())
    hub.put("org/Old", "chat_template.jinja", template.encode())
    question = {"messages": [{"role": "user", "content": "What is an engine?"}], "max_tokens": 6}
    try:
        assert pull(node, "org/Bare")[-1]["row"]["task"] == "completions"
        events = pull(node, "org/Old")
        (resolved,) = [event for event in events if event["event"] == "resolved"]
        assert [file["path"] for file in resolved["files"]] == ["old-Q4_0.gguf", "chat_template.jinja"]
        assert events[-1]["row"]["task"] == "chat"
        for name, status in (("org/Bare", 400), ("org/Old", 200)):
            answer = node.post("/v1/chat/completions", {"model": name, "temperature": 0, **question})
            assert answer.status == status, answer.body
        assert answer.json()["choices"][0]["message"]["content"].startswith("An engine is")
        for name in ("org/Bare", "org/Old"):
            remove(node, name)
            assert not (node.extra["models"] / name).exists(), "nothing is left of it"
    finally:
        del hub.repositories["org/Bare"], hub.repositories["org/Old"]


def test_a_model_in_use_is_deleted_by_force_alone_once_it_has_answered(
    node: RunningNode, files: dict[str, bytes]
) -> None:
    own = node.extra["models"] / "busy.gguf"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_bytes(files["tiny-Q4_0.gguf"])
    body = {"model": "busy", "prompt": "An engine", "max_tokens": 400, "ignore_eos": True}
    assert node.post("/v1/completions", {**body, "max_tokens": 1}).status == 200
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(node.post, "/v1/completions", body)
        _until(lambda: rows(node)["busy"]["requests"] > 0)
        refused = node.post("/api/models/remove", {"model": "busy"}).json()["error"]
        assert refused["code"] == "invalid_request" and refused["param"] == "force"
        assert "'busy' has 1 requests under way" in refused["message"] and own.is_file()
        removed = node.post("/api/models/remove", {"model": "busy", "force": True})
        assert removed.json() == {"model_id": "busy", "status": "removed"}
        answer = asked.result()
    assert answer.json()["usage"]["completion_tokens"] == 400, "it was waited for"
    assert not own.exists() and "busy" not in rows(node)


def test_who_leaves_stops_nothing_and_who_comes_back_sees_how_far_it_is(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    hub.behaviour.pause = threading.Event()
    begun = node.post("/api/models/pull", {"model": "org/Tiny-GGUF:F16", "stream": False})
    assert begun.status == 202
    pull_id = begun.json()["pull_id"]
    _until(lambda: pulls(node)["org/Tiny-GGUF:F16"].get("bytes", 0) > 0)
    shown = pulls(node)["org/Tiny-GGUF:F16"]
    assert shown["event"] == "progress" and shown["version"] == "F16"
    assert 0 < shown["bytes"] < shown["total"] == len(files["tiny-F16.gguf"])
    joined = node.post("/api/models/pull", {"model": "org/Tiny-GGUF:F16", "stream": False})
    assert joined.json()["pull_id"] == pull_id, "the same pull"
    head = node.request("HEAD", f"/api/models/pulls/{pull_id}", timeout=10)
    assert (head.status, head.body) == (200, b""), "without waiting for the pull's end"

    stopped = node.request("DELETE", f"/api/models/pulls/{pull_id}")
    assert stopped.json()["error"]["code"] == "cancelled"
    hub.behaviour.pause.set()
    assert "org/Tiny-GGUF:F16" not in rows(node)

    hub.behaviour = Behaviour()
    assert pull(node, "org/Tiny-GGUF:F16")[-1]["event"] == "ready", "typing it again goes on"
    remove(node, "org/Tiny-GGUF:F16")


def test_a_pull_that_was_stopped_is_deleted_on_wish(node: RunningNode, hub: StandInHub) -> None:
    hub.behaviour.pause = threading.Event()
    begun = node.post("/api/models/pull", {"model": "org/Tiny-GGUF:F16", "stream": False}).json()
    _until(lambda: pulls(node)["org/Tiny-GGUF:F16"].get("bytes", 0) > 0)
    node.request("DELETE", f"/api/models/pulls/{begun['pull_id']}?discard=true")
    hub.behaviour.pause.set()
    assert not (node.extra["models"] / ".pulling/org/Tiny-GGUF").exists()
    assert "org/Tiny-GGUF:F16" not in pulls(node), "nothing is left to go on with"


def test_a_pull_that_was_stopped_before_the_node_began_has_a_number_too(
    node: RunningNode, files: dict[str, bytes]
) -> None:
    staged = node.extra["models"] / ".pulling/org/Tiny-GGUF"
    staged.mkdir(parents=True)
    (staged / ".wish.json").write_text(json.dumps({"model": "org/Tiny-GGUF:Q9", "total": 100}))
    (staged / "tiny-Q9.gguf").write_bytes(b"GGUF")
    stopped = pulls(node)["org/Tiny-GGUF:Q9"]
    assert (stopped["event"], stopped["bytes"], stopped["total"]) == ("stopped", 4, 100)
    route = f"/api/models/pulls/{stopped['pull_id']}"
    assert b'"stopped"' in node.get(route).body
    assert node.request("DELETE", f"{route}?discard=true").status == 200
    assert not staged.exists() and "org/Tiny-GGUF:Q9" not in pulls(node)
    assert node.get(route).status == 404


def test_a_name_has_one_pull_in_the_list(node: RunningNode, hub: StandInHub) -> None:
    """The latest, also where earlier ones ended well."""
    for _ in range(2):
        pull(node, "org/Tiny-GGUF:Q4_0")
        remove(node, "org/Tiny-GGUF:Q4_0")
    listed = [it["model"] for it in node.get("/api/models/pulls").json()["pulls"]]
    assert len(listed) == len(set(listed))
    hub.behaviour.pause = threading.Event()
    begun = node.post("/api/models/pull", {"model": "org/Tiny-GGUF:Q4_0", "stream": False}).json()["pull_id"]
    _until(lambda: pulls(node)["org/Tiny-GGUF:Q4_0"].get("bytes", 0) > 0)
    node.request("DELETE", f"/api/models/pulls/{begun}")
    hub.behaviour.pause.set()
    listed = node.get("/api/models/pulls").json()["pulls"]
    same = [(it["event"], it["pull_id"]) for it in listed if it["model"] == "org/Tiny-GGUF:Q4_0"]
    assert same == [("stopped", begun)]
    node.request("DELETE", f"/api/models/pulls/{begun}?discard=true")


def test_what_is_newer_is_fetched_where_somebody_asks_for_it(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    name = "org/Moving:Q4_0"
    hub.put("org/Moving", "moving-Q4_0.gguf", files["tiny-Q4_0.gguf"])
    pull(node, name)
    kept = node.extra["models"] / "org/Moving/moving-Q4_0.gguf"
    hub.behaviour = Behaviour()
    same = pull(node, name, update=True)
    assert same[-1]["event"] == "ready"
    (resolved,) = [event for event in same if event["event"] == "resolved"]
    assert resolved["why"][1].startswith("What is here is that of revision c0ffee")
    assert hub.behaviour.served == {}, "hashes alone"

    newer = files["tiny-Q4_0.gguf"][:-1] + bytes([files["tiny-Q4_0.gguf"][-1] ^ 1])
    hub.put("org/Moving", "moving-Q4_0.gguf", newer)
    hub.commit = "beef" * 10
    try:
        planned = node.post("/api/models/pull", {"model": name, "update": True, "dry_run": True}).json()
        assert planned["size_bytes"] == len(newer) and "are newer" in planned["why"][1]
        assert pull(node, name)[-1]["event"] == "ready" and kept.read_bytes() != newer, "not by itself"
        hub.behaviour.pause = threading.Event()
        wish = {"model": name, "update": True, "stream": False}
        begun = node.post("/api/models/pull", wish).json()["pull_id"]
        _until(lambda: pulls(node)[name].get("bytes", 0) > 0)
        node.request("DELETE", f"/api/models/pulls/{begun}")
        hub.behaviour.pause.set()
        assert kept.read_bytes() == files["tiny-Q4_0.gguf"], "what is here stays until the new one is whole"
        assert pull(node, name)[-1]["event"] == "ready", "typing it again goes on with the update"
        assert kept.read_bytes() == newer
        record = json.loads((kept.parent / ".pull.json").read_text())
        noted = record["files"]["moving-Q4_0.gguf"]
        assert (noted["sha256"], noted["revision"]) == (sha256(newer), hub.commit)
        assert record["why"]["Q4_0"][1].startswith("It needs"), "why it was chosen stays"
    finally:
        hub.commit = COMMIT
        remove(node, "org/Moving")
        del hub.repositories["org/Moving"]


def test_another_number_of_files_takes_the_place_of_what_was_there(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    parts = {name: content for name, content in files.items() if name.startswith("big")}
    for name, content in parts.items():
        hub.put("org/Packed", name, content)
    pull(node, "org/Packed")
    home = node.extra["models"] / "org/Packed"
    assert {path.name for path in home.glob("*.gguf")} == set(parts)
    hub.repositories["org/Packed"] = {"big-Q8_0.gguf": files["tiny-Q8_0.gguf"]}
    updated = pull(node, "org/Packed", update=True)
    assert updated[-1]["event"] == "ready", updated
    assert [path.name for path in home.glob("*.gguf")] == ["big-Q8_0.gguf"]
    remove(node, "org/Packed")
    del hub.repositories["org/Packed"]


def test_what_cannot_be_updated(node: RunningNode, hub: StandInHub) -> None:
    link = {"model": f"{hub.files_url}/files/org/Tiny-GGUF/tiny-Q4_0.gguf", "update": True}
    answer = node.post("/api/models/pull", link)
    assert (answer.status, answer.json()["error"]["param"]) == (400, "update")
    for version in ("Q4_0", "Q8_0"):
        pull(node, f"org/Tiny-GGUF:{version}")
    error = error_of(pull(node, "org/Tiny-GGUF", update=True))
    assert error["message"] == "Name one of org/Tiny-GGUF:Q4_0, org/Tiny-GGUF:Q8_0"
    for version in ("Q4_0", "Q8_0"):
        remove(node, f"org/Tiny-GGUF:{version}")


def test_a_connection_that_is_cut_is_made_anew(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    hub.behaviour.cut_after = len(files["tiny-F16.gguf"]) // 2
    assert pull(node, "org/Tiny-GGUF:F16")[-1]["event"] == "ready"
    kept = node.extra["models"] / "org/Tiny-GGUF/tiny-F16.gguf"
    assert kept.read_bytes() == files["tiny-F16.gguf"]
    remove(node, "org/Tiny-GGUF:F16")


def test_a_link_to_one_file(node: RunningNode, hub: StandInHub, files: dict[str, bytes]) -> None:
    url = f"{hub.files_url}/files/org/Tiny-GGUF/tiny-Q4_0.gguf"
    hub.behaviour.cut_after = len(files["tiny-Q4_0.gguf"]) // 2
    events = pull(node, url, sha256=sha256(files["tiny-Q4_0.gguf"]))
    assert events[-1]["event"] == "ready", events
    assert events[-1]["row"]["model_id"] == "tiny-Q4_0"
    assert (node.extra["models"] / "tiny-Q4_0.gguf").read_bytes() == files["tiny-Q4_0.gguf"]
    assert hub.behaviour.served["tiny-Q4_0.gguf"] < 1.6 * len(files["tiny-Q4_0.gguf"]), (
        "it goes on where it was"
    )
    wrong = pull(node, url, sha256="1" * 64)
    assert error_of(wrong)["code"] == "checksum_mismatch"
    assert "tiny-Q4_0" in rows(node), "what was here before stays"
    remove(node, "tiny-Q4_0")


def test_a_link_whose_file_has_changed_begins_anew(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    """In the midst of it: what is there of the former file is none of the new one."""
    former, newer = files["tiny-F16.gguf"], files["tiny-Q8_0.gguf"]
    hub.put("org/Link", "linked.gguf", former)
    url = f"{hub.files_url}/files/org/Link/linked.gguf"
    hub.behaviour.cut_after = len(former) // 2
    hub.on_cut = lambda: hub.put("org/Link", "linked.gguf", newer)
    try:
        events = pull(node, url)
        assert events[-1]["event"] == "ready", events
        assert (node.extra["models"] / "linked.gguf").read_bytes() == newer
        remove(node, "linked")
    finally:
        hub.on_cut = lambda: None
        del hub.repositories["org/Link"]


def test_two_pulls_at_once_and_the_third_waits(
    node: RunningNode, hub: StandInHub, files: dict[str, bytes]
) -> None:
    """Each looks first whether its model is here, so any of them may come last."""
    names = ["org/One", "org/Two", "org/Three"]
    for name in names:
        hub.put(name, f"{name[4:].lower()}-F16.gguf", files["tiny-F16.gguf"])
    # Each with bytes of its own, for those that are here are not fetched again.
    for index, name in enumerate(names):
        (file,) = hub.repositories[name]
        hub.put(name, file, files["tiny-F16.gguf"][:-1] + bytes([index]))
    hub.behaviour.pause = threading.Event()
    try:
        for name in names:
            node.post("/api/models/pull", {"model": name, "stream": False})
        _until(lambda: sum(pulls(node)[name].get("bytes", 0) > 0 for name in names) == 2)
        assert [pulls(node)[name]["event"] for name in names].count("resolving") == 1
        hub.behaviour.pause.set()
        _until(lambda: [pulls(node)[name]["event"] for name in names] == ["ready"] * 3)
    finally:
        hub.behaviour.pause.set()
        for name in names:
            remove(node, name)
            del hub.repositories[name]


def test_a_link_to_what_is_no_model(node: RunningNode, hub: StandInHub) -> None:
    error = error_of(pull(node, f"{hub.files_url}/files/org/Broken/broken-Q4_0.gguf"))
    assert error["code"] == "model_corrupt" and "PK" not in error["message"]


def test_a_client_of_ollama_pulls_from_the_hub(node: RunningNode, hub: StandInHub) -> None:
    with ollama.Client(node.url) as client:
        told = [
            (part.status, part.completed) for part in client.pull("hf.co/org/Tiny-GGUF:Q4_0", stream=True)
        ]
        assert told[0] == ("pulling manifest", None) and told[-1] == ("success", None)
        assert client.pull("hf.co/org/Tiny-GGUF:Q4_0").status == "success", "it is here"
        assert client.show("hf.co/org/Tiny-GGUF:Q4_0").details is not None
        with pytest.raises(ollama.ResponseError, match="Nothing is fetched of Ollama"):
            client.pull("qwen3:4b")
        with pytest.raises(ollama.ResponseError, match="there are Q4_0"):
            client.pull("hf.co/org/Tiny-GGUF:Q2_K")
    remove(node, "org/Tiny-GGUF:Q4_0")


def test_search(node: RunningNode, hub: StandInHub) -> None:
    hub.parameters = {"org/Tiny-GGUF": 3_800_000, "org/Split": 10**13}
    found = node.get("/api/models/search?q=tiny").json()["models"]
    assert found == [
        {"id": "org/Tiny-GGUF", "downloads": 7, "likes": 1, "parameters": 3_800_000, "fits": True}
    ]
    fits = {each["id"]: each["fits"] for each in node.get("/api/models/search?q=org").json()["models"]}
    assert node.get("/api/models/search").json()["models"], "those that many look at now"
    assert hub.behaviour.sorted_by == ["downloads", "downloads", "trendingScore"]
    assert fits["org/Split"] is False and fits["org/Alien"] is None
    hub.behaviour.busy = True
    assert error_of(pull(node, "org/Tiny-GGUF:Q4_0"))["code"] == "source_busy"


def test_what_others_brought_is_not_deleted(node: RunningNode) -> None:
    answer = node.post("/api/models/remove", {"model": "llm-node-demo"})
    assert answer.json()["error"]["code"] == "unsupported_feature"
    assert "comes with llm-node" in answer.json()["error"]["message"]
    assert node.post("/api/models/remove", {"model": "no-such"}).status == 404


def test_of_a_linked_folder_the_link_is_deleted(node: RunningNode, demo_model: Path, tmp_path: Path) -> None:
    """What lies behind it is another program's, or on another disk."""
    there = Path(shutil.copy(demo_model, tmp_path / "original-Q4_0.gguf"))
    link = node.extra["models"] / "elsewhere"
    link.symlink_to(tmp_path, target_is_directory=True)
    answer = node.post("/api/models/remove", {"model": "elsewhere"})
    assert answer.json() == {"model_id": "elsewhere", "status": "removed", "left_in": str(tmp_path.resolve())}
    assert there.is_file() and not link.is_symlink()
    assert node.post("/api/models/remove", {"model": "elsewhere"}).status == 404


def test_one_of_several_models_of_a_linked_folder_is_not_deleted(
    node: RunningNode, demo_model: Path, tmp_path: Path
) -> None:
    """Without the link all would be gone, and the file is not the node's."""
    there = [Path(shutil.copy(demo_model, tmp_path / f"m-{kind}.gguf")) for kind in ("Q4_0", "Q8_0")]
    link = node.extra["models"] / "several"
    link.symlink_to(tmp_path, target_is_directory=True)
    try:
        error = node.post("/api/models/remove", {"model": "several:Q8_0"}).json()["error"]
        assert error["code"] == "unsupported_feature"
        assert f"{link}, a link to {tmp_path.resolve()}" in error["message"]
        assert all(file.is_file() for file in there) and link.is_symlink()
    finally:
        link.unlink()


def test_a_link_to_a_file_is_deleted_and_the_file_stays(
    node: RunningNode, demo_model: Path, tmp_path: Path
) -> None:
    there = Path(shutil.copy(demo_model, tmp_path / "there.gguf"))
    link = node.extra["models"] / "linked.gguf"
    link.symlink_to(there)
    remove(node, "linked")
    assert there.is_file() and not link.is_symlink()


def test_a_page_of_another_origin_pulls_nothing(node: RunningNode) -> None:
    for path in ("/api/models/pull", "/api/models/remove"):
        request = urllib.request.Request(
            node.url + path, data=b'{"model": "org/Tiny-GGUF"}', headers={"Origin": "https://example.com"}
        )
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request)
        with caught.value as error:
            assert error.code == 403


def _until(is_so: Any) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)
