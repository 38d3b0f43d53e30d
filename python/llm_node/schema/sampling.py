"""The parameters of a generation that chat and plain completions share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from llm_node.schema.wire import ForModel, Wire
from llm_node.settings_values import MOST_TOKENS

MAX_ANSWERS = 128
MAX_STOPS = 16

TokenId = Annotated[int, Field(ge=0, lt=2**31)]


def _as_list(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError("Input should be a string or a list of strings")
    return [value] if isinstance(value, str) else value


StopList = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(fail_fast=True),
    BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    Field(max_length=MAX_STOPS),
]


class StreamOptions(Wire):
    """`stream_options`."""

    harmless: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})

    include_usage: bool = False


ADDED_BY_ROUTERS: Mapping[str, Any] = {
    "continue_final_message": False,
    "include_reasoning": True,
    "no_stop_trim": False,
    "return_hidden_states": False,
    "separate_reasoning": True,
    "skip_special_tokens": True,
    "stream_reasoning": True,
}
"""What routers for vLLM and SGLang write into every request, asked or not, and with which values: these say
what is done anyway."""


class Generation(ForModel):
    """What both kinds of completion understand."""

    refused: ClassVar[Mapping[str, Any]] = ADDED_BY_ROUTERS

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "metadata",
            "store",
            "service_tier",
            "prompt_cache_options",
            "prompt_cache_retention",
            "safety_identifier",
            "moderation",
        }
    )

    user: Any = None
    prompt_cache_key: Any = None
    """Whose request it is: sources take turns where requests wait. Nothing else depends on it."""
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    max_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    stop: StopList = Field(default_factory=list)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**64)

    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=-1, lt=2**31)
    min_p: float = Field(default=0.0, ge=0, le=1)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    repeat_penalty: float | None = Field(default=None, gt=0, le=10)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] = Field(default_factory=dict)
    ignore_eos: bool = False

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float]) -> dict[str, float]:
        for key in value:
            if not (key.isascii() and key.isdigit() and int(key[:12]) < 2**31 and len(key) <= 10):
                raise ValueError(f"keys are token numbers, got {key[:40]!r}")
        return value


class TextFormat(Wire):
    """Anything."""

    type: Literal["text"]


class ObjectFormat(Wire):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Wire):
    """A JSON schema, and how much of it has to be enforced."""

    harmless: ClassVar[frozenset[str]] = frozenset({"name", "description"})

    wanted: dict[str, Any] | bool = Field(alias="schema")
    strict: bool = False


class SchemaFormat(Wire):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


class Definition(Wire):
    """A grammar, or a regular expression."""

    syntax: Literal["lark", "regex"]
    definition: str = Field(min_length=1)


class GrammarFormat(Wire):
    """Text by a grammar. An extension; its shape is that of custom tools."""

    type: Literal["grammar"]
    grammar: Definition


ResponseFormat = Annotated[
    TextFormat | ObjectFormat | SchemaFormat | GrammarFormat, Field(discriminator="type")
]
"""`response_format`."""
