"""Real `llm-node` processes for tests: started, watched, and always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_SECONDS = 60.0
PROGRAM = Path(sys.executable).with_name("llm-node")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def family() -> dict[int, list[int]]:
    """Pids of each process's children."""
    table: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
                table.setdefault(int(fields[1]), []).append(int(entry.name))
    return table


def children_of(pid: int) -> list[int]:
    return family().get(pid, [])


def descendants_of(pid: int) -> list[int]:
    table = family()
    found: list[int] = []
    open_ends = [pid]
    while open_ends:
        for child in table.get(open_ends.pop(), []):
            found.append(child)
            open_ends.append(child)
    return found


def alive(pid: int) -> bool:
    """Is it running (a zombie is not)?"""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_for_ends(pids: Iterable[int], seconds: float = 30) -> None:
    """A killed process that is nobody's child here ends some moments after the signal."""
    deadline = time.monotonic() + seconds
    while left := [pid for pid in pids if alive(pid)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class RunningNode:
    """A node that answers on `url`."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    trust: ssl.SSLContext | None = None
    """For whoever asks by HTTPS."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urllib.parse.urlsplit(self.url)
        assert parts.hostname is not None and parts.port is not None, self.url
        return parts.hostname, parts.port

    def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        key: str = "",
        timeout: float = 60,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
        sent = {"Content-Type": "application/json", **(headers or {})}
        if key:
            sent["Authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=timeout, context=self.trust) as reply:
                return Answer(reply.status, dict(reply.headers), reply.read())
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, dict(error.headers), error.read())

    def get(self, path: str, **keywords: Any) -> Answer:
        return self.request("GET", path, **keywords)

    def post(self, path: str, body: Any = None, **keywords: Any) -> Answer:
        return self.request("POST", path, body, **keywords)

    def reload(self, model: str, **options: Any) -> dict[str, Any]:
        """Load a model anew, with these options."""
        self.post("/api/models/unload", {"model_id": model})
        return load(self, model, **options)

    def workers(self) -> list[int]:
        return descendants_of(self.process.pid)

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 30) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise


def node_environment(home: Path, **changes: str) -> dict[str, str]:
    """The environment of a test node: no setting of the person who runs the tests leaks in."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("LLM_NODE_")}
    return {**kept, "HOME": str(home), **changes}


def load(node: RunningNode, model: str, **options: Any) -> dict[str, Any]:
    """What it is loaded as."""
    answer = node.post("/api/models/load", {"model_id": model, **options})
    assert answer.status == 200, answer.body
    loaded: dict[str, Any] = answer.json()
    return loaded


def after(command: str) -> list[str]:
    """A prefix of the node's command line: what a shell does before it becomes the node."""
    return ["sh", "-c", f'{command}; exec "$@"', "sh"]


@contextlib.contextmanager
def running_node(
    folder: Path,
    arguments: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    prefix: Sequence[str] = (),
    program: Sequence[str | Path] = (PROGRAM,),
    inherited: Sequence[int] = (),
    address: str = "127.0.0.1",
    port: int | None = None,
    certificate: Path | None = None,
) -> Iterator[RunningNode]:
    """Start `llm-node ARGUMENTS` on a free port or this one, wait until it is ready, end it whatever happens.

    `prefix`: a program that runs the rest of its command line. `program`: in place of `llm-node`.
    `inherited`: descriptors that it gets. `address`: where it is asked. `certificate`: it is asked by HTTPS,
    and shows this one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    log = folder / "node.log"
    command = [*prefix, *map(str, program), "--port", str(port), *arguments]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            cwd=folder,
            env=node_environment(folder, **(environment or {})),
            pass_fds=inherited,
        )
    trust = None if certificate is None else ssl.create_default_context(cafile=str(certificate))
    node = RunningNode(process, f"{'http' if trust is None else 'https'}://{address}:{port}", log, trust)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            if process.poll() is not None:
                raise AssertionError(f"llm-node ended with {process.returncode}:\n{node.log_text()}")
            with contextlib.suppress(OSError, urllib.error.URLError):
                if node.get("/readyz", timeout=2).status == 200:
                    break
            if time.monotonic() > deadline:
                raise AssertionError(f"llm-node was not ready in {START_SECONDS} s:\n{node.log_text()}")
            time.sleep(0.05)
        yield node
    finally:
        workers = node.workers()
        node.stop()
        left = [pid for pid in workers if alive(pid)]
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        assert not left, f"workers outlived their node: {left}\n{node.log_text()}"


def command(node: RunningNode, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`llm-node ARGUMENTS` in the node's own home."""
    return subprocess.run(
        [str(PROGRAM), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env=node_environment(node.extra["home"]),
    )
