"""`GET /api/logs`, `llm-node logs`, and `llm-node stop`."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_node.journal import BEHIND, LINES, Journal
from support.node import RunningNode, command, node_environment, running_node
from support.raw import connect, request

NAME = "llm-node-demo"


@pytest.fixture(scope="module")
def own(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("logs")
    with running_node(folder, ["--engines-dir", str(engines), "--gpu-backend", "cpu"]) as running:
        running.extra["home"] = folder
        yield running


def test_the_last_lines_all_or_of_one_model(own: RunningNode) -> None:
    own.reload(NAME)
    lines = own.get("/api/logs").json()["lines"]
    assert {"time", "level", "logger", "message"} == set(lines[0])
    assert any("/api/models/load" in line["message"] for line in lines)
    deadline = time.monotonic() + 30
    while True:
        about = own.get(f"/api/logs?model={NAME}").json()["lines"]
        if about and "is loaded with" in about[-1]["message"]:  # nothing comes after that by itself
            break
        assert time.monotonic() < deadline, about
        time.sleep(0.02)
    assert all(f"'{NAME}'" in line["message"] for line in about)
    assert own.get(f"/api/logs?model={NAME}&lines=1").json()["lines"] == about[-1:]
    assert own.get("/api/logs?model=no-such&lines=5").json()["lines"] == []
    assert own.get("/api/logs?lines=0").json()["lines"] == []
    shown = command(own, "logs", "-n", "1", NAME).stdout
    assert shown.count("\n") == 1 and about[-1]["message"] in shown
    unknown = command(own, "logs", "no-such")
    assert (unknown.stdout, unknown.stderr) == ("", "no line of the log names no-such\n")


@pytest.mark.parametrize(
    "query", ["lines=-1", "lines=x", "lines=2001", "lines=1e3", f"lines={'0' * 5000}", "follow=perhaps"]
)
def test_a_wrong_query_is_refused(own: RunningNode, query: str) -> None:
    answer = own.get(f"/api/logs?{query}")
    assert (answer.status, answer.json()["error"]["code"]) == (400, "invalid_request")


def test_the_head_of_a_stream_is_all_that_head_gets(own: RunningNode) -> None:
    """At once, and the connection is there for the next request."""
    with connect(own) as connection:
        for path in ("/api/logs?follow=true", "/healthz"):
            connection.sendall(request(path, method="HEAD", Connection="keep-alive"))
            head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ") and body == b""
            assert (b"text/event-stream" in head) == ("logs" in path)


def test_following(own: RunningNode) -> None:
    program = [str(Path(sys.executable).with_name("llm-node")), "logs", "-f", "-n", "0", NAME]
    environment = node_environment(own.extra["home"])
    own.post("/api/models/unload", {"model_id": NAME})
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, env=environment) as following:
        assert following.stdout is not None
        is_there = threading.Event()

        def load_until_it_is_seen() -> None:
            while not is_there.is_set():
                own.reload(NAME)

        loading = threading.Thread(target=load_until_it_is_seen)
        loading.start()
        first = following.stdout.readline()
        is_there.set()
        loading.join()
        following.send_signal(signal.SIGINT)
    assert f"'{NAME}'" in first
    assert following.returncode == 130


def test_stop(own: RunningNode) -> None:
    own.reload(NAME)
    result = command(own, "stop", NAME)
    assert (result.returncode, result.stderr) == (0, f"{NAME} is unloaded\n")
    assert "no model is loaded" in command(own, "stop", "--all").stderr
    own.reload(NAME)
    assert command(own, "stop", "--all").returncode == 0
    (row,) = own.get("/api/models").json()["models"]
    assert row["status"] == "available"


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["--all", "x"], 2), (["no-such"], 3)])
def test_stop_where_it_cannot(own: RunningNode, arguments: list[str], code: int) -> None:
    assert command(own, "stop", *arguments).returncode == code


def test_without_a_node(tmp_path: Path, own: RunningNode) -> None:
    nowhere = RunningNode(own.process, own.url, own.log, extra={"home": tmp_path})
    for verb in (["stop", "--all"], ["logs"]):
        result = command(nowhere, *verb)
        assert result.returncode == 6
        assert "no node runs here; start one with `llm-node serve`" in result.stderr


# ---- the journal itself ----------------------------------------------------------------------------------


@pytest.fixture
def journal() -> Iterator[Journal]:
    made = Journal()
    with made.kept():
        yield made


def test_only_the_last_lines_are_kept(journal: Journal) -> None:
    for number in range(LINES + 3):
        logging.getLogger("test").warning("line %d", number)
    assert len(journal.last(LINES)) == LINES
    assert journal.last(1)[0]["message"] == f"line {LINES + 2}"
    assert journal.last(LINES)[0]["message"] == "line 3"


def test_an_exception_has_its_traceback(journal: Journal) -> None:
    try:
        raise KeyError("x")
    except KeyError:
        logging.getLogger("test").exception("it failed")
    assert "KeyError: 'x'" in journal.last(1)[0]["message"]


async def test_whoever_follows_misses_nothing_and_a_slow_one_the_oldest(journal: Journal) -> None:
    log = logging.getLogger("test")
    log.warning("before")
    following = journal.follow(1)
    assert (await anext(following))["message"] == "before"
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0)
    log.warning("after")
    assert (await waiting)["message"] == "after"
    for number in range(BEHIND + 5):
        log.warning("%d", number)
    assert (await anext(following))["message"] == "5"
    await following.aclose()
