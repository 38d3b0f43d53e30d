"""`POST /apply-template`: a conversation to the prompt's text."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import body, sse
from llm_node.api.context import NODE
from llm_node.schema.tokens import ApplyTemplateRequest


async def apply(request: web.Request) -> web.Response:
    """The route."""
    wanted = await body.read(request, ApplyTemplateRequest)
    chat = {"messages": sse.dump([message.plain() for message in wanted.messages])}
    if wanted.chat_template_kwargs:
        chat["variables"] = sse.dump(wanted.chat_template_kwargs)
    prompt = await request.app[NODE].ask(wanted.model, {"ApplyTemplate": chat})
    return web.json_response({"prompt": prompt})
