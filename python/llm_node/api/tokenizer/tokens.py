"""`POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import NODE
from llm_node.schema.tokens import DetokenizeRequest, TokenizeRequest


async def tokenize(request: web.Request) -> web.Response:
    """Text to tokens."""
    wanted = await body.read(request, TokenizeRequest)
    node = request.app[NODE]
    tokens = await node.ask(wanted.model, {"Tokenize": wanted.question})
    shown = tokens
    if wanted.with_pieces:
        pieces = await node.ask(wanted.model, {"Pieces": {"tokens": tokens}})
        shown = [
            {"id": token, "piece": _piece(bytes(piece))} for token, piece in zip(tokens, pieces, strict=True)
        ]
    return web.json_response({"tokens": shown, "count": len(tokens)})


def _piece(piece: bytes) -> str | list[int]:
    """Its text; or its bytes, where these are a part of a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(request: web.Request) -> web.Response:
    """Tokens to text."""
    wanted = await body.read(request, DetokenizeRequest)
    text = await request.app[NODE].ask(wanted.model, {"Detokenize": {"tokens": wanted.tokens}})
    return web.json_response({"text": text, "content": text})
