"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import answers, body, frames, source, sse
from llm_node.api.answers import Answer
from llm_node.api.context import NODE
from llm_node.api.conversation import dump
from llm_node.api.frames import Frames, Part, Template
from llm_node.api.neutral import Request
from llm_node.api.openai import shapes
from llm_node.node import Block, Event, Node
from llm_node.schema.chat import ChatCompletionRequest
from llm_node.schema.tokens import ApplyTemplateRequest


async def create(request: web.Request) -> web.StreamResponse:
    """The route."""
    wanted = await body.read(request, ChatCompletionRequest)
    node = request.app[NODE]
    neutral = _neutral(wanted, source.of(request, wanted))
    requests = neutral.several(wanted.n)
    if wanted.stream:
        writer = _Writer(wanted)
        return await sse.respond(
            request, lambda out: answers.stream(node, wanted.model, requests, writer, out)
        )
    whole = await _whole(request, node, wanted, requests)
    return web.json_response(whole, dumps=dump)


def chat(wanted: ChatCompletionRequest | ApplyTemplateRequest) -> dict[str, str]:
    """A conversation as the model's template gets it."""
    said = {"messages": dump([message.plain() for message in wanted.messages])}
    if wanted.chat_template_kwargs:
        said["variables"] = dump(wanted.chat_template_kwargs)
    return said


def _neutral(wanted: ChatCompletionRequest, whose: int) -> Request:
    return Request(
        prompt={"chat": chat(wanted)},
        source=whose,
        max_tokens=wanted.max_tokens
        if wanted.max_completion_tokens is None
        else wanted.max_completion_tokens,
        sampling=shapes.sampling(wanted),
        stop=wanted.stop,
        ignore_eos=wanted.ignore_eos,
        logprobs=wanted.top_logprobs if wanted.logprobs else None,
        format=shapes.text_format(wanted.response_format),
    )


def _pattern(wanted: ChatCompletionRequest) -> str | None:
    return shapes.CHAT_LOGPROBS if wanted.logprobs else None


async def _whole(
    request: web.Request, node: Node, wanted: ChatCompletionRequest, requests: list[dict[str, Any]]
) -> dict[str, Any]:
    whole = await answers.gather(
        node, wanted.model, requests, answers_per_prompt=wanted.n, pattern=_pattern(wanted)
    )
    body.ignore(request, whole.relaxed)
    return {
        **shapes.identity("chatcmpl", "chat.completion", wanted.model),
        "choices": [
            {
                "index": index,
                "message": _message(answer),
                "logprobs": answer.logprobs,
                "finish_reason": shapes.FINISH_REASONS[answer.finish],
            }
            for index, answer in enumerate(whole.answers)
        ],
        "usage": shapes.usage(whole.usage),
    }


def _message(answer: Answer) -> dict[str, Any]:
    """What is not there has no key, but for `content`: it is null only where there are calls instead."""
    said: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        said["reasoning_content"] = answer.reasoning
    if answer.calls:
        said["content"] = answer.text or None
        said["tool_calls"] = [_call(block) for block in answer.calls]
    return said


def _call(block: Block) -> dict[str, Any]:
    function = {"name": block.name, "arguments": block.text}
    return {"id": f"call_{block.id}", "type": "function", "function": function}


class _Writer:
    """Writes the chunks of one client's answers: `Writer` of `answers.py`."""

    def __init__(self, wanted: ChatCompletionRequest) -> None:
        self._same = shapes.identity("chatcmpl", "chat.completion.chunk", wanted.model)
        self._has_usage = wanted.stream_options.include_usage
        self._last = {"usage": None} if self._has_usage else {}
        self._usage = answers.Usage(wanted.n)
        self.frames = [self._frames(index, _pattern(wanted)) for index in range(wanted.n)]

    def begin(self, index: int, event: Event) -> bytes:
        """Says who speaks."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def end(self, index: int, event: Event) -> bytes:
        """Says why it ended."""
        self._usage.add(index, event)
        return self._chunk(index, {}, reason=shapes.FINISH_REASONS[answers.finish(event)])

    def last(self) -> bytes:
        """The usage, for those who asked for it."""
        if not self._has_usage:
            return b""
        return sse.EVENTS.frame({**self._same, "choices": [], "usage": shapes.usage(self._usage)})

    def _frames(self, index: int, pattern: str | None) -> Frames:
        """A client joins every string that it gets twice: role, id, type and name come once."""
        delta = {"content": frames.TEXT}
        function = {"name": frames.NAME, "arguments": ""}
        begun = {"index": frames.CALL, "id": f"call_{frames.ID}", "type": "function", "function": function}
        more = {"index": frames.CALL, "function": {"arguments": frames.TEXT}}
        return Frames(
            text=Part(delta=Template(self._chunk(index, delta, logprobs=frames.LOGPROBS))),
            reasoning=Part(delta=Template(self._chunk(index, {"reasoning_content": frames.TEXT}))),
            input=Part(
                begin=Template(self._chunk(index, {"tool_calls": [begun]})),
                delta=Template(self._chunk(index, {"tool_calls": [more]})),
            ),
            logprobs=pattern,
        )

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse.EVENTS.frame({**self._same, "choices": [choice], **self._last})
