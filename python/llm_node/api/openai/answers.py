"""What the answers of both kinds of completion have in common: ids, usage, endings, log-probabilities."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from llm_node.api import sse
from llm_node.node import Event, Node, NodeError, Request
from llm_node.schema.sampling import Generation

TokenLogprobs = tuple[bytes, int, float, list[tuple[bytes, int, float]]]
"""(bytes, id, logprob, alternatives best first), as `_core.Event` has it."""

LEAST = -9999.0
"""OpenAI's word for a probability of nothing; JSON has no infinity."""


def identity(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that are the same in every chunk of an answer."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


class Usage:
    """Sums up what several requests took. `n` answers to one prompt count it once."""

    def __init__(self, answers_per_prompt: int) -> None:
        self._answers = answers_per_prompt
        self._prompt = 0
        self._completion = 0
        self._cached = 0
        self._drafted = 0
        self._accepted = 0

    def add(self, index: int, event: Event) -> None:
        """`event`: the ending of request number `index`."""
        self._completion += event.completion_tokens
        self._drafted += event.drafted_tokens
        self._accepted += event.accepted_tokens
        if index % self._answers == 0:
            self._prompt += event.prompt_tokens
            self._cached += event.cached_tokens

    def shape(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        return {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": self._prompt + self._completion,
            "prompt_tokens_details": {"cached_tokens": self._cached},
            "completion_tokens_details": {
                "accepted_prediction_tokens": self._accepted,
                "rejected_prediction_tokens": self._drafted - self._accepted,
            },
        }


class Whole:
    """All answers of one client, gathered for those who do not stream."""

    def __init__(self, answers: int, answers_per_prompt: int) -> None:
        self.texts = [""] * answers
        self.logprobs: list[list[TokenLogprobs]] = [[] for _ in range(answers)]
        self.reasons = ["stop"] * answers
        self.usage = Usage(answers_per_prompt)

    async def gather(self, node: Node, model: str, requests: Sequence[Request]) -> Whole:
        """Run the requests to their ends."""
        async with node.open(model, requests, whole=True) as generation:
            async for batch in generation:
                for index, event in batch:
                    if event.kind == "piece":
                        self.texts[index] = event.text
                        self.logprobs[index] = event.logprobs or []
                    elif event.kind == "finished":
                        self.reasons[index] = finish_reason(event)
                        self.usage.add(index, event)
        return self


class Chunks(Protocol):
    """What a family makes of events."""

    @property
    def templates(self) -> list[sse.Template] | None:
        """The chunk for a piece of text, for each request; None where it takes more than text."""

    def frame(self, index: int, event: Event) -> bytes:
        """The chunk for an event of request number `index`; nothing where the event adds nothing."""

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""


async def stream(
    node: Node, wanted: Generation, requests: Sequence[Request], chunks: Chunks, out: sse.Stream
) -> None:
    """The answers of one client as they come, for those who stream."""
    sender = _Sender(chunks, out)
    templates = None
    if chunks.templates is not None:
        templates = [(each.head, each.tail, out.chunked) for each in chunks.templates]
    async with node.deliver(
        wanted.model, requests, sender, connection=out, templates=templates
    ) as out.client:
        await sender.ended
    if wanted.stream_options.include_usage:
        out.send(chunks.usage())


class _Sender:
    """`Receiver` of `node.py`: sends the chunk for each event in the loop turn that it comes in, so that
    it stands in its place among the bytes that pass by here."""

    def __init__(self, chunks: Chunks, out: sse.Stream) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._chunks = chunks
        self._out = out

    def event(self, index: int, event: Event) -> None:
        data = self._chunks.frame(index, event)
        if data:
            self._out.send(data)

    def end(self, error: Exception | None) -> None:
        if self.ended.done():
            return  # cancelled: the client left
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def finish_reason(event: Event) -> str:
    """`stop` or `length`. Raises where the node ended an answer whose client is still there."""
    if event.finish == "cancelled":
        raise NodeError("cancelled", "The request was cancelled by the node")
    return event.finish or "stop"


def chat_logprobs(tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
    """The shape of chat completions."""
    content = [
        {**_token(data, logprob), "top_logprobs": [_token(other, value) for other, _, value in top]}
        for data, _, logprob, top in tokens
    ]
    return {"content": content, "refusal": None}


def _token(data: bytes, logprob: float) -> dict[str, Any]:
    return {"token": _text(data), "logprob": max(logprob, LEAST), "bytes": list(data)}


class PlainLogprobs:
    """The shape of plain completions: parallel lists, with the offset of each token in the text."""

    def __init__(self) -> None:
        self._offset = 0

    def shape(self, tokens: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """The lists for the next tokens."""
        offsets = []
        for data, _, _, _ in tokens:
            offsets.append(self._offset)
            self._offset += len(_text(data))
        return {
            "tokens": [_text(data) for data, _, _, _ in tokens],
            "token_logprobs": [max(logprob, LEAST) for _, _, logprob, _ in tokens],
            "top_logprobs": [_best(top) for _, _, _, top in tokens],
            "text_offset": offsets,
        }


def _best(top: Sequence[tuple[bytes, int, float]]) -> Mapping[str, float]:
    found: dict[str, float] = {}
    for data, _, logprob in top:
        found.setdefault(_text(data), max(logprob, LEAST))  # best first: keep the better of two alike
    return found


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
