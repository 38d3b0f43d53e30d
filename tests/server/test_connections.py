"""Connections have deadlines and a most, and whoever does not speak or read costs nobody else."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_node.server.listener import MOST_CONNECTIONS, most_connections
from support.node import RunningNode, after, running_node
from support.raw import HOST, ask, connect, exchange, parse, read, request

HEADER_SECONDS, TRANSFER_SECONDS, IDLE_SECONDS = 1.0, 2.0, 1.5
GET = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
BODY = json.dumps({"model_id": "no-such-model"}).encode()
UNLOAD = b"POST /api/models/unload HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"


@pytest.fixture(scope="module")
def hasty(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that waits for nothing long."""
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    arguments += ["--header-timeout", str(HEADER_SECONDS), "--idle-timeout", str(IDLE_SECONDS)]
    arguments += ["--transfer-timeout", str(TRANSFER_SECONDS)]
    with running_node(tmp_path_factory.mktemp("hasty"), arguments) as node:
        yield node
        assert "Traceback" not in node.log_text()


def seconds_since(began: float) -> float:
    return time.monotonic() - began


# ---- deadlines -------------------------------------------------------------------------------------


def test_a_silent_connection_is_closed(hasty: RunningNode) -> None:
    began = time.monotonic()
    assert exchange(hasty) == b""
    assert seconds_since(began) >= HEADER_SECONDS * 0.9


@pytest.mark.parametrize("begin", [b"", GET])
def test_headers_that_come_slowly(hasty: RunningNode, begin: bytes) -> None:
    """One byte now and then does not extend the time."""
    with connect(hasty) as connection:
        if begin:
            connection.sendall(begin)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        connection.settimeout(0.05)
        answer = b""
        for byte in (b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 1000)[:1000]:
            connection.sendall(bytes([byte]))
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(4096)
                break
        assert HEADER_SECONDS * 0.9 <= seconds_since(began)
        assert (parse(answer).status, parse(answer).error()) == (408, "request_timeout")


def test_a_connection_waits_for_its_next_request_so_long(hasty: RunningNode) -> None:
    with connect(hasty) as connection:
        connection.sendall(GET)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        time.sleep(HEADER_SECONDS * 1.2)
        connection.sendall(GET)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        began = time.monotonic()
        assert read(connection) == b""
        assert seconds_since(began) >= IDLE_SECONDS * 0.9


def test_a_body_that_stands_still(hasty: RunningNode) -> None:
    began = time.monotonic()
    reply = parse(exchange(hasty, UNLOAD + b"Content-Length: 100\r\n\r\n{"))
    assert (reply.status, reply.error()) == (408, "request_timeout")
    assert seconds_since(began) >= TRANSFER_SECONDS * 0.9


def test_a_body_that_goes_on_is_waited_for(hasty: RunningNode) -> None:
    brisk = BODY.ljust(1 << 16)
    pieces = [brisk[start : start + 8192] for start in range(0, len(brisk), 8192)]
    head = UNLOAD + b"Content-Length: %d\r\n\r\n" % len(brisk)
    assert parse(exchange(hasty, head, *pieces, pause=TRANSFER_SECONDS / 4)).error() == "model_not_found"


def test_a_body_that_goes_on_too_slowly(hasty: RunningNode) -> None:
    """It never stands still, and would take hours."""
    head = UNLOAD + b"Content-Length: 1000000\r\n\r\n"
    began = time.monotonic()
    with connect(hasty) as connection:
        connection.sendall(head)
        connection.settimeout(TRANSFER_SECONDS / 4)
        for _ in range(100):
            connection.sendall(b" ")
            with contextlib.suppress(TimeoutError):
                reply = parse(connection.recv(4096))
                break
    assert (reply.status, reply.error()) == (408, "request_timeout")
    assert seconds_since(began) >= TRANSFER_SECONDS * 0.9


