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
from support.groups import unprivileged, within
from support.node import running_node

READ = (
    "import dataclasses, json; from llm_node import devices;"
    "print(json.dumps([devices.resolve_backend('auto'),"
    " [dataclasses.asdict(each) for each in devices.read('cuda')]]))"
)


def test_host_memory() -> None:
    host = devices.host()
    assert host.kind == "host"
    assert 0 < host.free_bytes <= host.total_bytes
    assert devices.read("cpu")[0].total_bytes == host.total_bytes


def test_a_containers_limit_counts(tmp_path: Path, engines: Path) -> None:
    """The real node under control groups that a test wrote; `rust/node/src/host_memory.rs` has the cases."""
    if unprivileged():
        pytest.skip("needs root, for a mount namespace")
    limit, used = 64 << 20, 60 << 20
    groups = tmp_path / "groups"
    (groups / "memory").mkdir(parents=True)
    (groups / "memory.max").write_text(f"{limit}\n")
    (groups / "memory.current").write_text(f"{used}\n")
    prefix = within(groups)
    read = "from llm_node import devices; host = devices.host(); print(host.total_bytes, host.free_bytes)"
    read_in_python = subprocess.run(
        [*prefix, sys.executable, "-c", read], capture_output=True, text=True, check=True
    ).stdout
    assert read_in_python.split() == [str(limit), str(limit - used)]
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments, prefix=prefix) as node:
        (host,) = node.get("/api/system").json()["devices"]
        assert (host["total_bytes"], host["free_bytes"]) == (limit, limit - used)
        refused = node.post("/api/models/load", {"model_id": "llm-node-demo"})
        assert (refused.status, refused.json()["error"]["code"]) == (507, "oom_ram")
        # Files in the cache are given up: the same load fits now.
        (groups / "memory.stat").write_text(f"anon 0\nfile {used}\nshmem 0\n")
        loaded = node.post("/api/models/load", {"model_id": "llm-node-demo", "cache_tokens": 1024})
        assert loaded.status == 200, loaded.body


@pytest.mark.parametrize(
    ("backend", "there", "called"),
    [
        ("cuda", ["nvidiactl"], True),
        ("cuda", ["nvidiactl", "nvidia-uvm"], False),
        ("cuda", [], False),
        ("cpu", ["nvidiactl"], False),
    ],
)
def test_what_cuda_needs_is_made_before_workers_are_shut_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str, there: list[str], called: bool
) -> None:
    program = tmp_path / "nvidia-modprobe"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/called\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    folder = tmp_path / "dev"
    folder.mkdir()
    for name in there:
        (folder / name).touch()
    devices.make_device_files(backend, folder)
    call = tmp_path / "called"
    assert (call.read_text() if call.exists() else None) == ("-u -c 0\n" if called else None)


def test_a_program_that_fails_is_a_line_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "nvidia-modprobe"
    program.write_text("#!/bin/sh\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "nvidiactl").touch()
    devices.make_device_files("cuda", tmp_path)
    assert "/dev/nvidia-uvm is missing" in caplog.text


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
        assert device["kind"] == "gpu"
    assert len({device["bus_id"] for device in found}) == 2


def test_a_gpu_that_shares_the_host_s_memory_has_that(tmp_path: Path, repository: Path) -> None:
    """NVML says of it that it is not supported."""
    library = compile_library(repository / "tests/fakes/fake_nvml.c", tmp_path / "libnvidia-ml.so.1")
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_UNIFIED": "1"}
    output = subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=True
    ).stdout
    backend, (device,) = json.loads(output)
    assert (backend, device["state"], device["kind"]) == ("cuda", "ok", "unified")
    assert device["total_bytes"] == devices.host().total_bytes
    assert 0 < device["free_bytes"] <= device["total_bytes"]


@pytest.mark.parametrize(
    ("visible", "numbers"),
    [
        (None, [0, 1, 2, 3]),
        ("1", [1, 2, 3]),  # all parts of the one that is divided
        ("MIG-00000000-0000-0000-0001-000000000001", [2]),
        ("0,MIG-00000000-0000-0000-0002-000000000001", [0, 3]),
        ("MIG-00000000-0000-0000-0007-000000000001,0", []),
    ],
)
def test_parts_of_a_gpu_are_devices_and_the_whole_is_none(
    tmp_path: Path, repository: Path, visible: str | None, numbers: list[int]
) -> None:
    library = compile_library(repository / "tests/fakes/fake_nvml.c", tmp_path / "libnvidia-ml.so.1")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML_DEVICES": "2",
        "FAKE_NVML_TOTAL": str(24 << 30),
        "FAKE_NVML_USED_1": str(1 << 30),
        "FAKE_NVML_MIG_1": "3",
    }
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    output = subprocess.run(
        [sys.executable, "-c", READ], env=environment, capture_output=True, text=True, check=False
    )
    found = json.loads(output.stdout)[1] if numbers else []
    assert [device["index"] for device in found] == numbers
    for device in found:
        number = device["index"]
        begins = "GPU-" if number == 0 else f"MIG-00000000-0000-0000-{number - 1:04}-"
        assert device["uuid"].startswith(begins)
        gpu = min(number, 1)
        assert (device["gpu"], device["bus_id"]) == (gpu, f"0000:0{gpu + 1}:00.0")
        assert device["total_bytes"] == (24 << 30 if number == 0 else 8 << 30)
        assert device["free_bytes"] == device["total_bytes"] - (1 << 30 if number == 1 else 0)
    if not numbers:
        assert "names none of the 4 here" in output.stderr


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("1", [1]),
        ("2,0", [0, 2]),
        ("0, 1", [0, 1]),
        ("GPU-00000000-0000-0000-0000-000000000002", [2]),
        ("GPU-00000000-0000-0000-0000-000000000002,0", [0, 2]),
        ("1,7,0", [1]),  # what stands behind a wrong one is hidden
        ("GPU-0000,0", []),  # the beginning of several
        ("-1", []),
        ("", []),
        ("MIG-00000000-0000-0000-0001-000000000002", []),  # no GPU is divided here
    ],
)
def test_gpus_that_a_scheduler_gave(tmp_path: Path, repository: Path, named: str, seen: list[int]) -> None:
    library = compile_library(repository / "tests/fakes/fake_nvml.c", tmp_path / "libnvidia-ml.so.1")
    environment = {
        **os.environ,
        "LD_LIBRARY_PATH": str(library.parent),
        "FAKE_NVML_DEVICES": "3",
        "CUDA_VISIBLE_DEVICES": named,
    }
    read = (
        "from llm_node import devices; print([gpu.index for gpu in devices.read('cuda')], "
        "len(devices.read('vulkan')))\n"
        "try: print(devices.resolve_backend('auto'))\n"
        "except devices.NoGpuError as error: print(error)"
    )
    output = subprocess.run(
        [sys.executable, "-c", read], env=environment, capture_output=True, text=True, check=True
    ).stdout
    first, second = output.splitlines()
    assert first == f"{seen} 3"
    assert second == "cuda" if seen else "names none of the 3 here" in second
