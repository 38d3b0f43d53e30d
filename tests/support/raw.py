"""HTTP by hand: bytes on a socket, for what no client library would send."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from support.node import RunningNode

HOST = b"Host: localhost\r\n"
PATIENCE = 30.0
"""Seconds until a test gives up; the machine may be busy."""


@dataclass
class Reply:
    """One answer: its status line, its headers with names in lower case, and the rest of the bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> str:
        """The code of the one error body that there is; its form is checked."""
        assert self.headers["content-type"].startswith("application/json"), self
        assert self.headers["x-request-id"], self
        error = self.json()["error"]
        assert set(error) >= {"message", "type", "code", "param"}
        assert error["message"]
        return str(error["code"])


def connect(node: RunningNode) -> socket.socket:
    return socket.create_connection(node.address, timeout=PATIENCE)


def read(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed, or reset."""
    found = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(1 << 16):
            found += data
    return bytes(found)


def exchange(node: RunningNode, *parts: bytes, half_close: bool = False, pause: float = 0.2) -> bytes:
    """What comes back for these bytes, sent one after the other."""
    with connect(node) as connection:
        with contextlib.suppress(OSError):  # it may be closed by then; what came back is what counts
            for number, part in enumerate(parts):
                if number:
                    time.sleep(pause)
                connection.sendall(part)
            if half_close:
                connection.shutdown(socket.SHUT_WR)
        return read(connection)


def parse(data: bytes) -> Reply:
    """One answer without chunked coding; what says "go on" before it is left out."""
    while data.startswith(b"HTTP/1.1 100 "):
        data = data.partition(b"\r\n\r\n")[2]
    head, separator, body = data.partition(b"\r\n\r\n")
    assert separator, data
    status, *lines = head.decode("latin-1").split("\r\n")
    version, code, _ = status.split(" ", 2)
    assert version in ("HTTP/1.0", "HTTP/1.1"), data
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "content-length" in headers:
        body = body[: int(headers["content-length"])]
    return Reply(int(code), headers, body)


def request(
    path: str = "/healthz", *, method: str = "GET", body: bytes | None = None, **headers: str
) -> bytes:
    """A whole request, after which the connection is closed. `Content_Length` is written `Content-Length`."""
    lines = {"Host": "localhost", "Connection": "close"}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in lines.items()), "", ""]
    return "\r\n".join(head).encode() + (body or b"")


def ask(node: RunningNode, path: str = "/healthz", **more: Any) -> Reply:
    """The answer to one request."""
    return parse(exchange(node, request(path, **more)))
