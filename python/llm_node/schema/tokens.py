"""`/tokenize`, `/detokenize` and `/apply-template`: the requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from llm_node.schema.messages import Messages
from llm_node.schema.sampling import TokenId
from llm_node.schema.tools import Function, Named, Tool, ToolChoice
from llm_node.schema.wire import ForModel


class TokenizeRequest(ForModel):
    """Text to tokens."""

    text: str
    add_special: bool = True
    parse_special: bool = False


class DetokenizeRequest(ForModel):
    """Tokens to text."""

    tokens: Annotated[list[TokenId], Field(fail_fast=True)]


class ApplyTemplateRequest(ForModel):
    """A conversation to the prompt that the model sees."""

    messages: Messages
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    tools: list[Tool] | None = None
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    functions: list[Function] | None = None
    function_call: Literal["none", "auto"] | Named = "auto"
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
