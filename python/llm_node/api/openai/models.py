"""`GET /v1/models`: what can be asked for, loaded or not."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from llm_node.api.context import NODE
from llm_node.node import NodeError


async def listing(request: web.Request) -> web.Response:
    """All models."""
    models = await request.app[NODE].models()
    return web.json_response({"object": "list", "data": [_shape(model) for model in models]})


async def one(request: web.Request) -> web.Response:
    """One model."""
    wanted = request.match_info["model"]
    models = {str(model["model_id"]): model for model in await request.app[NODE].models()}
    if wanted in models:
        return web.json_response(_shape(models[wanted]))
    near = " or ".join(f"'{name}'" for name in difflib.get_close_matches(wanted, models))
    hint = f"; did you mean {near}?" if near else ""
    raise NodeError("model_not_found", f"Model '{wanted}' not found{hint}", "model")


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": model["model_id"],
        "object": "model",
        "created": model.get("modified", 0),
        "owned_by": "llm-node",
    }
