"""Items and answers in the words of the Responses API, for streams and whole answers alike."""

from __future__ import annotations

import json
import secrets
import time
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from llm_node.api.answers import Finish, Usage
from llm_node.api.conversation import Format, Grammar, Json, Schema, Text, call_input
from llm_node.api.responses.conversation import CALL_PREFIX, CARRIED
from llm_node.api.responses.tools import Offered, Told
from llm_node.node import Block
from llm_node.schema.responses import request as wire
from llm_node.schema.sampling import GrammarFormat, ObjectFormat

Status = Literal["in_progress", "completed", "incomplete", "failed"]

LOGPROBS = (
    '[<each>{"token":<token>,"bytes":<bytes>,"logprob":<logprob>,"top_logprobs":['
    '<top>{"token":<token>,"bytes":<bytes>,"logprob":<logprob>}</top>]}</each>]'
)
"""Log-probabilities, as a pattern of `rust/node/src/pattern.rs`."""

ITEM_PREFIXES = {"function_call": "fc_", "custom_tool_call": "ctc_", "local_shell_call": "lsh_"}
"""Before the ids of items that are calls."""

NO_ACTION: dict[str, Any] = {"type": "exec", "command": [], "env": {}}
"""Of a shell, before anybody knows what it is to do."""

HONOURED = frozenset({"reasoning.encrypted_content", "message.output_text.logprobs"})
"""What `include` may ask for."""


class Shape:
    """How one answer is written. Ids of items are the answer's own word and the number of the block."""

    def __init__(self, wanted: wire.ResponsesRequest, offered: Offered) -> None:
        self.word = secrets.token_hex(16)
        self.id = f"resp_{self.word}"
        self.offered = offered
        self.as_summary = wanted.reasoning.as_summary
        self.carries = "reasoning.encrypted_content" in wanted.include
        """Is what the model thinks wanted in a form that a client can send back?"""
        self.logprobs = LOGPROBS if "message.output_text.logprobs" in wanted.include else None
        choice = wanted.tool_choice
        self._same = {
            "background": False,
            "error": None,
            "instructions": wanted.instructions,
            "max_output_tokens": wanted.max_output_tokens,
            "max_tool_calls": None,
            "metadata": wanted.metadata,
            "model": wanted.model,
            "parallel_tool_calls": wanted.parallel_tool_calls,
            "previous_response_id": wanted.previous_response_id,
            "reasoning": {
                "effort": wanted.reasoning.effort,
                "summary": wanted.reasoning.summary or wanted.reasoning.generate_summary,
            },
            "store": wanted.store,
            "temperature": wanted.temperature,
            "text": {"format": wanted.text.format.model_dump(by_alias=True, exclude_none=True)},
            "tool_choice": choice if isinstance(choice, str) else choice.model_dump(exclude_none=True),
            "tools": offered.shown,
            "top_logprobs": wanted.top_logprobs,
            "top_p": wanted.top_p,
            "truncation": "disabled",
            "user": wanted.user,
        }
        self._created = int(time.time())

    def response(
        self,
        status: Status,
        output: Sequence[dict[str, Any]] = (),
        usage: Usage | None = None,
        **more: Any,
    ) -> dict[str, Any]:
        """The answer, as far as it has come."""
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            **self._same,
            "output": list(output),
            "usage": None if usage is None else _usage(usage),
            **more,
        }

    def finished(self, blocks: Iterable[Block], finish: Finish, usage: Usage) -> dict[str, Any]:
        """The answer at its end."""
        output = [self._block(number, block) for number, block in enumerate(blocks)]
        return self.response("incomplete" if finish in ("length", "context") else "completed", output, usage)

    def _block(self, number: int, block: Block) -> dict[str, Any]:
        status: Status = "completed" if block.complete else "incomplete"
        if block.part == "text":
            logprobs = [] if self.logprobs is None else json.loads(block.fill(self.logprobs))
            return self.message(number, status, [output_text(block.text, logprobs)])
        if block.part == "reasoning":
            carried = b64encode(block.text.encode()).decode()
            return self.reasoning(number, status, block.text, carried)
        told = self.offered.of(block.name)
        given: Any = block.text
        if told.kind == "local_shell_call":
            given = action(block.text)
        return self.call(number, status, told, block.id, told.name, given)

    def message(self, number: Any, status: Status, content: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
        """What the model says."""
        return {
            "id": f"msg_{self.word}_{number}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(content),
        }

    def reasoning(
        self, number: Any, status: Status, text: str | None = None, carried: str | None = None
    ) -> dict[str, Any]:
        """What it thinks; None: nothing yet. `carried`: the same in base64."""
        item: dict[str, Any] = {
            "id": f"rs_{self.word}_{number}",
            "type": "reasoning",
            "status": status,
            "summary": [],
        }
        if text is not None and self.as_summary:
            item["summary"] = [{"type": "summary_text", "text": text}]
        elif not self.as_summary:
            item["content"] = [] if text is None else [{"type": "reasoning_text", "text": text}]
        if carried is not None and self.carries:
            item["encrypted_content"] = CARRIED + carried
        return item

    def call(
        self, number: Any, status: Status, told: Told, call: str, name: str, given: Any
    ) -> dict[str, Any]:
        """What it calls. `given`: as far as it came."""
        item: dict[str, Any] = {
            "id": f"{ITEM_PREFIXES[told.kind]}{self.word}_{number}",
            "type": told.kind,
            "status": status,
            "call_id": CALL_PREFIX + call,
        }
        if told.kind == "local_shell_call":
            return {**item, "action": given}
        item["name"] = name
        if told.namespace is not None:
            item["namespace"] = told.namespace
        item["arguments" if told.kind == "function_call" else "input"] = given
        return item


def output_text(text: str, logprobs: Any) -> dict[str, Any]:
    """A part of what the model says."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def action(arguments: str) -> dict[str, Any]:
    """What a shell is to do; nothing, where the call was cut."""
    given = call_input(arguments)
    found: dict[str, Any] = NO_ACTION if isinstance(given, Text) else json.loads(given.text)
    return found


def text_format(wanted: wire.TextConfig) -> Format:
    """What the text of the answer must look like."""
    form = wanted.format
    if isinstance(form, ObjectFormat):
        return "object"
    if isinstance(form, wire.SchemaFormat):
        return Schema(Json.of(form.wanted), strict=form.strict)
    if isinstance(form, GrammarFormat):
        return Grammar(form.grammar.syntax, form.grammar.definition)
    return "text"


def _usage(took: Usage) -> dict[str, Any]:
    return {
        "input_tokens": took.prompt,
        "input_tokens_details": {"cached_tokens": took.cached, "cache_write_tokens": 0},
        "output_tokens": took.completion,
        "output_tokens_details": {"reasoning_tokens": took.reasoning},
        "total_tokens": took.prompt + took.completion,
    }
