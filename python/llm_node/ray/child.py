"""A node as a process of its own, under a replica of Ray Serve.

It has a session of its own, and goes down with the thread that started it: answers under way end although the
replica was killed, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import IO

import aiohttp

from llm_node.server.address import url

PROGRAM = (sys.executable, "-c", "from llm_node.cli import main; main(print)")
"""`llm-node`, which says on stdout, too, why it does not start. Nothing else is said there."""
START_SECONDS = 300.0
"""A node looks for engines and models before it listens to anybody."""
LAST_SECONDS = 5.0


class NodeEndedError(Exception):
    """There is no node any more, or none that answers."""


class Child:
    """One node. It is started once, on the thread of an event loop; all else may be asked from any thread."""

    def __init__(self, config: str, died: Callable[[int], None]) -> None:
        """`config`: its settings file. `died` is told, on a thread of its own, of a node that has ended
        although it had been ready and nobody had stopped it."""
        self._config = config
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._ended: Future[int] = Future()
        self._is_ready = False
        self._is_stopping = False
        self.url = ""
        """Where this machine reaches it."""

    @property
    def has_begun(self) -> bool:
        """Was it started?"""
        return self._process is not None

    async def start(self, listening: socket.socket) -> None:
        """Start it on this socket, which is then its alone: once it is gone, connections are refused.
        Raises `NodeEndedError` where it does not come to answer."""
        # A file, and no pipe: a node that outlives its replica has nobody who reads.
        with tempfile.TemporaryFile() as reason:
            with listening:
                process = self._spawn(listening, reason)
            try:
                # Nobody but this node has the socket: who connects waits for it, and is let go where it ends.
                await self.ask("/readyz", START_SECONDS)
            except NodeEndedError:
                code = await asyncio.to_thread(_end, process)
                reason.seek(0)
                said = reason.read().decode(errors="replace").strip()
                raise NodeEndedError(
                    f"llm-node with {self._config} does not start: "
                    + (said or f"{_end_in_words(code)}; its words are in this replica's stderr")
                ) from None
            except asyncio.CancelledError:
                process.kill()
                raise
        self._is_ready = True

    def _spawn(self, listening: socket.socket, reason: IO[bytes]) -> subprocess.Popen[bytes]:
        host, port = listening.getsockname()[:2]
        self.url = url(host, port)
        descriptor = listening.fileno()
        own = ["--listen-fd", str(descriptor), "--exit-with-parent", "yes", "--behind-balancer", "yes"]
        self._process = subprocess.Popen(
            [*PROGRAM, "serve", "--config", self._config, *own],
            stdin=subprocess.DEVNULL,
            stdout=reason,
            pass_fds=[descriptor],
            start_new_session=True,
        )
        threading.Thread(target=self._wait, args=[self._process], name="node", daemon=True).start()
        return self._process

    async def ask(self, path: str, seconds: float) -> None:
        """Raises `NodeEndedError` unless it answers with 200 within so many seconds."""
        limit = aiohttp.ClientTimeout(total=seconds)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(self.url + path) as answer,
            ):
                answer.raise_for_status()
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise NodeEndedError(f"llm-node does not answer {path}: {error!r}") from None

    def stop(self) -> None:
        """Let nobody in any more, end what is under way, and go. A second time changes nothing: a second
        signal would hurry it."""
        if self._process is not None and not self._is_stopping:
            self._is_stopping = True
            self._process.terminate()

    async def ended(self) -> None:
        """Wait for its end. Who gives up waiting ends it at once."""
        if self._process is None:
            return
        try:
            await asyncio.shield(asyncio.wrap_future(self._ended))
        except asyncio.CancelledError:
            self._is_stopping = True
            self._process.kill()
            raise

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        code = process.wait()
        if self._is_ready and not self._is_stopping:
            self._died(code)
        self._ended.set_result(code)


def _end_in_words(code: int) -> str:
    return f"it ended with {code}" if code >= 0 else f"signal {-code} ended it"


def _end(process: subprocess.Popen[bytes]) -> int:
    """Its exit code, which is its own where it is just ending."""
    try:
        return process.wait(LAST_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
