"""What memory this machine has for models: its GPUs through NVML, and the host's RAM.

Only reads. It never creates a GPU context and never decides which model goes where; it refuses to
fall back from a GPU to the CPU.
"""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from llm_node._core import host_memory_bytes
from llm_node.settings import cuda_visible_devices

log = logging.getLogger(__name__)

PROGRAM_SECONDS = 20
"""For so long NVIDIA's program may take to load a part of the kernel."""


class NoGpuError(Exception):
    """A GPU was needed, and there is none that can be used. The message says what to do."""


@dataclass(frozen=True)
class Device:
    """Memory that models can take."""

    index: int
    """Its number among those of its kind."""
    name: str
    """ "NVIDIA H200", or "host" for plain RAM."""
    bus_id: str | None
    """PCI address as CUDA writes it ("0000:3b:00.0"); None for the host."""
    total_bytes: int
    free_bytes: int
    """At the time of reading."""
    is_host: bool = False
    driver: str | None = None
    """Version of the driver."""
    uuid: str | None = None
    """"GPU-" and what NVML calls it for good."""
    processes: tuple[tuple[int, int], ...] = ()
    """Those that compute on it, by number, with their bytes."""


def resolve_backend(wanted: str) -> str:
    """The backend that `--gpu-backend WANTED` comes to. Raises `NoGpuError`; never turns to the CPU.

    A backend that somebody named is taken at their word, save that "cuda" needs a device to count.
    """
    if wanted == "auto":
        if sys.platform == "darwin":
            return "metal"
        if cuda_gpus():
            return "cuda"
        raise NoGpuError(
            f"No GPU that llm-node can use was found ({_why_none()}), and the CPU is never chosen for "
            "you. Install the NVIDIA driver, or choose --gpu-backend vulkan or --gpu-backend cpu"
        )
    if wanted == "cuda" and not cuda_gpus():
        raise NoGpuError(
            f"No NVIDIA GPU found: {_why_none()}. Install the driver, or choose the CPU "
            "with --gpu-backend cpu"
        )
    return wanted


def _why_none() -> str:
    hidden = len(nvidia_gpus())
    return f"CUDA_VISIBLE_DEVICES names none of the {hidden} here" if hidden else "NVML knows of none"


def make_device_files(backend: str, folder: Path = Path("/dev")) -> None:
    """Have NVIDIA's own program make what CUDA needs beside the GPUs themselves. CUDA would call it when it
    is first used since the machine's start, but workers may not bring in parts of the kernel."""
    program = shutil.which("nvidia-modprobe")
    if backend != "cuda" or program is None or (folder / "nvidia-uvm").exists():
        return
    if not (folder / "nvidiactl").exists():
        return  # a system that knows GPUs by other files
    command = [program, "-u", "-c", "0"]
    try:
        subprocess.run(command, capture_output=True, check=True, timeout=PROGRAM_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        log.warning("/dev/nvidia-uvm is missing, and it could not be made: %s", error)


def read(backend: str) -> list[Device]:
    """The devices whose memory models of this backend take, with what is free now."""
    if backend == "cpu":
        return [host()]
    if backend == "metal":
        # Unified memory: the GPU's is the host's.
        memory = host()
        return [Device(0, "Apple GPU", None, memory.total_bytes, memory.free_bytes)]
    return cuda_gpus() if backend == "cuda" else nvidia_gpus()


def cuda_gpus() -> list[Device]:
    """Those of them that a worker sees with CUDA: schedulers name the GPUs of a process by
    `CUDA_VISIBLE_DEVICES`."""
    named = cuda_visible_devices()
    gpus = nvidia_gpus()
    if named is None or any(name.startswith("MIG-") for name in named):
        return gpus  # parts of GPUs are not told apart here
    left: list[Device] = []
    for name in named:
        found = [gpu for gpu in gpus if _is_meant(name, gpu)]
        if len(found) != 1:
            break  # as CUDA reads it: what stands behind a wrong name is hidden as well
        left += found
    return [gpu for gpu in gpus if gpu in left]


def _is_meant(name: str, gpu: Device) -> bool:
    """A number is that of the order by PCI address, which workers get (`environment.rs`); a name may be the
    beginning of the whole one."""
    if name.isdecimal():
        return int(name) == gpu.index
    return gpu.uuid is not None and name.startswith("GPU-") and gpu.uuid.startswith(name)


def nvidia_gpus() -> list[Device]:
    """All GPUs that NVML answers for; none where the library or the driver is absent."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [
            device
            for index in range(pynvml.nvmlDeviceGetCount())
            if (device := _nvidia_gpu(index, driver)) is not None
        ]
    except pynvml.NVMLError as error:
        log.warning("NVML does not answer: %s", error)
        return []
    finally:
        pynvml.nvmlShutdown()


def _nvidia_gpu(index: int, driver: str) -> Device | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = _text(pynvml.nvmlDeviceGetName(handle))
        bus_id = _bus_id(_text(pynvml.nvmlDeviceGetPciInfo(handle).busId))
        uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    except pynvml.NVMLError as error:
        log.warning("GPU %d cannot be used: %s", index, error)
        return None
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except pynvml.NVMLError_NotSupported:
        # A GPU that shares the host's memory has none of its own to report.
        unified = host()
        total, free = unified.total_bytes, unified.free_bytes
    except pynvml.NVMLError as error:
        log.warning("the memory of GPU %d (%s) cannot be read: %s", index, name, error)
        return None
    return Device(
        index, name, bus_id, total, free, driver=driver, uuid=uuid, processes=tuple(_processes(handle))
    )


def _processes(handle: Any) -> Iterator[tuple[int, int]]:
    """In containers their numbers are the host's, and some systems do not tell them at all."""
    try:
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.usedGpuMemory is not None:
                yield int(process.pid), int(process.usedGpuMemory)
    except pynvml.NVMLError:
        return


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _bus_id(text: str) -> str:
    """NVML writes "00000000:3B:00.0", CUDA "0000:3b:00.0": the latter joins the accounts."""
    domain, _, rest = text.lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}" if rest and domain else text.lower()


def host() -> Device:
    """The machine's RAM; in a container as much of it as its limit allows."""
    total, available = host_memory_bytes()
    return Device(0, "host", None, total, available, is_host=True)
