"""`POST /api/chat` and `POST /api/generate`."""

from __future__ import annotations

import time

from aiohttp import web

from llm_node.api import answers, body, source, sse
from llm_node.api.context import NODE
from llm_node.api.conversation import Format, Json, Schema, dump
from llm_node.api.neutral import Prompt, Request, Sampling
from llm_node.api.ollama import library, shapes, staying
from llm_node.api.ollama.conversation import of_chat, of_prompt
from llm_node.node import Node
from llm_node.schema.ollama.chat import ChatRequest, GenerateRequest
from llm_node.schema.ollama.options import Generation, is_zero


async def chat(request: web.Request) -> web.StreamResponse:
    """An answer to a conversation; without messages, the load of the model."""
    wanted = await body.read(request, ChatRequest)
    if not wanted.messages:
        return await _load(request, wanted, shapes.in_message)
    ignored: set[str] = set()
    prompt = of_chat(wanted, ignored)
    body.ignore(request, sorted(ignored))
    return await _answer(request, wanted, prompt, shapes.in_message)


async def generate(request: web.Request) -> web.StreamResponse:
    """An answer to a prompt; without one, the load of the model."""
    wanted = await body.read(request, GenerateRequest)
    if not wanted.prompt:
        return await _load(request, wanted, shapes.in_response)
    return await _answer(request, wanted, await _prompt(request.app[NODE], wanted), shapes.in_response)


async def _prompt(node: Node, wanted: GenerateRequest) -> Prompt:
    """The prompt as it is, where that is asked for, or where the model has no chat template."""
    if wanted.suffix:
        return {"infill": {"prefix": wanted.prompt, "suffix": wanted.suffix}}
    if wanted.raw:
        return {"text": wanted.prompt}
    model = await node.model(wanted.model)
    if model.get("task") == "completions":
        return {"text": "\n\n".join(filter(None, (wanted.system, wanted.prompt)))}
    return of_prompt(wanted)


async def _answer(
    request: web.Request, wanted: Generation, prompt: Prompt, place: shapes.Place
) -> web.StreamResponse:
    node = request.app[NODE]
    requests = [_neutral(wanted, prompt, source.of(request)).neutral()]
    pattern = shapes.LOGPROBS if wanted.logprobs else None

    async def writer() -> shapes.Writer:
        took = await _load_ns(node, wanted.model)
        await staying.keep(request, wanted.model, wanted.keep_alive)
        await library.ignore_context(request, wanted.model, wanted.options)
        return shapes.Writer(
            wanted.model, place, thinks=wanted.think is not False, pattern=pattern, load_ns=took
        )

    if wanted.stream:

        async def lines(out: sse.Stream) -> None:
            await answers.stream(node, wanted.model, requests, await writer(), out)

        return await sse.respond(request, lines, sse.LINES)
    made = await writer()
    whole = await answers.gather(node, wanted.model, requests, pattern=pattern)
    body.relax(request, whole.relaxed)
    return web.json_response(made.whole(whole), dumps=dump)


async def _load_ns(node: Node, model: str) -> int:
    """Load a model that is not loaded, and give the nanoseconds that it took."""
    began = time.monotonic_ns()
    await node.ensure_ready(model)
    return time.monotonic_ns() - began


def _neutral(wanted: Generation, prompt: Prompt, whose: int) -> Request:
    options = wanted.options
    return Request(
        prompt=prompt,
        source=whose,
        max_tokens=options.num_predict if options.num_predict > 0 else None,
        sampling=Sampling(
            temperature=options.temperature,
            top_k=max(0, options.top_k),
            top_p=options.top_p,
            min_p=options.min_p,
            repeat_penalty=options.repeat_penalty,
            frequency_penalty=options.frequency_penalty,
            presence_penalty=options.presence_penalty,
            seed=options.seed if options.seed >= 0 else None,
        ),
        stop=options.stop,
        logprobs=wanted.top_logprobs if wanted.logprobs else None,
        format=_format(wanted),
    )


def _format(wanted: Generation) -> Format:
    if isinstance(wanted.format, str):
        return "object" if wanted.format else "text"
    return Schema(Json.of(wanted.format), strict=True)


async def _load(request: web.Request, wanted: Generation, place: shapes.Place) -> web.Response:
    """Nothing is asked: the model is to be there; or not to stay, which is done if nobody uses it."""
    node = request.app[NODE]
    model = await node.model(wanted.model)
    is_loaded = model["status"] == "loaded"
    if not is_zero(wanted.keep_alive):
        await node.ensure_ready(wanted.model)
        await staying.keep(request, wanted.model, wanted.keep_alive)
        is_loaded = True
    elif is_loaded and not model["requests"]:
        staying.refuse_unless_managing(request)
        await node.unload(wanted.model)
        is_loaded = False
    writer = shapes.Writer(wanted.model, place, thinks=False, pattern=None, load_ns=0)
    return web.json_response(writer.loaded("load" if is_loaded else "unload"), dumps=dump)
