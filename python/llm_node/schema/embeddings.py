"""`POST /v1/embeddings`: the request."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag

from llm_node.schema.prompts import ANY_FORM, Prompt, Text, Tokens, several
from llm_node.schema.wire import ForModel

Inputs = Annotated[
    Text | Tokens | Annotated[list[Prompt], Field(min_length=1, fail_fast=True), Tag("list")], ANY_FORM
]


class EmbeddingRequest(ForModel):
    """The body."""

    harmless: ClassVar[frozenset[str]] = frozenset({"user"})

    input: Inputs
    """Text, tokens, or a list of either."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, ge=1, lt=2**31)
    """So many numbers of each vector, from its beginning."""

    @property
    def inputs(self) -> list[str | list[int]]:
        """All inputs, whether one was sent or several."""
        return several(self.input)
