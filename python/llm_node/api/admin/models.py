"""`/api/models`: what there is, loading, unloading."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body
from llm_node.api.admin.query import flag
from llm_node.api.admin.report import with_error
from llm_node.api.context import NODE
from llm_node.schema.admin import LoadRequest, UnloadRequest


async def listing(request: web.Request) -> web.Response:
    """Every model with its state; with `?all=true` also the files that are not listed, and why."""
    node = request.app[NODE]
    answer = {"models": [with_error(model) for model in await node.models()]}
    if flag(request, "all"):
        answer["unlisted"] = await node.unlisted()
    return web.json_response(answer)


async def load(request: web.Request) -> web.Response:
    """Load a model, and answer when it is ready."""
    wanted = await body.read(request, LoadRequest)
    options = wanted.model_dump(exclude={"model_id"}, exclude_none=True)
    return web.json_response(await request.app[NODE].load(wanted.model_id, **options))


async def plan(request: web.Request) -> web.Response:
    """What a load would come to, also where it would be refused."""
    wanted = await body.read(request, LoadRequest)
    options = wanted.model_dump(exclude={"model_id"}, exclude_none=True)
    return web.json_response(with_error(await request.app[NODE].plan_load(wanted.model_id, **options)))


async def unload(request: web.Request) -> web.Response:
    """Drain a model, end its worker, and answer when it is gone."""
    wanted = await body.read(request, UnloadRequest)
    await request.app[NODE].unload(wanted.model_id, timeout_seconds=wanted.timeout_seconds)
    return web.json_response({"model_id": wanted.model_id, "status": "unloaded"})
