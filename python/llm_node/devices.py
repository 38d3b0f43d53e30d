"""What memory this machine has for models: its GPUs through NVML, and the host's RAM.

Only reads. It never creates a GPU context and never decides which model goes where; it refuses to
fall back from a GPU to the CPU.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pynvml

from llm_node._core import host_memory_bytes
from llm_node.settings import cuda_visible_devices

log = logging.getLogger(__name__)

PROGRAM_SECONDS = 20
"""For so long NVIDIA's program may take to load a part of the kernel."""

LOOK_SECONDS = 1.0
"""What only people look at is read no more often: on some GPUs it takes milliseconds."""

Kind = Literal["gpu", "unified", "host"]
"""A GPU with memory of its own, one that shares the host's, or that itself."""

State = Literal["ok", "lost", "unreadable"]
"""Lost: the driver has given the GPU up, until it is reset. Unreadable: NVML answers with another error."""


class NoGpuError(Exception):
    """A GPU was needed, and there is none that can be used. The message says what to do."""


@dataclass(frozen=True)
class Look:
    """How busy a GPU is; None is what it does not tell."""

    utilization_percent: int | None
    """Of the last moments, the share in which it computed anything."""
    temperature_celsius: int | None
    power_watts: int | None
    clock_mhz: int | None
    """Of its multiprocessors."""


@dataclass(frozen=True)
class Device:
    """Memory that models can take."""

    index: int
    """Its number among those of its kind. An instance of a GPU that is divided (MIG) has one of its own."""
    name: str
    """ "NVIDIA H200", or "host" for plain RAM."""
    bus_id: str | None
    """PCI address as CUDA writes it ("0000:3b:00.0"); None for the host."""
    total_bytes: int
    free_bytes: int
    """At the time of reading; both of a GPU without memory of its own are the host's."""
    kind: Kind = "gpu"
    driver: str | None = None
    """Version of the driver."""
    uuid: str | None = None
    """"GPU-", or of an instance "MIG-", and what NVML calls it for good."""
    gpu: int = 0
    """The number of the GPU that it is, or is an instance of, by PCI address."""
    processes: tuple[tuple[int, int], ...] = ()
    """Those that compute on it, by number, with their bytes."""
    state: State = "ok"
    """Of one that is not, the other figures are those of the last time that it was."""
    look: Look | None = None


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
    """The devices whose memory models of this backend take, with what is free now. Of GPUs that NVML does not
    know their engine tells: `rust/node/src/supervise/engine_devices.rs`."""
    if backend == "cpu":
        return [host()]
    return cuda_gpus() if backend == "cuda" else nvidia_gpus()


class Reader:
    """Reads the devices for as long as a node runs, with NVML opened once.

    A GPU that was there stays, and its state says what became of it.

    Belongs to one thread: a call of a driver may never return.
    """

    def __init__(self, backend: str) -> None:
        self._backend = backend
        self._known: dict[str, Device] = {}
        self._states: dict[str, State] = {}
        self._looks: dict[int, tuple[float, Look]] = {}
        self._is_open = False

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self) -> list[Device]:
        """As the module's `read`."""
        if self._backend == "cpu":
            return read(self._backend)
        try:
            self._keep_open()
            found = list(_gpus())
        except (pynvml.NVMLError, OSError) as error:
            # The driver may be another one the next time.
            self._close()
            log.debug("NVML does not answer: %s", error)
            found = []
        ill = {gpu.gpu: gpu.state for gpu in found if gpu.state != "ok"}
        well = {_key(gpu): replace(gpu, look=self._look(gpu)) for gpu in found if gpu.state == "ok"}
        self._known |= well
        gpus = []
        for key, known in self._known.items():
            state: State = "ok" if key in well else ill.get(known.gpu, "unreadable")
            if state != self._states.get(key, "ok"):
                log.warning("GPU %d (%s) is %s", known.index, known.name, state)
            self._states[key] = state
            if state != "ok":
                known = replace(known, state=state, free_bytes=0, processes=(), look=None)
            gpus.append(known)
        gpus.sort(key=lambda gpu: gpu.index)
        return _visible(gpus) if self._backend == "cuda" else gpus

    def _keep_open(self) -> None:
        """NVML counts who has opened it: whoever opens it beside this costs nothing."""
        if not self._is_open:
            pynvml.nvmlInit()
            self._is_open = True

    def _close(self) -> None:
        if self._is_open:
            self._is_open = False
            _close()

    def _look(self, gpu: Device) -> Look | None:
        read_at, look = self._looks.get(gpu.gpu, (float("-inf"), None))
        now = time.monotonic()
        if look is None or now - read_at >= LOOK_SECONDS:
            look = _look(gpu.gpu)
            self._looks[gpu.gpu] = now, look
        return look


def _key(gpu: Device) -> str:
    return gpu.uuid or str(gpu.gpu)


