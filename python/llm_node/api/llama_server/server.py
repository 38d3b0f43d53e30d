"""What llama-server says of itself: `/health`, `/props`, `/slots`.

There it is about its one model. Here it is about the one that a request without a name would get, or about
that of `?model=`. None is loaded for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from llm_node.api.context import NODE
from llm_node.api.llama_server import shapes
from llm_node.api.models import context_length
from llm_node.node import Node, NodeError
from llm_node.schema.llama_server.completion import Generation
from llm_node.version import __version__


async def health(request: web.Request) -> web.Response:
    """Requests may be sent here."""
    node = request.app[NODE]
    node.check_ready()
    if (standstill := node.standstill) is not None:
        raise NodeError("engine_crashed", standstill)
    return web.json_response({"status": "ok"})


async def props(request: web.Request) -> web.Response:
    """What the model is, and how it answers where a request says nothing."""
    node = request.app[NODE]
    model = await _model(node, request)
    template = None
    if model["status"] == "loaded":
        template = await node.ask(model["model_id"], "ChatTemplate")
    facts = model.get("facts") or {}
    params = {**shapes.settings(Generation()), "stream": True}
    return web.json_response(
        {
            "default_generation_settings": {"n_ctx": context_length(model), "params": params},
            "total_slots": facts.get("max_sequences", 1),
            "model_alias": model["model_id"],
            "model_path": model.get("path", ""),
            "chat_template": template or "",
            "chat_template_caps": _caps(facts),
            "modalities": {"vision": False, "audio": False},
            "build_info": f"llm-node {__version__}",
            "is_sleeping": model["status"] != "loaded",
        }
    )


async def slots(request: web.Request) -> web.Response:
    """One for each sequence that may be under way. With `?fail_on_no_slot=1` an error if none is free."""
    model = await _model(request.app[NODE], request)
    facts = model.get("facts") or {}
    count, busy = facts.get("max_sequences", 1), model.get("requests", 0)
    if busy >= count and request.query.get("fail_on_no_slot"):
        raise NodeError("queue_full", "No slot is free")
    return web.json_response(
        [
            {
                "id": index,
                "n_ctx": context_length(model),
                "speculative": False,
                "is_processing": index < busy,
            }
            for index in range(count)
        ]
    )


def _caps(facts: Mapping[str, Any]) -> dict[str, bool]:
    chat = facts.get("chat") or {}
    return {"supports_tools": bool(chat.get("tools")), "supports_tool_calls": bool(chat.get("tools"))}


async def _model(node: Node, request: web.Request) -> dict[str, Any]:
    return await node.model(request.query.get("model") or await node.chosen())
