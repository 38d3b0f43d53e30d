"""Model files that are damaged: a typed error each, and the node goes on serving."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from support.gguf import write_gguf
from support.node import RunningNode, running_node

HEADER_LIMIT = 64 * 1024


@pytest.fixture(scope="module")
def damaged(engines: Path, demo_model: Path, tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("damaged")
    models = root / "models"
    models.mkdir()
    (models / "empty.gguf").write_bytes(b"")
    (models / "noise.gguf").write_bytes(random.Random(1).randbytes(100_000))
    (models / "noise-with-magic.gguf").write_bytes(b"GGUF" + random.Random(2).randbytes(100_000))
    (models / "counts.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60))
    (models / "length.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62))
    write_gguf(models / "headless.gguf", architecture="llama")
    good = demo_model.read_bytes()
    for cut in range(1024, min(HEADER_LIMIT, len(good)), 1024):
        (models / f"cut-{cut:06}.gguf").write_bytes(good[:cut])
    generator = random.Random(3)
    for number in range(16):
        data = bytearray(good)
        for _ in range(8):
            data[generator.randrange(len(good) if number % 2 else 4096)] ^= 1 << generator.randrange(8)
        (models / f"flipped-{number:02}.gguf").write_bytes(data)
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(root / "node", arguments) as node:
        yield node, models


def load_error(node: RunningNode, model_id: str) -> dict[str, object]:
    answer = node.post("/api/models/load", {"model_id": model_id})
    assert answer.status >= 400, answer.body
    return dict(answer.json()["error"])


def test_each_is_a_typed_error(damaged: tuple[RunningNode, Path]) -> None:
    node, models = damaged
    for path in sorted(models.glob("*.gguf")):
        if path.stem.startswith("flipped"):
            continue
        error = load_error(node, path.stem)
        assert error["code"] in {"model_corrupt", "load_failed"}, (path.name, error)
        assert error["message"]
        planned = node.post("/api/models/plan", {"model_id": path.stem})
        assert planned.status == 200, (path.name, planned.body)
        assert planned.json()["verdict"] == "refused" and planned.json()["memory"] == []
        assert planned.json()["error"]["code"] == error["code"], path.name
    assert node.get("/healthz").status == 200


def test_flipped_bits_never_harm_the_node(damaged: tuple[RunningNode, Path]) -> None:
    """A flipped weight may load; a flipped header may crash a worker. The node outlives all of it."""
    node, models = damaged
    for path in sorted(models.glob("flipped-*.gguf")):
        answer = node.post("/api/models/load", {"model_id": path.stem})
        if answer.status == 200:
            node.post("/api/models/unload", {"model_id": path.stem})
        else:
            assert answer.json()["error"]["code"] != "internal", (path.name, answer.body)
    good = node.post("/v1/completions", {"model": "llm-node-demo", "prompt": "The", "max_tokens": 4})
    assert good.status == 200, good.body


def test_names_cannot_leave_the_folder(damaged: tuple[RunningNode, Path]) -> None:
    node, _ = damaged
    for name in ("../models/empty", "/etc/passwd", "..", "a/../b", "empty.gguf/..", "x\x00y"):
        answer = node.post("/api/models/load", {"model_id": name})
        assert answer.status in (400, 404), (name, answer.body)


def test_unknown_model_names_its_neighbours(damaged: tuple[RunningNode, Path]) -> None:
    node, _ = damaged
    error = load_error(node, "llm-node-dem")
    assert error["code"] == "model_not_found"
    assert "llm-node-demo" in str(error["message"])


def test_what_no_engine_runs_is_said_before_anybody_asks_for_it(engines: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    write_gguf(folder / "strange.gguf", architecture="lxama")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(folder), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        rows = {row["model_id"]: row for row in node.get("/api/models").json()["models"]}
        assert rows["strange"]["status"] == "failed"
        assert rows["strange"]["error"]["code"] == "architecture_mismatch"
        assert "no engine here runs the architecture 'lxama'" in rows["strange"]["error"]["message"]
        assert rows["llm-node-demo"]["status"] == "available"
        assert load_error(node, "strange")["code"] == "architecture_mismatch"


def test_a_file_of_ones_own_comes_before_the_demo_model(
    engines: Path, demo_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    own = folder / "llm-node-demo.gguf"
    own.write_bytes(demo_model.read_bytes())
    arguments = ["--engines-dir", str(engines), "--models-dir", str(folder), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        listed = node.get("/api/models?all=true").json()
        assert [(row["origin"], row["path"]) for row in listed["models"]] == [("own", str(own))]
        assert listed["unlisted"] == []


def test_several_files_and_none_named(engines: Path, demo_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "models/tiny"
    folder.mkdir(parents=True)
    for quantization in ("Q8_0", "F16"):
        (folder / f"tiny-{quantization}.gguf").write_bytes(demo_model.read_bytes())
    arguments = [
        *("--engines-dir", str(engines), "--models-dir", str(tmp_path / "models")),
        *("--gpu-backend", "cpu"),
    ]
    with running_node(tmp_path / "node", arguments) as node:
        error = load_error(node, "tiny")
        assert "tiny:Q8_0" in str(error["message"])
        assert "tiny:F16" in str(error["message"])
        assert node.post("/api/models/load", {"model_id": "tiny:F16"}).status == 200
