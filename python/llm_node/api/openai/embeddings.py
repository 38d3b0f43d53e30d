"""`POST /v1/embeddings`: one unit vector for each text, or list of tokens."""

from __future__ import annotations

import array
import base64
import math
import sys
from collections.abc import Sequence

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import NODE
from llm_node.schema.embeddings import EmbeddingRequest


async def create(request: web.Request) -> web.Response:
    """The route."""
    wanted = await body.read(request, EmbeddingRequest)
    inputs = [{"text": one} if isinstance(one, str) else {"tokens": one} for one in wanted.inputs]
    answer = await request.app[NODE].ask(wanted.model, {"Embed": {"inputs": inputs}})
    vectors = [unit(vector) for vector in answer["vectors"]]
    tokens = sum(answer["tokens"])
    encode = packed if wanted.encoding_format == "base64" else list
    return web.json_response(
        {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": encode(vector)}
                for index, vector in enumerate(vectors)
            ],
            "model": wanted.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        }
    )


def unit(vector: Sequence[float]) -> list[float]:
    """The vector at length 1, as OpenAI gives it; a vector of nothing stays as it is."""
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector] if length > 0 else list(vector)


def packed(vector: Sequence[float]) -> str:
    """Little-endian 32-bit floats in base64."""
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return base64.b64encode(values.tobytes()).decode("ascii")
