"""`GET /v1/models`: what can be asked for, loaded or not. One body has the fields that OpenAI's clients read
and those that Anthropic's do, since both ask on this path.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from aiohttp import web

from llm_node.api.context import NODE


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/v1/models", listing),
        # A model's name may have slashes in it.
        web.get("/v1/models/{model:.+}", one),
    ]


async def listing(request: web.Request) -> web.Response:
    """All models, on one page."""
    data = [_shape(model) for model in await request.app[NODE].models()]
    ids = [each["id"] for each in data]
    pages = {"has_more": False, "first_id": ids[0] if ids else None, "last_id": ids[-1] if ids else None}
    return web.json_response({"object": "list", "data": data, **pages})


async def one(request: web.Request) -> web.Response:
    """One model, by any of its names."""
    return web.json_response(_shape(await request.app[NODE].model(request.match_info["model"])))


def context_length(model: Mapping[str, Any]) -> int | None:
    """The longest sequence that a request to it may use: as it is loaded, else as its file says; None: nobody
    knows."""
    facts = model.get("facts") or {}
    length = facts.get("context_length", model.get("context_length"))
    return length if isinstance(length, int) else None


def _shape(model: Mapping[str, Any]) -> dict[str, Any]:
    created = int(model.get("modified", 0))
    length = context_length(model)
    return {
        "id": model["model_id"],
        "object": "model",
        "created": created,
        "owned_by": "llm-node",
        "type": "model",
        "display_name": model.get("name") or model["model_id"],
        "created_at": datetime.fromtimestamp(created, timezone.utc).isoformat(),
        "lifecycle": "active",
        "context_length": length,
        "max_input_tokens": length,
        "max_tokens": length,
    }
