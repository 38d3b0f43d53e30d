"""`make_app`: all routes over one node. Decides what holds for every request, and starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from aiohttp import web

from llm_node import errors
from llm_node.api import (
    admin,
    anthropic,
    llama_server,
    models,
    ollama,
    openai,
    ops,
    page,
    rerank,
    responses,
    tokenizer,
)
from llm_node.api.context import (
    ERROR_FORMS,
    JOURNAL,
    NODE,
    PING_INTERVAL,
    PULLS,
    QUEUE_LIMIT,
    SETTINGS_FILE,
    STORE,
    TRANSFER_TIMEOUT,
    UNKNOWN_FIELDS,
    WARMING,
)
from llm_node.api.store import Store
from llm_node.journal import Journal
from llm_node.keys import Keys
from llm_node.node import Node
from llm_node.pull import Pulls
from llm_node.schema.wire import Unknown
from llm_node.server import description, lifecycle, middleware, warming
from llm_node.server.origin import OriginRules
from llm_node.settings import Settings

PREFIX = "/v1"
"""Stands before the routes that several vendors' clients have in common."""

FAREWELL_SECONDS = 1.0
"""What connections get to end by themselves once every answer has ended."""


def make_app(
    node: Node, settings: Settings, *, own_key: str | None = None, warm: Sequence[str] = ()
) -> web.Application:
    """The application. It starts the node with itself, and closes it with itself.

    `own_key` is taken beside those of `--api-key-file`, where there is one. `warm`: models that are loaded at
    once. Raises `KeysError`.
    """
    app = web.Application(middlewares=middleware.ALL, client_max_size=settings.max_body)
    app[NODE] = node
    app[PULLS] = Pulls(node, settings.models_dir, caches=settings.cache_folders(), offline=settings.offline)
    app[JOURNAL] = Journal()
    app[PING_INTERVAL] = settings.ping_interval
    app[QUEUE_LIMIT] = settings.queue_limit
    app[TRANSFER_TIMEOUT] = settings.transfer_timeout
    app[STORE] = Store()
    app[WARMING] = list(warm)
    app[SETTINGS_FILE] = settings.own_file()
    app[UNKNOWN_FIELDS] = cast(Unknown | None, settings.unknown_fields)
    app[middleware.ORIGIN_RULES] = OriginRules(
        bound=settings.host, hosts=settings.allow_host, origins=settings.cors_origin
    )
    app[middleware.BEHIND_BALANCER] = settings.behind_balancer
    if settings.api_key_file is not None:
        keys = Keys.read(settings.api_key_file)
        app[middleware.KEYS] = keys if own_key is None else keys.with_own(own_key)
    app.on_response_prepare.append(middleware.complete_headers)
    app.cleanup_ctx.append(lifecycle.log_is_kept)
    app.cleanup_ctx.append(lifecycle.node_lives)
    app.cleanup_ctx.append(lifecycle.pulls_end)
    app.cleanup_ctx.append(warming.models_are_warm)
    forms = app[ERROR_FORMS] = errors.Forms()
    families = [
        (admin.routes(), errors.PLAIN),
        (anthropic.routes(), anthropic.ERRORS),
        (description.routes(), errors.PLAIN),
        (llama_server.routes(), llama_server.ERRORS),
        (models.routes(), errors.PLAIN),
        (ollama.routes(), ollama.ERRORS),
        (openai.routes(), openai.ERRORS),
        (ops.routes(), errors.PLAIN),
        (page.routes(ollama.ALIVE, has_page=settings.web), errors.PLAIN),
        (rerank.routes(), rerank.ERRORS),
        (responses.routes(), responses.ERRORS),
        (tokenizer.routes(), tokenizer.ERRORS),
    ]
    taken = {(route.method, route.path) for routes, _ in families for route in routes}
    for routes, form in families:
        for route in [*routes, *_without_prefix(routes, taken)]:
            forms.add(route.path, form)
            app.add_routes([route])
    app[description.DESCRIPTION] = description.Description(app)
    return app


def _without_prefix(routes: list[web.RouteDef], taken: set[tuple[str, str]]) -> list[web.RouteDef]:
    """The routes of `/v1` under their shorter names, as llama-server has them, where these are free."""
    short = [
        web.RouteDef(route.method, route.path.removeprefix(PREFIX), route.handler, route.kwargs)
        for route in routes
        if route.path.startswith(f"{PREFIX}/")
    ]
    return [route for route in short if (route.method, route.path) not in taken]


def make_runner(app: web.Application) -> web.AppRunner:
    """Runs the application, for connections that a `Listener` lets in.

    `handler_cancellation` is on: a client that leaves cancels its handler, which cancels its streams,
    so that its sequences are free before the next step. (aiohttp has it off by default.)
    """
    return web.AppRunner(app, handler_cancellation=True, shutdown_timeout=FAREWELL_SECONDS)
