"""Where the node listens: on this machine alone, unless somebody says that others may reach it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_node.server.address import is_loopback, resolve, url
from support.node import free_port, node_environment, running_node

Run = Callable[..., "subprocess.CompletedProcess[str]"]

needs_ipv6 = pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "[::]", "192.0.2.1", "0", "::ffff:192.0.2.1", "2001:db8::1"]
)
def test_beyond_this_machine_it_needs_a_word(tmp_path: Path, host: str) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), "--host", host, "--gpu-backend", "cpu"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=tmp_path,
        env=node_environment(tmp_path, LLM_NODE_PORT=str(free_port())),
    )
    assert result.returncode == 1
    assert "is reached by other machines" in result.stderr
    assert "--allow-open yes" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_that_is_none_is_said(tmp_path: Path) -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("llm-node")), "--host", "no.such.name.invalid"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(tmp_path),
    )
    assert result.returncode == 1
    assert "cannot listen on no.such.name.invalid:3000" in result.stderr


def test_with_the_word_it_listens_everywhere(tmp_path: Path) -> None:
    arguments = ["--host", "0.0.0.0", "--allow-open", "yes", "--gpu-backend", "cpu"]
    with running_node(tmp_path, arguments) as node:
        assert node.get("/healthz").status == 200
        assert f"listens on http://127.0.0.1:{node.address[1]}" in node.log_text()


@needs_ipv6
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_loopback_of_ipv6(tmp_path: Path, host: str) -> None:
    with running_node(tmp_path, ["--host", host, "--gpu-backend", "cpu"], address="[::1]") as node:
        assert node.get("/healthz").status == 200
        assert f"listens on http://[::1]:{node.address[1]}" in node.log_text()


def test_localhost_is_all_its_addresses(tmp_path: Path) -> None:
    with running_node(tmp_path, ["--host", "localhost", "--gpu-backend", "cpu"]) as node:
        port = node.address[1]
        for family, _, _, _, address in socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            with socket.socket(family) as client:
                client.settimeout(10)
                client.connect(address)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("169.254.1.1", False),
        ("::ffff:10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("2001:db8::1", False),
    ],
)
def test_who_reaches_an_address(host: str, loopback: bool) -> None:
    assert is_loopback((host, 0)) is loopback


async def test_all_addresses_of_a_name_count() -> None:
    found = await resolve("localhost", 80)
    assert {address[0] for _, address in found} <= {"127.0.0.1", "::1"}
    assert all(address[1] == 80 for _, address in found)


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("localhost", "http://localhost:80"),
    ],
)
def test_the_url_that_is_shown(host: str, shown: str) -> None:
    assert url(host, 80) == shown
