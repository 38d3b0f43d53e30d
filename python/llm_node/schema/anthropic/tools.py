"""Tools, and which of them may or must be called."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llm_node.schema.wire import Foreign, Lenient, invalid


class Tool(Lenient):
    """A tool that the client runs."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {"cache_control", "eager_input_streaming", "input_examples", "allowed_callers", "defer_loading"}
    )

    type: Literal["custom"] = "custom"
    name: str = Field(min_length=1, max_length=512)
    description: str | None = None
    input_schema: dict[str, Any]
    """A JSON schema."""
    strict: bool = False


class HostedTool(Foreign):
    """A tool that only Anthropic's servers or models know: web search, code execution, ..."""

    name: str = ""


def _kind(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "hosted" if isinstance(kind, str) and kind != "custom" else "custom"


AnyTool = Annotated[
    Annotated[Tool, Tag("custom")] | Annotated[HostedTool, Tag("hosted")],
    Discriminator(_kind),
]


class ToolChoice(Lenient):
    """Which tools may or must be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    """Of the one that must be called, with type "tool"."""
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _named(self) -> ToolChoice:
        if self.type == "tool" and not self.name:
            raise invalid("name: a choice of type 'tool' needs it", "name")
        return self
