"""A client that closes its sending side has its answer; one that left does not keep its sequence."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node
from support.raw import HOST, connect, exchange, parse, read, request

STEP_SECONDS = 0.01


@pytest.fixture(scope="module")
def slow_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node whose one model takes so long for each token, whatever the machine."""
    root = tmp_path_factory.mktemp("slow")
    fake_engine(root / "engines", defines={"FAKE_STEP_US": int(STEP_SECONDS * 1e6)})
    (root / "models").mkdir()
    (root / "models/slow.toy").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(root / "engines"), "--models-dir", str(root / "models")]
    with running_node(root / "node", [*arguments, "--gpu-backend", "cpu", "--speculation", "off"]) as node:
        assert node.post("/api/models/load", {"model_id": "slow"}).status == 200
        yield node
        assert "Traceback" not in node.log_text()


def tokens(seconds: float) -> int:
    return int(seconds / STEP_SECONDS)


def question(seconds: float, *, version: str = "1.1", stream: bool = False) -> bytes:
    body: dict[str, Any] = {"model": "slow", "prompt": "The", "ignore_eos": True}
    body["max_tokens"] = tokens(seconds)
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    data = json.dumps(body).encode()
    whole = request("/v1/completions", method="POST", body=data, Connection="keep-alive")
    return whole.replace(b"HTTP/1.1", f"HTTP/{version}".encode(), 1)


def wait_for_requests(node: RunningNode, count: int, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while True:
        (model,) = [row for row in node.get("/api/models").json()["models"] if row["model_id"] == "slow"]
        if model["requests"] == count:
            return
        assert time.monotonic() < deadline, model
        time.sleep(0.05)


def check_answer(node: RunningNode, seconds: float, version: str) -> None:
    reply = parse(exchange(node, question(seconds, version=version), half_close=True))
    assert reply.status == 200
    assert reply.json()["usage"]["completion_tokens"] == tokens(seconds)


def check_stream(node: RunningNode, seconds: float, version: str) -> None:
    found = exchange(node, question(seconds, version=version, stream=True), half_close=True)
    assert b'"completion_tokens":%d' % tokens(seconds) in found
    assert b'"finish_reason":"length"' in found
    assert b"data: [DONE]\n\n" in found
    assert b'"error"' not in found


@pytest.mark.parametrize("seconds", [0.05, 8])
def test_the_whole_answer_and_the_whole_stream(slow_node: RunningNode, seconds: float) -> None:
    """Side by side, for the long ones are long because the node waits until it asks who still reads."""
    checks = [(check, version) for check in (check_answer, check_stream) for version in ("1.0", "1.1")]
    with ThreadPoolExecutor(len(checks)) as threads:
        for done in [threads.submit(check, slow_node, seconds, version) for check, version in checks]:
            done.result()


def test_once_the_stream_has_begun(slow_node: RunningNode) -> None:
    with connect(slow_node) as connection:
        connection.sendall(question(3, stream=True))
        found = connection.recv(100)
        connection.shutdown(socket.SHUT_WR)
        found += read(connection)
    assert b'"completion_tokens":%d' % tokens(3) in found
    assert b"data: [DONE]\n\n" in found
    chunks = found.partition(b"\r\n\r\n")[2]
    while chunks:  # whatever was sent to see whether it still reads, it is whole chunks
        size, _, chunks = chunks.partition(b"\r\n")
        assert chunks[int(size, 16) : int(size, 16) + 2] == b"\r\n"
        chunks = chunks[int(size, 16) + 2 :]


def test_several_requests_at_once(slow_node: RunningNode) -> None:
    """All have their answers, and the connection ends at once instead of when it was idle for long."""
    began = time.monotonic()
    found = exchange(slow_node, (b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n") * 5, half_close=True)
    assert found.count(b'{"status": "ok"}') == 5
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("stream", [False, True])
def test_who_leaves_frees_its_sequence(slow_node: RunningNode, stream: bool) -> None:
    """It looks the same at first: a close, and no reset."""
    wait_for_requests(slow_node, 0, 30)
    with connect(slow_node) as connection:
        connection.sendall(question(20, stream=stream))
        wait_for_requests(slow_node, 1, 10)
        if stream:
            connection.recv(1 << 16)
    wait_for_requests(slow_node, 0, 10)


@pytest.mark.parametrize("stream", [False, True])
def test_who_closes_one_side_and_leaves_later(slow_node: RunningNode, stream: bool) -> None:
    wait_for_requests(slow_node, 0, 30)
    with connect(slow_node) as connection:
        connection.sendall(question(20, stream=stream))
        wait_for_requests(slow_node, 1, 10)
        connection.shutdown(socket.SHUT_WR)
        time.sleep(1)
        wait_for_requests(slow_node, 1, 1)
    wait_for_requests(slow_node, 0, 12)
