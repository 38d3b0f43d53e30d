"""Tools, as OpenAI's clients offer and call them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from llm_node.schema.wire import Wire, invalid

Name = Annotated[str, Field(min_length=1, max_length=256)]


class Function(Wire):
    """A function: its input is a JSON object."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    """A JSON schema."""
    strict: bool = False


class TextGrammar(Wire):
    """What a plain text must look like."""

    syntax: Literal["lark", "regex"]
    definition: str


class TextFormat(Wire):
    """Plain text, by a grammar or not."""

    type: Literal["text", "grammar"] = "text"
    grammar: TextGrammar | None = None

    @model_validator(mode="after")
    def _has_its_grammar(self) -> TextFormat:
        if (self.type == "grammar") != (self.grammar is not None):
            raise invalid("grammar: there is one where the type is 'grammar'", "grammar")
        return self


class Custom(Wire):
    """A tool whose input is plain text."""

    name: Name
    description: str | None = None
    format: TextFormat = TextFormat()


class Tool(Wire):
    """Something that the model may call."""

    hint: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    type: Literal["function", "custom"]
    function: Function | None = None
    custom: Custom | None = None

    @model_validator(mode="after")
    def _is_one(self) -> Tool:
        if (self.function is not None, self.custom is not None) != (
            self.type == "function",
            self.type == "custom",
        ):
            raise invalid(f"a tool of type {self.type!r} has an object {self.type!r} and no other", self.type)
        return self

    @property
    def name(self) -> str:
        """How it is called."""
        return (self.function or self.custom).name  # type: ignore[union-attr]  # one of both is there


class Named(Wire):
    """The name of a tool in an object of its own."""

    name: Name


class ChosenTool(Wire):
    """A tool by its name."""

    type: Literal["function", "custom"] = "function"
    function: Named | None = None
    custom: Named | None = None

    @property
    def name(self) -> str:
        """How it is called."""
        chosen = self.function or self.custom
        if chosen is None:
            raise ValueError("names no tool")
        return chosen.name

    @model_validator(mode="after")
    def _names_one(self) -> ChosenTool:
        if self.function is None and self.custom is None:
            raise invalid("a choice names a tool", "function")
        return self


class AllowedTools(Wire):
    """Some of the tools."""

    mode: Literal["auto", "required"]
    tools: list[ChosenTool] = Field(min_length=1)


class AllowedChoice(Wire):
    """`tool_choice`: only some of the tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoice = Literal["none", "auto", "required"] | ChosenTool | AllowedChoice


class CalledFunction(Wire):
    """The call of a function, as it was sent to the client."""

    name: Name
    arguments: str | dict[str, Any] = ""
    """JSON; some clients send the object itself."""


class CalledCustom(Wire):
    """The call of a custom tool."""

    name: Name
    input: str = ""


class ToolCall(Wire):
    """A call in an earlier answer."""

    harmless: ClassVar[frozenset[str]] = frozenset({"index"})
    refused: ClassVar[Mapping[str, Any]] = {}

    id: str = Field(min_length=1)
    type: Literal["function", "custom"] = "function"
    function: CalledFunction | None = None
    custom: CalledCustom | None = None

    @model_validator(mode="after")
    def _is_one(self) -> ToolCall:
        if (self.function is None) == (self.custom is None):
            raise invalid("a call has either a 'function' or a 'custom'", self.type)
        return self
