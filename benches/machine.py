"""What the machine does meanwhile: processor time of processes and of all others, memory, versions."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")
CPUS = os.cpu_count() or 1


def client_pin() -> list[str]:
    """What a client's command begins with, so that it runs on the last core, whatever it measures."""
    return ["taskset", "-c", str(CPUS - 1)] if CPUS > 1 and shutil.which("taskset") else []


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def children_of(pid: int) -> list[int]:
    """All descendants."""
    table: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                table.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found: list[int] = []
    open_ends = [pid]
    while open_ends:
        below = table.get(open_ends.pop(), [])
        found += below
        open_ends += below
    return found


def listener(port: int) -> int | None:
    """The process of this machine that listens there; of several that share the socket, the first."""
    sockets = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                sockets.add(f"socket:[{fields[9]}]")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(os.readlink(link) in sockets for link in (entry / "fd").iterdir()):
                    found.append(int(entry.name))
    return min(found, default=None)


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time of these processes until now, all threads, user and system."""
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = _stat(pid)
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """A line of /proc/PID/status that is given in kB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"process {pid} has no {field}")


@dataclass(frozen=True)
class Reading:
    """The machine's clocks at one moment, in seconds."""

    at: float
    busy: float
    steal: float

    @classmethod
    def now(cls) -> Reading:
        """Interrupts are nobody's: on a benchmark's machine they are the loopback's, which is ours."""
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        user, nice, system, _, _, _, _, steal = fields
        return cls(time.monotonic(), (user + nice + system) / TICK, steal / TICK)

    def foreign_since(self, earlier: Reading, ours: float) -> float:
        """The share of the machine that others took, what the host stole included; `ours` in seconds."""
        capacity = (self.at - earlier.at) * CPUS
        taken = self.busy - earlier.busy + self.steal - earlier.steal
        return max(0.0, taken - ours) / capacity if capacity > 0 else 0.0


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def gpu() -> str | None:
    """The name of the first GPU, or none."""
    try:
        done = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except OSError:
        return None
    names = done.stdout.strip().splitlines()
    return names[0] if done.returncode == 0 and names else None


def describe() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "processor": processor(),
        "cores": CPUS,
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "gpu": gpu(),
    }
