"""Listens, and decides who is let in.

Owns the listening sockets and the number of connections. As many are let in as the limit allows; for one
more, a connection that has been silent is closed, and where there is none, the new one is told so. A shortage
of descriptors costs a line in the log and a pause, not the node.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Sequence
from typing import Any, cast

from aiohttp import web

from llm_node.node import NodeError
from llm_node.server.address import SocketAddress
from llm_node.server.connection import Connection, raw_answer, say_farewell
from llm_node.server.tls import Tls
from llm_node.settings import Settings

log = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the kernel keeps for a node that is busy."""
AT_ONCE = 64
"""Connections that are let in before anything else has a turn."""
PAUSE_SECONDS = 1.0
"""How long nobody is let in where there are no descriptors left; and lines about it are so far apart."""

RESERVED = 256
"""Descriptors for workers, files, and connections that are turned away."""
PER_CONNECTION = 2
"""Its socket, and the copy of it that Rust writes a stream to."""
FEWEST_CONNECTIONS = 16
MOST_CONNECTIONS = 8192
"""More only where somebody says so."""

TURNED_AWAY_AT_ONCE = 64
TURNED_AWAY_SECONDS = 2.0
"""How long one that is turned away may take to send its request: then nothing is unread when it is closed."""
SILENT_SECONDS = 1.0
"""A connection that has been silent for so long may be closed for a new one."""

SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
NOT_HERE = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT}


class Listener:
    """The door of one node."""

    def __init__(
        self, runner: web.AppRunner, settings: Settings, *, most_connections: int, tls: Tls | None = None
    ) -> None:
        """`runner`: of the application, set up. `tls`: for all connections; None: they have none."""
        server = runner.server
        if server is None:
            raise RuntimeError("the runner has not been set up")
        self._server = server
        self._settings = settings
        self._tls = tls
        self._most = most_connections
        self._connections: set[Connection] = set()
        self._turned_away: set[_TurnedAway] = set()
        self._sockets: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_line = -PAUSE_SECONDS
        make_request = server.request_factory

        def begin_request(*parts: Any) -> web.BaseRequest:
            request = make_request(*parts)
            protocol = request.protocol
            if isinstance(protocol, Connection):
                protocol.begin(request)
            return request

        server.request_factory = begin_request

    @property
    def port(self) -> int:
        """Where it listens; also where 0 was asked for."""
        port: int = self._sockets[0].getsockname()[1]
        return port

    def open(self, addresses: Sequence[tuple[int, SocketAddress]]) -> None:
        """Listen on these, each with its family. One that this machine lacks is left out, as long as there
        is another. Raises `OSError`."""
        missing: OSError | None = None
        for family, address in addresses:
            port = self.port if self._sockets else address[1]
            try:
                listening = socket.create_server(
                    (address[0], port, *address[2:]), family=family, backlog=BACKLOG
                )
            except OSError as error:
                if error.errno not in NOT_HERE:
                    self._close_sockets()
                    raise
                missing = error
                continue
            listening.setblocking(False)
            self._sockets.append(listening)
        if missing is not None and not self._sockets:
            raise missing
        for listening in self._sockets:
            self._start(self._accept(listening))

    def take(self, listening: socket.socket) -> None:
        """Listen on a socket that listens already."""
        listening.setblocking(False)
        self._sockets.append(listening)
        self._start(self._accept(listening))

    async def close(self) -> None:
        """Let nobody in any more. Who is in stays."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._close_sockets()

    def _close_sockets(self) -> None:
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()

    def _start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ---- arrivals --------------------------------------------------------------------------------

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            for _ in range(AT_ONCE):
                try:
                    arrived, _ = await loop.sock_accept(listening)
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        return  # who gave the socket has shut it down: connections go elsewhere
                    if error.errno in SHORTAGES:
                        self._say("nobody can be let in: %s", error.strerror)
                        await asyncio.sleep(PAUSE_SECONDS)
                    continue  # anything else has befallen the connection that was arriving
                self._start(self._let_in(arrived))
            await asyncio.sleep(0)

    async def _let_in(self, arrived: socket.socket) -> None:
        protocol = self._receive()
        try:
            await self._connect(protocol, arrived)
        except OSError as error:
            log.debug("a connection ended before it began: %s", error)
            if isinstance(protocol, Connection):
                self._connections.discard(protocol)

    async def _connect(self, protocol: asyncio.Protocol, arrived: socket.socket) -> None:
        connect = asyncio.get_running_loop().connect_accepted_socket
        if self._tls is None:
            await connect(lambda: protocol, arrived)
        else:
            # Nobody may take longer for its greeting than for the headers behind it.
            limit = self._settings.header_timeout
            await connect(lambda: protocol, arrived, ssl=self._tls.context, ssl_handshake_timeout=limit)

    def _receive(self) -> Connection | _TurnedAway:
        if len(self._connections) >= self._most and not self._make_room():
            self._say("%d connections are open, as many as may be: further ones are refused", self._most)
            return _TurnedAway(self._turned_away)
        connection = Connection(
            self._server,
            header_timeout=self._settings.header_timeout,
            transfer_timeout=self._settings.transfer_timeout,
            closed=self._connections.discard,
            keepalive_timeout=self._settings.idle_timeout,
            access_log=None,  # the middleware writes one that has the request id
        )
        self._connections.add(connection)
        return connection

    def _make_room(self) -> bool:
        """Close the connection that has been silent for longest, if there is one."""
        silent = (each for each in self._connections if not each.is_busy)
        longest = min(silent, key=lambda each: each.silent_since, default=None)
        now = asyncio.get_running_loop().time()
        if longest is None or now - longest.silent_since < SILENT_SECONDS:
            return False
        self._connections.discard(longest)
        longest.force_close()
        return True

    def _say(self, words: str, *values: object) -> None:
        """Once a second at most: there may be thousands of them."""
        now = asyncio.get_running_loop().time()
        if now - self._last_line >= PAUSE_SECONDS:
            self._last_line = now
            log.warning(words, *values)


class _TurnedAway(asyncio.Protocol):
    """A connection for which there is no room: it is told so, and closed."""

    def __init__(self, others: set[_TurnedAway]) -> None:
        self._others = others
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = transport = cast(asyncio.Transport, transport)
        self._others.add(self)
        if len(self._others) > TURNED_AWAY_AT_ONCE:
            transport.write(_no_room())
            transport.close()
        else:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(TURNED_AWAY_SECONDS, self._answer)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._answer()

    def connection_lost(self, error: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._others.discard(self)
        if self._timer is not None:
            self._timer.cancel()

    def _answer(self) -> None:
        if self._timer is not None and self._transport is not None:
            self._timer.cancel()
            self._timer = None
            say_farewell(self._transport, _no_room())


def _no_room() -> bytes:
    return raw_answer(
        NodeError("too_many_connections", "As many connections are open as may be; try again later")
    )


def most_connections(wanted: int | None, descriptors: int) -> int:
    """As many connections as are wanted, and as this number of descriptors carries."""
    possible = max(FEWEST_CONNECTIONS, (descriptors - RESERVED) // PER_CONNECTION)
    if wanted is not None and wanted > possible:
        log.warning(
            "--max-connections is %d, but the limit of %d open files carries %d; raise `ulimit -n`",
            wanted,
            descriptors,
            possible,
        )
    return min(MOST_CONNECTIONS if wanted is None else wanted, possible)
