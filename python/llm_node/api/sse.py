"""Streams: the only writer of their frames.

Owns the form of a stream: its headers, its frames, what is sent while it is silent, its ending, and what
becomes of a client that does not read. Knows no family's words; a family hands it a `Framing`, and what
that made of its dicts.

Tokens pass by here as bytes that Rust has made of templates. While the client reads them as they come,
Rust writes them to its socket itself. What the socket does not take, and what stands around the text, goes
through the connection's transport, at once, in the loop turn that it comes in: no task is woken for it, and
nothing is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.abc import AbstractStreamWriter

from llm_node import errors
from llm_node.api import body
from llm_node.api.context import ERROR_CODE, ERROR_FORMS, PING_INTERVAL, PROBE, REQUEST_ID
from llm_node.api.conversation import dump
from llm_node.node import Client, NodeError

log = logging.getLogger(__name__)

HEADERS = {
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the tokens back
}

NO_LINGERING = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
"""`struct linger`: a connection that is closed is gone at once."""


@dataclass(frozen=True)
class Framing:
    """How a family's streams are written around its JSON."""

    content_type: str
    frame: Callable[[Mapping[str, Any]], bytes]
    """One frame with this content."""
    silence: bytes
    """What is sent while there is nothing to tell, and changes nothing; empty: nothing may be sent then."""
    last: bytes = b""
    """What stands behind the last frame."""


def _event(content: Mapping[str, Any]) -> bytes:
    return f"data: {dump(content)}\n\n".encode()


def _named_event(content: Mapping[str, Any]) -> bytes:
    return f"event: {content['type']}\ndata: {dump(content)}\n\n".encode()


def _line(content: Mapping[str, Any]) -> bytes:
    return f"{dump(content)}\n".encode()


_EVENT_STREAM = "text/event-stream; charset=utf-8"
_COMMENT = b": keep-alive\n\n"

EVENTS = Framing(_EVENT_STREAM, _event, silence=_COMMENT, last=b"data: [DONE]\n\n")
"""Server-sent events that end with `[DONE]`."""
NAMED_EVENTS = Framing(_EVENT_STREAM, _named_event, silence=_COMMENT)
"""Server-sent events that are named by the `type` in their content."""
LINES = Framing("application/x-ndjson", _line, silence=b"")
"""Lines of JSON. Their readers do not bear an empty one."""

Source = Callable[["Stream"], Coroutine[Any, Any, None]]
"""Sends a stream's events, and returns after the last. Raises `NodeError` where it cannot go on."""


Failing = Callable[[errors.Failure, int], bytes]
"""Whole frames that tell of an error. The number is the one behind those of all frames that were written,
where they have numbers."""


async def respond(
    request: web.Request, source: Source, framing: Framing = EVENTS, failing: Failing | None = None
) -> web.StreamResponse:
    """Answer with a stream.

    An error before the first frame is raised, so that it has its status. The status is spent with the
    first frame, or where the stream is silent for long; from then on an error is a frame of its own, and
    the stream's usual end follows. `failing` writes it; without it, it is the body that errors have.
    """
    if request.method == hdrs.METH_HEAD:
        return _head(framing)
    stream = Stream(request, framing, failing)
    running = asyncio.create_task(source(stream))
    try:
        ping_interval = request.app[PING_INTERVAL]
        began = {running, stream.first}
        await asyncio.wait(began, timeout=ping_interval, return_when=asyncio.FIRST_COMPLETED)
        if running.done() and not stream.first.done():
            running.result()
        await stream.begin(ping_interval)
        try:
            await running
        except NodeError as fault:
            ERROR_CODE.set(fault.code)
            stream.fail(fault)
        except ConnectionError:
            raise  # the client left
        except Exception:
            request_id = REQUEST_ID.get()
            ERROR_CODE.set("internal")
            log.exception("defect while streaming request %s", request_id)
            stream.fail(errors.defect(request_id))
        return await stream.end()
    finally:
        stream.close()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await running


def _head(framing: Framing) -> web.StreamResponse:
    return web.StreamResponse(headers={"Content-Type": framing.content_type, **HEADERS})


