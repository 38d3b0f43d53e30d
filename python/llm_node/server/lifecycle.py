"""What lives as long as the application: the node, pulls of models, and the last lines of its log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from llm_node.api.context import JOURNAL, NODE, PULLS


async def node_lives(app: web.Application) -> AsyncIterator[None]:
    """Start before the first request, close after the last."""
    await app[NODE].start()
    yield
    await app[NODE].close()


async def log_is_kept(app: web.Application) -> AsyncIterator[None]:
    """Keep what is logged meanwhile, for `/api/logs`."""
    with app[JOURNAL].kept():
        yield


async def pulls_end(app: web.Application) -> AsyncIterator[None]:
    """Stop what is under way before the node goes."""
    yield
    await app[PULLS].close()
