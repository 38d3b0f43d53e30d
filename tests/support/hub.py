"""A stand-in for the Hugging Face hub on loopback: as much of it as the hub's own client asks for.

Large files are answered by a redirect to a second origin, as there. It misbehaves on demand.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
BLOCK = 64 << 10
LARGE = (".gguf", ".safetensors")
"""Files of these kinds have a sha256, and lie on the second origin."""
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Behaviour:
    """What it does, and what it was asked."""

    gated: set[str] = field(default_factory=set)
    """Repositories."""
    wrong_sha256: set[str] = field(default_factory=set)
    """Files of which another hash is promised."""
    longer: set[str] = field(default_factory=set)
    """Files that are said to have one byte more than they have."""
    sorted_by: list[str] = field(default_factory=list)
    """Of each search, what its results were to be sorted by."""
    cut_after: int | None = None
    """Bytes of large files, all together and without reads of their headers, until connections are cut; then
    never again."""
    busy: bool = False
    pause: threading.Event | None = None
    """Large files go on once it is set, from their middle."""
    silent_at: int | None = None
    """From this byte of a large file on nothing comes, on a connection that stays open; once."""
    awake: threading.Event = field(default_factory=threading.Event)
    """Ends that silence."""
    begun: threading.Event = field(default_factory=threading.Event)
    """Set with the first bytes of a large file."""
    served: dict[str, int] = field(default_factory=dict)
    """Bytes of each large file that were sent."""
    asked: list[str] = field(default_factory=list)


class StandInHub:
    """Repositories, by name, each with its files."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.parameters: dict[str, int] = {}
        """Weights that a repository's models have, where the hub knows."""
        self.commit = COMMIT
        """Of every repository."""
        self.tokens: set[str] = set()
        """Those of its users."""
        self.behaviour = Behaviour()
        self.on_cut: Callable[[], None] = lambda: None
        """Called where connections are cut."""
        self._lock = threading.Lock()
        self._servers = [_Server(("127.0.0.1", 0), _Handler) for _ in range(2)]
        for server in self._servers:
            server.hub = self
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def files_url(self) -> str:
        return f"http://127.0.0.1:{self._servers[1].server_port}"

    def environment(self) -> dict[str, str]:
        """For a process that shall take it for the hub."""
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "", "NO_PROXY": "127.0.0.1"}

    def put(self, repository: str, path: str, content: bytes) -> None:
        self.repositories.setdefault(repository, {})[path] = content

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def sends(self, name: str, count: int, *, is_header: bool) -> bool:
        """May so many more bytes of a file be sent?"""
        with self._lock:
            behaviour = self.behaviour
            behaviour.served[name] = behaviour.served.get(name, 0) + count
            behaviour.begun.set()
            if behaviour.cut_after is None or is_header:
                return True
            behaviour.cut_after -= count
            if behaviour.cut_after > 0:
                return True
            behaviour.cut_after = None
        self.on_cut()
        return False


