"""`make_app`: all routes over one node. Decides what holds for every request, and starts nothing."""

from __future__ import annotations

from aiohttp import web

from llm_node.api import admin, openai, ops, tokenizer
from llm_node.api.context import KEEP_ALIVE, NODE
from llm_node.node import Node
from llm_node.server import lifecycle, middleware
from llm_node.settings import Settings

FAREWELL_SECONDS = 1.0
"""What connections get to end by themselves once every answer has ended."""


def make_app(node: Node, settings: Settings) -> web.Application:
    """The application. It starts the node with itself, and closes it with itself."""
    app = web.Application(middlewares=middleware.ALL, client_max_size=settings.max_body)
    app[NODE] = node
    app[KEEP_ALIVE] = settings.keep_alive
    app.on_response_prepare.append(middleware.name_the_request)
    app.cleanup_ctx.append(lifecycle.node_lives)
    for family in (admin, openai, ops, tokenizer):
        app.add_routes(family.routes())
    return app


def make_runner(app: web.Application) -> web.AppRunner:
    """Runs the application.

    `handler_cancellation` is on: a client that leaves cancels its handler, which cancels its streams,
    so that its sequences are free before the next step. (aiohttp has it off by default.)
    """
    return web.AppRunner(
        app,
        handler_cancellation=True,
        shutdown_timeout=FAREWELL_SECONDS,
        access_log=None,  # the middleware writes one that has the request id
    )
