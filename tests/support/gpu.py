"""GPUs where there are none: a libnvidia-ml that says what a test wants."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.engines import FAKES, compile_library, fake_engine
from support.node import RunningNode, running_node

GIB = 1 << 30


class Gpu:
    """A GPU of 8 GiB, of which a test says what is free."""

    def __init__(self, folder: Path) -> None:
        self._state = folder / "gpu"
        library = compile_library(FAKES / "fake_nvml.c", folder / "nvml/libnvidia-ml.so.1")
        self.environment = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_STATE": str(self._state)}
        self.shows(0)

    def shows(self, used: int, pids: str = "", **more: object) -> None:
        """`more`: lines of the state, by their names without FAKE_NVML_."""
        lines = {"USED": used, "PIDS": pids, **more}
        fresh = self._state.with_suffix(".fresh")
        fresh.write_text("".join(f"FAKE_NVML_{name}={value}\n" for name, value in lines.items()))
        fresh.replace(self._state)


@contextmanager
def node_on(gpu: Gpu, folder: Path, *more: str) -> Iterator[RunningNode]:
    """A node that computes there, with the models "a" and "b", of 1 GiB each."""
    fake_engine(folder / "engines", "toy", backend="cuda")
    (folder / "models").mkdir()
    for model in "ab":
        (folder / f"models/{model}.toy").write_text(f"TOY1\nestimate_bytes={GIB}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    limits = ["--gpu-backend", "cuda", "--cache-tokens", "512", "--max-sequences", "2"]
    arguments = [*places, *limits, "--monitor-interval", "50", *more]
    with running_node(folder / "node", arguments, environment=gpu.environment) as node:
        node.extra["home"] = folder / "node"
        yield node
