"""`POST /api/chat` and `POST /api/generate`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from llm_node.schema.ollama.options import Generation
from llm_node.schema.wire import Lenient, feature


class Function(Lenient):
    """What was called, and with what."""

    harmless: ClassVar[frozenset[str]] = frozenset({"index"})

    name: str = Field(min_length=1, max_length=512)
    arguments: dict[str, Any] | str = Field(default_factory=dict)


class ToolCall(Lenient):
    """A call in an earlier answer."""

    harmless: ClassVar[frozenset[str]] = frozenset({"type"})

    id: str = Field(default="", max_length=512)
    function: Function


class Message(Lenient):
    """One message. What a client got may be sent back as it was."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    thinking: str = ""
    images: list[Any] = Field(default_factory=list)
    tool_calls: list[ToolCall] = Field(default_factory=list)
    tool_name: str = Field(default="", max_length=512)
    """In what came of a call: of which tool. Clients that keep ids send `tool_call_id`."""
    tool_call_id: str = Field(default="", max_length=512)

    @model_validator(mode="after")
    def _is_text(self) -> Message:
        if self.images and self.role != "tool":
            raise feature("images are not supported; models served here read text", "images")
        return self


class ToolFunction(Lenient):
    """A tool that the client runs."""

    name: str = Field(min_length=1, max_length=512)
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    """A JSON schema."""


class Tool(Lenient):
    """A tool. There is one kind of them."""

    type: Literal["function"] = "function"
    function: ToolFunction


class ChatRequest(Generation):
    """The body. Without messages it loads the model, or unloads it."""

    messages: Annotated[list[Message], Field(fail_fast=True)] = Field(default_factory=list)
    tools: list[Tool] = Field(default_factory=list)


class GenerateRequest(Generation):
    """The body. Without a prompt it loads the model, or unloads it."""

    refused: ClassVar[Mapping[str, Any]] = dict.fromkeys(("template", "context", "images"))
    hint: ClassVar[frozenset[str]] = Generation.hint | {"width", "height", "steps"}

    prompt: str = ""
    suffix: str = ""
    """What stands behind the answer, for models that fill gaps."""
    system: str = ""
    raw: bool = False
    """Is the prompt what the model sees, without its chat template?"""
