"""`GET /api/system`: devices, memory, versions."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.context import NODE


async def report(request: web.Request) -> web.Response:
    """Devices with their memory, who holds what, workers, versions."""
    return web.json_response(await request.app[NODE].system())
