"""What stands behind the `?` of an address."""

from __future__ import annotations

from aiohttp import web

from llm_node.node import NodeError

YES = ("1", "true", "yes")
NO = ("0", "false", "no")


def flag(request: web.Request, name: str) -> bool:
    """A truth value; false where it is left out. Raises `NodeError`."""
    text = request.query.get(name, "false").lower()
    if text not in (*YES, *NO):
        raise NodeError("invalid_request", f"{name}: expected true or false", name)
    return text in YES