@contextlib.contextmanager
def stand_in_hub() -> Iterator[StandInHub]:
    hub = StandInHub()
    try:
        yield hub
    finally:
        hub.close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    hub: StandInHub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urlsplit(self.path)
        path, query = unquote(parts.path), parse_qs(parts.query)
        hub.behaviour.asked.append(f"{self.command} {path}")
        if hub.behaviour.busy:
            self._refuse(429, "busy", None)
        elif match := re.fullmatch(r"/files/([^/]+/[^/]+)/(.+)", path):
            self._file(match[1], match[2])
        elif path == "/api/whoami-v2":
            self._whoami()
        elif path == "/api/models":
            self._search(query)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+?)(?:/revision/([^/]+))?", path):
            self._info(match[1], match[2])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], match[2], match[3])
        else:
            self._refuse(404, "no such route", "RepoNotFound")

    def _whoami(self) -> None:
        if self.headers.get("Authorization", "").removeprefix("Bearer ") in self.server.hub.tokens:
            self._json({"type": "user", "name": "somebody"})
        else:
            self._refuse(401, "Invalid username or password.", None)

    def _known(self, repository: str, revision: str | None) -> dict[str, bytes] | None:
        hub = self.server.hub
        if repository not in hub.repositories:
            self._refuse(401, "Invalid username or password.", "RepoNotFound")
        elif repository in hub.behaviour.gated:
            self._refuse(403, "Access to it is restricted.", "GatedRepo")
        elif revision not in (None, "main", hub.commit):
            self._refuse(404, "Invalid rev id", "RevisionNotFound")
        else:
            return hub.repositories[repository]
        return None

    def _info(self, repository: str, revision: str | None) -> None:
        hub = self.server.hub
        if repository in hub.behaviour.gated:
            files: dict[str, bytes] | None = hub.repositories[repository]  # the hub tells what is in it
        else:
            files = self._known(repository, revision)
        if files is None:
            return
        siblings = [
            {
                "rfilename": name,
                "size": self._size(name, content),
                "blobId": self._blob_id(name, content),
                **(
                    {
                        "lfs": {
                            "sha256": self._sha256(name, content),
                            "size": self._size(name, content),
                            "pointerSize": 134,
                        }
                    }
                    if name.endswith(LARGE)
                    else {}
                ),
            }
            for name, content in files.items()
        ]
        self._json(
            {
                "id": repository,
                "modelId": repository,
                "sha": self.server.hub.commit,
                "siblings": siblings,
                "tags": [],
            }
        )

    def _blob_id(self, name: str, content: bytes) -> str:
        """As git has it."""
        if name in self.server.hub.behaviour.wrong_sha256:
            return "0" * 40
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

    def _sha256(self, name: str, content: bytes) -> str:
        return "0" * 64 if name in self.server.hub.behaviour.wrong_sha256 else sha256(content)

    def _size(self, name: str, content: bytes) -> int:
        return len(content) + (name in self.server.hub.behaviour.longer)

    def _search(self, query: dict[str, list[str]]) -> None:
        self.server.hub.behaviour.sorted_by += query.get("sort", [])
        words = query.get("search", [""])[0].lower()
        wanted = query.get("filter", [])
        base = next((tag.removeprefix("base_model:quantized:") for tag in wanted if ":" in tag), None)
        found = [
            {"id": name, "modelId": name, **self._expanded(name, query.get("expand", []))}
            for name, files in self.server.hub.repositories.items()
            if any(file.endswith(".gguf") for file in files)
            and words in name.lower()
            and (base is None or name.startswith(base))
        ]
        self._json(found)

    def _expanded(self, name: str, wanted: list[str]) -> dict[str, Any]:
        """Of a repository what was asked for, and nothing else."""
        weights = self.server.hub.parameters.get(name)
        known = {
            "downloads": 7,
            "likes": 1,
            **({} if weights is None else {"gguf": {"total": weights, "architecture": "llama"}}),
        }
        return {key: value for key, value in known.items() if key in wanted}

    def _resolve(self, repository: str, revision: str, name: str) -> None:
        files = self._known(repository, revision)
        if files is None:
            return
        if name not in files:
            self._refuse(404, "Entry not found", "EntryNotFound")
            return
        content = files[name]
        headers = {"X-Repo-Commit": self.server.hub.commit, "Accept-Ranges": "bytes"}
        if not name.endswith(LARGE):
            tag = self._blob_id(name, content)
            self._answer(200, content, {**headers, "ETag": f'"{tag}"'})
            return
        digest = self._sha256(name, content)
        place = f"{self.server.hub.files_url}/files/{repository}/{name}"
        linked = {
            "X-Linked-Size": str(self._size(name, content)),
            "X-Linked-Etag": f'"{digest}"',
            "Location": place,
        }
        self._answer(302, b"", {**headers, **linked, "ETag": f'"{digest}"'})

    def _file(self, repository: str, name: str) -> None:
        content = self.server.hub.repositories[repository][name]
        tag = f'"{sha256(content)}"'
        # A range of what somebody has in part is one of the same file.
        is_same = self.headers.get("If-Range", tag) == tag
        match = _RANGE.fullmatch(self.headers.get("Range", "")) if is_same else None
        first, last, status = 0, len(content) - 1, 200
        is_header = match is not None and match[2] != ""
        if match:
            first, status = int(match[1]), 206
            last = min(int(match[2] or last), last)
        self.send_response(status)
        self.send_header("Content-Length", str(last - first + 1))
        self.send_header("ETag", tag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        pause = None if is_header else self.server.hub.behaviour.pause
        for begin in range(first, last + 1, BLOCK):
            block = content[begin : min(begin + BLOCK, last + 1)]
            if pause is not None and begin >= len(content) // 2:
                pause.wait(30)
            behaviour = self.server.hub.behaviour
            if behaviour.silent_at is not None and begin >= behaviour.silent_at and not is_header:
                behaviour.silent_at = None
                behaviour.awake.wait(60)
                self.close_connection = True
                return
            if not self.server.hub.sends(name, len(block), is_header=is_header):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            try:
                self.wfile.write(block)
            except OSError:
                self.close_connection = True
                return

    def _json(self, content: Any) -> None:
        self._answer(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, message: str, code: str | None) -> None:
        headers = {"X-Error-Message": message, **({} if code is None else {"X-Error-Code": code})}
        self._answer(
            status, json.dumps({"error": message}).encode(), {**headers, "Content-Type": "application/json"}
        )

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
