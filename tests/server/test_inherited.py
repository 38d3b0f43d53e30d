"""A node that another program starts: on a socket of that program's, not longer than it, one of several."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.engines import fake_engine
from support.node import PROGRAM, RunningNode, alive, children_of, node_environment, running_node

JSON = {"Content-Type": "application/json"}
OWN_MODEL = ["--gpu-backend", "cpu", "--engine-packages", "no"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that knows that it is one of several."""
    folder = tmp_path_factory.mktemp("several")
    with running_node(folder, [*OWN_MODEL, "--behind-balancer", "yes"]) as node:
        yield node


def test_a_socket_that_listens_already(tmp_path: Path) -> None:
    """Who connected before the node was there is answered too."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, descriptor = listening.getsockname()[1], listening.fileno()
        with socket.create_connection(("127.0.0.1", port)) as early:
            early.sendall(b"GET /-/healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            arguments = [*OWN_MODEL, "--listen-fd", str(descriptor)]
            with running_node(tmp_path, arguments, inherited=[descriptor], port=port) as node:
                assert early.recv(15) == b"HTTP/1.1 200 OK"
                assert f"listens on http://127.0.0.1:{port} " in node.log_text()
                assert node.get("/-/healthz").body == b"success"
                assert node.get("/-/routes").json() == {"/": "llm-node"}


def test_a_socket_that_is_shut_down_lets_nobody_in(tmp_path: Path) -> None:
    """By who gave it, so that new connections go elsewhere while answers under way end."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port, descriptor = listening.getsockname()[1], listening.fileno()
        arguments = [*OWN_MODEL, "--listen-fd", str(descriptor)]
        with running_node(tmp_path, arguments, inherited=[descriptor], port=port) as node:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as kept:
                kept.request("GET", "/healthz")
                kept.getresponse().read()
                listening.shutdown(socket.SHUT_RDWR)
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port))
                kept.request("GET", "/healthz")
                answer = kept.getresponse()
                assert (answer.status, answer.read()) == (200, b'{"status": "ok"}')
            assert node.process.poll() is None


def test_a_socket_is_given_back_before_answers_end(tmp_path: Path) -> None:
    """A node that goes down lets nobody in by it, so that clients are led elsewhere, and ends what it has."""
    fake_engine(tmp_path / "engines", defines={"FAKE_STEP_US": 60_000})
    (tmp_path / "models").mkdir()
    (tmp_path / "models/slow.toy").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    body = {"model": "slow", "prompt": "Hello", "max_tokens": 100, "ignore_eos": True, "stream": True}
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        port, number = listening.getsockname()[1], listening.fileno()
        arguments += ["--gpu-backend", "cpu", "--drain-timeout", "60", "--listen-fd", str(number)]
        node = stack.enter_context(running_node(tmp_path, arguments, inherited=[number], port=port))
        listening.close()
        busy = stack.enter_context(contextlib.closing(connection(port)))
        busy.request("POST", "/v1/completions", json.dumps(body), JSON)
        answer = busy.getresponse()
        assert answer.readline().startswith(b"data: ")
        node.process.send_signal(signal.SIGTERM)
        signalled = time.monotonic()
        with contextlib.closing(connection(port)) as late, window(signalled):
            # Who leads requests here does not know it yet.
            while node.get("/readyz").status == 200:
                assert time.monotonic() < signalled + 30
            late.request("POST", "/v1/completions", json.dumps({**body, "max_tokens": 2}), JSON)
            taken = late.getresponse()
            said = taken.read()
            assert (taken.status, said[-14:]) == (200, b"data: [DONE]\n\n")
            assert taken.headers["Connection"] == "close"
        wait_until_refused(port)
        assert answer.read().endswith(b"data: [DONE]\n\n")
        assert node.process.wait(60) == 0


@contextlib.contextmanager
def window(signalled: float) -> Iterator[None]:
    """What is done in it holds for three seconds: on a machine that was too busy for that it is not asked."""
    try:
        yield
    except (AssertionError, OSError):
        if time.monotonic() < signalled + 2.5:
            raise


def connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=60)


def wait_until_refused(port: int) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            return
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("path", ["/metrics", "/api/system", "/api/models/unload"])
def test_behind_a_balancer_what_is_about_one_node_is_asked_at_its_own_port(
    several: RunningNode, path: str
) -> None:
    method = "POST" if path.endswith("unload") else "GET"
    own = several.address[1]

    def status(host: str) -> int:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", own, timeout=60)) as connection:
            connection.request(method, path, "{}" if method == "POST" else None, {"Host": host})
            return connection.getresponse().status

    assert status(f"127.0.0.1:{own}") != 403
    for front in ("127.0.0.1:8000", "localhost", "[::1]", f"[::1]:{own + 1}"):
        assert status(front) == 403, front


def test_behind_a_balancer_all_else_is_answered(several: RunningNode) -> None:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", several.address[1], timeout=60)) as front:
        for path in ("/-/healthz", "/v1/models", "/api/models", "/api/tags"):
            front.request("GET", path, headers={"Host": "localhost:8000"})
            answer = front.getresponse()
            assert (answer.status, bool(answer.read())) == (200, True), path
        front.request("GET", "/metrics", headers={"Host": "localhost:8000"})
        said = json.loads(front.getresponse().read())["error"]
        assert said["code"] == "host_not_allowed"
        assert "/metrics is about one node" in said["message"]


def refused(arguments: list[str], home: Path, *descriptors: int) -> str:
    ended = subprocess.run(
        [PROGRAM, *OWN_MODEL, *arguments],
        env=node_environment(home),
        pass_fds=descriptors,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 1
    return ended.stderr


def test_what_is_no_such_socket_is_refused(tmp_path: Path) -> None:
    assert "--listen-fd 77 is no socket that this process has" in refused(["--listen-fd", "77"], tmp_path)
    with socket.socket() as idle:
        idle.bind(("127.0.0.1", 0))
        said = refused(["--listen-fd", str(idle.fileno())], tmp_path, idle.fileno())
        assert f"--listen-fd {idle.fileno()} is no TCP socket that listens" in said
    with socket.create_server(("0.0.0.0", 0)) as open_to_all:
        number = open_to_all.fileno()
        said = refused(["--listen-fd", str(number)], tmp_path, number)
        assert "0.0.0.0 is reached by other machines" in said


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="only Linux tells a process that its parent is gone")
def test_a_node_goes_down_when_who_started_it_is_gone(tmp_path: Path) -> None:
    shell = ["sh", "-c", '"$@" & wait', "sh"]
    with running_node(tmp_path, [*OWN_MODEL, "--exit-with-parent", "yes"], prefix=shell) as node:
        (child,) = children_of(node.process.pid)
        os.kill(node.process.pid, signal.SIGKILL)
        deadline = time.monotonic() + 30
        while alive(child):
            assert time.monotonic() < deadline, node.log_text()
            time.sleep(0.05)
    assert "going down" in node.log_text()
