"""`GET /api/logs`: the last lines of the node's log, and on wish those that come."""

from __future__ import annotations

import re

from aiohttp import web

from llm_node import journal
from llm_node.api import sse
from llm_node.api.context import JOURNAL
from llm_node.node import NodeError

USUAL = 100
"""Lines, where nobody says how many."""


async def lines(request: web.Request) -> web.StreamResponse:
    """The last lines. `?lines=N`; `?model=NAME`: those that name it; `?follow=true`: a stream of more."""
    count = _count(request.query.get("lines", str(USUAL)))
    model = request.query.get("model")
    follow = request.query.get("follow", "false").lower()
    if follow not in ("true", "false"):
        raise NodeError("invalid_request", "follow: expected true or false", "follow")
    kept = request.app[JOURNAL]
    if follow == "false":
        return web.json_response({"lines": kept.last(count, model)})

    async def source(stream: sse.Stream) -> None:
        async for line in kept.follow(count, model):
            stream.tell({"event": "line", **line})

    return await sse.respond(request, source)


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) > journal.LINES:
        raise NodeError("invalid_request", f"lines: expected a number from 0 to {journal.LINES}", "lines")
    return int(text)
