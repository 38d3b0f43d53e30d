"""Server-sent events: the only writer of "data:".

Owns the form of a stream: its headers, its frames, comments while it is silent, and its ending, which
is always `[DONE]`. Knows no family's words; a family hands it frames made by `frame` or a `Template`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from collections.abc import AsyncGenerator, Mapping
from typing import Any

from aiohttp import web

from llm_node import errors
from llm_node.api.context import KEEP_ALIVE, REQUEST_ID
from llm_node.node import NodeError

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",  # nginx would hold the tokens back
}
DONE = b"data: [DONE]\n\n"
COMMENT = b": keep-alive\n\n"

HOLE = uuid.uuid4().hex
"""Stands in a template for the text to come. Drawn anew by each process: nobody can send it."""


def dump(value: Any) -> str:
    """JSON without needless spaces, in UTF-8."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def frame(content: Mapping[str, Any]) -> bytes:
    """One event."""
    return f"data: {dump(content)}\n\n".encode()


class Template:
    """Events that differ in one text alone, formatted once for the whole stream."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        """`content` has `HOLE` as a value where the text goes."""
        head, tail = dump(content).split(f'"{HOLE}"')
        self._head = f"data: {head}"
        self._tail = f"{tail}\n\n"

    def fill(self, text: str) -> bytes:
        """The event with this text."""
        return f"{self._head}{dump(text)}{self._tail}".encode()


async def respond(request: web.Request, frames: AsyncGenerator[bytes, None]) -> web.StreamResponse:
    """Answer with a stream of frames.

    An error before the first frame is raised, so that it has its status. The status is spent with the
    first frame, or with the first comment where the stream is silent for long; from then on an error
    is an event, and `[DONE]` follows.
    """
    first = asyncio.ensure_future(_first(frames))
    try:
        await asyncio.wait({first}, timeout=request.app[KEEP_ALIVE])
        if first.done():
            first.result()
        stream = _Stream(request)
        await stream.begin(silent=not first.done())
        try:
            await stream.write_all(first, frames)
        finally:
            stream.comments.cancel()
        return await stream.end()
    finally:
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await first
        await frames.aclose()


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    async for each in frames:
        return each
    return b""


class _Stream:
    """A stream whose headers are out."""

    def __init__(self, request: web.Request) -> None:
        self.request = request
        self.response = web.StreamResponse(headers=HEADERS)
        self.comments: asyncio.Future[None]
        self._writes = 0

    async def begin(self, *, silent: bool) -> None:
        await self.response.prepare(self.request)
        self.comments = asyncio.ensure_future(self._comment(self.request.app[KEEP_ALIVE], silent=silent))

    async def end(self) -> web.StreamResponse:
        await self.response.write_eof()
        return self.response

    async def write_all(self, first: asyncio.Future[bytes], frames: AsyncGenerator[bytes, None]) -> None:
        try:
            await self._write(await first)
            async for each in frames:
                await self._write(each)
        except NodeError as fault:
            await self._write(frame(errors.body(fault)))
        except ConnectionError:
            raise  # the client left
        except Exception:
            request_id = REQUEST_ID.get()
            log.exception("defect while streaming request %s", request_id)
            await self._write(frame(errors.internal(request_id).body))
        await self._write(DONE)

    async def _write(self, data: bytes) -> None:
        self._writes += 1
        if data:
            await self.response.write(data)

    async def _comment(self, seconds: float, *, silent: bool) -> None:
        """A comment whenever nothing was written for so long. One write is whole events, so a comment
        never lands inside one."""
        with contextlib.suppress(ConnectionError):
            if silent:
                await self.response.write(COMMENT)
            while True:
                before = self._writes
                await asyncio.sleep(seconds)
                if self._writes == before:
                    await self.response.write(COMMENT)
