"""`POST /embedding`."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body, vectors
from llm_node.api.context import NODE
from llm_node.schema.llama_server.embedding import EmbeddingRequest


async def create(request: web.Request) -> web.Response:
    """One vector for each text, each in a list of its own."""
    wanted = await body.read(request, EmbeddingRequest)
    node = request.app[NODE]
    found, _ = await vectors.of(node, wanted.model, wanted.contents, raw=wanted.embd_normalize == -1)
    return web.json_response([{"index": index, "embedding": [vector]} for index, vector in enumerate(found)])
