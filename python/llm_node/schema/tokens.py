"""`/tokenize` and `/detokenize`: the requests."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from llm_node.schema.sampling import TokenId
from llm_node.schema.wire import ForModel, invalid


class TokenizeRequest(ForModel):
    """Text to tokens."""

    text: str | None = None
    content: str | None = None
    """The same in llama-server's words, which has other defaults."""
    add_special: bool | None = None
    parse_special: bool | None = None
    with_pieces: bool = False
    """Shall each token come with what it stands for?"""

    @model_validator(mode="after")
    def _has_text(self) -> TokenizeRequest:
        if (self.text is None) == (self.content is None):
            raise invalid("text: there should be one, or content", "text")
        return self

    @property
    def question(self) -> dict[str, Any]:
        """`Tokenize` of `rust/wire/src/message.rs`."""
        is_own = self.text is not None
        return {
            "text": self.text if is_own else self.content,
            "add_special": is_own if self.add_special is None else self.add_special,
            "parse_special": not is_own if self.parse_special is None else self.parse_special,
        }


class DetokenizeRequest(ForModel):
    """Tokens to text."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]
