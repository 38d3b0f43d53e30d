"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, Tag, model_validator

from llm_node.schema.prompts import ANY_FORM, Prompt, Text, Tokens, several
from llm_node.schema.sampling import Generation, ResponseFormat, TextFormat
from llm_node.schema.wire import unsupported

Prompts = Annotated[
    Text | Tokens | Annotated[list[Prompt], Field(min_length=1, fail_fast=True), Tag("list")], ANY_FORM
]


def _no_suffix(value: Any) -> Any:
    if value == "":
        return value
    raise unsupported("suffix is not supported")


class CompletionRequest(Generation):
    """The body."""

    prompt: Prompts
    """Text, tokens, or a list of either."""
    parse_special: bool = True
    """Are the texts of special tokens in a prompt these tokens, or only letters?"""
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1)
    response_format: ResponseFormat = TextFormat(type="text")
    suffix: Annotated[Any, BeforeValidator(_no_suffix)] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, whether one was sent or several."""
        return several(self.prompt)

    @model_validator(mode="after")
    def _honoured(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported("best_of other than n is not supported", "best_of")
        if self.echo and self.logprobs is not None:
            raise unsupported(
                "echo with logprobs is not supported: a prompt has no log-probabilities here", "echo"
            )
        return self
