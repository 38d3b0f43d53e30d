"""Virtual environments for tests: fresh, without an index, and with what the tests themselves have."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.node import node_environment

WHEELS = Path(__file__).resolve().parents[2] / ".cache/wheels"


def node_wheel() -> Path:
    """The one that `make setup` has made last."""
    made = list(WHEELS.glob("llm_node-*.whl"))
    assert made, "no wheel of the node: run `make setup`"
    return max(made, key=lambda path: path.stat().st_mtime)


def packed(repository: Path, engine: Path, out: Path) -> Path:
    """The wheel of a built engine."""
    tool = repository / "tools/build_engine_wheel.py"
    command = [sys.executable, str(tool), str(engine), "--out", str(out)]
    return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())


class Environment:
    """A fresh virtual environment, which sees the packages of the one that the tests run in."""

    def __init__(self, root: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
        self.root = root
        self.home = root / "home"
        self.home.mkdir()
        self.python = root / "bin/python"
        (site,) = root.glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def pip(self, *arguments: str | Path) -> None:
        """No index is asked."""
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "--quiet"]
        environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        subprocess.run([*pip, *map(str, arguments)], check=True, env=environment)

    def install(self, *wheels: Path) -> None:
        """What they depend on is there."""
        self.pip("install", "--no-index", "--no-deps", "--ignore-installed", *wheels)

    def run(
        self, *arguments: str, flags: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """`llm-node ARGUMENTS` there. No index is asked."""
        code = "from llm_node.cli import main; main()"
        return self.python_says(code, *arguments, flags=flags, **environment)

    def python_says(
        self, code: str, *arguments: str, flags: tuple[str, ...] = (), **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What a program in Python comes to there."""
        return subprocess.run(
            [str(self.python), *flags, "-c", code, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            env=node_environment(
                self.home, PIP_NO_INDEX="1", PIP_DISABLE_PIP_VERSION_CHECK="1", **environment
            ),
        )

    def engines(self, *arguments: str) -> list[tuple[str, str, str]]:
        """Id, status and path of each."""
        result = self.run("engines", "--json", *arguments)
        assert result.returncode == 0, result.stderr
        rows = json.loads(result.stdout)["engines"]
        return [(row["id"], row["status"], row["path"]) for row in rows]


def wheel(
    out: Path, name: str, version: str, files: Mapping[str, Path | bytes], requires: Sequence[str] = ()
) -> Path:
    """A wheel that holds these files, and nothing that builds it."""
    information = f"{name.replace('-', '_')}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    tag = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {path: each if isinstance(each, bytes) else each.read_bytes() for path, each in files.items()}
    content[f"{information}/METADATA"] = ("\n".join(metadata) + "\n").encode()
    content[f"{information}/WHEEL"] = tag.encode()
    path = out / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        record = []
        for each, data in content.items():
            archive.writestr(each, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{each},sha256={digest},{len(data)}")
        archive.writestr(f"{information}/RECORD", "\n".join([*record, f"{information}/RECORD,,"]) + "\n")
    return path
