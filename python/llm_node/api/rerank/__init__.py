"""Documents by how well they answer a query: `/v1/rerank` and its other names."""

from __future__ import annotations

from aiohttp import web

from llm_node import errors
from llm_node.api.rerank import ranking

ERRORS = errors.PLAIN
"""How errors are written."""

PATHS = ("/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking")
"""The first three are everybody's; the others llama-server has as well."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [web.post(path, ranking.rank) for path in PATHS]
