"""A conversation, as OpenAI's clients send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from llm_node.schema.tools import CalledFunction, ToolCall
from llm_node.schema.wire import Wire, feature, invalid


def _joined(value: Any) -> Any:
    """Text, or a list of text parts: the parts are lines of one text, as templates expect it."""
    if not isinstance(value, list):
        return value
    texts: list[str] = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise ValueError("parts should be objects with a 'type'")
        if kind not in ("text", "refusal"):
            raise feature(f"content of type {kind!r} is not supported; models served here read text")
        text = part.get(kind)
        if not isinstance(text, str):
            raise ValueError(f"a part of type {kind!r} should have a string {kind!r}")
        texts.append(text)
    return "\n".join(texts)


Content = Annotated[str, BeforeValidator(_joined, json_schema_input_type=str | list[dict[str, Any]])]


REASONING = ("reasoning_content", "reasoning", "thinking")


class Message(Wire):
    """One message. What a client got from a completion may be sent back as it was."""

    harmless: ClassVar[frozenset[str]] = frozenset({"refusal", "annotations"})
    hint: ClassVar[frozenset[str]] = frozenset({"cache_control"})
    refused: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("tool_calls", "function_call", "tool_call_id", "audio", "reasoning_details", *REASONING)
    )

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_calls: list[ToolCall] = Field(default_factory=list)
    function_call: CalledFunction | None = None
    """The old form of one call."""
    tool_call_id: str | None = None
    """Whose result it is."""
    reasoning_content: str | None = None
    """What the model thought before an earlier answer; so are the next two. Servers call it differently."""
    reasoning: str | None = None
    thinking: str | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.role != "assistant" and (self.tool_calls or self.function_call):
            raise invalid("tool_calls: only messages of the assistant have them", "tool_calls")
        if self.role == "tool" and not self.tool_call_id:
            raise invalid("tool_call_id: a message of role 'tool' needs it", "tool_call_id")
        if self.role == "function" and not self.name:
            raise invalid("name: a message of role 'function' needs it", "name")
        if self.content is None and self.role != "assistant":
            raise invalid(f"content: a message of role {self.role!r} needs it", "content")
        return self


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
