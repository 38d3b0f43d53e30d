"""The form of a stream: frames, comments while silent, errors after the first frame."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from llm_node import errors
from llm_node.api import sse
from llm_node.api.context import ERROR_FORMS, PING_INTERVAL
from llm_node.node import NodeError
from llm_node.server import middleware

ROUTE = "/stream"


def content_of(frame: bytes) -> object:
    assert frame.startswith(b"data: ")
    assert frame.endswith(b"\n\n")
    assert frame.count(b"\n") == 2
    return json.loads(frame[6:])


@asynccontextmanager
async def serving(
    source: sse.Source,
    ping_interval: float = 30,
    framing: sse.Framing = sse.EVENTS,
    form: errors.Form = errors.PLAIN,
) -> AsyncIterator[TestClient[web.Request, web.Application]]:
    async def handler(request: web.Request) -> web.StreamResponse:
        return await sse.respond(request, source, framing)

    app = web.Application(middlewares=middleware.ALL)
    app[PING_INTERVAL] = ping_interval
    app[ERROR_FORMS] = errors.Forms()
    app[ERROR_FORMS].add(ROUTE, form)
    app.add_routes([web.get(ROUTE, handler)])
    async with TestClient(TestServer(app, handler_cancellation=True)) as client:
        yield client


async def body_of(source: sse.Source, *more: Any, **named: Any) -> tuple[int, bytes]:
    async with serving(source, *more, **named) as client:
        reply = await client.get(ROUTE)
        return reply.status, await reply.read()


async def test_frames_then_done() -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({"a": 1})
        out.tell({"a": 2})

    status, body = await body_of(source)
    assert status == 200
    assert body == b'data: {"a":1}\n\ndata: {"a":2}\n\ndata: [DONE]\n\n'


async def test_named_events_and_lines_have_no_end_of_their_own() -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({"type": "begun", "a": "\n"})
        raise NodeError("engine_crashed", "gone")

    named = errors.Form(lambda row, failure, request_id: {"type": "error"})
    _, body = await body_of(source, framing=sse.NAMED_EVENTS, form=named)
    begun, error = b'event: begun\ndata: {"type":"begun","a":"\\n"}', b'event: error\ndata: {"type":"error"}'
    assert body == begun + b"\n\n" + error + b"\n\n"
    plain = errors.Form(lambda row, failure, request_id: {"error": failure.message})
    _, body = await body_of(source, framing=sse.LINES, form=plain)
    assert body == b'{"type":"begun","a":"\\n"}\n{"error":"gone"}\n'


async def test_lines_are_silent_while_there_is_nothing_to_tell() -> None:
    go_on = asyncio.Event()

    async def source(out: sse.Stream) -> None:
        await go_on.wait()
        out.tell({"a": 1})

    async with serving(source, ping_interval=0.01, framing=sse.LINES) as client:
        reply = await client.get(ROUTE)
        assert reply.content_type == "application/x-ndjson"
        await asyncio.sleep(0.05)
        go_on.set()
        assert await reply.read() == b'{"a":1}\n'


async def test_an_error_before_the_first_frame_has_its_status() -> None:
    async def source(out: sse.Stream) -> None:
        raise NodeError("queue_full", "later")

    status, body = await body_of(source)
    assert status == 429
    assert json.loads(body)["error"]["code"] == "queue_full"


async def test_an_error_after_it_is_an_event_and_done_follows() -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({"a": 1})
        raise NodeError("engine_crashed", "gone")

    status, body = await body_of(source)
    assert status == 200
    first, error, done, rest = body.split(b"\n\n")
    assert content_of(first + b"\n\n") == {"a": 1}
    assert content_of(error + b"\n\n") == {
        "error": {"message": "gone", "type": "plugin_error", "code": "engine_crashed", "param": None}
    }
    assert (done, rest) == (b"data: [DONE]", b"")


async def test_a_defect_after_it_is_an_event_without_its_inside() -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({"a": 1})
        raise RuntimeError("secret inside")

    _, body = await body_of(source)
    assert b'"code":"internal"' in body
    assert b"secret" not in body
    assert body.endswith(sse.EVENTS.last)


async def test_comments_while_silent_and_an_error_after_them() -> None:
    go_on = asyncio.Event()

    async def source(out: sse.Stream) -> None:
        await go_on.wait()
        raise NodeError("timeout", "too slow")

    async with serving(source, ping_interval=0.02) as client:
        reply = await client.get(ROUTE)
        assert reply.status == 200
        assert await reply.content.readuntil(b"\n\n") == sse.EVENTS.silence
        assert await reply.content.readuntil(b"\n\n") == sse.EVENTS.silence
        go_on.set()
        rest = await reply.read()
    events = [event for event in rest.split(b"\n\n") if event and not event.startswith(b":")]
    assert len(events) == 2
    assert b'"code":"timeout"' in events[0]
    assert events[1] == b"data: [DONE]"


async def test_a_client_that_leaves_ends_the_source() -> None:
    ended = asyncio.Event()

    async def source(out: sse.Stream) -> None:
        try:
            out.tell({"a": 1})
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(source) as client:
        reply = await client.get(ROUTE)
        await reply.content.readuntil(b"\n\n")
        reply.close()
        await asyncio.wait_for(ended.wait(), 10)


async def test_a_client_that_leaves_before_the_first_frame_ends_the_source() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def source(out: sse.Stream) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            ended.set()

    async with serving(source) as client:
        asking = asyncio.ensure_future(client.get(ROUTE))
        await begun.wait()
        asking.cancel()
        await asyncio.wait({asking})
        await asyncio.wait_for(ended.wait(), 10)


class Counting:
    """In the place of a `Client`: notes what it is told of bytes that wait."""

    def __init__(self) -> None:
        self.told: list[int] = []
        self.released = asyncio.Event()

    def hold(self, unsent: int) -> int:
        self.told.append(unsent)
        return 0

    def release(self) -> None:
        self.released.set()

    def catch_up(self) -> None: ...


async def test_all_that_waits_is_told() -> None:
    """Whatever made it: who counts what waits knows no other way."""
    counting = Counting()

    async def source(out: sse.Stream) -> None:
        out.client = cast(Any, counting)
        out.tell({"a": 1})
        await asyncio.sleep(0.1)  # the headers are sent, and this with them
        for size in (32 << 20, 1 << 20):
            out.tell({"a": " " * size})
        await counting.released.wait()

    await body_of(source)
    first, second = counting.told
    assert second - first >= 1 << 20


async def test_what_comes_in_the_turn_of_the_last_byte_is_waited_for() -> None:
    """Or Rust would write past it, into the middle of an event."""
    counting = Counting()
    unsent_then: list[int] = []

    async def source(out: sse.Stream) -> None:
        out.client = cast(Any, counting)
        out.tell({"a": 1})
        await asyncio.sleep(0.1)  # the headers are sent, and this with them
        transport, writer = cast(Any, out)._transport, cast(Any, out)._writer
        drain = writer.drain

        async def drain_and_more() -> None:
            await drain()
            writer.drain = drain
            out.tell({"a": " " * (32 << 20)})

        def release() -> None:
            unsent_then.append(transport.get_write_buffer_size())
            counting.released.set()

        writer.drain = drain_and_more
        counting.release = release  # type: ignore[method-assign]
        out.tell({"a": " " * (32 << 20)})
        await counting.released.wait()

    await body_of(source)
    assert unsent_then == [0]


async def test_headers() -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({})

    async with serving(source) as client:
        reply: aiohttp.ClientResponse = await client.get(ROUTE)
        assert reply.content_type == "text/event-stream"
        assert reply.headers["Cache-Control"] == "no-cache"


async def test_a_client_may_close_behind_the_last_frame(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def source(out: sse.Stream) -> None:
        out.tell({"a": 1})

    write_eof = web.StreamResponse.write_eof

    async def gone(self: web.StreamResponse, data: bytes = b"") -> None:
        monkeypatch.setattr(web.StreamResponse, "write_eof", write_eof)
        raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")

    monkeypatch.setattr(web.StreamResponse, "write_eof", gone)
    status, body = await body_of(source)
    assert (status, body) == (200, b'data: {"a":1}\n\n')
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
