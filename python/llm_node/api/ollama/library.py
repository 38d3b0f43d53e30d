"""What models there are: `/api/tags`, `/api/ps`, `/api/show`; more of them: `/api/pull`; and the other routes
that would change them, which are refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import Any

from aiohttp import web

from llm_node.api import body, sse
from llm_node.api.context import NODE, PULLS
from llm_node.api.models import context_length
from llm_node.node import NodeError
from llm_node.pull import Wish
from llm_node.schema.ollama.library import PullRequest, ShowRequest
from llm_node.schema.ollama.options import Options

VERSION = "0.13.0"
"""The version of Ollama whose API this is. Clients ask for a least one."""

CHANGES_NOTHING = "Models are files in the models folder (--models-dir); POST /api/models/remove deletes one."
OF_THE_HUB = "Nothing is fetched of Ollama's library; a model of the Hugging Face hub is: hf.co/ORG/REPO"
SUCCESS = {"status": "success"}

NEVER = "9999-12-31T23:59:59Z"
"""When a model goes that stays as long as there is room, or that answers just now."""


async def alive(request: web.Request) -> web.Response:
    """By this text some clients know that somebody listens."""
    return web.Response(text="Ollama is running")


async def version(request: web.Request) -> web.Response:
    """See `VERSION`."""
    return web.json_response({"version": VERSION})


async def tags(request: web.Request) -> web.Response:
    """All models."""
    models = await request.app[NODE].models()
    return web.json_response({"models": [_listed(model) for model in models]})


async def running(request: web.Request) -> web.Response:
    """The models that are loaded."""
    models = await request.app[NODE].models()
    loaded = [model for model in models if model["status"] == "loaded"]
    return web.json_response(
        {
            "models": [
                {
                    **_listed(model),
                    "expires_at": _expires(model),
                    "size_vram": _device_bytes(model),
                    "context_length": context_length(model),
                }
                for model in loaded
            ]
        }
    )


async def show(request: web.Request) -> web.Response:
    """One model: what it is, and what it can."""
    wanted = await body.read(request, ShowRequest)
    node = request.app[NODE]
    model = await node.model(wanted.model)
    template = None
    if model["status"] == "loaded":
        template = await node.ask(str(model["model_id"]), "ChatTemplate")
    return web.json_response(
        {
            "modelfile": "",
            "parameters": "",
            "template": template or "",
            "details": _details(model),
            "model_info": _info(model),
            "capabilities": _capabilities(model),
            "modified_at": _time(model),
        }
    )


async def pull(request: web.Request) -> web.StreamResponse:
    """A model that is there needs no pulling. One of the hub is fetched, as `/api/models/pull` does; of
    Ollama's own library none."""
    wanted = await body.read(request, PullRequest)
    try:
        await request.app[NODE].model(wanted.model)
        return web.json_response(SUCCESS)
    except NodeError as fault:
        if fault.code != "model_not_found":
            raise
        if "/" not in wanted.model:
            raise NodeError("unsupported_feature", f"{fault.message}. {OF_THE_HUB}", "model") from None
    job = request.app[PULLS].begin(Wish(wanted.model.removesuffix(":latest")))
    if not wanted.stream:
        async for event in job.follow():
            _told(event)
        return web.json_response(SUCCESS)

    async def lines(stream: sse.Stream) -> None:
        async for event in job.follow():
            if (told := _told(event)) is not None:
                stream.tell(told)

    return await sse.respond(request, lines, sse.LINES)


def _told(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What happened to a pull, in Ollama's words. Raises its error."""
    match event["event"]:
        case "resolving":
            return {"status": "pulling manifest"}
        case "progress":
            place = {"digest": event["pull_id"], "total": event["total"], "completed": event["bytes"]}
            return {"status": f"pulling {event['model']}", **place}
        case "verifying":
            return {"status": "verifying sha256 digest"}
        case "ready":
            return SUCCESS
        case "error":
            raise NodeError(event["error"]["code"], event["error"]["message"], "model")
    return None


async def refuse(request: web.Request) -> web.Response:
    """The routes that would change what there is."""
    raise NodeError("unsupported_feature", f"{request.path} is not supported. {CHANGES_NOTHING}")


async def ignore_context(request: web.Request, model: str, options: Options) -> None:
    """Names `num_ctx` among what was asked for in vain, unless it is what the model has."""
    if options.num_ctx is None:
        return
    if options.num_ctx != context_length(await request.app[NODE].model(model)):
        body.ignore(request, ["options.num_ctx"])


def name(model: Mapping[str, Any]) -> str:
    """A model's name, with the tag that Ollama's have in any case."""
    found = str(model["model_id"])
    return found if ":" in found else f"{found}:latest"


def _listed(model: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name(model),
        "model": name(model),
        "modified_at": _time(model),
        "size": model.get("size_bytes", 0),
        "digest": _digest(model),
        "details": _details(model),
    }


def _expires(model: Mapping[str, Any]) -> str:
    left = model.get("goes_in_seconds")
    if left is None:
        return NEVER
    return (datetime.now(timezone.utc) + timedelta(seconds=left)).isoformat()


def _time(model: Mapping[str, Any]) -> str:
    return datetime.fromtimestamp(model.get("modified", 0), timezone.utc).isoformat()


def _digest(model: Mapping[str, Any]) -> str:
    """Another one whenever the file is another one. What is in it is not looked at: that may be 40 GB."""
    what = f"{model.get('path')}\n{model.get('size_bytes')}\n{model.get('modified')}"
    return hashlib.sha256(what.encode()).hexdigest()


def _details(model: Mapping[str, Any]) -> dict[str, Any]:
    family = model.get("architecture") or ""
    return {
        "parent_model": "",
        "format": model.get("format") or "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": _size(_facts(model).get("n_parameters")),
        "quantization_level": model.get("quantization") or "",
    }


def _facts(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """What its worker says of it, while it is loaded."""
    return model.get("facts") or {}


def _size(parameters: int | None) -> str:
    """ "7.6B"; nothing where it is not known, since the model was not loaded."""
    if not parameters:
        return ""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if parameters >= unit:
            return f"{parameters / unit:.1f}{letter}"
    return str(parameters)


def _info(model: Mapping[str, Any]) -> dict[str, Any]:
    facts = _facts(model)
    family = model.get("architecture") or "unknown"
    found = {
        "general.architecture": family,
        "general.name": model.get("name"),
        "general.parameter_count": facts.get("n_parameters"),
        f"{family}.context_length": context_length(model),
        f"{family}.embedding_length": facts.get("n_embedding") or None,
    }
    return {key: value for key, value in found.items() if value is not None}


def _capabilities(model: Mapping[str, Any]) -> list[str]:
    """What its worker found out, while it is loaded; else what its file says it is for."""
    facts = _facts(model)
    if not facts:
        by_task: dict[Any, list[str]] = {"embeddings": ["embedding"], "rerank": [], None: []}
        return by_task.get(model.get("task"), ["completion"])
    chat = facts.get("chat") or {}
    found = {
        "completion": facts["generates"],
        "tools": chat.get("tools"),
        "thinking": chat.get("thinking"),
        # An engine may tell the width of any model.
        "embedding": facts["n_embedding"] and (not facts["generates"] or model.get("task") == "embeddings"),
        "insert": facts["generates"] and facts["fills_gaps"],
    }
    return [word for word, can in found.items() if can]


def _device_bytes(model: Mapping[str, Any]) -> int:
    """What it takes of the memory of GPUs."""
    return sum(use["total_bytes"] for use in model["memory"] if not use["is_host"])
