"""The node lives as long as its application."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from llm_node.api.context import NODE


async def node_lives(app: web.Application) -> AsyncIterator[None]:
    """Start before the first request, close after the last."""
    await app[NODE].start()
    yield
    await app[NODE].close()
