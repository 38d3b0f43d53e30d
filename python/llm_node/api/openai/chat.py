"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import answers, body, frames, source, sse
from llm_node.api.answers import Answer, Finish
from llm_node.api.context import NODE
from llm_node.api.conversation import dump
from llm_node.api.frames import Frames, Part, Template
from llm_node.api.neutral import Request
from llm_node.api.openai import conversation, shapes
from llm_node.node import Block, Event, Node
from llm_node.schema.chat import ChatCompletionRequest
from llm_node.schema.tools import ChosenTool, Named


async def create(request: web.Request) -> web.StreamResponse:
    """An answer."""
    wanted = await body.read(request, ChatCompletionRequest)
    node = request.app[NODE]
    neutral = _neutral(wanted, source.of(request, wanted.prompt_cache_key, wanted.user))
    requests = neutral.several(wanted.n)
    if wanted.stream:
        writer = _Writer(wanted)
        return await sse.respond(
            request, lambda out: answers.stream(node, wanted.model, requests, writer, out)
        )
    whole = await _whole(request, node, wanted, requests)
    return web.json_response(whole, dumps=dump)


def _neutral(wanted: ChatCompletionRequest, whose: int) -> Request:
    return Request(
        prompt=conversation.of(wanted),
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
    body.relax(request, whole.relaxed)
    return {
        **shapes.identity("chatcmpl", "chat.completion", wanted.model),
        "choices": [
            {
                "index": index,
                "message": _message(answer, wanted),
                "logprobs": answer.logprobs,
                "finish_reason": _reason(answer.finish, wanted),
            }
            for index, answer in enumerate(whole.answers)
        ],
        **shapes.took(whole.usage),
    }


def _reason(finish: Finish, wanted: ChatCompletionRequest) -> str:
    """A call that was chosen by name is told as "stop", as OpenAI does."""
    if finish != "calls":
        return shapes.FINISH_REASONS[finish]
    if isinstance(wanted.tool_choice, ChosenTool) or isinstance(wanted.function_call, Named):
        return "stop"
    return "function_call" if wanted.functions else "tool_calls"


def _message(answer: Answer, wanted: ChatCompletionRequest) -> dict[str, Any]:
    """What is not there has no key, but for `content`: it is null only where there are calls instead."""
    said: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        said["reasoning_content"] = answer.reasoning
    if answer.calls:
        said["content"] = answer.text or None
        if wanted.functions:
            said["function_call"] = {"name": answer.calls[0].name, "arguments": answer.calls[0].text}
        else:
            said["tool_calls"] = [_call(block, _customs(wanted)) for block in answer.calls]
    return said


def _customs(wanted: ChatCompletionRequest) -> set[str]:
    """The tools that take plain text."""
    return {tool.name for tool in wanted.tools or () if tool.custom is not None}


def _call(block: Block, customs: set[str]) -> dict[str, Any]:
    identity = conversation.PREFIX + block.id
    if block.name in customs:
        return {"id": identity, "type": "custom", "custom": {"name": block.name, "input": block.text}}
    function = {"name": block.name, "arguments": block.text}
    return {"id": identity, "type": "function", "function": function}


class _Writer:
    """Writes the chunks of one client's answers: `Writer` of `answers.py`."""

    def __init__(self, wanted: ChatCompletionRequest) -> None:
        self._same = shapes.identity("chatcmpl", "chat.completion.chunk", wanted.model)
        self._has_usage = wanted.stream_options.include_usage
        self._last = {"usage": None} if self._has_usage else {}
        self._usage = answers.Usage(wanted.n)
        self._wanted = wanted
        self.frames = [self._frames(index, _pattern(wanted)) for index in range(wanted.n)]

    def begin(self, index: int, event: Event) -> bytes:
        """Says who speaks."""
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def end(self, index: int, event: Event) -> bytes:
        """Says why it ended."""
        self._usage.add(index, event)
        reason = _reason(answers.finish(event), self._wanted)
        return self._chunk(index, {}, reason=reason, **shapes.timed(event, self._has_usage))

    def last(self) -> bytes:
        """The usage, for those who asked for it."""
        if not self._has_usage:
            return b""
        return sse.EVENTS.frame({**self._same, "choices": [], **shapes.took(self._usage)})

    def _frames(self, index: int, pattern: str | None) -> Frames:
        """A client joins every string that it gets twice: role, id, type and name come once."""
        delta = {"content": frames.TEXT}
        customs = _customs(self._wanted)
        custom = self._call(index, "custom", "input") if customs else Part()
        others = Part()
        if self._wanted.functions:
            others = self._old_call(index)
        elif len(customs) < len(self._wanted.tools or ()):
            others = self._call(index, "function", "arguments")
        return Frames(
            text=Part(delta=Template(self._chunk(index, delta, logprobs=frames.LOGPROBS))),
            reasoning=Part(delta=Template(self._chunk(index, {"reasoning_content": frames.TEXT}))),
            input=others,
            tools={name: (custom, name) for name in customs},
            logprobs=pattern,
        )

    def _call(self, index: int, kind: str, field: str) -> Part:
        identity = conversation.PREFIX + frames.ID
        begin = {"index": frames.CALL, "id": identity, "type": kind, kind: {"name": frames.NAME, field: ""}}
        delta = {"index": frames.CALL, kind: {field: frames.TEXT}}
        return Part(
            begin=Template(self._chunk(index, {"tool_calls": [begin]})),
            delta=Template(self._chunk(index, {"tool_calls": [delta]})),
        )

    def _old_call(self, index: int) -> Part:
        begin = {"function_call": {"name": frames.NAME, "arguments": ""}}
        delta = {"function_call": {"arguments": frames.TEXT}}
        return Part(begin=Template(self._chunk(index, begin)), delta=Template(self._chunk(index, delta)))

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        *,
        logprobs: Any = None,
        reason: str | None = None,
        **more: Any,
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return sse.EVENTS.frame({**self._same, "choices": [choice], **self._last, **more})