class Stream:
    """One answer on its way to one client; `Connection` of `node/client.py`."""

    def __init__(self, request: web.Request, framing: Framing, failing: Failing | None = None) -> None:
        self.framing = framing
        self.number = 0
        """Behind those of all frames that were written of a request that has failed."""
        self._failing = failing
        self.client: Client | None = None
        """Who makes its bytes, and is to be told when they cannot be sent."""
        self.chunked = request.version >= HttpVersion11
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when there is something to send."""
        self._request = request
        self._request_id = REQUEST_ID.get()
        self._response = _head(framing)
        self._writer: AbstractStreamWriter | None = None
        self._transport: asyncio.Transport | None = None
        self._early: list[bytes] = []
        self._is_closed = False
        self._writes = 0
        self._silence: asyncio.TimerHandle | None = None
        self._catching_up: asyncio.Task[None] | None = None

    def tell(self, content: Mapping[str, Any]) -> None:
        """One frame that was made here."""
        self.send(self.framing.frame(content))

    def ignore(self, names: Iterable[str]) -> None:
        """Of no use once the headers are sent."""
        body.relax(self._request, names)

    def fail(self, fault: errors.Failure) -> None:
        """An error, as the family writes it."""
        if self._failing is not None:
            self.send(self._failing(fault, self.number))
            return
        form = self._request.app[ERROR_FORMS].of(self._request.path)
        self.tell(errors.body(fault, form, self._request_id))

    def send(self, data: bytes) -> None:
        """Whole frames that were made here."""
        if not data:
            return  # an empty chunk would end the answer
        self.pass_on(b"%x\r\n%b\r\n" % (len(data), data) if self.chunked else data)

    def pass_on(self, data: bytes) -> None:
        """Whole frames as bytes of the connection, which are written at once, in the order of the calls."""
        transport = self._transport
        if transport is None:
            self._early.append(data)
            if not self.first.done():
                self.first.set_result(None)
            return
        transport.write(data)
        self._writes += 1
        unsent = transport.get_write_buffer_size()
        if unsent:
            self._lag(unsent)

    def socket(self) -> int | None:
        """See `Connection`."""
        transport = self._transport
        if transport is None or self._catching_up is not None or transport.get_write_buffer_size():
            return None
        if transport.is_closing() or transport.get_extra_info("sslcontext") is not None:
            return None
        number: int = transport.get_extra_info("socket").fileno()
        return number

    def overflow(self) -> None:
        """The client does not read: close its connection, which ends its request as if it had left."""
        log.warning(
            "request %s: more bytes than may wait for a client that does not read; its connection is closed",
            self._request_id,
        )
        if self._transport is not None:
            # What the kernel still has for it is dropped as well.
            self._transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING
            )
            self._transport.abort()

    async def begin(self, ping_interval: float) -> None:
        """Send the headers, and what came before them."""
        if not self.first.done():
            self.send(self.framing.silence)
        self._writer = await self._response.prepare(self._request)
        transport = self._request.transport
        if transport is None:
            raise ConnectionResetError("the client left")
        # Anything that it does not take at once is to be seen: `drain` waits until all is sent.
        transport.set_write_buffer_limits(high=0)
        self._transport = transport
        self._request[PROBE] = self._probe
        early, self._early = self._early, []
        if early:
            self.pass_on(b"".join(early))
        if self.client is not None:
            self.client.catch_up()
        self._expect(ping_interval, self._writes)

    async def end(self) -> web.StreamResponse:
        """Send the ending."""
        self.close()
        with contextlib.suppress(ConnectionError):  # a client may close behind the last frame
            await self._response.write_eof(self.framing.last)
        return self._response

    def close(self) -> None:
        """Nothing more is sent but the ending."""
        self._is_closed = True
        self.client = None
        if self._silence is not None:
            self._silence.cancel()
        if self._transport is not None:
            self._transport.set_write_buffer_limits()

    def _lag(self, unsent: int) -> None:
        """So many bytes wait. Whatever made them, Rust counts them against what may wait."""
        if self.client is not None:
            self.client.hold(unsent)
        if self._catching_up is None and self._writer is not None:
            self._catching_up = asyncio.create_task(self._catch_up(self._writer))

    async def _catch_up(self, writer: AbstractStreamWriter) -> None:
        # Never cancelled: all who wait for a connection share one future. It ends with the connection.
        with contextlib.suppress(ConnectionError):
            await writer.drain()
            self._catching_up = None
            if self.client is None or self._transport is None:
                return
            # More may have come between the last byte's leaving and this line, in the same turn.
            unsent = self._transport.get_write_buffer_size()
            if unsent:
                self._lag(unsent)
            else:
                self.client.release()

    def _expect(self, seconds: float, writes: int) -> None:
        loop = asyncio.get_running_loop()
        self._silence = loop.call_later(seconds, self._break_silence, seconds, writes)

    def _break_silence(self, seconds: float, before: int) -> None:
        """Something whenever nothing was written for so long. One write is whole frames, so it never lands
        inside one; nor does it land among what is written past here, which waits for it."""
        self._expect(seconds, self._say_nothing(before))

    def _probe(self) -> None:
        """See `PROBE`."""
        if not self._is_closed:
            self._say_nothing(None)

    def _say_nothing(self, before: int | None) -> int:
        """Send what changes nothing, unless something waits to be sent, or more was written than `before`.
        Gives what is written by then."""
        if self._catching_up is not None:
            return before or 0
        writes = self._writes + (self.client.hold(0) if self.client is not None else 0)
        if before is None or writes == before:
            self.send(self.framing.silence)
            writes += 1
        if self._catching_up is None and self.client is not None:
            self.client.release()
        return writes
