"""`POST /completion` and `POST /infill`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from llm_node.api import answers, body, source, sse
from llm_node.api.context import NODE, QUEUE_LIMIT
from llm_node.api.conversation import Format, Json, Schema, dump
from llm_node.api.llama_server import shapes
from llm_node.api.neutral import FORBIDDEN, Prompt, Request, Sampling, check_count
from llm_node.node import Node
from llm_node.schema.llama_server.completion import (
    Bias,
    CompletionRequest,
    Generation,
    InfillRequest,
    MixedPrompt,
)


async def create(request: web.Request) -> web.StreamResponse:
    """Goes on with a text; or with several, and then the answer is a list."""
    wanted = await body.read(request, CompletionRequest)
    check_count(len(wanted.prompt) * wanted.n_cmpl, request.app[QUEUE_LIMIT])
    node = request.app[NODE]
    prompts = [await _prompt(node, wanted.model, prompt) for prompt in wanted.prompt]
    return await _answer(request, wanted, prompts)


async def infill(request: web.Request) -> web.StreamResponse:
    """Fills the gap between two texts."""
    wanted = await body.read(request, InfillRequest)
    extra = [{"name": each.filename, "text": each.text} for each in wanted.input_extra]
    prefix = wanted.input_prefix + wanted.prompt
    gap = {"prefix": prefix, "suffix": wanted.input_suffix, "extra": extra}
    return await _answer(request, wanted, [({"infill": gap}, "")])


async def _prompt(node: Node, model: str, prompt: MixedPrompt) -> tuple[Prompt, str]:
    """The prompt, and its text."""
    if isinstance(prompt, str):
        return {"text": prompt}, prompt
    tokens: list[int] = []
    for index, each in enumerate(prompt):
        if isinstance(each, int):
            tokens.append(each)
        else:
            question = {"text": each, "add_special": index == 0, "parse_special": True}
            tokens.extend(await node.ask(model, {"Tokenize": question}))
    return {"tokens": tokens}, str(await node.ask(model, {"Detokenize": {"tokens": tokens}}))


async def _answer(
    request: web.Request, wanted: Generation, prompts: Sequence[tuple[Prompt, str]]
) -> web.StreamResponse:
    node = request.app[NODE]
    if "samplers" in wanted.model_fields_set:
        body.ignore(request, ["samplers"])  # their order is the node's own
    bias = await _bias(node, wanted.model, wanted.logit_bias)
    requests = [
        one
        for prompt, _ in prompts
        for one in _neutral(wanted, source.of(request), prompt, bias).several(wanted.n_cmpl)
    ]
    texts = [text for _, text in prompts for _ in range(wanted.n_cmpl)]
    if wanted.stream:
        writer = shapes.Writer(wanted, texts)
        return await sse.respond(
            request, lambda out: answers.stream(node, wanted.model, requests, writer, out), shapes.FRAMING
        )
    found = await answers.gather(node, wanted.model, requests, pattern=shapes.pattern(wanted))
    body.relax(request, found.relaxed)
    shown = [shapes.whole(wanted, index, texts[index], answer) for index, answer in enumerate(found.answers)]
    return web.json_response(shown if len(shown) > 1 else shown[0], dumps=dump)


async def _bias(node: Node, model: str, wanted: Sequence[Bias]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for name, bias in wanted:
        tokens = [name]
        if isinstance(name, str):
            question = {"text": name, "add_special": False, "parse_special": False}
            tokens = await node.ask(model, {"Tokenize": question})
        found.extend((int(token), FORBIDDEN if bias is None else bias) for token in tokens)
    return found


def _neutral(wanted: Generation, whose: int, prompt: Prompt, bias: Sequence[tuple[int, float]]) -> Request:
    def used(sampler: str, value: Any, off: Any) -> Any:
        return value if sampler in wanted.samplers else off

    return Request(
        prompt=prompt,
        source=whose,
        max_tokens=wanted.n_predict if wanted.n_predict >= 0 else None,
        sampling=Sampling(
            temperature=max(0.0, used("temperature", wanted.temperature, 1.0)),
            top_k=max(0, used("top_k", wanted.top_k, 0)),
            top_p=used("top_p", wanted.top_p, 1.0),
            min_p=used("min_p", wanted.min_p, 0.0),
            repeat_penalty=used("penalties", wanted.repeat_penalty, 1.0),
            frequency_penalty=used("penalties", wanted.frequency_penalty, 0.0),
            presence_penalty=used("penalties", wanted.presence_penalty, 0.0),
            seed=None if wanted.seed in (-1, 2**32 - 1) else wanted.seed,
            bias=bias,
        ),
        stop=wanted.stop,
        ignore_eos=wanted.ignore_eos,
        logprobs=wanted.n_probs or None,
        format=_format(wanted),
    )


def _format(wanted: Generation) -> Format:
    if wanted.json_schema is None:
        return "text"
    return Schema(Json.of(wanted.json_schema), strict=True)
