"""`GET /api/system`: devices, memory, versions, and what the node lacks."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import Future
from typing import Any

from aiohttp import web

from llm_node import advice, devices
from llm_node.api.context import NODE
from llm_node.node import Node

ADVICE_SECONDS = 0.3
"""Nobody waits longer for what may be typed next: an engine, or a driver, may be slow to say what it can."""


async def report(request: web.Request) -> web.Response:
    """Devices with their memory, who holds what, workers, versions; what to type where one lacks."""
    node = request.app[NODE]
    report, found = await asyncio.gather(node.system(), _in_time(node))
    return web.json_response({**report, "advice": found})


async def _in_time(node: Node) -> list[dict[str, Any]]:
    try:
        return await asyncio.wait_for(_advice(node), ADVICE_SECONDS)
    except asyncio.TimeoutError:  # Python 3.10 has two
        return []


async def _advice(node: Node) -> list[dict[str, Any]]:
    engines, models = await asyncio.gather(node.engines(), node.models())
    gpus = await asyncio.shield(asyncio.wrap_future(_gpus())) if node.gpu_backend == "cpu" else []
    return advice.of_node(engines, models, node.gpu_backend, gpus)


@functools.cache
def _gpus() -> Future[list[devices.Device]]:
    """Those of this machine, as they were once: the page asks each second."""
    found: Future[list[devices.Device]] = Future()
    look = threading.Thread(target=lambda: found.set_result(devices.nvidia_gpus()), name="gpus", daemon=True)
    look.start()
    return found
