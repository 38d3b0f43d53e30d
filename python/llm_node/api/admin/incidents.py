"""`GET /api/incidents`: what has gone wrong lately."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.context import NODE


async def listing(request: web.Request) -> web.Response:
    """The last hundred, oldest first."""
    return web.json_response({"incidents": await request.app[NODE].incidents()})
