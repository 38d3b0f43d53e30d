"""`POST /v1/messages` and `POST /v1/messages/count_tokens`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from llm_node.schema.anthropic.content import Message, SystemText
from llm_node.schema.anthropic.tools import AnyTool, ToolChoice
from llm_node.schema.wire import ForModel, Lenient, invalid, unsupported


class Thinking(Lenient):
    """`thinking`."""

    hint: ClassVar[frozenset[str]] = frozenset({"display"})

    type: Literal["disabled", "enabled", "adaptive", "between_tools"]
    budget_tokens: int | None = Field(default=None, ge=1, lt=2**31)


class OutputFormat(Lenient):
    """What the answer must look like."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Lenient):
    """`output_config`."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: OutputFormat | None = None


class Metadata(Lenient):
    """`metadata`. It changes no answer: whose a request is decides about turns in a queue alone."""

    user_id: str | None = None


class CountTokensRequest(ForModel, Lenient):
    """What decides about the prompt."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "service_tier",
            "cache_control",
            "inference_geo",
            "user_profile_id",
            "workspace_id",
            "diagnostics",
            "betas",
        }
    )
    hint: ClassVar[frozenset[str]] = frozenset(
        {
            "context_management",
            "speed",
            "fallbacks",
            "fallback_credit_token",
            "compaction",
            "billing_policy",
        }
    )
    refused: ClassVar[Mapping[str, Any]] = dict.fromkeys(("mcp_servers", "container", "thread"))

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    system: SystemText = Field(default_factory=list)
    tools: list[AnyTool] = Field(default_factory=list)
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig = OutputConfig()
    output_format: OutputFormat | None = None
    """The older place of `output_config.format`."""

    @property
    def thinks(self) -> bool:
        """Is the model to think before it answers?"""
        return self.thinking is not None and self.thinking.type != "disabled"

    @property
    def format(self) -> OutputFormat | None:
        """What the answer must look like, wherever it was said."""
        return self.output_config.format or self.output_format

    @model_validator(mode="after")
    def _can_be_said(self) -> CountTokensRequest:
        if self.thinks and self.messages[-1].role == "assistant":
            raise unsupported(
                "an answer that was begun by the client cannot be thought about before: send the request "
                "without thinking, or let the last message be the user's",
                "messages",
            )
        given = self.output_config.format
        if given and self.output_format and given != self.output_format:
            raise invalid("output_format: output_config.format says otherwise", "output_format")
        return self


class MessagesRequest(CountTokensRequest):
    """The body."""

    max_tokens: int = Field(ge=1, lt=2**31)
    """A ceiling: less where the context ends before."""
    metadata: Metadata = Metadata()
    stream: bool = False
    stop_sequences: Annotated[
        list[Annotated[str, Field(min_length=1)]], Field(max_length=64, fail_fast=True)
    ] = Field(default_factory=list)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, ge=0, le=1)
    top_k: int = Field(default=0, ge=0, lt=2**31)
