"""Scores, best first."""

from __future__ import annotations

import secrets
from typing import Any

from aiohttp import web

from llm_node.api import body
from llm_node.api.context import NODE
from llm_node.api.conversation import dump
from llm_node.schema.rerank import RerankRequest


async def rank(request: web.Request) -> web.Response:
    """The route."""
    wanted = await body.read(request, RerankRequest)
    question = {"query": wanted.query, "documents": wanted.candidates}
    answer = await request.app[NODE].ask(wanted.model, {"Rerank": question})
    scores: list[float] = answer["scores"]
    order = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: wanted.top_n]
    if wanted.texts is not None:
        return web.json_response([_score(wanted, index, scores[index]) for index in order], dumps=dump)
    tokens = sum(answer["tokens"])
    return web.json_response(
        {
            "id": secrets.token_hex(16),
            "object": "list",
            "model": wanted.model,
            "results": [_result(wanted, index, scores[index]) for index in order],
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            "meta": {"api_version": {"version": "2"}, "tokens": {"input_tokens": tokens}},
        },
        dumps=dump,
    )


def _result(wanted: RerankRequest, index: int, score: float) -> dict[str, Any]:
    document = {"document": {"text": wanted.candidates[index]}} if wanted.return_documents else {}
    return {"index": index, "relevance_score": score, **document}


def _score(wanted: RerankRequest, index: int, score: float) -> dict[str, Any]:
    text = {"text": wanted.candidates[index]} if wanted.return_text else {}
    return {"index": index, "score": score, **text}
