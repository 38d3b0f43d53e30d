"""`POST /v1/embeddings`: one unit vector for each text, or list of tokens."""

from __future__ import annotations

import array
import base64
import sys
from collections.abc import Sequence

from aiohttp import web

from llm_node.api import body, vectors
from llm_node.api.context import NODE
from llm_node.schema.embeddings import EmbeddingRequest


async def create(request: web.Request) -> web.Response:
    """Vectors of texts."""
    wanted = await body.read(request, EmbeddingRequest)
    node = request.app[NODE]
    found, tokens = await vectors.of(node, wanted.model, wanted.inputs, wanted.dimensions)
    encode = packed if wanted.encoding_format == "base64" else list
    return web.json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(found)
            ],
            "model": wanted.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def packed(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats in base64."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
