"""A conversation, as OpenAI's clients send it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from llm_node.schema.wire import Wire, feature, invalid, unsupported


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


Content = Annotated[str, BeforeValidator(_joined)]


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
    reasoning_content: str | None = None
    """What the model thought before an earlier answer; so are the next two. Servers call it differently."""
    reasoning: str | None = None
    thinking: str | None = None

    @field_validator("role")
    @classmethod
    def _no_tools(cls, role: str) -> str:
        if role in ("tool", "function"):
            raise unsupported(f"messages of role {role!r} are not supported: tools are not")
        return role

    @model_validator(mode="after")
    def _says_something(self) -> Message:
        if self.content is None and self.role != "assistant":
            raise invalid(f"content: a message of role {self.role!r} needs it", "content")
        return self

    def plain(self) -> dict[str, str]:
        """As chat templates see it. They know no "developer"; it is the "system" of older models."""
        role = "system" if self.role == "developer" else self.role
        more = {"name": self.name, **{field: getattr(self, field) for field in REASONING}}
        given = {field: value for field, value in more.items() if value is not None}
        return {"role": role, "content": self.content or "", **given}


Messages = Annotated[list[Message], Field(min_length=1, fail_fast=True)]
