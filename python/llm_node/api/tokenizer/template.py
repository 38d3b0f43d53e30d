"""`POST /apply-template`: a conversation to the prompt's text."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import NODE
from llm_node.api.openai import conversation
from llm_node.schema.chat import ApplyTemplateRequest


async def apply(request: web.Request) -> web.Response:
    """What the model sees of a conversation."""
    wanted = await body.read(request, ApplyTemplateRequest)
    prompt = await request.app[NODE].ask(wanted.model, {"ApplyTemplate": conversation.of(wanted).neutral()})
    return web.json_response({"prompt": prompt})
