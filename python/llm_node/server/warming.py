"""The models that are loaded when the node starts: `warm` in their settings."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Sequence

from aiohttp import web

from llm_node.api.context import NODE, WARMING
from llm_node.node import Node, NodeError

log = logging.getLogger(__name__)

MAY_PASS = frozenset({"engine_crashed", "model_loading", "timeout"})
"""Errors after which the same load may do."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


async def models_are_warm(app: web.Application) -> AsyncIterator[None]:
    """Begin to load them, in their order. Until each has been tried, `WARMING` names those that are left."""
    task = asyncio.create_task(_load_all(app[NODE], app[WARMING]))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _load_all(node: Node, left: list[str]) -> None:
    failed = await _failed(node, list(left), left)
    pause = FIRST_PAUSE_SECONDS
    while failed:
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
        failed = await _failed(node, failed, left)


async def _failed(node: Node, models: Sequence[str], left: list[str]) -> list[str]:
    """Load each; gives those that are worth another try."""
    again = []
    for model in models:
        try:
            await node.load(model)
        except NodeError as fault:
            if fault.code == "shutting_down":
                return []
            log.warning("'%s' is to be warm, and cannot be loaded: %s", model, fault.message)
            # Where no time makes it better, the error says that it is not to be tried again.
            if fault.code in MAY_PASS and (fault.details or {}).get("retry_after", 0) is not None:
                again.append(model)
        if model in left:
            left.remove(model)
    return again
