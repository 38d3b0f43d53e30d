"""`keep_alive`: how long a model stays loaded once it has answered, as whoever manages the node may say."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import KEY, NODE
from llm_node.keys import Scope
from llm_node.node import NodeError
from llm_node.schema.ollama.options import seconds


async def keep(request: web.Request, model: str, keep_alive: str | int | float | None) -> None:
    """Say it of a model, which is loaded for it. Who may not is told that it was said in vain."""
    if keep_alive is None:
        return
    if not _may_manage(request):
        body.ignore(request, ["keep_alive"])
        return
    await request.app[NODE].load(model, keep_alive=seconds(keep_alive))


def refuse_unless_managing(request: web.Request) -> None:
    """Raises `NodeError` for a key that unloads nothing."""
    if not _may_manage(request):
        raise NodeError(
            "insufficient_scope", f"The key {request[KEY].name} is for inference; it unloads nothing"
        )


def _may_manage(request: web.Request) -> bool:
    return KEY not in request or request[KEY].scope is Scope.ADMIN
