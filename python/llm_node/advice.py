"""What a node lacks and what to type for it: for the terminal, for `GET /api/system`, and so for the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llm_node import installation
from llm_node.errors import Failure

if TYPE_CHECKING:
    from llm_node.devices import Device

Row = dict[str, Any]
"""An engine or a model, as the node lists it."""


@dataclass(frozen=True)
class Advice:
    """A sentence, and a command."""

    code: str
    text: str
    command: str


NO_ENGINE = Advice(
    "no_engine", "No engine, so no model can be loaded.", f"{installation.NAME} engine install"
)
NO_MODEL = Advice("no_model", "No model yet.", f"{installation.NAME} pull ORG/REPO")
GPU_UNUSED = "gpu_unused"


def usable(engines: Sequence[Row], gpu_backend: str | None) -> list[Row]:
    """Engines that work, and on this backend."""
    return [it for it in engines if it["status"] == "loaded" and it["gpu_backend"] == gpu_backend]


def of_node(
    engines: Sequence[Row], models: Sequence[Row], gpu_backend: str | None, gpus: Sequence[Device]
) -> list[Row]:
    """What to type next on the machine of a node that serves, the first thing first; mostly nothing. `gpus`:
    those that NVML knows of."""
    found = []
    if not usable(engines, gpu_backend):
        found.append(NO_ENGINE)
    elif not models:
        found.append(NO_MODEL)
    if gpu_backend == "cpu" and gpus:
        found.append(_unused(gpus[0], bool(usable(engines, "cuda"))))
    return [asdict(it) for it in found]


def _unused(gpu: Device, has_engine: bool) -> Advice:
    text = f"Models run on the CPU though there is a GPU, {gpu.name} with driver {gpu.driver}."
    if has_engine:
        return Advice(GPU_UNUSED, text, f"{installation.NAME} config set gpu_backend cuda")
    return Advice(GPU_UNUSED, text, shlex.join(installation.here().add(f"{installation.NAME}[cuda]")))


def on(fault: Failure, typed: Sequence[str]) -> list[str]:
    """Lines for who typed these words behind `llm-node` where there is no GPU; none where there is nothing to
    type."""
    if fault.code != "gpu_not_found":
        return []
    command = [installation.NAME, *typed]
    # What stands behind `--` is no flag.
    end = command.index("--") if "--" in command else len(command)
    command[end:end] = ["--gpu-backend", "cpu"]
    return [
        f"  use this CPU:  {shlex.join(command)}",
        "  for good:      llm-node config set gpu_backend cpu",
    ]
