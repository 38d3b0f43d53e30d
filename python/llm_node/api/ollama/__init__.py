"""Ollama's API: `/api/chat` and its neighbours. Its words stand here and in `schema/ollama/` alone.

The node's own routes begin with `/api` as well (`api/admin/`), and have other names.
"""

from __future__ import annotations

from aiohttp import web

from llm_node.api.ollama import chat, embed, failures, library

ERRORS = failures.FORM
"""How errors are written."""

ALIVE = library.alive
"""What answers at `/`, where browsers get the page (`api/page.py`)."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/api/version", library.version),
        web.get("/api/tags", library.tags),
        web.get("/api/ps", library.running),
        web.post("/api/show", library.show),
        web.post("/api/chat", chat.chat),
        web.post("/api/generate", chat.generate),
        web.post("/api/embed", embed.create),
        web.post("/api/embeddings", embed.create_one),
        web.post("/api/pull", library.pull),
        web.post("/api/create", library.refuse),
        web.post("/api/push", library.refuse),
        web.post("/api/copy", library.refuse),
        web.delete("/api/delete", library.refuse),
        web.post("/api/blobs/{digest}", library.refuse),
        web.head("/api/blobs/{digest}", library.refuse),
    ]
