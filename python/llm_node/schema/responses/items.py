"""Items: what a conversation consists of. What a client got as output may be sent back as it was."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from llm_node.schema.wire import Foreign, Lenient, by_type

Id = Annotated[str, Field(min_length=1, max_length=512)]
Name = Annotated[str, Field(min_length=1, max_length=256)]


class TextPart(Lenient):
    """Text, whoever said it."""

    harmless: ClassVar[frozenset[str]] = frozenset({"annotations", "logprobs", "prompt_cache_breakpoint"})

    type: Literal["input_text", "output_text", "text", "reasoning_text", "summary_text"]
    text: str


class RefusalPart(Lenient):
    """Why an earlier answer was none."""

    type: Literal["refusal"]
    refusal: str


class ForeignPart(Foreign):
    """An image, a file, and whatever comes."""


def _as_parts(value: Any) -> Any:
    """Text alone is one part."""
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
Part = Annotated[
    Annotated[TextPart, Tag("text")]
    | Annotated[RefusalPart, Tag("refusal")]
    | Annotated[ForeignPart, Tag("foreign")],
    by_type("part", {**dict.fromkeys(_TEXTS, "text"), "refusal": "refusal"}),
]
Parts = Annotated[
    list[Part],
    Field(fail_fast=True),
    BeforeValidator(_as_parts, json_schema_input_type=str | list[Part]),
]


class Item(Lenient):
    """What all kinds have in common."""

    harmless: ClassVar[frozenset[str]] = frozenset({"status", "phase", "caller", "async"})

    id: Id | None = None


class MessageItem(Item):
    """What somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: Parts


class ReasoningItem(Item):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[TextPart] = Field(default_factory=list)
    content: list[TextPart] = Field(default_factory=list)
    encrypted_content: str | None = None
    """Its text, as the server that made it carries it."""


class FunctionCallItem(Item):
    """A call of a function."""

    type: Literal["function_call"]
    call_id: Id
    name: Name
    namespace: Name | None = None
    arguments: str = ""


class CustomCallItem(Item):
    """A call of a tool that takes plain text."""

    type: Literal["custom_tool_call"]
    call_id: Id
    name: Name
    namespace: Name | None = None
    input: str = ""


class OutputItem(Item):
    """What came of a call."""

    harmless: ClassVar[frozenset[str]] = Item.harmless | {"name", "namespace"}

    type: Literal["function_call_output", "custom_tool_call_output"]
    call_id: Id
    output: Parts


class LocalShellCallItem(Item):
    """A command that was to be run."""

    type: Literal["local_shell_call"]
    call_id: Id | None = None
    action: dict[str, Any]


class LocalShellOutputItem(Item):
    """What came of it. Some clients name the call by `id`."""

    type: Literal["local_shell_call_output"]
    call_id: Id | None = None
    output: Parts


class ReferenceItem(Lenient):
    """An item of an answer that is kept."""

    type: Literal["item_reference"] = "item_reference"
    id: Id


class ForeignItem(Foreign):
    """What a hosted tool was asked and said, and whatever comes."""


_ITEMS = {
    **{kind: kind for kind in ("message", "reasoning", "function_call", "custom_tool_call")},
    **{kind: kind for kind in ("local_shell_call", "local_shell_call_output", "item_reference")},
    **dict.fromkeys(("function_call_output", "custom_tool_call_output"), "output"),
}


def _kind(value: Any) -> str | None:
    """A message needs no type, and neither does a reference."""
    found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if found is None and isinstance(value, dict):
        return "message" if "role" in value else "item_reference" if "id" in value else None
    return _ITEMS.get(found, "foreign") if isinstance(found, str) else None


AnyItem = Annotated[
    Annotated[MessageItem, Tag("message")]
    | Annotated[ReasoningItem, Tag("reasoning")]
    | Annotated[FunctionCallItem, Tag("function_call")]
    | Annotated[CustomCallItem, Tag("custom_tool_call")]
    | Annotated[OutputItem, Tag("output")]
    | Annotated[LocalShellCallItem, Tag("local_shell_call")]
    | Annotated[LocalShellOutputItem, Tag("local_shell_call_output")]
    | Annotated[ReferenceItem, Tag("item_reference")]
    | Annotated[ForeignItem, Tag("foreign")],
    Discriminator(_kind, "item", "Input should be an object with a string 'type'"),
]


def _as_items(value: Any) -> Any:
    """Text alone is what the user says."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


Items = Annotated[
    list[AnyItem],
    Field(fail_fast=True),
    BeforeValidator(_as_items, json_schema_input_type=str | list[AnyItem]),
]
