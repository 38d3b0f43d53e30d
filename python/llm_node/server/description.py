"""`GET /openapi.json`: all routes, described by the classes that read their bodies.

Owns what of a route those do not say: what stands in its address, what it streams, and which errors it may
come to. A test holds the table to the routes that there are.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from pydantic.json_schema import models_json_schema

from llm_node import errors
from llm_node.api import page
from llm_node.api.context import ERROR_FORMS
from llm_node.schema import admin, chat, completions, embeddings, reports, rerank, tokens
from llm_node.schema.anthropic import messages
from llm_node.schema.llama_server import completion, embedding
from llm_node.schema.ollama import chat as ollama
from llm_node.schema.ollama import embed, library
from llm_node.schema.responses import request as responses
from llm_node.schema.wire import ForModel, Wire
from llm_node.version import __version__

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"

_FLAG = {"type": "string", "enum": ["true", "false"]}
_TEXT = {"type": "string"}

EVERYWHERE = (
    "malformed_request",
    "host_not_allowed",
    "origin_not_allowed",
    "headers_too_large",
    "internal",
    "too_many_connections",
    "shutting_down",
)
"""Errors that any route may come to; the next are of those with a body."""
WITH_BODY = (
    "invalid_json",
    "invalid_request",
    "unsupported_parameter",
    "request_timeout",
    "request_too_large",
    "unsupported_encoding",
    "expectation_failed",
)
OF_MODELS = (
    "context_length_exceeded",
    "architecture_mismatch",
    "format_mismatch",
    "unsupported_feature",
    "model_not_found",
    "queue_full",
    "abi_mismatch",
    "load_failed",
    "model_corrupt",
    "engine_fault",
    "engine_not_found",
    "engine_crashed",
    "gpu_not_found",
    "model_loading",
    "timeout",
    "oom_vram",
    "oom_ram",
)
"""Of those that are for a model, and so may load it."""


OF_PULLS = (
    "invalid_request",
    "format_mismatch",
    "unsupported_feature",
    "model_not_found",
    "gated_model",
    "model_corrupt",
    "checksum_mismatch",
    "source_unreachable",
    "source_busy",
    "offline",
    "oom_vram",
    "oom_ram",
    "disk_full",
)
"""Of those that ask where models are fetched from."""


@dataclass(frozen=True)
class Operation:
    """What is to be said of a route."""

    takes: type[Wire] | None = None
    """Its body."""
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """What may stand behind the question mark: JSON schemas."""
    gives: tuple[str, ...] = (JSON,)
    """Types of content."""
    done: tuple[int, ...] = (200,)
    """Statuses of what is no error."""
    codes: tuple[str, ...] = ()
    """Further errors."""
    tells: str | None = None
    """What it answers, by its name in `TOLD`."""

    def statuses(self) -> Mapping[int, list[str]]:
        """Its errors, by status."""
        codes = [*EVERYWHERE, *self.codes]
        if self.takes is not None:
            codes += WITH_BODY
            if issubclass(self.takes, ForModel) or self.takes is admin.LoadRequest:
                codes += OF_MODELS
        if self.query:
            codes.append("invalid_request")
        found: dict[int, list[str]] = {}
        for code in errors.TABLE:  # in its order
            if code in codes:
                found.setdefault(errors.TABLE[code].status, []).append(code)
        return found


TOLD: Mapping[str, reports.Schema] = {
    "Engines": reports.ENGINES,
    "Incidents": reports.INCIDENTS,
    "Loaded": reports.LOADED,
    "Models": reports.MODELS,
    "Plan": reports.PLAN,
    "System": reports.SYSTEM,
}
"""What reports are like."""

_REFUSED = Operation(codes=("unsupported_feature",))

OPERATIONS: Mapping[str, Operation] = {
    "GET /": Operation(gives=("text/plain", "text/html")),
    "GET /api/engines": Operation(query={"refresh": _FLAG}, tells="Engines"),
    "GET /api/incidents": Operation(tells="Incidents"),
    "GET /api/models": Operation(query={"all": _FLAG}, tells="Models"),
    "GET /api/logs": Operation(
        query={
            "lines": {"type": "integer", "minimum": 0, "maximum": 2000},
            "model": {"type": "string"},
            "follow": _FLAG,
        },
        gives=(JSON, EVENTS),
    ),
    "POST /api/models/alias": Operation(admin.AliasRequest, codes=("model_not_found", "disk_full")),
    "POST /api/models/load": Operation(
        admin.LoadRequest, codes=("model_loaded_differently",), tells="Loaded"
    ),
    "POST /api/models/plan": Operation(admin.LoadRequest, tells="Plan"),
    "POST /api/models/pull": Operation(
        admin.PullRequest, gives=(JSON, EVENTS), done=(200, 202), codes=OF_PULLS
    ),
    "GET /api/models/pulls": Operation(),
    "GET /api/models/pulls/{pull_id}": Operation(gives=(EVENTS,), codes=("not_found",)),
    "DELETE /api/models/pulls/{pull_id}": Operation(query={"discard": _FLAG}, codes=("not_found",)),
    "POST /api/models/remove": Operation(
        admin.RemoveRequest, codes=("model_not_found", "unsupported_feature")
    ),
    "GET /api/models/search": Operation(query={"q": {"type": "string", "maxLength": 200}}, codes=OF_PULLS),
    "POST /api/models/unload": Operation(admin.UnloadRequest, codes=("model_not_found",)),
    "GET /api/ps": Operation(),
    "GET /api/system": Operation(tells="System"),
    "GET /api/tags": Operation(),
    "GET /api/version": Operation(),
    "POST /api/blobs/{digest}": _REFUSED,
    "HEAD /api/blobs/{digest}": _REFUSED,
    "POST /api/chat": Operation(ollama.ChatRequest, gives=(JSON, LINES)),
    "POST /api/copy": _REFUSED,
    "POST /api/create": _REFUSED,
    "DELETE /api/delete": _REFUSED,
    "POST /api/embed": Operation(embed.EmbedRequest),
    "POST /api/embeddings": Operation(embed.EmbeddingsRequest),
    "POST /api/generate": Operation(ollama.GenerateRequest, gives=(JSON, LINES)),
    "POST /api/pull": Operation(library.PullRequest, gives=(JSON, LINES)),
    "POST /api/push": _REFUSED,
    "POST /api/show": Operation(library.ShowRequest),
    "POST /completion": Operation(completion.CompletionRequest, gives=(JSON, EVENTS)),
    "POST /completions": Operation(completion.CompletionRequest, gives=(JSON, EVENTS)),
    "POST /embedding": Operation(embedding.EmbeddingRequest),
    "POST /embeddings": Operation(embedding.EmbeddingRequest),
    "GET /health": Operation(codes=("engine_crashed",)),
    "POST /infill": Operation(completion.InfillRequest, gives=(JSON, EVENTS)),
    "GET /props": Operation(query={"model": _TEXT}, codes=OF_MODELS),
    "GET /slots": Operation(query={"model": _TEXT, "fail_on_no_slot": _TEXT}, codes=OF_MODELS),
    "POST /rerank": Operation(rerank.RerankRequest),
    "POST /reranking": Operation(rerank.RerankRequest),
    "POST /apply-template": Operation(chat.ApplyTemplateRequest),
    "POST /detokenize": Operation(tokens.DetokenizeRequest),
    "GET /-/healthz": Operation(gives=("text/plain",), codes=("engine_crashed", "model_loading")),
    "GET /-/routes": Operation(),
    "GET /healthz": Operation(),
    "GET /metrics": Operation(query={"model": _TEXT}, gives=("text/plain",), codes=("model_not_found",)),
    "GET /openapi.json": Operation(),
    "GET /readyz": Operation(codes=("engine_crashed", "model_loading")),
    "POST /tokenize": Operation(tokens.TokenizeRequest),
    "POST /v1/chat/completions": Operation(chat.ChatCompletionRequest, gives=(JSON, EVENTS)),
    "POST /v1/completions": Operation(completions.CompletionRequest, gives=(JSON, EVENTS)),
    "POST /v1/embeddings": Operation(embeddings.EmbeddingRequest),
    "POST /v1/messages": Operation(messages.MessagesRequest, gives=(JSON, EVENTS)),
    "POST /v1/messages/count_tokens": Operation(messages.CountTokensRequest),
    "GET /v1/models": Operation(),
    "GET /v1/models/{model}": Operation(codes=("model_not_found",)),
    "GET /v1/health": Operation(codes=("engine_crashed",)),
    "POST /v1/rerank": Operation(rerank.RerankRequest),
    "POST /v1/reranking": Operation(rerank.RerankRequest),
    "POST /v2/rerank": Operation(rerank.RerankRequest),
    "POST /v1/responses": Operation(
        responses.ResponsesRequest, gives=(JSON, EVENTS), codes=("previous_response_not_found",)
    ),
    "POST /v1/responses/input_tokens": Operation(
        responses.InputTokensRequest, codes=("previous_response_not_found",)
    ),
    "GET /v1/responses/{id}": Operation(
        query={"stream": _FLAG}, codes=("not_found", "unsupported_parameter")
    ),
    "DELETE /v1/responses/{id}": Operation(codes=("not_found",)),
    "GET /v1/responses/{id}/input_items": Operation(
        query={
            "limit": {"type": "integer", "minimum": 1, "maximum": 100},
            "order": {"type": "string", "enum": ["asc", "desc"]},
            "after": {"type": "string"},
        },
        codes=("not_found",),
    ),
}
"""By method and path."""


class Description:
    """What is shown of an application. Made when somebody asks for it: most nodes are never asked."""

    def __init__(self, app: web.Application) -> None:
        self._app = app
        self._text = ""

    def text(self) -> str:
        """JSON."""
        self._text = self._text or json.dumps(description(self._app))
        return self._text


DESCRIPTION = web.AppKey("DESCRIPTION", Description)


def routes() -> list[web.RouteDef]:
    """Where it is to be had."""
    return [web.get("/openapi.json", show)]


async def show(request: web.Request) -> web.Response:
    """This description."""
    text = await asyncio.to_thread(request.app[DESCRIPTION].text)
    return web.json_response(text=text)


def description(app: web.Application) -> dict[str, Any]:
    """OpenAPI 3.1 of all routes of an application."""
    shapes = sorted({each.takes for each in OPERATIONS.values() if each.takes}, key=lambda it: it.__name__)
    references, definitions = models_json_schema(
        [(shape, "validation") for shape in shapes], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = dict(definitions.get("$defs", {}))
    schemas |= {name: reports.opened(shape) for name, shape in TOLD.items()}
    paths: dict[str, dict[str, Any]] = {}
    for name, route in sorted(offered(app)):
        method, _, path = name.partition(" ")
        operation = OPERATIONS[name]
        form = app[ERROR_FORMS].of(path)
        schemas[form.schema["title"]] = form.schema
        body = None if operation.takes is None else references[operation.takes, "validation"]
        paths.setdefault(path, {})[method.lower()] = _operation(name, route, operation, body, form)
    return {
        "openapi": "3.1.0",
        "info": {"title": "llm-node", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }


def offered(app: web.Application) -> Iterable[tuple[str, web.AbstractRoute]]:
    """All routes, by method and path. HEAD goes without saying where there is GET, and so do shorter names
    of what is under `/v1`. The parts of the page are no interface."""
    routes = {
        (route.method, route.resource.canonical): route
        for route in app.router.routes()
        if route.resource is not None and not route.resource.canonical.startswith(page.ASSETS)
    }
    for (method, path), route in routes.items():
        longer = routes.get((method, f"/v1{path}"))
        is_short = (
            longer is not None and longer.handler == route.handler and f"{method} {path}" not in OPERATIONS
        )
        if not is_short and (method != "HEAD" or ("GET", path) not in routes):
            yield f"{method} {path}", route


def _operation(
    name: str,
    route: web.AbstractRoute,
    operation: Operation,
    body: Mapping[str, Any] | None,
    form: errors.Form,
) -> dict[str, Any]:
    method, _, path = name.partition(" ")
    error = {JSON: {"schema": {"$ref": f"#/components/schemas/{form.schema['title']}"}}}
    replies: dict[str, Any] = {
        str(status): {"description": ", ".join(f"`{code}`" for code in codes), "content": error}
        for status, codes in operation.statuses().items()
    }
    told: Mapping[str, Any] = {"type": ["object", "array"]}
    if operation.tells is not None:
        told = {"$ref": f"#/components/schemas/{operation.tells}"}
    kinds = {kind: {"schema": told} if kind == JSON else {} for kind in operation.gives}
    done = {"description": "Done.", "content": kinds}
    inside = [part.strip("{}") for part in path.split("/") if part.startswith("{")]
    text = {"type": "string", "minLength": 1}
    parameters = [{"name": one, "in": "path", "required": True, "schema": text} for one in inside]
    parameters += [{"name": one, "in": "query", "schema": shape} for one, shape in operation.query.items()]
    described: dict[str, Any] = {
        "operationId": "_".join([method.lower(), *(part.strip("{}") for part in path.split("/") if part)]),
        "summary": " ".join((inspect.getdoc(route.handler) or "").partition("\n\n")[0].split()),
        "tags": [route.handler.__module__.split(".")[2]],
        "responses": {**{str(status): done for status in operation.done}, **replies},
    }
    if parameters:
        described["parameters"] = parameters
    if body is not None:
        described["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
    return described
