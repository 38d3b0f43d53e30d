"""llama-server's own routes, for clients that were made for it. Its words stand here and in
`schema/llama_server/` alone.

Those of `/v1` it has in common with others (`api/openai/`), and so `/tokenize`, `/detokenize` and
`/apply-template` (`api/tokenizer/`), and `/rerank` (`api/rerank/`).
"""

from __future__ import annotations

from aiohttp import web

from llm_node.api.llama_server import completion, embedding, failures, server

ERRORS = failures.FORM
"""How errors are written."""


def routes() -> list[web.RouteDef]:
    """All routes of the family."""
    return [
        web.get("/health", server.health),
        web.get("/v1/health", server.health),
        web.get("/props", server.props),
        web.get("/slots", server.slots),
        web.post("/completion", completion.create),
        web.post("/completions", completion.create),
        web.post("/infill", completion.infill),
        web.post("/embedding", embedding.create),
        web.post("/embeddings", embedding.create),
    ]
