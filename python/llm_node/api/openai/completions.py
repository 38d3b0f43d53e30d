"""`POST /v1/completions`: plain text or tokens in, text out."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import body, source, sse
from llm_node.api.context import NODE, QUEUE_LIMIT
from llm_node.api.openai import answers, neutral
from llm_node.node import Event, Node, NodeError
from llm_node.schema.completions import CompletionRequest


async def create(request: web.Request) -> web.StreamResponse:
    """The route."""
    wanted = await body.read(request, CompletionRequest)
    _check_count(len(wanted.prompts) * wanted.n, request.app[QUEUE_LIMIT])
    node = request.app[NODE]
    whose = source.of(request, wanted)
    requests = [
        _neutral(wanted, whose, prompt, answer) for prompt in wanted.prompts for answer in range(wanted.n)
    ]
    if wanted.stream:

        async def chunks(out: sse.Stream) -> None:
            made = _Chunks(wanted, await _echoes(node, wanted))
            await answers.stream(node, wanted, requests, made, out)

        return await sse.respond(request, chunks)
    return web.json_response(await _whole(node, wanted, requests), dumps=sse.dump)


def _check_count(count: int, limit: int) -> None:
    """What is more than may ever wait would be told to come again later, for ever."""
    if count > limit:
        raise NodeError(
            "invalid_request",
            f"{count} answers are asked for (prompts, times n), and at most {limit} may wait for a model: "
            "send fewer at once, or start the node with a higher --queue-limit",
            "prompt",
        )


def _neutral(wanted: CompletionRequest, whose: int, prompt: str | list[int], answer: int) -> dict[str, Any]:
    text = "text" if wanted.parse_special else "literal"
    return neutral.request(
        wanted,
        {text: prompt} if isinstance(prompt, str) else {"tokens": prompt},
        source=whose,
        answer=answer,
        max_tokens=wanted.max_tokens,
        logprobs=wanted.logprobs,
    )


async def _echoes(node: Node, wanted: CompletionRequest) -> list[str]:
    """What stands before each answer: its prompt, where the client asked for it."""
    if not wanted.echo:
        return [""] * (len(wanted.prompts) * wanted.n)
    texts = [
        prompt
        if isinstance(prompt, str)
        else str(await node.ask(wanted.model, {"Detokenize": {"tokens": prompt}}))
        for prompt in wanted.prompts
    ]
    return [text for text in texts for _ in range(wanted.n)]


def _pattern(wanted: CompletionRequest) -> str | None:
    return None if wanted.logprobs is None else answers.PLAIN_LOGPROBS


async def _whole(node: Node, wanted: CompletionRequest, requests: list[dict[str, Any]]) -> dict[str, Any]:
    echoes = await _echoes(node, wanted)
    whole = await answers.Whole(len(requests), wanted.n, _pattern(wanted)).gather(
        node, wanted.model, requests
    )
    return {
        **answers.identity("cmpl", "text_completion", wanted.model),
        "choices": [
            {
                "index": index,
                "text": echoes[index] + text,
                "logprobs": whole.logprobs[index],
                "finish_reason": whole.reasons[index],
            }
            for index, text in enumerate(whole.texts)
        ],
        "usage": whole.usage.shape(),
    }


class _Chunks:
    """Makes the chunks of one answer. Its pieces go through a template, made once per choice."""

    def __init__(self, wanted: CompletionRequest, echoes: list[str]) -> None:
        self._echoes = echoes
        self._same = answers.identity("cmpl", "text_completion", wanted.model)
        self._last = {"usage": None} if wanted.stream_options.include_usage else {}
        self._usage = answers.Usage(wanted.n)
        self.templates = [
            sse.Template(self._chunk(index, sse.HOLE, logprobs=sse.HOLE), _pattern(wanted))
            for index in range(len(echoes))
        ]

    def frame(self, index: int, event: Event) -> bytes:
        """The chunk for the beginning or the end; nothing where it adds nothing."""
        if event.kind == "started":
            return sse.frame(self._chunk(index, self._echoes[index])) if self._echoes[index] else b""
        self._usage.add(index, event)
        return sse.frame(self._chunk(index, "", reason=answers.finish_reason(event)))

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""
        return sse.frame({**self._same, "choices": [], "usage": self._usage.shape()})

    def _chunk(
        self, index: int, text: str, *, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self._same, "choices": [choice], **self._last}
