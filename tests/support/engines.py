"""Engine folders for tests: the built llama.cpp engine, the samples, and fakes compiled on the spot."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
HEADER_FOLDER = ROOT / "rust/abi/include"
FAKES = ROOT / "tests/fakes"


def compile_library(source: Path, output: Path, flags: Sequence[str] = ()) -> Path:
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [
        os.environ.get("CC", "cc"),
        *("-shared", "-fPIC", "-O1", "-std=gnu11", f"-I{HEADER_FOLDER}"),
        *flags,
        *("-o", str(output), str(source), "-lm", "-lpthread"),
    ]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return output


def write_manifest(folder: Path, **fields: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    path.write_text(json.dumps(fields, indent=2))
    return path


def fake_engine(
    engines: Path,
    engine_id: str = "fake",
    *,
    backend: str = "cpu",
    defines: Mapping[str, str | int | None] | None = None,
    manifest: Mapping[str, Any] | None = None,
) -> Path:
    """Compile tests/fakes/fake_engine.c into ENGINES/ID/BACKEND with a manifest; gives the folder.

    `defines` are the fake's -D switches (None: no value); `manifest` overrides single fields, and a
    field that is None is left out.
    """
    folder = engines / engine_id / backend
    flags = [f"-D{key}" if value is None else f"-D{key}={value}" for key, value in (defines or {}).items()]
    if not any(flag.startswith("-DFAKE_ENGINE_ID") for flag in flags):
        flags.append(f'-DFAKE_ENGINE_ID="{engine_id}"')
    compile_library(FAKES / "fake_engine.c", folder / "libfake_engine.so", flags)
    fields: dict[str, Any] = {
        "id": engine_id,
        "version": "1.0.0",
        "abi_version": "1",
        "gpu_backend": backend,
        "architectures": ["toy"],
        "formats": ["toy"],
        "binary": "libfake_engine.so",
        **(manifest or {}),
    }
    write_manifest(folder, **{key: value for key, value in fields.items() if value is not None})
    return folder


def confined_engine(engines: Path) -> None:
    """The engine of the worker's own tests that says what it is refused. It takes models NAME.confined."""
    _engine_of(ROOT / "rust/worker/tests/engines/confined.c", engines, "confined", ["*"], ["confined"])


def snapshot_engine(engines: Path) -> None:
    """One that reads folders of safetensors, of the architecture "sharded". Its answer says how much."""
    _engine_of(FAKES / "snapshot_engine.c", engines, "snapshot", ["sharded"], ["safetensors"])


def _engine_of(
    source: Path, engines: Path, engine_id: str, architectures: list[str], formats: list[str]
) -> None:
    folder, binary = engines / engine_id / "cpu", f"lib{engine_id}.so"
    compile_library(source, folder / binary)
    write_manifest(
        folder,
        id=engine_id,
        version="1.0.0",
        abi_version="1",
        gpu_backend="cpu",
        architectures=architectures,
        formats=formats,
        binary=binary,
    )
