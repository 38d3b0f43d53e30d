"""`/api/models`: what there is, loading, unloading, further names."""

from __future__ import annotations

import asyncio

from aiohttp import web

from llm_node import settings_file
from llm_node.api import body
from llm_node.api.admin.query import flag
from llm_node.api.admin.report import with_error
from llm_node.api.context import NODE, SETTINGS_FILE
from llm_node.files import FULL
from llm_node.node import NodeError
from llm_node.schema.admin import AliasRequest, LoadRequest, UnloadRequest
from llm_node.settings import SettingsError


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


async def alias(request: web.Request) -> web.Response:
    """Give a model a further name: at once, and by the settings file for nodes to come."""
    wanted = await body.read(request, AliasRequest)
    row = await request.app[NODE].alias(wanted.alias, wanted.model)
    file = request.app[SETTINGS_FILE]
    try:
        await asyncio.to_thread(settings_file.add_alias, file, row["model_id"], wanted.alias)
    except (SettingsError, OSError) as error:
        is_full = isinstance(error, OSError) and error.errno in FULL
        raise NodeError(
            "disk_full" if is_full else "invalid_request",
            f"'{wanted.alias}' is '{row['model_id']}' until this node ends, but it could not be written into "
            f"{file}: {error.strerror if isinstance(error, OSError) else error}",
            "alias",
        ) from None
    return web.json_response({"model_id": row["model_id"], "alias": wanted.alias})
