"""Messages and the blocks that they consist of."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llm_node.schema.wire import Foreign, Lenient, by_type


def _as_blocks(value: Any) -> Any:
    """Text alone is one block of text."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class TextBlock(Lenient):
    """Text. What it quotes from documents (`citations`) stands in the text as well."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["text"]
    text: str


class ThinkingBlock(Lenient):
    """What the model thought. Nobody checks the signature, so that thoughts of any server may come back."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "signature"})

    type: Literal["thinking"]
    thinking: str


class RedactedThinkingBlock(Lenient):
    """Thoughts that only another server can read."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "data"})

    type: Literal["redacted_thinking"]


class ToolUseBlock(Lenient):
    """A call of a tool. Its input is an object; text is what a client kept of one that was cut."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "caller", "toolset_name"})

    type: Literal["tool_use"]
    id: str = Field(min_length=1, max_length=512)
    name: str = Field(min_length=1, max_length=512)
    input: dict[str, Any] | str = Field(default_factory=dict)


class ImageBlock(Lenient):
    """An image."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "source", "transformations"})

    type: Literal["image"]


class PlainSource(Lenient):
    """A document that is text."""

    harmless: ClassVar[frozenset[str]] = frozenset({"media_type"})

    type: Literal["text"]
    data: str


class BlockSource(Lenient):
    """A document that consists of blocks."""

    type: Literal["content"]
    content: Annotated[
        list[SourceBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[SourceBlock])
    ]


class ForeignSource(Foreign):
    """A document in a form that is not read here: a PDF, a file, an address."""


def _kind(*known: str) -> Discriminator:
    return by_type("block", {each: each for each in known})


class DocumentBlock(Lenient):
    """A document."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["document"]
    source: Annotated[
        Annotated[PlainSource, Tag("text")]
        | Annotated[BlockSource, Tag("content")]
        | Annotated[ForeignSource, Tag("foreign")],
        _kind("text", "content"),
    ]
    title: str | None = None
    context: str | None = None


class SearchResultBlock(Lenient):
    """What a search of the client's found."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "citations"})

    type: Literal["search_result"]
    source: str
    title: str
    content: list[TextBlock]


class ForeignBlock(Foreign):
    """A block of another kind: what a hosted tool was asked and said, an uploaded file."""


SourceBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[ForeignBlock, Tag("foreign")],
    _kind("text", "image"),
]

ResultBlock = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")]
    | Annotated[ForeignBlock, Tag("foreign")],
    _kind("text", "image", "document", "search_result"),
]


class ToolResultBlock(Lenient):
    """What came of a call."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control", "toolset_name"})

    type: Literal["tool_result"]
    tool_use_id: str = Field(min_length=1, max_length=512)
    content: Annotated[
        list[ResultBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[ResultBlock])
    ] = Field(default_factory=list)
    is_error: bool = False


Block = Annotated[
    Annotated[TextBlock, Tag("text")]
    | Annotated[ThinkingBlock, Tag("thinking")]
    | Annotated[RedactedThinkingBlock, Tag("redacted_thinking")]
    | Annotated[ToolUseBlock, Tag("tool_use")]
    | Annotated[ToolResultBlock, Tag("tool_result")]
    | Annotated[ImageBlock, Tag("image")]
    | Annotated[DocumentBlock, Tag("document")]
    | Annotated[SearchResultBlock, Tag("search_result")]
    | Annotated[ForeignBlock, Tag("foreign")],
    _kind(
        "text",
        "thinking",
        "redacted_thinking",
        "tool_use",
        "tool_result",
        "image",
        "document",
        "search_result",
    ),
]

SystemText = Annotated[
    list[TextBlock],
    Field(fail_fast=True),
    BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock]),
]
"""Instructions: text, or blocks of it."""


class Message(Lenient):
    """One turn. What a client got may be sent back as it was."""

    harmless: ClassVar[frozenset[str]] = frozenset({"cache_control"})

    role: Literal["user", "assistant", "system"]
    content: Annotated[
        list[Block],
        Field(fail_fast=True),
        BeforeValidator(_as_blocks, json_schema_input_type=str | list[Block]),
    ]
