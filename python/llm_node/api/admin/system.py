"""`GET /api/system`: devices, memory, versions, and what the node lacks."""

from __future__ import annotations

import asyncio

from aiohttp import web

from llm_node import advice, devices
from llm_node.api.context import NODE


async def report(request: web.Request) -> web.Response:
    """Devices with their memory, who holds what, workers, versions; what to type where one lacks."""
    node = request.app[NODE]
    report, engines, models = await asyncio.gather(node.system(), node.engines(), node.models())
    gpus = await asyncio.to_thread(devices.nvidia_gpus) if node.gpu_backend == "cpu" else []
    found = advice.of_node(engines, models, node.gpu_backend, gpus)
    return web.json_response({**report, "advice": found})
