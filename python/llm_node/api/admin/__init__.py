"""The node's own API: `/api/...`: engines, models and pulls, memory, incidents, the log."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.admin import engines, incidents, logs, models, pulls, system


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/api/engines", engines.listing),
        web.get("/api/models", models.listing),
        web.post("/api/models/load", models.load),
        web.post("/api/models/plan", models.plan),
        web.post("/api/models/unload", models.unload),
        web.post("/api/models/pull", pulls.pull),
        web.get("/api/models/pulls", pulls.listing),
        web.get("/api/models/pulls/{pull_id}", pulls.one),
        web.delete("/api/models/pulls/{pull_id}", pulls.stop),
        web.get("/api/models/search", pulls.search),
        web.post("/api/models/remove", pulls.remove),
        web.post("/api/models/alias", models.alias),
        web.get("/api/system", system.report),
        web.get("/api/incidents", incidents.listing),
        web.get("/api/logs", logs.lines),
    ]
