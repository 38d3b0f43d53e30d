"""From what a model does to Anthropic's words: a whole message, or the events of a stream."""

from __future__ import annotations

import json
import secrets
from dataclasses import replace
from typing import Any

from llm_node.api import answers, frames, sse
from llm_node.api.answers import Finish, Usage
from llm_node.api.anthropic.conversation import ID_PREFIX
from llm_node.api.frames import Frames, Part, Template
from llm_node.node import Block, Event

FRAMING = replace(sse.NAMED_EVENTS, silence=sse.NAMED_EVENTS.frame({"type": "ping"}))
"""How streams are written."""

SIGNATURE = "llm-node"
"""Clients keep a signature with each thought, and send it back. Nobody looks at it here."""

STOP_REASONS: dict[Finish, str] = {
    "stop": "end_turn",
    "stop_string": "stop_sequence",
    "length": "max_tokens",
    "context": "model_context_window_exceeded",
    "calls": "tool_use",
}
"""`stop_reason`, by why an answer ended."""


def message(model: str, whole: answers.Whole, *, thinks: bool) -> dict[str, Any]:
    """A whole answer. `thinks`: does the client want to see thoughts? Else everybody's first program is to
    find the text in the first block."""
    (answer,) = whole.answers
    content = [shape for block in answer.blocks if (shape := _block(block, thinks)) is not None]
    ending = _ending(answer.finish, answer.stop)
    return {**_identity(model), "content": content, **ending, "usage": _usage(whole.usage)}


def _block(block: Block, thinks: bool) -> dict[str, Any] | None:
    if block.part == "text":
        return {"type": "text", "text": block.text} if block.text else None
    if block.part == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": SIGNATURE} if thinks else None
    if not block.complete:
        return None  # half an object, completed by a guess, would be run
    call = {"id": ID_PREFIX + block.id, "name": block.name, "input": json.loads(block.text)}
    return {"type": "tool_use", **call}


class Writer:
    """Writes the events of an answer: `Writer` of `answers.py`."""

    def __init__(self, model: str, *, thinks: bool) -> None:
        """As `message`."""
        self._same = _identity(model)
        self.frames = [_frames(thinks)]

    def begin(self, index: int, event: Event) -> bytes:
        """The message, of which nothing is there yet."""
        usage = Usage.of(event)
        empty: dict[str, Any] = {"content": [], "stop_reason": None, "stop_sequence": None}
        return _event("message_start", message={**self._same, **empty, "usage": _usage(usage)})

    def end(self, index: int, event: Event) -> bytes:
        """Why it ended, and what it took."""
        usage = Usage.of(event)
        ending = _ending(answers.finish(event), event.stop)
        return _event("message_delta", delta=ending, usage=_usage(usage)) + _event("message_stop")

    def last(self) -> bytes:
        """Nothing: there is one answer."""
        return b""


def _frames(thinks: bool) -> Frames:
    text = _part({"type": "text", "text": ""}, {"type": "text_delta", "text": frames.TEXT})
    reasoning = _part(
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": frames.TEXT},
        {"type": "signature_delta", "signature": SIGNATURE},
    )
    calls = _part(
        {"type": "tool_use", "id": ID_PREFIX + frames.ID, "name": frames.NAME, "input": {}},
        {"type": "input_json_delta", "partial_json": frames.TEXT},
    )
    return Frames(text=text, reasoning=reasoning if thinks else Part(), input=calls)


def _part(block: dict[str, Any], delta: dict[str, Any], last: dict[str, Any] | None = None) -> Part:
    """`last`: a delta behind all others."""

    def of_delta(content: dict[str, Any]) -> bytes:
        return _event("content_block_delta", index=frames.BLOCK, delta=content)

    end = _event("content_block_stop", index=frames.BLOCK)
    return Part(
        begin=Template(_event("content_block_start", index=frames.BLOCK, content_block=block)),
        delta=Template(of_delta(delta)),
        end=Template(end if last is None else of_delta(last) + end),
    )


def _event(kind: str, **content: Any) -> bytes:
    return FRAMING.frame({"type": kind, **content})


def _identity(model: str) -> dict[str, Any]:
    return {"id": f"msg_{secrets.token_hex(16)}", "type": "message", "role": "assistant", "model": model}


def _ending(finish: Finish, stop: str | None) -> dict[str, Any]:
    return {"stop_reason": STOP_REASONS[finish], "stop_sequence": stop}


def _usage(took: Usage) -> dict[str, Any]:
    """What comes out of the prefix cache is not counted as input."""
    return {
        "input_tokens": took.prompt - took.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": took.cached,
        "output_tokens": took.completion,
        "output_tokens_details": {"thinking_tokens": took.reasoning},
    }
