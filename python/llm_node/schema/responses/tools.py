"""Tools, and which of them may or must be called."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from llm_node.schema.responses.items import Name
from llm_node.schema.wire import Foreign, Lenient, by_type, invalid


class FunctionTool(Lenient):
    """A function: its input is a JSON object."""

    harmless: ClassVar[frozenset[str]] = frozenset({"defer_loading", "allowed_callers", "output_schema"})
    hint: ClassVar[frozenset[str]] = frozenset({"async"})

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """A JSON schema."""
    strict: bool = False


class PlainFormat(Lenient):
    """Any text."""

    type: Literal["text"] = "text"


class GrammarFormat(Lenient):
    """Text by a grammar."""

    type: Literal["grammar"]
    syntax: Literal["lark", "regex"]
    definition: str


class CustomTool(Lenient):
    """A tool whose input is plain text."""

    harmless: ClassVar[frozenset[str]] = FunctionTool.harmless
    hint: ClassVar[frozenset[str]] = FunctionTool.hint

    type: Literal["custom"]
    name: Name
    description: str | None = None
    format: Annotated[PlainFormat | GrammarFormat, Field(discriminator="type")] = PlainFormat()


class LocalShellTool(Lenient):
    """A shell that the client runs."""

    type: Literal["local_shell"]


class HostedTool(Foreign):
    """A tool that only OpenAI's servers or models know: web search, code interpreter, ..."""


class NamespaceTool(Lenient):
    """Several tools of one origin."""

    hint: ClassVar[frozenset[str]] = frozenset({"description"})

    type: Literal["namespace"]
    name: Name
    tools: list[
        Annotated[
            Annotated[FunctionTool, Tag("function")]
            | Annotated[CustomTool, Tag("custom")]
            | Annotated[HostedTool, Tag("foreign")],
            by_type("tool", {"function": "function", "custom": "custom"}),
        ]
    ] = Field(default_factory=list)


AnyTool = Annotated[
    Annotated[FunctionTool, Tag("function")]
    | Annotated[CustomTool, Tag("custom")]
    | Annotated[NamespaceTool, Tag("namespace")]
    | Annotated[LocalShellTool, Tag("local_shell")]
    | Annotated[HostedTool, Tag("foreign")],
    by_type("tool", {kind: kind for kind in ("function", "custom", "namespace", "local_shell")}),
]


class ChosenTool(Lenient):
    """A tool by its name, or a hosted one by its type."""

    hint: ClassVar[frozenset[str]] = frozenset({"server_label"})

    type: str
    name: Name | None = None
    namespace: Name | None = None

    @model_validator(mode="after")
    def _has_a_name(self) -> ChosenTool:
        if self.type in ("function", "custom") and self.name is None:
            raise invalid(f"name: a choice of type {self.type!r} needs it", "name")
        return self


class AllowedTools(Lenient):
    """Only some of the tools."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1)


def _kind(value: Any) -> str | None:
    if isinstance(value, str):
        return "word"
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return None if not isinstance(found, str) else "allowed" if found == "allowed_tools" else "chosen"


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("word")]
    | Annotated[ChosenTool, Tag("chosen")]
    | Annotated[AllowedTools, Tag("allowed")],
    Discriminator(_kind, "choice", "Input should be a word, or an object with a string 'type'"),
]
