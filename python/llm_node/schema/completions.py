"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, Tag, model_validator

from llm_node.schema.prompts import ANY_FORM, Prompt, Text, Tokens, several
from llm_node.schema.sampling import Generation, ResponseFormat, TextFormat
from llm_node.schema.wire import unsupported

Prompts = Annotated[
    Text | Tokens | Annotated[list[Prompt], Field(min_length=1, fail_fast=True), Tag("list")], ANY_FORM
]


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
    suffix: str = ""
    """What stands behind the answer, for models that fill gaps."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, whether one was sent or several."""
        return several(self.prompt)

    @model_validator(mode="after")
    def _honoured(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported("best_of other than n is not supported", "best_of")
        if self.suffix and not all(isinstance(prompt, str) for prompt in self.prompts):
            raise unsupported("suffix is supported with prompts that are texts", "suffix")
        if self.echo and self.logprobs is not None:
            raise unsupported(
                "echo with logprobs is not supported: a prompt has no log-probabilities here", "echo"
            )
        return self
