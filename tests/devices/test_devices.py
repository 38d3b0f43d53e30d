"""Devices as they are read: the host's memory, and GPUs through NVML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llm_node import devices
from support.engines import compile_library

READ = (
    "import dataclasses, json; from llm_node import devices;"
    "print(json.dumps([devices.resolve_backend('auto'),"
    " [dataclasses.asdict(each) for each in devices.read('cuda')]]))"
)


def test_host_memory() -> None:
    host = devices.host()
    assert host.is_host
    assert 0 < host.free_bytes <= host.total_bytes
    assert devices.read("cpu")[0].total_bytes == host.total_bytes


@pytest.mark.parametrize("backend", ["cpu", "vulkan", "metal"])
def test_a_named_backend_is_taken_at_its_word(backend: str) -> None:
    assert devices.resolve_backend(backend) == backend


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_no_gpu_is_an_error_that_names_the_way_out(wanted: str) -> None:
    if devices.nvidia_gpus() or sys.platform == "darwin":
        pytest.skip("this machine has a GPU")
    with pytest.raises(devices.NoGpuError, match="--gpu-backend cpu"):
        devices.resolve_backend(wanted)


def test_gpus_of_a_fake_nvml(tmp_path: Path, repository: Path) -> None:
    """The real pynvml over a libnvidia-ml that the test compiled."""
    library = compile_library(repository / "tests/fakes/fake_nvml.c", tmp_path / "libnvidia-ml.so.1")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML_DEVICES": "2",
        "FAKE_NVML_TOTAL": str(24 << 30),
        "FAKE_NVML_USED": str(1 << 30),
    }
    output = subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True
    ).stdout
    backend, found = json.loads(output)
    assert backend == "cuda"
    assert [device["index"] for device in found] == [0, 1]
    for device in found:
        assert (device["total_bytes"], device["free_bytes"]) == (24 << 30, 23 << 30)
        domain, bus, rest = device["bus_id"].split(":")
        assert (len(domain), len(bus)) == (4, 2)
        assert device["bus_id"] == device["bus_id"].lower()
        assert rest.endswith(".0")
        assert not device["is_host"]
    assert len({device["bus_id"] for device in found}) == 2
