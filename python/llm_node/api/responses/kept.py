"""Answers that are kept: `GET` and `DELETE /v1/responses/{id}`, `GET /v1/responses/{id}/input_items`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web
from pydantic import TypeAdapter

from llm_node.api.context import STORE
from llm_node.api.conversation import Message, dump
from llm_node.api.store import Kept, size
from llm_node.node import NodeError
from llm_node.schema.responses import items as wire

_ITEM: TypeAdapter[wire.AnyItem] = TypeAdapter(wire.AnyItem)

MOST_ITEMS = 100
"""Of a page."""
USUAL_ITEMS = 20


async def one(request: web.Request) -> web.Response:
    """An answer as it was sent."""
    if request.query.get("stream", "false") != "false":
        raise NodeError("unsupported_parameter", "stream: an answer that is kept comes as a whole", "stream")
    return web.json_response(_found(request).answer, dumps=dump)


async def drop(request: web.Request) -> web.Response:
    """Forget an answer."""
    name = request.match_info["id"]
    if not request.app[STORE].drop(_owner(request), name):
        raise _unknown(name)
    return web.json_response({"id": name, "object": "response", "deleted": True})


async def items(request: web.Request) -> web.Response:
    """A page of what came with the request, the last first. `?order=asc`; `?limit=N`; `?after=ID`."""
    found = _found(request).asked
    order = request.query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise NodeError("invalid_request", "order: expected asc or desc", "order")
    limit = request.query.get("limit", str(USUAL_ITEMS))
    if not re.fullmatch("[0-9]{1,9}", limit) or not 1 <= int(limit) <= MOST_ITEMS:
        raise NodeError("invalid_request", f"limit: expected a number from 1 to {MOST_ITEMS}", "limit")
    listed = list(found) if order == "asc" else list(reversed(found))
    after = request.query.get("after")
    if after is not None:
        places = [place for place, item in enumerate(listed) if item["id"] == after]
        if not places:
            raise NodeError("invalid_request", f"after: there is no item {after!r}", "after")
        listed = listed[places[0] + 1 :]
    page = listed[: int(limit)]
    return web.json_response(
        {
            "object": "list",
            "data": page,
            "first_id": page[0]["id"] if page else None,
            "last_id": page[-1]["id"] if page else None,
            "has_more": len(page) < len(listed),
        },
        dumps=dump,
    )


def keep(
    request: web.Request,
    answer: dict[str, Any],
    asked: Sequence[dict[str, Any]],
    messages: tuple[Message, ...],
) -> None:
    """Keep an answer, for whoever has sent this request."""
    found = Kept(answer, asked, messages, size(messages))
    request.app[STORE].put(_owner(request), answer["id"], found)


def before(request: web.Request, name: str) -> tuple[Message, ...]:
    """The conversation that goes on. Raises `NodeError`."""
    found = request.app[STORE].get(_owner(request), name)
    if found is None:
        raise NodeError(
            "previous_response_not_found",
            f"previous_response_id: no answer {name!r} is kept; send the conversation itself",
            "previous_response_id",
        )
    return found.messages


def item(request: web.Request, name: str) -> wire.AnyItem | None:
    """An item of an answer that is kept, by its id: it has the answer's own word in it."""
    word = name.partition("_")[2].partition("_")[0]
    found = request.app[STORE].get(_owner(request), f"resp_{word}")
    if found is None:
        return None
    for each in (*found.answer["output"], *found.asked):
        if each["id"] == name:
            return _ITEM.validate_python(each)
    return None


def shown(asked: Sequence[wire.AnyItem], word: str) -> list[dict[str, Any]]:
    """What came with a request, each with an id."""
    listed: list[dict[str, Any]] = []
    for place, each in enumerate(asked):
        if isinstance(each, wire.ReferenceItem | wire.ForeignItem):
            continue  # the one stands elsewhere, of the other nothing is kept
        told = each.model_dump(exclude_none=True)
        prefix = "msg" if isinstance(each, wire.MessageItem) else "item"
        listed.append({"id": f"{prefix}_{word}_in{place}", "status": "completed", **told})
    return listed


def _found(request: web.Request) -> Kept:
    name = request.match_info["id"]
    found = request.app[STORE].get(_owner(request), name)
    if found is None:
        raise _unknown(name)
    return found


def _unknown(name: str) -> NodeError:
    return NodeError("not_found", f"No answer {name!r} is kept", "id")


def _owner(request: web.Request) -> str:
    """Whose answers are whose: by the key that was sent, of which nothing is kept."""
    sent = request.headers.get("Authorization", "").encode(errors="surrogateescape")  # any bytes
    return hashlib.sha256(sent).hexdigest()
