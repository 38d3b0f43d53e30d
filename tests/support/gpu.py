"""GPUs where there are none: a libnvidia-ml that says what a test wants."""

from __future__ import annotations

from pathlib import Path

from support.engines import FAKES, compile_library


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
