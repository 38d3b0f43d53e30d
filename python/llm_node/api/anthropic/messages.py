"""`POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import answers, body, source, sse
from llm_node.api.anthropic import shapes
from llm_node.api.anthropic.conversation import conversation
from llm_node.api.context import NODE
from llm_node.api.conversation import Format, Json, Schema, dump
from llm_node.api.neutral import Request, Sampling
from llm_node.schema.anthropic.messages import CountTokensRequest, MessagesRequest


async def create(request: web.Request) -> web.StreamResponse:
    """An answer."""
    wanted = await body.read(request, MessagesRequest)
    node = request.app[NODE]
    ignored: set[str] = set()
    requests = [_neutral(wanted, source.of(request, wanted.metadata.user_id), ignored).neutral()]
    body.ignore(request, sorted(ignored))
    if wanted.stream:
        writer = shapes.Writer(wanted.model, thinks=wanted.thinks)
        return await sse.respond(
            request,
            lambda out: answers.stream(node, wanted.model, requests, writer, out),
            shapes.FRAMING,
        )
    whole = await answers.gather(node, wanted.model, requests)
    body.relax(request, whole.relaxed)
    return web.json_response(shapes.message(wanted.model, whole, thinks=wanted.thinks), dumps=dump)


def _neutral(wanted: MessagesRequest, whose: int, ignored: set[str]) -> Request:
    return Request(
        prompt=conversation(wanted, ignored),
        source=whose,
        max_tokens=wanted.max_tokens,
        sampling=Sampling(temperature=wanted.temperature, top_k=wanted.top_k, top_p=wanted.top_p),
        stop=wanted.stop_sequences,
        format=_format(wanted),
    )


def _format(wanted: CountTokensRequest) -> Format:
    if wanted.format is None:
        return "text"
    return Schema(Json.of(wanted.format.json_schema), strict=True)


async def count(request: web.Request) -> web.Response:
    """The tokens of a prompt, as an answer's usage would have them."""
    wanted = await body.read(request, CountTokensRequest)
    ignored: set[str] = set()
    question = {"CountTokens": conversation(wanted, ignored).neutral()}
    body.ignore(request, sorted(ignored))
    tokens = await request.app[NODE].ask(wanted.model, question)
    return web.json_response({"input_tokens": tokens})
