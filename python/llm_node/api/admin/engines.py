"""`GET /api/engines`: every candidate with its verdict."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.admin.report import with_error
from llm_node.api.context import NODE
from llm_node.node import NodeError

YES = ("1", "true", "yes")


async def listing(request: web.Request) -> web.Response:
    """Every candidate with its verdict. `?refresh=true` searches the folders anew."""
    refresh = request.query.get("refresh", "false").lower()
    if refresh not in (*YES, "0", "false", "no"):
        raise NodeError("invalid_request", "refresh: expected true or false", "refresh")
    engines = await request.app[NODE].engines(refresh=refresh in YES)
    return web.json_response({"engines": [with_error(engine) for engine in engines]})
