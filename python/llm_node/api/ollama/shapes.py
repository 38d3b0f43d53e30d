"""From what a model does to Ollama's words: one object, or lines of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Any

from llm_node.api import answers, frames, sse
from llm_node.api.answers import Finish, Usage
from llm_node.api.frames import Frames, Part, Template
from llm_node.api.ollama.conversation import ID_PREFIX
from llm_node.node import Event

LOGPROBS = (
    '[<each>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>,"top_logprobs":['
    '<top>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>}</top>]}</each>]'
)
"""The shape of log-probabilities, as a pattern of `rust/node/src/pattern.rs`."""

DONE_REASONS: dict[Finish, str] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "context": "length",
    "calls": "stop",
}
"""`done_reason`, by why an answer ended."""

Place = Callable[[Any, Any, Sequence[Any]], dict[str, Any]]
"""The fields that text, thoughts and calls stand in."""


def in_message(text: Any, thoughts: Any, calls: Sequence[Any]) -> dict[str, Any]:
    """Those of a chat."""
    more = {"thinking": thoughts, "tool_calls": calls}
    given = {key: value for key, value in more.items() if value}
    return {"message": {"role": "assistant", "content": text, **given}}


def in_response(text: Any, thoughts: Any, calls: Sequence[Any]) -> dict[str, Any]:
    """Those of a plain generation, for which there are no tools."""
    return {"response": text, **({"thinking": thoughts} if thoughts else {})}


class Writer:
    """Writes an answer: as a whole, or its lines as `Writer` of `answers.py`."""

    def __init__(self, model: str, place: Place, *, thinks: bool, pattern: str | None, load_ns: int) -> None:
        """`model`: its name as the client has it. `thinks`: does the client want to see thoughts?
        `pattern`: of log-probabilities, for those who want them. `load_ns`: how long it waited for the load.
        """
        self._same = {"model": model, "created_at": datetime.now(timezone.utc).isoformat()}
        self._place = place
        self._thinks = thinks
        self._load_ns = load_ns
        self.frames = [self._frames(pattern)]

    def whole(self, whole: answers.Whole) -> dict[str, Any]:
        """The only object."""
        (answer,) = whole.answers
        # Half an object, completed by a guess, would be run.
        complete = [block for block in answer.calls if block.complete]
        calls = [
            _call(block.id, index, block.name, json.loads(block.text)) for index, block in enumerate(complete)
        ]
        place = self._place(answer.text, answer.reasoning if self._thinks else "", calls)
        logprobs = {} if answer.logprobs is None else {"logprobs": answer.logprobs}
        return {**self._same, **place, **logprobs, **self._ending(answer.finish, whole.usage)}

    def loaded(self, reason: str) -> dict[str, Any]:
        """For who wanted no answer, but the model loaded or unloaded."""
        return {**self._same, **self._place("", "", []), "done": True, "done_reason": reason}

    def begin(self, index: int, event: Event) -> bytes:
        """Nothing: the first line is the first text."""
        return b""

    def end(self, index: int, event: Event) -> bytes:
        """The last line."""
        usage = Usage.of(event)
        place = self._place("", "", [])
        return sse.LINES.frame({**self._same, **place, **self._ending(answers.finish(event), usage)})

    def last(self) -> bytes:
        """Nothing: there is one answer."""
        return b""

    def _frames(self, pattern: str | None) -> Frames:
        logprobs = {} if pattern is None else {"logprobs": frames.LOGPROBS}
        thoughts = Part(delta=self._template(self._place("", frames.TEXT, [])))
        call = _call(frames.ID, frames.CALL, frames.NAME, frames.JSON)
        return Frames(
            text=Part(delta=self._template({**self._place(frames.TEXT, "", []), **logprobs})),
            reasoning=thoughts if self._thinks else Part(),
            # Its clients do not join the pieces of a call, and half of one is none.
            input=Part(end=self._template(self._place("", "", [call])), cut=Template()),
            logprobs=pattern,
        )

    def _template(self, content: dict[str, Any]) -> Template:
        return Template(sse.LINES.frame({**self._same, **content, "done": False}))

    def _ending(self, finish: Finish, took: Usage) -> dict[str, Any]:
        """Durations are in nanoseconds."""
        return {
            "done": True,
            "done_reason": DONE_REASONS[finish],
            "total_duration": self._load_ns + took.waited_ns + took.read_ns + took.wrote_ns,
            "load_duration": self._load_ns,
            "prompt_eval_count": took.prompt,
            "prompt_eval_duration": took.read_ns,
            "eval_count": took.completion,
            "eval_duration": took.wrote_ns,
        }


def _call(call: str, index: Any, name: str, arguments: Any) -> dict[str, Any]:
    function = {"index": index, "name": name, "arguments": arguments}
    return {"id": ID_PREFIX + call, "function": function}
