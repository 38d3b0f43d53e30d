"""`POST /api/embed` and `POST /api/embeddings`: vectors of length 1."""

from __future__ import annotations

import time

from aiohttp import web

from llm_node.api import body, vectors
from llm_node.api.context import NODE
from llm_node.api.ollama import library, staying
from llm_node.schema.ollama.embed import EmbeddingsRequest, EmbedRequest


async def create(request: web.Request) -> web.Response:
    """One vector for each text."""
    wanted = await body.read(request, EmbedRequest)
    node = request.app[NODE]
    began = time.monotonic_ns()
    await node.ensure_ready(wanted.model)
    await staying.keep(request, wanted.model, wanted.keep_alive)
    loaded = time.monotonic_ns()
    await library.ignore_context(request, wanted.model, wanted.options)
    found, tokens = await vectors.of(node, wanted.model, wanted.input, wanted.dimensions)
    return web.json_response(
        {
            "model": wanted.model,
            "embeddings": found,
            "total_duration": time.monotonic_ns() - began,
            "load_duration": loaded - began,
            "prompt_eval_count": tokens,
        }
    )


async def create_one(request: web.Request) -> web.Response:
    """The older form: one text, one vector."""
    wanted = await body.read(request, EmbeddingsRequest)
    await staying.keep(request, wanted.model, wanted.keep_alive)
    found, _ = await vectors.of(request.app[NODE], wanted.model, [wanted.prompt])
    await library.ignore_context(request, wanted.model, wanted.options)
    return web.json_response({"embedding": found[0]})
