"""A home on a disk that is full: the node serves, says what is not kept, and leaves nothing half written."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import PROGRAM, node_environment, running_node


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A folder where no byte can be written any more."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("making a small file system is for root")
    with contextlib.suppress(OSError), (place / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_nothing_half_written_is_left(engines: Path, full: Path, tmp_path: Path) -> None:
    arguments = ["--home", str(full), "--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        assert "commands will not find this node" in node.log.read_text()
        answer = node.post("/api/models/alias", {"model": "llm-node-demo", "alias": "other"})
        assert (answer.status, answer.json()["error"]["code"]) == (507, "disk_full")
        assert "'other' is 'llm-node-demo' until this node ends" in answer.json()["error"]["message"]
        assert "No space left on device" in answer.json()["error"]["message"]
        assert "Errno" not in answer.json()["error"]["message"]
        for typed, file in (
            (["config", "set", "port", "1"], full / "config.toml"),
            (["engine", "new", "mine"], "mine/"),
        ):
            written = subprocess.run(
                [str(PROGRAM), "--home", str(full), *typed],
                capture_output=True,
                text=True,
                check=False,
                cwd=full,
                env=node_environment(tmp_path),
            )
            assert written.returncode == 4, written.stderr
            assert written.stderr.startswith(f"Error: {file}"), written.stderr
            assert "cannot be written: No space left on device" in written.stderr
        made = subprocess.run(
            [str(PROGRAM), "key", "new", "mine", "--api-key-file", str(full / "keys")],
            capture_output=True,
            text=True,
            check=False,
            env=node_environment(tmp_path),
        )
        assert made.returncode != 0 and "No space left on device" in made.stderr
        files = [path.name for path in full.rglob("*") if path.is_file()]
        assert files == ["filling"]
