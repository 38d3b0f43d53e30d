"""`/tokenize` and `/detokenize`: the requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from llm_node.schema.sampling import TokenId
from llm_node.schema.wire import ForModel


class TokenizeRequest(ForModel):
    """Text to tokens."""

    text: str
    add_special: bool = True
    parse_special: bool = False


class DetokenizeRequest(ForModel):
    """Tokens to text."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
