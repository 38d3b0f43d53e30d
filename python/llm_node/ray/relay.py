"""The way through the replica: an ASGI application that hands requests to the node, byte for byte, and its
answers back.

It needs nothing of Ray that is private. It serves where there is no HAProxy, and while HAProxy reloads.
"""

from __future__ import annotations

import json
import logging
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import yarl
from multidict import CIMultiDict

from llm_node import errors
from llm_node.ray.child import Child

log = logging.getLogger("ray.serve")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OF_ONE_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
OF_SERVE = frozenset({b"date", b"server", b"x-request-id"})
"""Of an answer: Serve's own server adds these."""
UNASKED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""What aiohttp would add to a request."""


class Relay:
    """Lives on one event loop, and ends the node with itself."""

    def __init__(self, node: Child) -> None:
        self._node = node
        self._session: aiohttp.ClientSession | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """See ASGI."""
        match scope["type"]:
            case "lifespan":
                await self._live(receive, send)
            case "http":
                await self._pass_on(scope, receive, send)
            case _:  # a websocket, which no route has
                await send({"type": "websocket.close", "code": 1000})

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        # Neither a limit of connections, nor of time: those of an answer are the node's.
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as self._session:
            await send({"type": "lifespan.startup.complete"})
            await receive()
            self._node.stop()
            await self._node.ended()
        await send({"type": "lifespan.shutdown.complete"})

    async def _pass_on(self, scope: Message, receive: Receive, send: Send) -> None:
        if self._session is None:
            raise RuntimeError("a request before the startup")
        path = scope.get("raw_path") or urllib.parse.quote(scope["path"]).encode()
        query = b"?" + scope["query_string"] if scope.get("query_string") else b""
        dropped = OF_ONE_HOP | {b"expect"}
        headers = CIMultiDict(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in scope["headers"]
            if name.lower() not in dropped
        )
        has_body = any(
            name.lower() in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )
        try:
            answer = await self._session.request(
                scope["method"],
                yarl.URL(self._node.url + (path + query).decode("latin-1"), encoded=True),
                headers=headers,
                data=_body(receive) if has_body else None,
                skip_auto_headers=UNASKED,
                allow_redirects=False,
            )
        except aiohttp.ClientError as error:
            log.warning("a request did not reach its node: %r", error)
            await _refuse(send)
            return
        async with answer:
            kept = [
                (name.lower(), value)
                for name, value in answer.raw_headers
                if name.lower() not in OF_ONE_HOP | OF_SERVE
            ]
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            # Where the node ends meanwhile this raises, and Serve breaks the answer off: no last chunk.
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise aiohttp.ClientConnectionError("the client left")
        yield message.get("body", b"")
        if not message.get("more_body", False):
            return


async def _refuse(send: Send) -> None:
    gone = errors.Named(
        "shutting_down", "The node of this replica has ended; another one takes over", None, None
    )
    reply = errors.reply(gone)
    headers = {"Content-Type": "application/json", **reply.headers}
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": reply.status, "headers": pairs})
    await send({"type": "http.response.body", "body": json.dumps(reply.body).encode(), "more_body": False})
