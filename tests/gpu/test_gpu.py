"""What only a GPU can show: the same text as the CPU's, memory that NVML agrees with, and comes back.

Needs an NVIDIA GPU and the engine built for it (`make engine BACKEND=cuda`). NVML's figures are of the whole
GPU, so nothing else may run on it meanwhile.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pynvml
import pytest

from llm_node import devices
from support.node import PROGRAM, RunningNode, running_node

pytestmark = pytest.mark.gpu

MODEL = "llm-node-demo"
PROMPTS = [
    "What is an engine?",
    "How do I add an engine?",
    "How do I set the VRAM limit?",
    "What happens when an engine crashes?",
]
ALLOWANCE = 64 * 2**20
"""Bytes by which NVML's figure and the ledger's may differ: the driver rounds each allocation up."""


@pytest.fixture(scope="module")
def engines(repository: Path) -> Path:
    if not devices.nvidia_gpus():
        pytest.skip("needs an NVIDIA GPU")
    folder = repository / "engines"
    if not (folder / "llama_cpp/cuda/manifest.json").is_file():
        pytest.skip("needs the engine for CUDA: make engine BACKEND=cuda")
    return folder


@pytest.fixture(scope="module")
def node(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("gpu")
    arguments = ["--engines-dir", str(engines), "--models-dir", str(folder), "--monitor-interval", "100"]
    with running_node(folder, arguments) as running:
        yield running


def used() -> int:
    """Bytes of the first GPU that are taken, whoever has them."""
    pynvml.nvmlInit()
    try:
        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(0)).used)
    finally:
        pynvml.nvmlShutdown()


def settled() -> int:
    """What is used, once that has not changed for half a second: what is given up, the driver frees late."""
    readings = [used()]
    deadline = time.monotonic() + 15
    while readings[-5:] != [readings[-1]] * 5 and time.monotonic() < deadline:
        time.sleep(0.1)
        readings.append(used())
    return readings[-1]


def ask(node: RunningNode, prompt: str, **settings: Any) -> str:
    messages = [{"role": "user", "content": prompt}]
    body = {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 60, **settings}
    answer = node.post("/v1/chat/completions", body)
    assert answer.status == 200, answer.body
    text: str = answer.json()["choices"][0]["message"]["content"]
    return text


def test_auto_takes_the_gpu(node: RunningNode) -> None:
    system = node.get("/api/system").json()
    assert system["gpu_backend"] == "cuda"
    # Weights that stay with the host's memory are counted there.
    assert [device["kind"] for device in system["devices"]] == ["gpu"] * len(devices.nvidia_gpus()) + ["host"]
    loaded = node.reload(MODEL)
    assert loaded["gpu_backend"] == "cuda"
    (gpu,) = [use for use in loaded["memory"] if not use["is_host"]]
    assert gpu["bus_id"] == devices.nvidia_gpus()[0].bus_id
    assert gpu["weights_bytes"] > 3_000_000  # all layers are there


def test_it_says_what_the_cpu_says(node: RunningNode, engines: Path, tmp_path: Path) -> None:
    node.reload(MODEL)
    alone = [ask(node, prompt) for prompt in PROMPTS]
    with ThreadPoolExecutor(16) as threads:
        together = list(threads.map(lambda prompt: ask(node, prompt), PROMPTS * 4))
    assert together == alone * 4
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "cpu", arguments) as cpu:
        assert [ask(cpu, prompt) for prompt in PROMPTS] == alone


@pytest.mark.parametrize("options", [{}, {"max_sequences": 128, "context_length": 1024}])
def test_memory_is_what_was_reserved(node: RunningNode, options: dict[str, int]) -> None:
    """To a few blocks of the driver's, weights, cache and everything that CUDA itself takes included."""
    node.post("/api/models/unload", {"model_id": MODEL})
    before = settled()
    loaded = node.reload(MODEL, **options)
    reserved = sum(use["total_bytes"] for use in loaded["memory"] if not use["is_host"])
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda prompt: ask(node, prompt), PROMPTS * 8))
    taken = settled() - before
    print(json.dumps({"reserved": reserved, "taken": taken, "memory": loaded["memory"]}))
    assert abs(taken - reserved) < ALLOWANCE, loaded["memory"]
    node.post("/api/models/unload", {"model_id": MODEL})
    assert settled() <= before + ALLOWANCE


def test_a_crash_gives_the_memory_back(node: RunningNode) -> None:
    node.post("/api/models/unload", {"model_id": MODEL})
    before = settled()
    node.reload(MODEL)
    assert settled() > before
    (worker,) = node.workers()
    os.kill(worker, signal.SIGKILL)
    assert settled() <= before + ALLOWANCE
    node.reload(MODEL)
    assert ask(node, PROMPTS[0])


def test_what_does_not_fit_is_refused_before_anything_is_taken(engines: Path, tmp_path: Path) -> None:
    before = settled()
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--vram-limit", "1M"]
    with running_node(tmp_path / "node", arguments) as node:
        answer = node.post("/api/models/load", {"model_id": MODEL})
        assert answer.status == 507
        assert answer.json()["error"]["code"] == "oom_vram"
        assert settled() <= before + ALLOWANCE


def test_the_engine_passes_every_must(engines: Path, demo_model: Path) -> None:
    """Exit code 1 would be a must; what should be and is not stands on the engine's page."""
    command = [PROGRAM, "engine", "check", engines / "llama_cpp/cuda", "--model", demo_model]
    checked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
    assert checked.returncode == 0, checked.stdout + checked.stderr
