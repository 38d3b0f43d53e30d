"""Anthropic's Messages API: `/v1/messages`. Its words stand here and in `schema/anthropic/` alone."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.anthropic import failures, messages

ERRORS = failures.FORM
"""How errors are written."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.post("/v1/messages", messages.create),
        web.post("/v1/messages/count_tokens", messages.count),
    ]
