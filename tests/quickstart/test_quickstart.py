"""The specification's quick start, line by line: list engines, load, stream a chat with `curl -N`,
and the three error bodies to the letter."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import compile_library, fake_engine, write_manifest
from support.gguf import write_gguf
from support.node import RunningNode, running_node

GIB = 1 << 30


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("needs curl")
    return subprocess.run(
        [program, "-sS", *arguments], check=True, capture_output=True, text=True, timeout=60
    ).stdout


def test_list_load_and_stream(node: RunningNode) -> None:
    listed = json.loads(curl(f"{node.url}/api/engines"))
    (engine,) = listed["engines"]
    assert engine["id"] == "llama_cpp"
    assert engine["gpu_backend"] == "cpu"
    assert engine["status"] == "loaded"
    assert "llama" in engine["architectures"]

    loaded = json.loads(
        curl(
            *("-X", "POST", f"{node.url}/api/models/load"),
            *("-H", "Content-Type: application/json"),
            *("-d", '{"model_id": "llm-node-demo", "format": "gguf"}'),
        )
    )
    assert loaded["model_id"] == "llm-node-demo"
    assert loaded["status"] == "loaded"
    assert loaded["engine"] == "llama_cpp"
    assert loaded["gpu_backend"] == "cpu"

    body = {
        "model": "llm-node-demo",
        "messages": [{"role": "user", "content": "What is an engine?"}],
        "temperature": 0,
        "stream": True,
    }
    lines = curl(
        "-N",
        f"{node.url}/v1/chat/completions",
        *("-H", "Content-Type: application/json"),
        *("-d", json.dumps(body)),
    ).splitlines()
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-1] == "stop"
    text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
    assert "shared library" in text
    assert len(chunks) > 5, "the answer came in one piece"


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, header_folder: Path) -> Iterator[RunningNode]:
    """A node with a fake GPU of 24 GiB, --vram-limit 8G, and engines that show each error."""
    root = tmp_path_factory.mktemp("faulty")
    engines, models = root / "engines", root / "models"
    models.mkdir()
    fake_engine(
        engines, "future_manifest", backend="cuda", manifest={"abi_version": "2", "formats": ["future1"]}
    )
    fake_engine(
        engines,
        "future_binary",
        backend="cuda",
        defines={"FAKE_ABI_VERSION": 2},
        manifest={"formats": ["future2"]},
    )
    fake_engine(
        engines,
        "llama_cpp",
        backend="cuda",
        manifest={"formats": ["gguf"], "architectures": ["llama", "qwen3", "gemma", "mistral"]},
    )
    fake_engine(
        engines,
        "giant",
        backend="cuda",
        defines={"FAKE_ESTIMATE_BYTES": f"{16 * GIB}ULL"},
        manifest={"formats": ["toy"]},
    )
    (models / "tomorrow1.future1").write_bytes(b"TOY1")
    (models / "tomorrow2.future2").write_bytes(b"TOY1")
    (models / "giant.toy").write_bytes(b"TOY1")
    write_gguf(models / "nemotron-8b.gguf", architecture="nemotron")
    nvml = compile_library(Path(__file__).parents[1] / "fakes/fake_nvml.c", root / "lib/libnvidia-ml.so.1")
    environment = {
        "LD_LIBRARY_PATH": str(nvml.parent),
        "FAKE_NVML_DEVICES": "1",
        "FAKE_NVML_TOTAL": str(24 * GIB),
        "FAKE_NVML_USED": str(1 * GIB),
    }
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--vram-limit", "8G"]
    with running_node(root / "node", arguments, environment=environment) as running:
        yield running


def load(node: RunningNode, model_id: str, **more: str) -> tuple[int, dict[str, object]]:
    answer = node.post("/api/models/load", {"model_id": model_id, **more})
    return answer.status, answer.json()["error"]


@pytest.mark.parametrize("where", ["manifest", "binary"])
def test_abi_mismatch(faulty: RunningNode, where: str) -> None:
    number = {"manifest": "1", "binary": "2"}[where]
    status, error = load(faulty, f"tomorrow{number}", engine=f"future_{where}")
    assert status == 500
    assert error["message"] == "ABI version mismatch: expected 1, got 2"
    assert error["type"] == "plugin_error"
    assert error["code"] == "abi_mismatch"

    listed = {engine["id"]: engine for engine in faulty.get("/api/engines").json()["engines"]}
    entry = listed[f"future_{where}"]
    assert entry["status"] == "rejected"
    assert entry["error"]["message"] == "ABI version mismatch: expected 1, got 2"


def test_architecture_mismatch(faulty: RunningNode) -> None:
    status, error = load(faulty, "nemotron-8b", format="gguf", engine="llama_cpp")
    assert status == 400
    assert error["message"] == "Architecture 'nemotron' not supported by plugin 'llama_cpp'"
    assert error["type"] == "unsupported_error"
    assert error["code"] == "architecture_mismatch"


def test_insufficient_vram(faulty: RunningNode) -> None:
    status, error = load(faulty, "giant")
    assert status == 507
    assert error["message"] == "Insufficient VRAM: required 16GB, available 8GB"
    assert error["type"] == "resource_error"
    assert error["code"] == "oom_vram"


def test_minimal_engine_of_the_specification(samples: Path, tmp_path: Path) -> None:
    """Five functions, every one answering ERR_OK: found, probed, loaded, and empty answers served."""
    models = tmp_path / "models"
    models.mkdir()
    (models / "anything.txt").write_text("nothing is read from it")
    manifest = json.loads((samples / "my_engine/cpu/manifest.json").read_text())
    engines = tmp_path / "engines"
    write_manifest(engines / "my_engine/cpu", **{**manifest, "formats": ["txt"]})
    shutil.copy(samples / "my_engine/cpu" / manifest["binary"], engines / "my_engine/cpu")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as running:
        answer = running.post("/v1/completions", {"model": "anything", "prompt": "Hello", "max_tokens": 4})
        assert answer.status == 200, answer.body
        assert answer.json()["choices"][0]["text"] == ""
        assert answer.json()["choices"][0]["finish_reason"] == "stop"
