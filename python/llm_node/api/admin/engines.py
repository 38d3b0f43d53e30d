"""`GET /api/engines`: every candidate with its verdict."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.admin.query import flag
from llm_node.api.admin.report import with_error
from llm_node.api.context import NODE


async def listing(request: web.Request) -> web.Response:
    """Every candidate with its verdict. `?refresh=true` searches the folders anew."""
    engines = await request.app[NODE].engines(refresh=flag(request, "refresh"))
    return web.json_response({"engines": [with_error(engine) for engine in engines]})
