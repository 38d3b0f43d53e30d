"""What the answers of both kinds of completion have in common: ids, usage, endings, log-probabilities."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from llm_node.api import sse
from llm_node.node import Event, Node, NodeError, Request
from llm_node.schema.sampling import Generation

CHAT_LOGPROBS = (
    '{"content":[<each>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>,"top_logprobs":['
    '<top>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>}</top>]}</each>],"refusal":null}'
)
"""The shape of chat completions, as a pattern of `rust/node/src/pattern.rs`."""

PLAIN_LOGPROBS = (
    '{"tokens":[<each><name></each>],"token_logprobs":[<each><logprob></each>],"top_logprobs":['
    '<each>{<distinct><name>:<logprob></distinct>}</each>],"text_offset":[<each><offset></each>]}'
)
"""The shape of plain completions: parallel lists, with the offset of each token in the text."""


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
    """All answers of one client, gathered for those who do not stream. `pattern`: of log-probabilities, for
    those who want them."""

    def __init__(self, answers: int, answers_per_prompt: int, pattern: str | None) -> None:
        self._pattern = pattern
        self.texts = [""] * answers
        self.logprobs: list[Any] = [None] * answers
        self.reasons = ["stop"] * answers
        self.usage = Usage(answers_per_prompt)

    async def gather(self, node: Node, model: str, requests: Sequence[Request]) -> Whole:
        """Run the requests to their ends."""
        async with node.open(model, requests, whole=True) as generation:
            async for batch in generation:
                for index, event in batch:
                    if event.kind == "piece":
                        self.texts[index] = event.text
                        if self._pattern is not None:
                            self.logprobs[index] = json.loads(event.fill(self._pattern))
                    elif event.kind == "finished":
                        self.reasons[index] = finish_reason(event)
                        self.usage.add(index, event)
        return self


class Chunks(Protocol):
    """What a family makes of events."""

    @property
    def templates(self) -> list[sse.Template]:
        """The chunk for a piece of text, for each request."""

    def frame(self, index: int, event: Event) -> bytes:
        """The chunk for the beginning or the end of request number `index`; nothing where it adds nothing."""

    def usage(self) -> bytes:
        """The last chunk, for those who asked for it."""


async def stream(
    node: Node, wanted: Generation, requests: Sequence[Request], chunks: Chunks, out: sse.Stream
) -> None:
    """The answers of one client as they come, for those who stream."""
    sender = _Sender(chunks, out)
    templates = [each.parts(out.chunked) for each in chunks.templates]
    async with node.deliver(
        wanted.model, requests, sender, connection=out, templates=templates
    ) as out.client:
        await sender.ended
    if wanted.stream_options.include_usage:
        out.send(chunks.usage())


class _Sender:
    """`Receiver` of `node/client.py`: sends the chunk for each event in the loop turn that it comes in, so
    that it stands in its place among the bytes that pass by here."""

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
