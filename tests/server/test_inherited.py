"""A node that another program starts: on a socket of that program's, and not longer than it."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from support.node import PROGRAM, alive, children_of, node_environment, running_node

OWN_MODEL = ["--gpu-backend", "cpu", "--engine-packages", "no"]


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
