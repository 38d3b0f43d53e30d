"""`POST /v1/completions`: plain text or tokens in, text out."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import answers, body, frames, source, sse
from llm_node.api.context import NODE, QUEUE_LIMIT
from llm_node.api.conversation import dump
from llm_node.api.frames import Frames, Part, Template
from llm_node.api.neutral import Prompt, Request, check_count
from llm_node.api.openai import shapes
from llm_node.node import Event, Node
from llm_node.schema.completions import CompletionRequest


async def create(request: web.Request) -> web.StreamResponse:
    """Text that goes on from a prompt."""
    wanted = await body.read(request, CompletionRequest)
    check_count(len(wanted.prompts) * wanted.n, request.app[QUEUE_LIMIT])
    node = request.app[NODE]
    whose = source.of(request, wanted.prompt_cache_key, wanted.user)
    requests = [
        request for prompt in wanted.prompts for request in _neutral(wanted, whose, prompt).several(wanted.n)
    ]
    if wanted.stream:

        async def chunks(out: sse.Stream) -> None:
            writer = _Writer(wanted, await _echoes(node, wanted))
            await answers.stream(node, wanted.model, requests, writer, out)

        return await sse.respond(request, chunks)
    return web.json_response(await _whole(request, node, wanted, requests), dumps=dump)


def _neutral(wanted: CompletionRequest, whose: int, prompt: str | list[int]) -> Request:
    return Request(
        prompt=_prompt(wanted, prompt),
        source=whose,
        max_tokens=wanted.max_tokens,
        sampling=shapes.sampling(wanted),
        stop=wanted.stop,
        ignore_eos=wanted.ignore_eos,
        logprobs=wanted.logprobs,
        format=shapes.text_format(wanted.response_format),
    )


def _prompt(wanted: CompletionRequest, prompt: str | list[int]) -> Prompt:
    if not isinstance(prompt, str):
        return {"tokens": prompt}
    if wanted.suffix:
        return {"infill": {"prefix": prompt, "suffix": wanted.suffix}}
    return {"text" if wanted.parse_special else "literal": prompt}


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
    return None if wanted.logprobs is None else shapes.PLAIN_LOGPROBS


async def _whole(
    request: web.Request, node: Node, wanted: CompletionRequest, requests: list[dict[str, Any]]
) -> dict[str, Any]:
    echoes = await _echoes(node, wanted)
    whole = await answers.gather(
        node, wanted.model, requests, answers_per_prompt=wanted.n, pattern=_pattern(wanted)
    )
    body.relax(request, whole.relaxed)
    return {
        **shapes.identity("cmpl", "text_completion", wanted.model),
        "choices": [
            {
                "index": index,
                "text": echoes[index] + answer.text,
                "logprobs": answer.logprobs,
                "finish_reason": shapes.FINISH_REASONS[answer.finish],
            }
            for index, answer in enumerate(whole.answers)
        ],
        **shapes.took(whole.usage),
    }


class _Writer:
    """Writes the chunks of one client's answers: `Writer` of `answers.py`."""

    def __init__(self, wanted: CompletionRequest, echoes: list[str]) -> None:
        self._echoes = echoes
        self._same = shapes.identity("cmpl", "text_completion", wanted.model)
        self._has_usage = wanted.stream_options.include_usage
        self._last = {"usage": None} if self._has_usage else {}
        self._usage = answers.Usage(wanted.n)
        self.frames = [
            Frames(
                text=Part(delta=Template(self._chunk(index, frames.TEXT, logprobs=frames.LOGPROBS))),
                logprobs=_pattern(wanted),
            )
            for index in range(len(echoes))
        ]

    def begin(self, index: int, event: Event) -> bytes:
        """The prompt, where the client asked for it."""
        return self._chunk(index, self._echoes[index]) if self._echoes[index] else b""

    def end(self, index: int, event: Event) -> bytes:
        """Says why it ended."""
        self._usage.add(index, event)
        reason = shapes.FINISH_REASONS[answers.finish(event)]
        return self._chunk(index, "", reason=reason, **shapes.timed(event, self._has_usage))

    def last(self) -> bytes:
        """The usage, for those who asked for it."""
        if not self._has_usage:
            return b""
        return sse.EVENTS.frame({**self._same, "choices": [], **shapes.took(self._usage)})

    def _chunk(
        self, index: int, text: str, *, logprobs: Any = None, reason: str | None = None, **more: Any
    ) -> bytes:
        choice = {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return sse.EVENTS.frame({**self._same, "choices": [choice], **self._last, **more})
