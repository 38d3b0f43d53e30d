"""From items to a conversation."""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Callable, Iterable, Sequence

from llm_node.api.conversation import (
    Assistant,
    Call,
    Conversation,
    Json,
    Message,
    Result,
    System,
    Text,
    User,
    call_input,
    thinking_by_effort,
)
from llm_node.api.responses.tools import LOCAL_SHELL, Offered, known_as
from llm_node.node import Block, NodeError
from llm_node.schema.responses import items as wire
from llm_node.schema.responses.request import InputTokensRequest

CALL_PREFIX = "call_"
"""Before the ids of calls; the node's own have none."""

CARRIED = "llmn1."
"""Before the base64 of what a model thought, where a client carries it: `encrypted_content`."""

CANNOT_BE_SAID = frozenset(
    {
        "computer_call",
        "computer_call_output",
        "shell_call",
        "shell_call_output",
        "apply_patch_call",
        "apply_patch_call_output",
        "mcp_approval_request",
        "mcp_approval_response",
        "compaction",
    }
)
"""Kinds of items without which the rest means something else. Others that nobody knows are left out."""

Lookup = Callable[[str], wire.AnyItem | None]
"""An item of an answer that is kept, by its id."""


def conversation(
    wanted: InputTokensRequest, before: Sequence[Message], offered: Offered, ignored: set[str]
) -> Conversation:
    """What the model is to go on from. `before`: the messages, without instructions. Adds to `ignored` what
    is asked for in vain. Raises `NodeError`."""
    instructions = [System(wanted.instructions)] if wanted.instructions else []
    if wanted.truncation == "auto":
        ignored.add("truncation")
    return Conversation(
        messages=(*instructions, *before),
        tools=tuple(offered.tools),
        choice=offered.choice(wanted),
        parallel=wanted.parallel_tool_calls,
        thinking=thinking_by_effort(wanted.reasoning.effort),
    )


def messages(
    items: Iterable[wire.AnyItem], before: Sequence[Message], kept: Lookup, ignored: set[str]
) -> tuple[Message, ...]:
    """The messages of these items, behind those before them."""
    turns = _Turns(before, kept, ignored)
    for place, item in enumerate(items):
        turns.add(f"input.{place}", item)
    turns.end_of_answer()
    if not turns.messages:
        raise NodeError("invalid_request", "input: there is nothing to answer", "input")
    return tuple(turns.messages)


def answered(blocks: Iterable[Block], offered: Offered) -> Assistant:
    """What the model said, as a message of the conversation that goes on."""
    reasoning: list[str] = []
    texts: list[str] = []
    calls: list[Call] = []
    for block in blocks:
        if block.part == "reasoning":
            reasoning.append(block.text)
        elif block.part == "text":
            texts.append(block.text)
        else:
            is_text = offered.of(block.name).kind == "custom_tool_call"
            calls.append(Call(block.id, block.name, Text(block.text) if is_text else call_input(block.text)))
    return Assistant("\n".join(reasoning), "".join(texts), tuple(calls))


class _Turns:
    """Puts items together to messages: what stands side by side of an answer is one message."""

    def __init__(self, before: Sequence[Message], kept: Lookup, ignored: set[str]) -> None:
        self.messages = list(before)
        self._kept = kept
        self._ignored = ignored
        self._called = {
            call.id: call.name for each in before if isinstance(each, Assistant) for call in each.calls
        }
        self._reasoning: list[str] = []
        self._texts: list[str] = []
        self._calls: list[Call] = []

    def add(self, param: str, item: wire.AnyItem) -> None:
        """Raises `NodeError` naming `param`."""
        if isinstance(item, wire.MessageItem):
            self._message(param, item)
        elif isinstance(item, wire.ReasoningItem):
            text = _thought(item)
            if text is None:
                self._ignored.add("input.encrypted_content")
            else:
                self._reasoning.append(text)
        elif isinstance(item, wire.FunctionCallItem):
            self._call(item.call_id, known_as(item.namespace, item.name), call_input(item.arguments))
        elif isinstance(item, wire.CustomCallItem):
            self._call(item.call_id, known_as(item.namespace, item.name), Text(item.input))
        elif isinstance(item, wire.LocalShellCallItem):
            self._call(item.call_id or item.id or "", LOCAL_SHELL, Json.of(item.action))
            if item.id is not None:
                self._called[_id(item.id)] = LOCAL_SHELL
        elif isinstance(item, wire.OutputItem):
            self._result(param, item.call_id, "call_id", item.output)
        elif isinstance(item, wire.LocalShellOutputItem):
            field = "call_id" if item.call_id else "id"
            self._result(param, item.call_id or item.id or "", field, item.output)
        elif isinstance(item, wire.ReferenceItem):
            found = self._kept(item.id)
            if found is None:
                raise NodeError("invalid_request", f"{param}.id: no item {item.id!r} is kept", f"{param}.id")
            self.add(param, found)
        elif item.type in CANNOT_BE_SAID:
            raise NodeError(
                "unsupported_feature", f"{param}: items of type {item.type!r} are not supported", param
            )
        else:
            self._ignored.add(f"input.{item.type}")

    def end_of_answer(self) -> None:
        """What follows is no part of the answer any more."""
        if self._reasoning or self._texts or self._calls:
            reasoning, text = "\n".join(self._reasoning), "\n\n".join(self._texts)
            self.messages.append(Assistant(reasoning, text, tuple(self._calls)))
            self._reasoning, self._texts, self._calls = [], [], []

    def _message(self, param: str, item: wire.MessageItem) -> None:
        texts = [_text(f"{param}.content.{place}", part) for place, part in enumerate(item.content)]
        if item.role == "assistant":
            self._texts.append("".join(texts))
            return
        self.end_of_answer()
        if item.role == "user":
            self.messages.append(User(tuple(Text(text) for text in texts)))
        else:
            self.messages.append(System("\n".join(texts)))

    def _call(self, sent: str, name: str, given: Json | Text) -> None:
        self._called[_id(sent)] = name
        self._calls.append(Call(_id(sent), name, given))

    def _result(self, param: str, sent: str, field: str, output: Sequence[wire.Part]) -> None:
        name = self._called.get(_id(sent))
        if name is None:
            raise NodeError(
                "invalid_request",
                f"{param}.{field}: no call before it has the id {sent!r}",
                f"{param}.{field}",
            )
        self.end_of_answer()
        parts: list[Text] = []
        for part in output:
            if isinstance(part, wire.ForeignPart):
                # An error would end the chat for good, for one screenshot.
                self._ignored.add(f"input.output.{part.type}")
                kind = part.type.removeprefix("input_")
                parts.append(Text(f"[{kind} omitted: this model reads text]"))
            else:
                parts.append(Text(_text(param, part)))
        self.messages.append(Result(_id(sent), name, tuple(parts)))


def _id(sent: str) -> str:
    return sent.removeprefix(CALL_PREFIX)


def _text(param: str, part: wire.Part) -> str:
    if isinstance(part, wire.TextPart):
        return part.text
    if isinstance(part, wire.RefusalPart):
        return part.refusal
    raise NodeError(
        "unsupported_feature",
        f"{param}: content of type {part.type!r} is not supported; models served here read text",
        param,
    )


def _thought(item: wire.ReasoningItem) -> str | None:
    """What the model thought, wherever it is written; None: only another server can read it."""
    carried = item.encrypted_content or ""
    if carried.startswith(CARRIED):
        try:
            return b64decode(carried.removeprefix(CARRIED), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            pass  # it is no longer ours
    parts = item.content or item.summary
    if parts or not carried:
        return "\n".join(part.text for part in parts)
    return None
