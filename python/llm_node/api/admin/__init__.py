"""The node's own API: `/api/...`: engines, models, memory, the log."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.admin import engines, logs, models, system


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/api/engines", engines.listing),
        web.get("/api/models", models.listing),
        web.post("/api/models/load", models.load),
        web.post("/api/models/unload", models.unload),
        web.get("/api/system", system.report),
        web.get("/api/logs", logs.lines),
    ]
