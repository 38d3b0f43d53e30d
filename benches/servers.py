"""The two servers: started on a free port with the same model, threads and slots, watched, and ended."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benches.build import Tools
from benches.machine import children_of, cpu_seconds, listener
from benches.models import Model

START_SECONDS = 120.0
SPLIT, UNIFIED = "split", "unified"


@dataclass(frozen=True)
class Setup:
    """What both servers are told."""

    model: Model
    threads: int
    slots: int
    context: int
    """Tokens of one sequence; a multiple of 256, to which llama.cpp rounds."""
    cache_tokens: int | None = None
    """Size of the whole cache; none: enough for the full length of each sequence."""
    backend: str = "cpu"

    @property
    def cells(self) -> int:
        return self.cache_tokens or self.slots * self.context


@dataclass(frozen=True)
class Flavour:
    """A way to run llama-server that somebody who knows it would choose."""

    cache: str
    more: tuple[str, ...] = ()
    environment: tuple[tuple[str, str], ...] = ()

    def __str__(self) -> str:
        parts = [self.cache, *self.more, *(f"{name}={value}" for name, value in self.environment)]
        return " ".join(parts)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Server:
    """A server that is up."""

    name: str
    pid: int
    url: str
    model: Model
    model_id: str
    """What it calls the model."""

    @property
    def pids(self) -> list[int]:
        return [self.pid, *children_of(self.pid)]

    def cpu(self) -> tuple[float, float]:
        """Processor seconds of the process that talks HTTP, and of those below it."""
        return cpu_seconds([self.pid]), cpu_seconds(children_of(self.pid))

    def request(self, path: str, body: Any = None, timeout: float = 120.0) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as reply:
                return json.loads(reply.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                raise ServerError(f"{self.name}: {path}: {error.code} {error.read().decode()}") from error

    def wake(self, seed: int) -> None:
        """Ask for a few tokens, so that the server's threads and pages are there when it is measured."""
        chance = random.Random(seed)
        low = self.model.vocab // 2
        prompt = [chance.randrange(low, self.model.vocab) for _ in range(8)]
        body = {"model": self.model_id, "prompt": prompt, "max_tokens": 4, "ignore_eos": True}
        self.request("/v1/completions", {**body, "temperature": 0})


@dataclass
class Started(Server):
    """A server that is ours to end."""

    process: subprocess.Popen[bytes]
    log: Path
    folder: tempfile.TemporaryDirectory[str]
    facts: dict[str, Any] = field(default_factory=dict)

    def stop(self) -> None:
        below = children_of(self.process.pid)
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for pid in below:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.folder.cleanup()

    def log_tail(self) -> str:
        return self.log.read_text(errors="replace")[-3000:]


def end_with_program() -> None:
    """However this program is told to end, its servers end with it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


class ServerError(RuntimeError):
    """A server did not start, is not there, or refused what the benchmark asked."""


def start(
    name: str,
    command: Sequence[str],
    port: int,
    ready: str,
    model: Model,
    environment: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
) -> Started:
    folder = tempfile.TemporaryDirectory(prefix="llm-node-bench-")
    log = Path(folder.name) / "log"
    # No setting of the person who runs the benchmark leaks in.
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("LLM_NODE_", "LLAMA_"))}
    pin = [] if cores is None else ["taskset", "-c", ",".join(map(str, cores))]
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [*pin, *command],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            env={**kept, "HOME": folder.name, **(environment or {})},
        )
    url = f"http://127.0.0.1:{port}"
    server = Started(name, process.pid, url, model, model.path.stem, process, log, folder)
    deadline = time.monotonic() + START_SECONDS
    try:
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                tail = server.log_tail()
                raise ServerError(f"{name} did not start: {' '.join(command)}\n{tail}")
            with contextlib.suppress(OSError, ServerError):
                server.request(ready, timeout=5)
                return server
            time.sleep(0.05)
    except BaseException:
        server.stop()
        raise


def guest(name: str, url: str, model: Model) -> Server:
    """A server that somebody else started on this machine, with a model of the same shape; it stays up."""
    server = Server(name, 0, url.rstrip("/").removesuffix("/v1"), model, "")
    try:
        server.model_id = str(server.request("/v1/models")["data"][0]["id"])
    except (OSError, LookupError, ValueError) as error:
        raise ServerError(f"no {name} answers at {url}: {error}") from error
    pid = listener(urllib.parse.urlsplit(server.url).port or 80)
    if pid is None:
        raise ServerError(
            f"{url}: no process that can be seen listens there, so its load cannot be told apart"
        )
    server.pid = pid
    return server


def start_llama_server(tools: Tools, setup: Setup, flavour: Flavour) -> Started:
    port = free_port()
    command = [str(tools.server), "--host", "127.0.0.1", "--port", str(port)]
    command += ["-m", str(setup.model.path), "--alias", setup.model.path.stem]
    command += ["-t", str(setup.threads), "-tb", str(setup.threads)]
    command += ["-np", str(setup.slots), "-c", str(setup.cells)]
    command += ["--kv-unified" if flavour.cache == UNIFIED else "--no-kv-unified"]
    # No page, no log of requests, no copies of prompts that never come again.
    command += ["--no-ui", "--no-slots", "-lv", "1", "--cache-ram", "0", "--fit", "off"]
    if setup.backend != "cpu":
        command += ["-ngl", "999"]
    command += flavour.more
    return start("llama-server", command, port, "/health", setup.model, environment=dict(flavour.environment))


def start_node(
    setup: Setup,
    engines: Path,
    options: Mapping[str, str] | None = None,
    cores: Sequence[int] | None = None,
    load: bool = True,
    program: Path | None = None,
    speculation: str = "off",
    more: Sequence[str] = (),
) -> Started:
    """`program`: another llm-node than the one that is measured. `more`: of its own options.

    `speculation`: off, since llama-server guesses nothing either; and models of random weights repeat
    themselves, so that their next tokens are guessed far too easily.
    """
    port = free_port()
    own = Path(sys.executable).with_name("llm-node")
    command = [str(program or own), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--engines-dir", str(engines), "--models-dir", str(setup.model.path.parent)]
    command += ["--gpu-backend", setup.backend, "--log-level", "warning", "--demo-model", "no", *more]
    name = f"llm-node at {program}" if program else "llm-node"
    node = start(name, command, port, "/readyz", setup.model, cores=cores)
    if load:
        body: dict[str, Any] = {
            "model_id": setup.model.path.stem,
            "context_length": setup.context,
            "max_sequences": setup.slots,
            "threads": setup.threads,
            "speculation": speculation,
        }
        if setup.cache_tokens is not None:
            body["cache_tokens"] = setup.cache_tokens
        if options:
            body["options"] = dict(options)
        try:
            node.facts["load"] = node.request("/api/models/load", body, timeout=START_SECONDS)
        except ServerError:
            node.stop()
            raise
    return node
