"""What the answers of both kinds of completion have in common: ids, usage, endings, log-probabilities."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

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

    def add(self, index: int, event: Event) -> None:
        """`event`: the ending of request number `index`."""
        self._completion += event.completion_tokens
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
        pieces: list[list[str]] = [[] for _ in requests]
        async with node.open(model, requests) as generation:
            async for batch in generation:
                for index, event in batch:
                    if event.kind == "piece":
                        pieces[index].append(event.text)
                        self.logprobs[index].extend(event.logprobs or ())
                    elif event.kind == "finished":
                        self.reasons[index] = finish_reason(event)
                        self.usage.add(index, event)
        self.texts = ["".join(each) for each in pieces]
        return self


class Chunks(Protocol):
    """What a family makes of events."""

    def frame(self, index: int, event: Event) -> bytes:
        """The chunk for an event of request number `index`; nothing where the event adds nothing."""

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""


async def frames(
    node: Node, wanted: Generation, requests: Sequence[Request], chunks: Chunks
) -> AsyncGenerator[bytes, None]:
    """The answers of one client as they come, for those who stream."""
    async with node.open(wanted.model, requests) as generation:
        async for batch in generation:
            data = b"".join([chunks.frame(index, event) for index, event in batch])
            if data:
                yield data
    if wanted.stream_options.include_usage:
        yield chunks.usage()


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
