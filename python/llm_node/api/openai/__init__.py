"""OpenAI's API: `/v1/...`. Its words stand here and in `schema/`, and nowhere else."""

from __future__ import annotations

from aiohttp import web

from llm_node import errors
from llm_node.api.openai import chat, completions, embeddings

ERRORS = errors.Form(
    names={
        "format": "response_format",
        "thinking": "reasoning_effort",
        "variables": "chat_template_kwargs",
    }
)
"""How errors are written."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.post("/v1/chat/completions", chat.create),
        web.post("/v1/completions", completions.create),
        web.post("/v1/embeddings", embeddings.create),
    ]
