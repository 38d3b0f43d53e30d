"""What the model sees: `/tokenize`, `/detokenize`, `/apply-template`."""

from __future__ import annotations

from aiohttp import web

from llm_node import errors
from llm_node.api.tokenizer import template, tokens

ERRORS = errors.Form(names={"variables": "chat_template_kwargs"})
"""How errors are written."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.post("/tokenize", tokens.tokenize),
        web.post("/detokenize", tokens.detokenize),
        web.post("/apply-template", template.apply),
    ]
