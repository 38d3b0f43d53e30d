"""What the answers of all dialects have in common: running requests, as streams or as a whole, and what they
took. Knows no dialect's words.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from llm_node.api import sse
from llm_node.api.context import TOOK
from llm_node.api.frames import Frames
from llm_node.node import Block, Event, Node, NodeError, Request

Finish = Literal["stop", "stop_string", "length", "context", "calls"]
"""Why an answer ended: see `Finish` of `rust/core/src/event.rs`."""


class Usage:
    """Sums up what several requests took. `n` answers to one prompt count it once."""

    def __init__(self, answers_per_prompt: int = 1) -> None:
        self._answers = answers_per_prompt
        self.prompt = 0
        """Tokens; so are the next ones."""
        self.cached = 0
        """Of the prompt, out of the prefix cache."""
        self.completion = 0
        self.reasoning = 0
        """Of the completion, thought with."""
        self.drafted = 0
        self.accepted = 0
        self.waited_ns = 0
        """Until the last one was let in; then until the last one's first token, then until its end."""
        self.read_ns = 0
        self.wrote_ns = 0

    @classmethod
    def of(cls, event: Event) -> Usage:
        """What one answer took; `event`: its ending, or its beginning."""
        usage = cls()
        usage.add(0, event)
        return usage

    def add(self, index: int, event: Event) -> None:
        """`event`: the ending of request number `index`."""
        self.completion += event.completion_tokens
        self.reasoning += event.reasoning_tokens
        self.drafted += event.drafted_tokens
        self.accepted += event.accepted_tokens
        if index % self._answers == 0:
            self.prompt += event.prompt_tokens
            self.cached += event.cached_tokens
        self.waited_ns = max(self.waited_ns, event.waited_ns)
        self.read_ns = max(self.read_ns, event.read_ns)
        self.wrote_ns = max(self.wrote_ns, event.wrote_ns)


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    blocks: tuple[Block, ...]
    """Runs of text, reasoning, and calls, in order."""
    finish: Finish
    stop: str | None
    """The stop string that ended it."""
    took: Usage
    """What it took, its prompt included."""
    logprobs: Any = None
    """Of all text, by the pattern that was asked for."""

    @property
    def text(self) -> str:
        """All that the model says."""
        return self._joined("text")

    @property
    def reasoning(self) -> str:
        """All that it thinks."""
        return self._joined("reasoning")

    @property
    def calls(self) -> list[Block]:
        """All that it calls, complete or not."""
        return [block for block in self.blocks if block.part == "input"]

    def _joined(self, part: str) -> str:
        return "".join(block.text for block in self.blocks if block.part == part)


@dataclass(frozen=True)
class Whole:
    """All answers of one client."""

    answers: tuple[Answer, ...]
    usage: Usage
    relaxed: tuple[str, ...]
    """What was asked for and is not enforced."""


async def gather(
    node: Node,
    model: str,
    requests: Sequence[Request],
    *,
    answers_per_prompt: int = 1,
    pattern: str | None = None,
) -> Whole:
    """Run the requests to their ends, for a client that does not stream. `pattern`: of log-probabilities
    (`rust/node/src/pattern.rs`), for those who want them."""
    found: dict[int, Answer] = {}
    usage = Usage(answers_per_prompt)
    relaxed: dict[str, None] = {}
    async with node.open(model, requests, whole=True) as generation:
        async for batch in generation:
            for index, event in batch:
                if event.kind == "finished":
                    logprobs = None if pattern is None else json.loads(event.fill(pattern))
                    took = Usage.of(event)
                    found[index] = Answer(tuple(event.blocks), finish(event), event.stop, took, logprobs)
                    usage.add(index, event)
                    TOOK.get().add(model, event)
                else:
                    relaxed.update(dict.fromkeys(event.relaxed))
    return Whole(tuple(found[index] for index in range(len(requests))), usage, tuple(relaxed))


class Writer(Protocol):
    """Writes what stands around the frames of one client's answers. Each method gives whole frames, made by
    the `Framing` of its dialect, or nothing."""

    @property
    def frames(self) -> Sequence[Frames]:
        """How each request is written between its beginning and its ending."""

    def begin(self, index: int, event: Event) -> bytes:
        """Request number `index` was let in: `event` has its prompt's tokens."""

    def end(self, index: int, event: Event) -> bytes:
        """It is done: `event` has why, and what it took."""

    def last(self) -> bytes:
        """All are done."""


async def stream(
    node: Node, model: str, requests: Sequence[Request], writer: Writer, out: sse.Stream
) -> None:
    """The answers of one client as they come, for those who stream."""
    sender = _Sender(model, writer, out)
    frames = [each.native(out.chunked) for each in writer.frames]
    async with node.deliver(model, requests, sender, connection=out, frames=frames) as out.client:
        await sender.ended
    out.send(writer.last())


class _Sender:
    """`Receiver` of `node/client.py`: sends what stands around the frames in the loop turn that it comes in,
    so that it stands in its place among the bytes that pass by here."""

    def __init__(self, model: str, writer: Writer, out: sse.Stream) -> None:
        self._model = model
        self._took = TOOK.get()  # events come in the node's own context
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._writer = writer
        self._out = out

    def event(self, index: int, event: Event) -> None:
        if event.kind == "started":
            self._out.ignore(event.relaxed)
            self._out.send(self._writer.begin(index, event))
        else:
            finish(event)
            self._took.add(self._model, event)
            self._out.send(self._writer.end(index, event))

    def end(self, error: Exception | None, number: int = 0) -> None:
        if self.ended.done():
            return  # cancelled: the client left
        self._out.number = number
        if error is None:
            self.ended.set_result(None)
        else:
            self.ended.set_exception(error)


def finish(event: Event) -> Finish:
    """Why an answer ended. Raises where the node ended one whose client is still there."""
    if event.finish is None or event.finish == "cancelled":
        raise NodeError("cancelled", "The request was cancelled by the node")
    return event.finish
