"""What a model is to read, as OpenAI's clients send it: text, tokens, or a list of either."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag

from llm_node.schema.sampling import TokenId


def kind(value: Any) -> str | None:
    """Which of its forms it has, so that errors speak of that form alone."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    return "tokens" if value and isinstance(value[0], int) else "list"


def _one(value: Any) -> str | None:
    found = kind(value)
    return "tokens" if found == "list" else found


def several(value: Any) -> list[str | list[int]]:
    """All of them, whether one was sent or several."""
    return list(value) if kind(value) == "list" else [value]


Text = Annotated[str, Field(min_length=1), Tag("text")]
Tokens = Annotated[list[TokenId], Field(min_length=1, fail_fast=True), Tag("tokens")]
Prompt = Annotated[
    Text | Tokens,
    Discriminator(_one, "prompt", "Input should be a string or a list of tokens"),
]
ANY_FORM = Discriminator(kind, "prompt", "Input should be a string, a list of tokens, or a list of either")
