"""`POST /v1/chat/completions`: the request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from llm_node.schema.messages import Messages
from llm_node.schema.sampling import Generation, ResponseFormat, TextFormat
from llm_node.schema.wire import invalid, unsupported


def _no_tools(value: Any) -> Any:
    raise unsupported("tools are not supported")


def _no_choice(value: Any) -> Any:
    if value in ("none", "auto"):
        return value
    raise unsupported("choosing tools is not supported, as tools are not; only 'none' and 'auto' are")


def _text_alone(value: list[str]) -> list[str]:
    if value != ["text"]:
        raise unsupported("modalities other than 'text' are not supported")
    return value


class ChatCompletionRequest(Generation):
    """The body."""

    hint: ClassVar[frozenset[str]] = frozenset({"verbosity", "prediction"})
    refused: ClassVar[Mapping[str, Any]] = {
        "tools": None,
        "functions": None,
        "audio": None,
        "web_search_options": None,
    }

    messages: Messages
    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables for the model's chat template."""
    response_format: ResponseFormat = TextFormat(type="text")

    # Understood only as far as they say what is done anyway.
    tools: Annotated[Any, BeforeValidator(_no_tools)] = None
    functions: Annotated[Any, BeforeValidator(_no_tools)] = None
    tool_choice: Annotated[Any, BeforeValidator(_no_choice)] = None
    function_call: Annotated[Any, BeforeValidator(_no_choice)] = None
    modalities: Annotated[list[str], AfterValidator(_text_alone)] = Field(default_factory=lambda: ["text"])

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs: needs logprobs to be true", "top_logprobs")
        return self
