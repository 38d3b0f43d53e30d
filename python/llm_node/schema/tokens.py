"""`/tokenize`, `/detokenize` and `/apply-template`: the requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from llm_node.schema.messages import Messages
from llm_node.schema.sampling import TokenId
from llm_node.schema.wire import Wire


class TokenizeRequest(Wire):
    """Text to tokens."""

    model: str = Field(min_length=1, max_length=512)
    text: str
    add_special: bool = True
    parse_special: bool = False


class DetokenizeRequest(Wire):
    """Tokens to text."""

    model: str = Field(min_length=1, max_length=512)
    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class ApplyTemplateRequest(Wire):
    """A conversation to the prompt that the model sees."""

    model: str = Field(min_length=1, max_length=512)
    messages: Messages
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
