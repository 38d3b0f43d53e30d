"""`/healthz`: the process answers. `/readyz`: it takes requests; not while it is going down, nor before the
models that are to be warm have been loaded, nor while a model that is loaded stands still. `/-/healthz` and
`/-/routes` are the names by which Ray Serve asks."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.context import NODE, WARMING
from llm_node.node import NodeError


async def live(request: web.Request) -> web.Response:
    """The process answers: do not restart it."""
    return web.json_response({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Requests may be sent here; and which node it is."""
    node = request.app[NODE]
    node.check_ready()
    if left := request.app[WARMING]:
        words = f"The node loads {', '.join(map(repr, left))} before it takes requests"
        raise NodeError("model_loading", words, details={"node_id": node.id})
    if (standstill := node.standstill) is not None:
        raise NodeError("engine_crashed", standstill, details={"node_id": node.id})
    if (seconds := node.blind_seconds) is not None:
        words = (
            f"NVML has not answered for {seconds} s, and no model is loaded meanwhile; see `llm-node doctor`"
        )
        raise NodeError("model_loading", words, details={"node_id": node.id})
    return web.json_response({"status": "ready", "node_id": node.id})


async def ready_for_serve(request: web.Request) -> web.Response:
    """As `ready`, in Ray Serve's word."""
    await ready(request)
    return web.Response(text="success")


async def routes_for_serve(request: web.Request) -> web.Response:
    """Which application answers where, as Ray Serve's proxies tell it."""
    return web.json_response({"/": "llm-node"})
