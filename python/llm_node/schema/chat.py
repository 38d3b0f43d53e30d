"""`POST /v1/chat/completions` and `/apply-template`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from llm_node.schema.messages import Messages
from llm_node.schema.sampling import Generation, ResponseFormat, TextFormat
from llm_node.schema.tools import Function, Named, Tool, ToolChoice
from llm_node.schema.wire import ForModel, invalid, unsupported


def _text_alone(value: list[str]) -> list[str]:
    if value != ["text"]:
        raise unsupported("modalities other than 'text' are not supported")
    return value


class Chat(ForModel):
    """A conversation, and what the model may do in it."""

    messages: Messages
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables for the model's chat template."""
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    """May one answer hold several calls?"""
    functions: list[Function] | None = None
    """The old form of `tools`, and `function_call` that of `tool_choice`."""
    function_call: Literal["none", "auto"] | Named = "auto"
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    """How hard the model is to think, where its template can say so."""


class ApplyTemplateRequest(Chat):
    """`POST /apply-template`: a conversation to the prompt that the model sees."""


class ChatCompletionRequest(Chat, Generation):
    """The body."""

    hint: ClassVar[frozenset[str]] = frozenset({"verbosity", "prediction"})
    refused: ClassVar[Mapping[str, Any]] = {
        **Generation.refused,
        "tools": None,
        "functions": None,
        "audio": None,
        "web_search_options": None,
    }

    max_completion_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    response_format: ResponseFormat = TextFormat(type="text")

    # Understood only as far as they say what is done anyway.
    modalities: Annotated[list[str], AfterValidator(_text_alone)] = Field(default_factory=lambda: ["text"])

    @model_validator(mode="after")
    def _one_form(self) -> ChatCompletionRequest:
        if self.tools and self.functions:
            raise invalid("functions: the old form of tools, not to be used beside them", "functions")
        return self

    @model_validator(mode="after")
    def _top_needs_logprobs(self) -> ChatCompletionRequest:
        if self.top_logprobs and not self.logprobs:
            raise invalid("top_logprobs: needs logprobs to be true", "top_logprobs")
        return self