def test_who_does_not_read_an_answer_loses_it(hasty: RunningNode) -> None:
    text = "a " * 400_000
    body = json.dumps({"model": "llm-node-demo", "text": text}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(hasty.address)
        connection.settimeout(60)
        with contextlib.suppress(ConnectionError):  # it may be lost before the last is sent
            for _ in range(8):  # whatever the kernel keeps, eight of them are more
                connection.sendall(request("/tokenize", method="POST", body=body, Connection="keep-alive"))
        deadline = time.monotonic() + 60
        while "took nothing of its answer" not in hasty.log_text():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    assert hasty.get("/healthz").status == 200


# ---- a most ----------------------------------------------------------------------------------------


def test_who_leaves_at_once_is_no_defect(node: RunningNode) -> None:
    """Some leave just before their stream begins."""
    chat = {"model": "llm-node-demo", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
    body = json.dumps(chat).encode()
    wanted = request("/v1/chat/completions", method="POST", body=body)
    for number in range(200):
        with connect(node) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.sendall(wanted)
            time.sleep(number % 20 / 2000)
    assert "defect" not in node.log_text()


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[RunningNode]:
    """A node for four connections."""
    with running_node(tmp_path, ["--gpu-backend", "cpu", "--max-connections", "4"]) as node:
        yield node
        assert "Traceback" not in node.log_text()


def busy(node: RunningNode) -> socket.socket:
    """A connection whose request is under way: its body is awaited."""
    connection = connect(node)
    connection.sendall(UNLOAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % len(BODY))
    assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    return connection


def test_one_too_many_is_told_so(narrow: RunningNode) -> None:
    with contextlib.ExitStack() as stack:
        time.sleep(1.2)  # those that asked whether it is ready are silent by now
        first, *_ = [stack.enter_context(busy(narrow)) for _ in range(4)]
        for _ in range(3):
            refused = ask(narrow, "/readyz")
            assert (refused.status, refused.error()) == (503, "too_many_connections")
            assert int(refused.headers["retry-after"]) >= 1
        silent = parse(exchange(narrow))
        assert silent.error() == "too_many_connections"
        first.sendall(BODY)
        assert parse(read(first)).error() == "model_not_found"
        assert ask(narrow, "/readyz").status == 200
    assert narrow.log_text().count("as many as may be") <= 6


def test_who_is_silent_makes_room(narrow: RunningNode) -> None:
    """Neither idle connections of a proxy nor silent ones of anybody keep others out."""
    with contextlib.ExitStack() as stack:
        idle = stack.enter_context(connect(narrow))
        idle.sendall(GET)
        assert idle.recv(4096).startswith(b"HTTP/1.1 200 ")
        for _ in range(3):
            stack.enter_context(connect(narrow))
        time.sleep(1.2)
        working = [stack.enter_context(busy(narrow)) for _ in range(4)]
        assert read(idle) == b""
        assert ask(narrow, "/readyz").error() == "too_many_connections"
        for connection in working:
            connection.sendall(BODY)
            assert parse(read(connection)).error() == "model_not_found"


def test_more_silent_connections_than_descriptors(tmp_path: Path) -> None:
    arguments = ["--gpu-backend", "cpu", "--header-timeout", "3"]
    with (
        running_node(tmp_path, arguments, prefix=after("ulimit -n 400")) as node,
        contextlib.ExitStack() as stack,
    ):
        for number in range(500):
            connection = stack.enter_context(connect(node))
            if number % 2:
                with contextlib.suppress(OSError):  # it was turned away already
                    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n")
        deadline = time.monotonic() + 30
        while True:
            reply = ask(node, "/healthz")
            if reply.status == 200:
                break
            assert reply.error() == "too_many_connections"
            assert time.monotonic() < deadline
            time.sleep(0.2)
        log = node.log_text()
    assert "Traceback" not in log
    assert len(log) < 50_000


def test_without_descriptors_it_pauses_and_goes_on(tmp_path: Path) -> None:
    """The system may run out of them, whatever the node counts."""
    arguments = ["--gpu-backend", "cpu", "--header-timeout", "3"]
    with running_node(tmp_path, arguments, prefix=after("ulimit -n 64")) as node:
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            for _ in range(200):
                stack.enter_context(connect(node))
            time.sleep(2)
        deadline = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError):
                if ask(node, "/healthz").status == 200:
                    break
            assert time.monotonic() < deadline
        log = node.log_text()
        assert 1 <= log.count("nobody can be let in") <= seconds_since(began) + 2
        assert "Traceback" not in log


@pytest.mark.parametrize(
    ("wanted", "descriptors", "most"),
    [
        (None, 65_536, MOST_CONNECTIONS),
        (None, 1024, 384),
        (None, 20, 16),
        (100, 1024, 100),
        (20_000, 65_536, 20_000),
        (10_000, 1024, 384),
    ],
)
def test_as_many_as_the_descriptors_carry(
    wanted: int | None, descriptors: int, most: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert most_connections(wanted, descriptors) == most
    assert ("ulimit -n" in caplog.text) is (wanted is not None and wanted > most)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")
def test_the_limit_of_open_files_is_raised() -> None:
    code = (
        "import resource\n"
        "from llm_node.server import descriptors\n"
        "given = descriptors.raise_limit()\n"
        "print(given, *resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    shell = f'ulimit -S -n 256; exec "{sys.executable}" -c "$1"'
    result = subprocess.run(["sh", "-c", shell, "sh", code], capture_output=True, text=True, check=True)
    given, soft, hard = map(int, result.stdout.split())
    assert given == soft == (min(hard, 65_536) if hard > 0 else 65_536)
