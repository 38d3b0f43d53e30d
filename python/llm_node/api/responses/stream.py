"""An answer as events. Rust writes those of its items, by the templates made here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llm_node import errors
from llm_node.api import answers, frames, sse
from llm_node.api.answers import Usage
from llm_node.api.frames import Frames, Part, Template
from llm_node.api.responses.shapes import NO_ACTION, Shape, output_text
from llm_node.api.responses.tools import Told
from llm_node.node import Block, Event

FRAMING = sse.NAMED_EVENTS
"""How streams are written."""

FUNCTION = Told("function_call", "")


class Writer:
    """Writes the events of an answer: `Writer` of `answers.py`."""

    def __init__(self, shape: Shape, ended: Callable[[dict[str, Any], Sequence[Block]], None]) -> None:
        """`ended` takes the answer, once it has ended, and the blocks of which it was made."""
        self._shape = shape
        self._ended = ended
        self._beginning = _event("response.created", 0, response=shape.response("in_progress"))
        self._beginning += _event("response.in_progress", 1, response=shape.response("in_progress"))
        self._has_begun = False
        self.frames = [_frames(shape)]

    def begin(self, index: int, event: Event) -> bytes:
        """The answer, of which nothing is there yet."""
        self._has_begun = True
        return self._beginning

    def end(self, index: int, event: Event) -> bytes:
        """All of it once more: clients take it from here."""
        usage = Usage()
        usage.add(index, event)
        response = self._shape.finished(event.blocks, answers.finish(event), usage)
        self._ended(response, event.blocks)
        return _event(f"response.{response['status']}", event.number, response=response)

    def last(self) -> bytes:
        """Nothing: there is one answer."""
        return b""

    def failed(self, fault: errors.Failure, number: int) -> bytes:
        """An error, as `Failing` of `sse.py`. Clients read it behind the beginning alone."""
        beginning = b"" if self._has_begun else self._beginning
        error = {"code": _code(fault), "message": fault.message}
        response = self._shape.response("failed", error=error)
        return beginning + _event("response.failed", max(number, 2), response=response)


def _code(fault: errors.Failure) -> str:
    """Which of the codes that the API has for this: it has few."""
    row = errors.TABLE.get(fault.code)
    if fault.code == "context_length_exceeded":
        return fault.code
    if row is None or row.status >= 500:
        return "server_error"
    return "rate_limit_exceeded" if row.status == 429 else "invalid_prompt"


def _event(kind: str, number: Any, **content: Any) -> bytes:
    return FRAMING.frame({"type": kind, "sequence_number": number, **content})


def _frames(shape: Shape) -> Frames:
    parts: dict[tuple[str, str | None], Part] = {}
    tools: dict[str, tuple[Part, str]] = {}
    for known, told in shape.offered.told.items():
        if told == Told("function_call", known):
            continue
        kind = (told.kind, told.namespace)
        if kind not in parts:
            parts[kind] = _calls(shape, told)
        tools[known] = (parts[kind], told.name)
    return Frames(
        text=_text(shape),
        reasoning=_summary(shape) if shape.as_summary else _reasoning(shape),
        input=_calls(shape, FUNCTION) if shape.offered.tools else Part(),
        tools=tools,
        logprobs=shape.logprobs,
        number=2,
        keeps=True,
    )


def _added(item: dict[str, Any]) -> bytes:
    return _event("response.output_item.added", frames.NUMBER, output_index=frames.BLOCK, item=item)


def _done(item: dict[str, Any]) -> bytes:
    return _event("response.output_item.done", frames.NUMBER, output_index=frames.BLOCK, item=item)


def _inside(kind: str, item: dict[str, Any], **content: Any) -> bytes:
    """Something about an item."""
    place = {"item_id": item["id"], "output_index": frames.BLOCK}
    return _event(f"response.{kind}", frames.NUMBER, **place, **content)


def _text(shape: Shape) -> Part:
    logprobs: Any = [] if shape.logprobs is None else frames.LOGPROBS
    item = shape.message(frames.BLOCK, "in_progress")
    whole = output_text(frames.TEXT, logprobs)

    def end(*, complete: bool) -> Template:
        return Template(
            _inside("output_text.done", item, content_index=0, text=frames.TEXT, logprobs=logprobs)
            + _inside("content_part.done", item, content_index=0, part=whole)
            + _done(shape.message(frames.BLOCK, "completed" if complete else "incomplete", [whole]))
        )

    return Part(
        begin=Template(
            _added(item) + _inside("content_part.added", item, content_index=0, part=output_text("", []))
        ),
        delta=Template(
            _inside("output_text.delta", item, content_index=0, delta=frames.TEXT, logprobs=logprobs)
        ),
        end=end(complete=True),
        cut=end(complete=False),
    )


def _reasoning(shape: Shape) -> Part:
    item = shape.reasoning(frames.BLOCK, "in_progress")
    part = {"type": "reasoning_text", "text": ""}
    return Part(
        begin=Template(_added(item) + _inside("content_part.added", item, content_index=0, part=part)),
        delta=Template(_inside("reasoning_text.delta", item, content_index=0, delta=frames.TEXT)),
        **_ends_of_reasoning(
            shape,
            _inside("reasoning_text.done", item, content_index=0, text=frames.TEXT)
            + _inside("content_part.done", item, content_index=0, part={**part, "text": frames.TEXT}),
        ),
    )


def _summary(shape: Shape) -> Part:
    item = shape.reasoning(frames.BLOCK, "in_progress")
    part = {"type": "summary_text", "text": ""}
    return Part(
        begin=Template(
            _added(item) + _inside("reasoning_summary_part.added", item, summary_index=0, part=part)
        ),
        delta=Template(_inside("reasoning_summary_text.delta", item, summary_index=0, delta=frames.TEXT)),
        **_ends_of_reasoning(
            shape,
            _inside("reasoning_summary_text.done", item, summary_index=0, text=frames.TEXT)
            + _inside(
                "reasoning_summary_part.done", item, summary_index=0, part={**part, "text": frames.TEXT}
            ),
        ),
    )


def _ends_of_reasoning(shape: Shape, before: bytes) -> dict[str, Template]:
    def whole(*, complete: bool) -> dict[str, Any]:
        status: Any = "completed" if complete else "incomplete"
        return shape.reasoning(frames.BLOCK, status, frames.TEXT, frames.BASE64)

    return {
        "end": Template(before + _done(whole(complete=True))),
        "cut": Template(before + _done(whole(complete=False))),
    }


def _calls(shape: Shape, told: Told) -> Part:
    """Of a call that was cut nobody says that its input is done."""

    def item(status: Any, given: Any) -> dict[str, Any]:
        return shape.call(frames.BLOCK, status, told, frames.ID, frames.NAME, given)

    if told.kind == "local_shell_call":
        return Part(
            begin=Template(_added(item("in_progress", NO_ACTION))),
            end=Template(_done(item("completed", frames.JSON))),
            cut=Template(_done(item("incomplete", NO_ACTION))),
        )
    begun = item("in_progress", "")
    if told.kind == "custom_tool_call":
        kind, ended = "custom_tool_call_input", {"input": frames.TEXT}
    else:
        kind, ended = "function_call_arguments", {"arguments": frames.TEXT, "name": frames.NAME}
    return Part(
        begin=Template(_added(begun)),
        delta=Template(_inside(f"{kind}.delta", begun, delta=frames.TEXT)),
        end=Template(_inside(f"{kind}.done", begun, **ended) + _done(item("completed", frames.TEXT))),
        cut=Template(_done(item("incomplete", frames.TEXT))),
    )
