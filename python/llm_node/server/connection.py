"""One HTTP connection: what aiohttp makes of it, and what it does not decide.

Owns the deadlines of a connection, the answers to bytes that are no request, and what becomes of a client
that closes its sending side: it gets its answer, as long as it reads. Parsing, keep-alive and the routes are
aiohttp's.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
from collections.abc import Callable
from typing import Any

from aiohttp import HttpVersion11, web
from aiohttp.http import HttpRequestParser
from aiohttp.http_exceptions import ContentEncodingError, HttpProcessingError, LineTooLong

from llm_node import errors
from llm_node.api.body import words_of
from llm_node.api.context import PROBE
from llm_node.node import NodeError
from llm_node.server import middleware

log = logging.getLogger(__name__)

LONGEST_LINE = 64 << 10
"""Bytes of the request line, and of each header."""
LONGEST_HEAD = 256 << 10
"""Bytes of request line and headers together, roughly: what came with their last byte counts as well."""

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
LINGERING_SECONDS = 1.0
"""How long a connection that was refused is read from: one that is closed with bytes that nobody has read
loses its answer."""
GLANCE_SECONDS = 0.1
"""How often a client that sends no more is looked at."""
PROBE_EVERY = 50
"""Every so many glances something is sent to it. One that is gone answers with a reset."""


class Connection(web.RequestHandler):
    """A connection that was let in."""

    def __init__(
        self,
        server: web.Server,
        *,
        header_timeout: float,
        transfer_timeout: float,
        closed: Callable[[Connection], None],
        **arguments: Any,
    ) -> None:
        """`closed` is told when it is gone; `arguments` are aiohttp's."""
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            max_line_size=LONGEST_LINE,
            max_field_size=LONGEST_LINE,
            **arguments,
        )
        # It stops behind each request: bytes that are none cost those before them no answer.
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_headers=self.max_headers,
            max_field_size=self.max_field_size,
            payload_exception=web.RequestPayloadError,
            max_msg_queue_size=1,
        )
        self.silent_since = self._loop.time()
        """When the last answer ended. Of no use while `is_busy`."""
        self.is_busy = False
        """Is a request under way?"""
        self._closed = closed
        self._header_timeout = header_timeout
        self._transfer_timeout = transfer_timeout
        self._request: web.BaseRequest | None = None
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self._is_half_closed = False
        self._is_answering = False

    # ---- what the transport tells ----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self._expect_head()

    def connection_lost(self, error: BaseException | None) -> None:
        """See `asyncio.Protocol`."""
        self._closed(self)
        for timer in (self._head_timer, self._write_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(error)
        self._request = None

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._is_refused:
            return
        # aiohttp comes with nothing when it goes on reading.
        if data and not self.is_busy and self._body_is_complete():
            if self._head_timer is None:
                self._expect_head()
            if self._head_bytes > LONGEST_HEAD:
                self._refuse(NodeError("headers_too_large", "The headers are longer than 256 KiB"))
                return
            self._head_bytes += len(data)
        self._parse(data)
        if self.is_busy and self._messages and not self._body_is_complete():
            # Behind a body that goes on there is nothing but the parser's error, which is not told to those
            # who wait for the body.
            self._spoil_body(_error(self._messages[-1][0]))

    def _parse(self, data: bytes) -> None:
        """All requests in these bytes, as many as aiohttp lets wait, and the error of what is none."""
        super().data_received(data)
        known = -1
        while known < len(self._messages) < self._max_msg_queue_size and self._is_between_requests():
            known = len(self._messages)
            super().data_received(b"")

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp never keeps it open
        """The client sends no more. True: it still gets its answer. TLS has no such state."""
        if self.transport is None or self.transport.get_extra_info("sslcontext") is not None:
            return False
        if self._is_refused or not self.is_busy or self._request is None:
            return False
        self._is_half_closed = True
        if not self._body_is_complete():
            self._spoil_body(None)
        elif PROBE in self._request:
            self._probe()
            self._look(1)
        else:  # most are answered before anything has to be sent
            self._loop.call_later(GLANCE_SECONDS, self._look, 0)
        return True

    def pause_writing(self) -> None:
        """The client does not take what is sent: it may pause, but not for ever."""
        super().pause_writing()
        self._expect_progress()

    def resume_writing(self) -> None:
        """It took it."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    # ---- what aiohttp tells ----------------------------------------------------------------------

    def begin(self, request: web.BaseRequest) -> None:
        """The headers of a request are complete."""
        self.is_busy = True
        self._request = request
        self._head_bytes = 0
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    async def finish_response(
        self, request: web.BaseRequest, response: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """The last thing that happens to each request."""
        if isinstance(response, web.HTTPException):  # from before the middlewares: what it expects
            request_id = middleware.name_request(request)
            response = _complete(middleware.refusal(request, response), request_id)
            middleware.log_access(request, response.status, 0)
        self._is_answering = True
        was_upgraded = self._upgraded
        try:
            finished = await super().finish_response(request, response, start_time)
            if was_upgraded and self._parser is not None:  # it was not, and other requests may be behind it
                self._parse(b"")
            if self._is_refused and self.transport is not None:
                _end_sending(self.transport)
                await asyncio.sleep(LINGERING_SECONDS)  # cut short by the client, which closes
            return finished
        finally:
            self._is_answering = False
            self.is_busy = False
            self.silent_since = self._loop.time()
            if self._is_half_closed:
                self._loop.call_soon(self._end_if_idle)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """The answer to bytes that are no request, and to what goes wrong around the middlewares."""
        request_id = middleware.name_request(request)
        if isinstance(exc, HttpProcessingError):
            fault = _fault(exc)
            reply = errors.reply(fault)
            self._is_refused = True
            log.info("refused what %s sent: %s (%s)", request.remote, fault.message, request_id)
        elif isinstance(exc, ConnectionResetError):
            reply = errors.internal(request_id)  # the client left: nobody reads it
        else:
            reply = errors.internal(request_id)
            log.error("defect while answering request %s", request_id, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already")
        response = _complete(middleware.answer(reply), request_id)
        response.force_close()
        return response

    def log_exception(self, *words: Any, **keywords: Any) -> None:
        """What goes wrong beside a handler. What the client did is no defect."""
        error = keywords.get("exc_info")
        if isinstance(error, web.RequestPayloadError | NodeError | ConnectionError):
            log.debug("the rest of a request's body cannot be read: %s", error)
        else:
            super().log_exception(*words, **keywords)

    # ---- deadlines -------------------------------------------------------------------------------

    def _expect_head(self) -> None:
        self._head_timer = self._loop.call_later(self._header_timeout, self._miss_head)

    def _miss_head(self) -> None:
        self._head_timer = None
        if self._head_bytes:
            seconds = f"{self._header_timeout:g} s"
            self._refuse(NodeError("request_timeout", f"The headers were not complete after {seconds}"))
        else:
            self.force_close()

    def _expect_progress(self) -> None:
        if self.transport is not None:
            unsent = self.transport.get_write_buffer_size()
            self._write_timer = self._loop.call_later(self._transfer_timeout, self._miss_progress, unsent)

    def _miss_progress(self, unsent: int) -> None:
        self._write_timer = None
        if self.transport is None:
            return
        if self.transport.get_write_buffer_size() < unsent:
            self._expect_progress()
            return
        log.info(
            "a client took nothing of its answer for %g s; its connection is closed", self._transfer_timeout
        )
        self.transport.abort()

    def _spoil_body(self, cause: BaseException | None) -> None:
        """The rest of it will not come."""
        if self._request is not None:
            error = web.RequestPayloadError("it ends before its last byte")
            error.__cause__ = cause
            self._request.content.set_exception(error)

    def _refuse(self, fault: NodeError) -> None:
        self._is_refused = True
        if self.transport is not None:
            say_farewell(self.transport, raw_answer(fault))

    # ---- a client that sends no more -------------------------------------------------------------

    def _body_is_complete(self) -> bool:
        """Has all of the last request come?"""
        return self._request is None or self._request.content.is_eof()

    def _is_between_requests(self) -> bool:
        """Has all of the last one come that was seen, and nothing behind it that is none?"""
        if not self._messages:
            return self._body_is_complete()
        message, body = self._messages[-1]
        return _error(message) is None and body.is_eof()

    def _probe(self) -> None:
        """Send something that changes nothing. Nobody can tell a client that is gone from one that only
        reads, but by a reset that answers it."""
        request = self._request
        if request is None or self.transport is None or self._is_answering:
            return
        stream: Callable[[], None] | None = request.get(PROBE)
        if stream is not None:
            stream()
        elif request.version >= HttpVersion11:
            self.transport.write(CONTINUE)

    def _look(self, count: int) -> None:
        if self.transport is None:
            return
        if self._is_idle():
            self.force_close()
        elif self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            if count % PROBE_EVERY == 0:
                self._probe()
            self._loop.call_later(GLANCE_SECONDS, self._look, count + 1)

    def _end_if_idle(self) -> None:
        if self._is_idle():
            self.force_close()

    def _is_idle(self) -> bool:
        return not self.is_busy and not self._messages


def raw_answer(fault: NodeError) -> bytes:
    """An error as bytes, for a connection that has no request."""
    response = _complete(middleware.answer(errors.reply(fault)), secrets.token_hex(16))
    body = (response.text or "").encode()
    headers = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [f"HTTP/1.1 {response.status} {response.reason}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def say_farewell(transport: asyncio.Transport, data: bytes) -> None:
    """Send the last that is sent, and close once the client has had time to read it."""
    if transport.is_closing():
        return
    transport.write(data)
    _end_sending(transport)
    asyncio.get_running_loop().call_later(LINGERING_SECONDS, transport.abort)


def _end_sending(transport: asyncio.Transport) -> None:
    if transport.can_write_eof():
        with contextlib.suppress(OSError):  # the client has reset the connection
            transport.write_eof()


def _complete(response: web.Response, request_id: str) -> web.Response:
    """With the headers of every answer, where no application adds them."""
    response.headers[middleware.HEADER] = request_id
    response.headers.update(middleware.SAFE_HEADERS)
    return response


def _error(message: object) -> HttpProcessingError | None:
    """What the parser found in place of a request."""
    return getattr(message, "exc", None)


def _fault(error: HttpProcessingError) -> NodeError:
    """What aiohttp's parser found, as the table has it."""
    reason = words_of(error)
    if isinstance(error, LineTooLong):
        return NodeError("headers_too_large", "The request line or a header is longer than 64 KiB")
    if isinstance(error, ContentEncodingError):
        return NodeError("unsupported_encoding", reason)
    return NodeError("malformed_request", f"This is not a request of HTTP/1: {reason}")
