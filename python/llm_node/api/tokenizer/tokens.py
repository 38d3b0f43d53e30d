"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import NODE
from llm_node.schema.tokens import DetokenizeRequest, TokenizeRequest


async def tokenize(request: web.Request) -> web.Response:
    """Text to tokens."""
    wanted = await body.read(request, TokenizeRequest)
    question = wanted.model_dump(exclude={"model"})
    tokens = await request.app[NODE].ask(wanted.model, {"Tokenize": question})
    return web.json_response({"tokens": tokens, "count": len(tokens)})


async def detokenize(request: web.Request) -> web.Response:
    """Tokens to text."""
    wanted = await body.read(request, DetokenizeRequest)
    text = await request.app[NODE].ask(wanted.model, {"Detokenize": {"tokens": wanted.tokens}})
    return web.json_response({"text": text})
