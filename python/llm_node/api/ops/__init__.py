"""For those who run the node: is it live, is it ready, how busy is it."""

from __future__ import annotations

from aiohttp import web

from llm_node.api.ops import health, metrics


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/healthz", health.live),
        web.get("/readyz", health.ready),
        web.get("/-/healthz", health.ready_for_serve),
        web.get("/-/routes", health.routes_for_serve),
        web.get("/metrics", metrics.scrape),
    ]
