"""`POST /v1/responses` and `POST /v1/responses/input_tokens`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from llm_node.api import answers, body, source, sse
from llm_node.api.context import NODE
from llm_node.api.conversation import Conversation, Message, dump
from llm_node.api.neutral import Request, Sampling
from llm_node.api.responses import kept, shapes
from llm_node.api.responses.conversation import answered, conversation, messages
from llm_node.api.responses.shapes import Shape
from llm_node.api.responses.stream import FRAMING, Writer
from llm_node.api.responses.tools import Offered
from llm_node.node import Block
from llm_node.schema.responses.request import InputTokensRequest, ResponsesRequest


async def create(request: web.Request) -> web.StreamResponse:
    """An answer."""
    wanted = await body.read(request, ResponsesRequest)
    node = request.app[NODE]
    ignored = {"include"} if set(wanted.include) - shapes.HONOURED else set()
    offered = Offered(wanted, ignored)
    said = _said(request, wanted, ignored)
    asked = conversation(wanted, said, offered, ignored)
    whose = source.of(request, wanted.prompt_cache_key, wanted.safety_identifier, wanted.user)
    requests = [_neutral(wanted, asked, whose).neutral()]
    body.ignore(request, sorted(ignored))
    shape = Shape(wanted, offered)

    def ended(response: dict[str, Any], blocks: Sequence[Block]) -> None:
        if wanted.store:
            all_said = (*said, answered(blocks, offered))
            kept.keep(request, response, kept.shown(wanted.input, shape.word), all_said)

    if wanted.stream:
        writer = Writer(shape, ended)
        return await sse.respond(
            request,
            lambda out: answers.stream(node, wanted.model, requests, writer, out),
            FRAMING,
            writer.failed,
        )
    whole = await answers.gather(node, wanted.model, requests)
    body.relax(request, whole.relaxed)
    (answer,) = whole.answers
    response = shape.finished(answer.blocks, answer.finish, whole.usage)
    ended(response, answer.blocks)
    return web.json_response(response, dumps=dump)


async def count(request: web.Request) -> web.Response:
    """The tokens of a prompt, as an answer's usage would have them."""
    wanted = await body.read(request, InputTokensRequest)
    ignored: set[str] = set()
    offered = Offered(wanted, ignored)
    asked = conversation(wanted, _said(request, wanted, ignored), offered, ignored)
    body.ignore(request, sorted(ignored))
    tokens = await request.app[NODE].ask(wanted.model, {"CountTokens": asked.neutral()})
    return web.json_response({"object": "response.input_tokens", "input_tokens": tokens})


def _said(request: web.Request, wanted: InputTokensRequest, ignored: set[str]) -> tuple[Message, ...]:
    """All that was said, with what is kept of it."""
    before: tuple[Message, ...] = ()
    if wanted.previous_response_id is not None:
        before = kept.before(request, wanted.previous_response_id)
    return messages(wanted.input, before, lambda name: kept.item(request, name), ignored)


def _neutral(wanted: ResponsesRequest, asked: Conversation, whose: int) -> Request:
    return Request(
        prompt=asked,
        source=whose,
        max_tokens=wanted.max_output_tokens,
        sampling=Sampling(temperature=wanted.temperature, top_p=wanted.top_p),
        logprobs=wanted.top_logprobs if "message.output_text.logprobs" in wanted.include else None,
        format=shapes.text_format(wanted.text),
    )