def cuda_gpus() -> list[Device]:
    """Those of them that a worker sees with CUDA."""
    return _visible(nvidia_gpus())


def _visible(gpus: list[Device]) -> list[Device]:
    """Schedulers name the GPUs of a process by `CUDA_VISIBLE_DEVICES`."""
    named = cuda_visible_devices()
    if named is None:
        return gpus
    left: list[Device] = []
    for name in named:
        found = [gpu for gpu in gpus if _is_meant(name, gpu)]
        if len({gpu.gpu for gpu in found}) != 1:
            break  # as CUDA reads it: what stands behind a wrong name is hidden as well
        left += found
    return [gpu for gpu in gpus if gpu in left]


def _is_meant(name: str, gpu: Device) -> bool:
    """A number is that of the order by PCI address, which workers get (`environment.rs`); of a divided GPU it
    means all instances. A name may be the beginning of the whole one."""
    if name.isdecimal():
        return int(name) == gpu.gpu
    return gpu.uuid is not None and name.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(name)


def nvidia_gpus() -> list[Device]:
    """All GPUs that NVML answers for; none where the library or the driver is absent."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return []
    try:
        gpus = list(_gpus())
    except pynvml.NVMLError as error:
        log.warning("NVML does not answer: %s", error)
        return []
    finally:
        _close()
    for gpu in gpus:
        if gpu.state != "ok":
            log.warning("%s cannot be used: NVML says that it is %s", gpu.name, gpu.state)
    return [gpu for gpu in gpus if gpu.state == "ok"]


def about_driver(gpu: int) -> str:
    """What NVML says of itself, and of how a GPU is kept, in words for people. `gpu`: its number by PCI
    address."""
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError, OSError):
        return "NVML does not answer"
    words = []
    try:
        words.append(f"NVML {_text(pynvml.nvmlSystemGetNVMLVersion())}")
        mode = pynvml.nvmlDeviceGetPersistenceMode(pynvml.nvmlDeviceGetHandleByIndex(gpu))
        words.append(f"persistence mode {'on' if mode == pynvml.NVML_FEATURE_ENABLED else 'off'}")
    except pynvml.NVMLError as error:
        log.debug("GPU %d: %s", gpu, error)
    finally:
        _close()
    return ", ".join(words)


def _close() -> None:
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlShutdown()


def _gpus() -> Iterator[Device]:
    """NVML is open. Of one that is not `ok`, the number of its GPU and its state count."""
    driver = _text(pynvml.nvmlSystemGetDriverVersion())
    number = 0
    for index in range(pynvml.nvmlDeviceGetCount()):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for part in _instances(handle) if _is_divided(handle) else [handle]:
                yield replace(_nvidia_gpu(part, handle), index=number, gpu=index, driver=driver)
                number += 1
            continue
        except pynvml.NVMLError_GpuIsLost:
            state: State = "lost"
        except pynvml.NVMLError as error:
            log.debug("GPU %d: %s", index, error)
            state = "unreadable"
        yield Device(number, f"GPU {index}", None, 0, 0, gpu=index, state=state)
        number += 1


def _is_divided(handle: Any) -> bool:
    """Is its memory that of its instances? As a whole it computes nothing then."""
    try:
        current, _ = pynvml.nvmlDeviceGetMigMode(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return False  # few GPUs can be divided
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _instances(handle: Any) -> Iterator[Any]:
    for place in range(pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(pynvml.NVMLError_NotFound):
            yield pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, place)


def _nvidia_gpu(handle: Any, whole: Any) -> Device:
    """`whole`: the GPU itself, where `handle` is an instance of it."""
    name = _text(pynvml.nvmlDeviceGetName(handle))
    bus_id = _bus_id(_text(pynvml.nvmlDeviceGetPciInfo(whole).busId))
    uuid = _text(pynvml.nvmlDeviceGetUUID(handle))
    kind: Kind = "gpu"
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        total, free = int(memory.total), int(memory.free)
    except pynvml.NVMLError_NotSupported:
        # A GPU that shares the host's memory has none of its own to report.
        shared = host()
        kind, total, free = "unified", shared.total_bytes, shared.free_bytes
    processes = tuple(_processes(handle))
    return Device(0, name, bus_id, total, free, kind, uuid=uuid, processes=processes)


def _look(index: int) -> Look:
    def told(ask: Callable[[Any], int]) -> int | None:
        try:
            return ask(pynvml.nvmlDeviceGetHandleByIndex(index))
        except pynvml.NVMLError:
            return None

    power = told(pynvml.nvmlDeviceGetPowerUsage)
    return Look(
        utilization_percent=told(lambda handle: int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        temperature_celsius=told(
            lambda handle: pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU)
        ),
        power_watts=None if power is None else round(power / 1000),
        clock_mhz=told(lambda handle: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)),
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
    return Device(0, "host", None, total, available, "host")
