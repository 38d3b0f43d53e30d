"""`node.json`: how the commands find the node that runs here."""

from __future__ import annotations

import json
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llm_node.server import record
from llm_node.server.record import NodeRecord
from support.node import PROGRAM, RunningNode, node_environment, running_node


@pytest.fixture(scope="module")
def serving(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningNode, Path]]:
    """A node that `llm-node serve` started, and its home."""
    folder = tmp_path_factory.mktemp("serving")
    arguments = ["serve", "--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(folder, arguments) as running:
        yield running, folder / ".llm-node"
    assert not (folder / ".llm-node/node.json").exists(), "the record outlives its node"


def listed(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), "list", "--json", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(home),
    )


def test_a_node_that_serves_says_where_it_is(serving: tuple[RunningNode, Path]) -> None:
    node, home = serving
    found = record.read(home)
    assert found is not None and found.key
    assert found == NodeRecord(node.get("/readyz").json()["node_id"], node.url, node.process.pid, found.key)
    assert stat.S_IMODE((home / "node.json").stat().st_mode) == 0o600


def test_the_home_of_a_newer_llm_node_is_left_alone(
    serving: tuple[RunningNode, Path], tmp_path: Path
) -> None:
    _, home = serving
    assert (home / "layout").read_text() == "1\n", "a node that serves says which layout it knows"
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "layout").write_text("2\n")
    for command in ("serve", "list"):
        done = subprocess.run(
            [str(PROGRAM), command, "--home", str(newer), "--gpu-backend", "cpu"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env=node_environment(tmp_path),
        )
        assert done.returncode == 2, done.stderr
        words = f"--home {newer}: a newer llm-node has laid it out (layout 2, and this one knows 1); upgrade"
        assert words in done.stderr
    assert [path.name for path in newer.iterdir()] == ["layout"]


def test_list_asks_the_node_that_runs(serving: tuple[RunningNode, Path]) -> None:
    node, home = serving
    node.reload("llm-node-demo")
    for arguments in ([], ["--node", node.url]):
        (row,) = json.loads(listed(home.parent, *arguments).stdout)["models"]
        assert (row["model_id"], row["status"]) == ("llm-node-demo", "loaded")
    unheeded = listed(home.parent, "--demo-model", "no").stderr
    assert f"The node at {node.url} has settings of its own: --demo-model changes nothing." in unheeded


def test_a_record_of_another_node_is_not_believed(serving: tuple[RunningNode, Path], tmp_path: Path) -> None:
    node, _ = serving
    home = tmp_path / ".llm-node"
    with NodeRecord("another", node.url, 1, "k").kept_in(home):
        (row,) = json.loads(listed(tmp_path).stdout)["models"]
        assert row["status"] == "available"


def test_a_node_that_is_named_and_not_there(tmp_path: Path) -> None:
    result = listed(tmp_path, "--node", "http://127.0.0.1:1")
    assert result.returncode == 6
    assert "the node at http://127.0.0.1:1 cannot be reached" in result.stderr


def test_the_last_one_that_started_is_kept(tmp_path: Path) -> None:
    first, second = (
        NodeRecord("a", "http://127.0.0.1:1", 1, "k"),
        NodeRecord("b", "http://127.0.0.1:2", 2, "k"),
    )
    with first.kept_in(tmp_path):
        with second.kept_in(tmp_path):
            assert record.read(tmp_path) == second
        with second.kept_in(tmp_path):
            pass
    with second.kept_in(tmp_path):
        with first.kept_in(tmp_path):
            pass
        assert record.read(tmp_path) is None


def test_a_second_node_in_a_home_leaves_the_first_to_be_found(
    serving: tuple[RunningNode, Path], tmp_path: Path
) -> None:
    first, home = serving
    known, gone = record.read(home), NodeRecord("gone", "http://127.0.0.1:1", 1, "k")
    assert known is not None
    replace(gone, before=replace(known, before=gone)).write(home)  # both were killed
    with running_node(tmp_path, ["serve", "--home", str(home), "--gpu-backend", "cpu"]) as second:
        deadline = time.monotonic() + 30
        while f"another node runs in this home, at {first.url}" not in second.log_text():
            assert time.monotonic() < deadline, second.log_text()
            time.sleep(0.05)
        found = record.read(home)
        assert found is not None and found.url == second.url
        assert list(found.all())[1:] == [known], "what has ended is told of no more"
        words = f"The one at {second.url} is asked, with --node URL another: {first.url}\n"
        assert listed(home.parent).stderr == f"Several nodes run in this home. {words}"
        assert listed(home.parent, "--node", first.url).stderr == "", "who says which is told nothing"
    found = record.read(home)
    assert found is not None and found.url == first.url
    assert listed(home.parent).stderr == ""


def test_where_the_last_one_was_killed_the_first_is_found(
    serving: tuple[RunningNode, Path], tmp_path: Path
) -> None:
    first, home = serving
    with running_node(tmp_path, ["serve", "--home", str(home), "--gpu-backend", "cpu"]) as second:
        deadline = time.monotonic() + 30
        while (found := record.read(home)) is None or found.url != second.url:
            assert time.monotonic() < deadline, second.log_text()
            time.sleep(0.05)
        second.stop(signal.SIGKILL)
    assert record.read(home) == found, "it could not say that it goes"
    first.reload("llm-node-demo")
    (row,) = json.loads(listed(home.parent).stdout)["models"]
    assert row["status"] == "loaded"
    assert found.before is not None
    found.before.write(home)  # as for the tests that follow


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        '{"node_id": 1}',
        "\x00",
        '{"url": "x", "pid": "y", "node_id": "z"}',
        '{"url": "x", "pid": 1, "node_id": "z", "key": "k", "before": 1}',
    ],
)
def test_what_is_no_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "node.json").write_text(text)
    assert record.read(tmp_path) is None
