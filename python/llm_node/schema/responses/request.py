"""`POST /v1/responses` and `POST /v1/responses/input_tokens`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from llm_node.schema.responses.items import Id, Items
from llm_node.schema.responses.tools import AnyTool, ToolChoice
from llm_node.schema.sampling import GrammarFormat, ObjectFormat, TextFormat
from llm_node.schema.wire import ForModel, Lenient


class SchemaFormat(Lenient):
    """JSON by a schema."""

    type: Literal["json_schema"]
    name: str = ""
    description: str | None = None
    wanted: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class TextConfig(Lenient):
    """`text`: what the answer must look like."""

    hint: ClassVar[frozenset[str]] = frozenset({"verbosity"})

    format: Annotated[
        TextFormat | ObjectFormat | SchemaFormat | GrammarFormat, Field(discriminator="type")
    ] = TextFormat(type="text")


class Reasoning(Lenient):
    """`reasoning`: how the model is to think, and what is to be seen of it."""

    hint: ClassVar[frozenset[str]] = frozenset({"context", "mode"})

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed", "none"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    """The older name of `summary`."""

    @property
    def as_summary(self) -> bool:
        """Is what the model thinks wanted as a summary? It is told in full."""
        return (self.summary or self.generate_summary or "none") != "none"


class InputTokensRequest(ForModel, Lenient):
    """What decides about the prompt."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "service_tier",
            "prompt_cache_options",
            "prompt_cache_retention",
            "stream_options",
            "moderation",
            "client_metadata",
            "access_programs",
        }
    )
    hint: ClassVar[frozenset[str]] = frozenset({"context_management", "background_options", "image"})
    refused: ClassVar[Mapping[str, Any]] = dict.fromkeys(
        ("background", "conversation", "prompt", "max_tool_calls")
    )

    input: Items = Field(default_factory=list)
    instructions: str | None = None
    previous_response_id: Id | None = None
    tools: list[AnyTool] = Field(default_factory=list)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    """May one answer hold several calls?"""
    text: TextConfig = TextConfig()
    reasoning: Reasoning = Reasoning()
    truncation: Literal["auto", "disabled"] = "disabled"
    """Nothing is ever cut: what is too long is an error."""


class ResponsesRequest(InputTokensRequest):
    """The body."""

    stream: bool = False
    max_output_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    """A ceiling: less where the context ends before."""
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_logprobs: int = Field(default=0, ge=0, le=20)
    include: Annotated[list[str], Field(max_length=64)] = Field(default_factory=list)
    store: bool = True
    """May the answer be gone on from, and asked for again?"""
    metadata: dict[str, Any] = Field(default_factory=dict)
    """Comes back as it was."""
    user: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    """Whose request it is: sources take turns where requests wait. Nothing else depends on it."""
