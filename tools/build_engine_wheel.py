"""Make a wheel of a built engine: `python tools/build_engine_wheel.py engines/llama_cpp/cpu`.

The wheel holds the folder as it is, and nothing that runs in Python. Libraries that come with other packages
by the manifest are left out, and the wheel depends on these packages. `pip install` of it is all that a node
needs to find the engine (`python/llm_node/engine_packages.py`). Its version is that of the ABI and then that
of the engine, so that a node can ask for `~=1.0`. An engine that `build_engine.py` compiled for one machine
alone has a local version (`+native.…`), which no package index takes. Prints the path of the wheel.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / "engines" / "package"
RECORD = "build.json"
"""What `build_engine.py` keeps for itself."""


def local_version(engine: Path) -> str:
    """`+native.…` if the engine is for the processor alone that it was compiled on."""
    try:
        kind = json.loads((engine / RECORD).read_text(encoding="utf-8")).get("kind", "")
    except FileNotFoundError:  # not an engine of this repository
        return ""
    return f"+{kind.replace('-', '.')}" if kind.startswith("native") else ""


def major(library: str) -> int:
    """Of `libcublas.so.13` or `cublas64_13.dll`: 13."""
    (number,) = re.findall(r"(?:\.so\.|64_)(\d+)", library)
    return int(number)


def dependencies(libraries: list[list[str]]) -> list[str]:
    """The packages that bring them, each of the libraries' own generation."""
    wanted = {package: major(library) for library, package in libraries}
    return [f"{package}>={number},<{number + 1}" for package, number in sorted(wanted.items())]


def build(engine: Path, out: Path) -> Path:
    """The wheel of the engine in this folder, in `out`."""
    manifest = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
    backend = manifest["gpu_backend"]
    libraries = manifest.get("libraries", [])
    kind = f"{backend}{major(libraries[0][0])}" if backend == "cuda" and libraries else backend
    name = f"llm-node-engine-{manifest['id'].removesuffix('_cpp').replace('_', '-')}-{kind}"
    words = {
        "name": name,
        "module": name.replace("-", "_"),
        "version": f"{manifest['abi_version']}.{manifest['version']}{local_version(engine)}",
        "id": manifest["id"],
        "backend": backend,
        "dependencies": json.dumps(dependencies(libraries)),
    }
    left_out = (RECORD, *(library for library, _ in libraries))
    with tempfile.TemporaryDirectory() as temporary:
        project = Path(temporary)
        text = (TEMPLATE / "pyproject.toml.in").read_text(encoding="utf-8")
        for key, value in words.items():
            text = text.replace(f"{{{key}}}", value)
        (project / "pyproject.toml").write_text(text, encoding="utf-8")
        shutil.copy(TEMPLATE / "platform_tag.py", project)
        package = project / words["module"]
        place = package / "engines" / manifest["id"] / backend
        shutil.copytree(engine, place, ignore=shutil.ignore_patterns(*left_out))
        (package / "__init__.py").write_text(f'"""The engine {manifest["id"]} ({backend}): files alone."""\n')
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(out.resolve())]
        subprocess.run(command, cwd=project, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = out.glob(f"{words['module']}-{words['version']}-*.whl")
    return wheel


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("engine", type=Path, help="folder with a manifest.json")
    parser.add_argument("--out", type=Path, default=ROOT / ".cache" / "wheels")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    print(build(given.engine, given.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
