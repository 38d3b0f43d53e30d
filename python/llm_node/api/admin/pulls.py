"""`/api/models/pull` and what belongs to it: fetching models, looking for them, deleting them."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import body, sse
from llm_node.api.admin.query import flag
from llm_node.api.admin.report import with_error
from llm_node.api.context import PULLS
from llm_node.node import NodeError
from llm_node.pull import Job, Partial, Wish
from llm_node.schema.admin import PullRequest, RemoveRequest


async def pull(request: web.Request) -> web.StreamResponse:
    """Fetch a model, or join who fetches it. A stream of what happens; with `stream: false` the pull's id,
    and with `dry_run` what would be chosen. A client that leaves stops nothing."""
    wanted = await body.read(request, PullRequest)
    wish = Wish(wanted.model, wanted.sha256, wanted.context_length, wanted.update)
    pulls = request.app[PULLS]
    if wanted.dry_run:
        return web.json_response(await pulls.table(wish))
    job = pulls.begin(wish)
    if not wanted.stream:
        return web.json_response({"pull_id": job.id}, status=202)
    return await _follow(request, job)


async def listing(request: web.Request) -> web.Response:
    """Of each name the latest pull: under way, ended lately, stopped."""
    return web.json_response({"pulls": [_shown(pull) for pull in request.app[PULLS].all()]})


async def one(request: web.Request) -> web.StreamResponse:
    """Join the stream of one."""
    return await _follow(request, request.app[PULLS].get(request.match_info["pull_id"]))


async def stop(request: web.Request) -> web.Response:
    """Stop one; with `?discard=true` what is there of it is deleted."""
    discard = flag(request, "discard")
    pulls = request.app[PULLS]
    stopped = pulls.get(request.match_info["pull_id"])
    await pulls.cancel(stopped, discard=discard)
    return web.json_response(_shown(stopped.state()))


async def search(request: web.Request) -> web.Response:
    """Repositories of the hub with GGUF files, `?q=` words."""
    words = request.query.get("q", "").strip()
    if len(words) > 200:
        raise NodeError("invalid_request", "q: expected at most 200 characters", "q")
    return web.json_response({"models": await request.app[PULLS].search(words)})


async def remove(request: web.Request) -> web.Response:
    """Delete a model of the models folder, or what is there of a stopped pull."""
    wanted = await body.read(request, RemoveRequest)
    removed = await request.app[PULLS].remove(wanted.model, force=wanted.force)
    left = {} if removed.left_in is None else {"left_in": removed.left_in}
    return web.json_response({"model_id": removed.model_id, "status": "removed", **left})


async def _follow(request: web.Request, pull: Job | Partial) -> web.StreamResponse:
    async def source(stream: sse.Stream) -> None:
        async for event in pull.follow():
            stream.tell(_shown(event))

    return await sse.respond(request, source)


def _shown(event: dict[str, Any]) -> dict[str, Any]:
    """With its error, or its model's, as all errors are written."""
    shown = with_error(event)
    if "row" in shown:
        shown["row"] = with_error(shown["row"])
    return shown
