"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from llm_node.schema.sampling import Generation, TokenId, only_text
from llm_node.schema.wire import unsupported

Text = Annotated[str, Field(min_length=1)]
Tokens = Annotated[list[TokenId], Field(min_length=1)]


def _prompts(value: Any) -> Any:
    """Text, tokens, or a list of either: always a list of prompts from here on."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and isinstance(value[0], int) and not isinstance(value[0], bool):
        return [value]
    return value


Prompts = Annotated[list[Text | Tokens], BeforeValidator(_prompts), Field(min_length=1, max_length=256)]


def _no_suffix(value: Any) -> Any:
    if value == "":
        return value
    raise unsupported("suffix is not supported")


class CompletionRequest(Generation):
    """The body."""

    prompt: Prompts
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1)
    suffix: Annotated[Any, BeforeValidator(_no_suffix)] = None
    response_format: Annotated[Any, BeforeValidator(only_text)] = None

    @model_validator(mode="after")
    def _honoured(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported("best_of other than n is not supported")
        if self.echo and self.logprobs is not None:
            raise unsupported("echo with logprobs is not supported: a prompt has no log-probabilities here")
        return self
