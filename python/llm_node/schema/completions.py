"""`POST /v1/completions`: the request."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from llm_node.schema.sampling import Generation, TokenId, only_text
from llm_node.schema.wire import unsupported


def _kind(value: Any) -> str | None:
    """Which of its forms a prompt has, so that errors speak of that form alone."""
    if isinstance(value, str):
        return "text"
    if not isinstance(value, list):
        return None
    return "tokens" if value and isinstance(value[0], int) else "list"


def _one(value: Any) -> str | None:
    kind = _kind(value)
    return "tokens" if kind == "list" else kind


Text = Annotated[str, Field(min_length=1), Tag("text")]
Tokens = Annotated[list[TokenId], Field(min_length=1), Tag("tokens")]
Prompt = Annotated[
    Text | Tokens,
    Discriminator(_one, "prompt", "Input should be a string or a list of tokens"),
]
Prompts = Annotated[
    Text | Tokens | Annotated[list[Prompt], Field(min_length=1, max_length=256), Tag("list")],
    Discriminator(_kind, "prompt", "Input should be a string, a list of tokens, or a list of either"),
]


def _no_suffix(value: Any) -> Any:
    if value == "":
        return value
    raise unsupported("suffix is not supported")


class CompletionRequest(Generation):
    """The body."""

    prompt: Prompts
    """Text, tokens, or a list of either."""
    echo: bool = False
    logprobs: int | None = Field(default=None, ge=0, le=20)
    best_of: int | None = Field(default=None, ge=1)
    suffix: Annotated[Any, BeforeValidator(_no_suffix)] = None
    response_format: Annotated[Any, BeforeValidator(only_text)] = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """All prompts, whether one was sent or several."""
        many: Any = self.prompt if _kind(self.prompt) == "list" else [self.prompt]
        return list(many)

    @model_validator(mode="after")
    def _honoured(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.n:
            raise unsupported("best_of other than n is not supported", "best_of")
        if self.echo and self.logprobs is not None:
            raise unsupported(
                "echo with logprobs is not supported: a prompt has no log-probabilities here", "echo"
            )
        return self
