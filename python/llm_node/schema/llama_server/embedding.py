"""`POST /embedding`: the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from llm_node.schema.prompts import ANY_FORM, Prompt, Text, Tokens, several
from llm_node.schema.wire import ForModel, Lenient

Inputs = Annotated[
    Text | Tokens | Annotated[list[Prompt], Field(min_length=1, fail_fast=True), Tag("list")], ANY_FORM
]


class EmbeddingRequest(ForModel, Lenient):
    """The body."""

    refused: ClassVar[Mapping[str, Any]] = {"encoding_format": "float"}

    content: Inputs
    """Text, tokens, or a list of either; as `input`, too."""
    embd_normalize: Literal[-1, 2] = 2
    """2: vectors of length 1; -1: as the model gives them."""

    @model_validator(mode="before")
    @classmethod
    def _input(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "input" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "input"}
        return {"content": data["input"], **rest}

    @property
    def contents(self) -> list[str | list[int]]:
        """All of them, whether one was sent or several."""
        return several(self.content)
