"""`POST /v1/chat/completions`."""

from __future__ import annotations

from typing import Any

from aiohttp import web

from llm_node.api import body, source, sse
from llm_node.api.context import NODE
from llm_node.api.openai import answers, neutral
from llm_node.node import Event, Node
from llm_node.schema.chat import ChatCompletionRequest


async def create(request: web.Request) -> web.StreamResponse:
    """The route."""
    wanted = await body.read(request, ChatCompletionRequest)
    node = request.app[NODE]
    whose = source.of(request, wanted)
    chat = _conversation(wanted)
    requests = [_neutral(wanted, chat, whose, answer) for answer in range(wanted.n)]
    if wanted.stream:
        chunks = _Chunks(wanted)
        return await sse.respond(request, lambda out: answers.stream(node, wanted, requests, chunks, out))
    return web.json_response(await _whole(node, wanted, requests), dumps=sse.dump)


def _conversation(wanted: ChatCompletionRequest) -> dict[str, str]:
    chat = {"messages": sse.dump([message.plain() for message in wanted.messages])}
    if wanted.chat_template_kwargs:
        chat["variables"] = sse.dump(wanted.chat_template_kwargs)
    return chat


def _neutral(wanted: ChatCompletionRequest, chat: dict[str, str], whose: int, answer: int) -> dict[str, Any]:
    return neutral.request(
        wanted,
        {"chat": chat},
        source=whose,
        answer=answer,
        max_tokens=wanted.max_tokens
        if wanted.max_completion_tokens is None
        else wanted.max_completion_tokens,
        logprobs=wanted.top_logprobs if wanted.logprobs else None,
    )


def _pattern(wanted: ChatCompletionRequest) -> str | None:
    return answers.CHAT_LOGPROBS if wanted.logprobs else None


async def _whole(node: Node, wanted: ChatCompletionRequest, requests: list[dict[str, Any]]) -> dict[str, Any]:
    whole = await answers.Whole(len(requests), wanted.n, _pattern(wanted)).gather(
        node, wanted.model, requests
    )
    return {
        **answers.identity("chatcmpl", "chat.completion", wanted.model),
        "choices": [
            {
                "index": index,
                "message": {"role": "assistant", "content": text, "refusal": None},
                "logprobs": whole.logprobs[index],
                "finish_reason": whole.reasons[index],
            }
            for index, text in enumerate(whole.texts)
        ],
        "usage": whole.usage.shape(),
    }


class _Chunks:
    """Makes the chunks of one answer. Its pieces go through a template, made once per choice."""

    def __init__(self, wanted: ChatCompletionRequest) -> None:
        self._same = answers.identity("chatcmpl", "chat.completion.chunk", wanted.model)
        self._last = {"usage": None} if wanted.stream_options.include_usage else {}
        self._usage = answers.Usage(wanted.n)
        self.templates = [
            sse.Template(self._chunk(index, {"content": sse.HOLE}, logprobs=sse.HOLE), _pattern(wanted))
            for index in range(wanted.n)
        ]

    def frame(self, index: int, event: Event) -> bytes:
        """The chunk for the beginning or the end."""
        if event.kind == "started":
            return sse.frame(self._chunk(index, {"role": "assistant", "content": "", "refusal": None}))
        self._usage.add(index, event)
        return sse.frame(self._chunk(index, {}, reason=answers.finish_reason(event)))

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""
        return sse.frame({**self._same, "choices": [], "usage": self._usage.shape()})

    def _chunk(
        self, index: int, delta: dict[str, Any], *, logprobs: Any = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._same, "choices": [choice], **self._last}
