"""OpenAI's Responses API: `/v1/responses`. Its words stand here and in `schema/responses/` alone."""

from __future__ import annotations

from aiohttp import web

from llm_node import errors
from llm_node.api.responses import create, kept

ERRORS = errors.Form(
    names={
        "format": "text.format",
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "thinking": "reasoning.effort",
    }
)
"""How errors are written."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.post("/v1/responses", create.create),
        web.post("/v1/responses/input_tokens", create.count),
        web.get("/v1/responses/{id}", kept.one),
        web.delete("/v1/responses/{id}", kept.drop),
        web.get("/v1/responses/{id}/input_items", kept.items),
    ]
