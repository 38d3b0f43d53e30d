"""From Anthropic's words to a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from llm_node.api.conversation import (
    Assistant,
    Call,
    Choice,
    Conversation,
    Effort,
    Json,
    Message,
    Named,
    On,
    Result,
    System,
    Text,
    Thinking,
    Tool,
    User,
)
from llm_node.node import NodeError
from llm_node.schema.anthropic import content
from llm_node.schema.anthropic.messages import CountTokensRequest
from llm_node.schema.anthropic.tools import HostedTool

ID_PREFIX = "toolu_"
"""Stands before the ids of calls."""

BILLING = "x-anthropic-billing-header:"
"""Begins a text among the instructions that is meant for Anthropic's accounts. It is another one in each
request, so that no prompt would begin as the one before."""

EFFORTS: dict[str, Effort] = {"low": "low", "medium": "medium", "high": "high", "xhigh": "max", "max": "max"}
"""`output_config.effort`."""


def conversation(wanted: CountTokensRequest, ignored: set[str]) -> Conversation:
    """What the model is to go on from. Adds to `ignored` what is asked for in vain."""
    tools = _tools(wanted, ignored)
    parallel = wanted.tool_choice is None or not wanted.tool_choice.disable_parallel_tool_use
    return Conversation(
        messages=(*_instructions(wanted.system), *_messages(wanted.messages, ignored)),
        tools=tuple(tools),
        choice=_choice(wanted, tools),
        parallel=parallel,
        thinking=_thinking(wanted, ignored),
    )


def _instructions(blocks: Sequence[content.TextBlock]) -> list[Message]:
    texts = [block.text for block in blocks if block.text and not block.text.startswith(BILLING)]
    return [System(text="\n\n".join(texts))] if texts else []


def _messages(messages: Sequence[content.Message], ignored: set[str]) -> Iterator[Message]:
    names: dict[str, str] = {}
    for index, message in enumerate(messages):
        blocks = [(f"messages.{index}.content.{place}", each) for place, each in enumerate(message.content)]
        if message.role == "assistant":
            yield _assistant(blocks, names, ignored)
        elif message.role == "user":
            yield from _user(blocks, names, ignored)
        else:
            yield from _instructions([_only_text(param, block) for param, block in blocks])


def _assistant(
    blocks: Iterable[tuple[str, content.Block]], names: dict[str, str], ignored: set[str]
) -> Assistant:
    thoughts: list[str] = []
    texts: list[str] = []
    calls: list[Call] = []
    for param, block in blocks:
        if isinstance(block, content.ThinkingBlock):
            thoughts.append(block.thinking)
        elif isinstance(block, content.ToolUseBlock):
            names[block.id] = block.name
            calls.append(Call(id=_id(block.id), name=block.name, input=_input(block)))
        elif isinstance(block, content.ForeignBlock):
            # What Anthropic's own servers did on the way: nobody here can say it to a model.
            ignored.add(f"messages.content.{block.type}")
        elif not isinstance(block, content.RedactedThinkingBlock):
            # Where one text is in several blocks, it was cut in the middle of a sentence.
            texts.append(_only_text(param, block).text)
    return Assistant(reasoning="\n".join(thoughts), text="".join(texts), calls=tuple(calls))


def _user(
    blocks: Iterable[tuple[str, content.Block]], names: dict[str, str], ignored: set[str]
) -> list[Message]:
    """What came of calls stands directly behind them, and what the user says to it after that."""
    results: list[Message] = []
    parts: list[Text] = []
    for param, block in blocks:
        if isinstance(block, content.ToolResultBlock):
            results.append(_result(param, block, names, ignored))
        else:
            parts += _parts(param, block)
    return [*results, User(tuple(parts))] if parts or not results else results


def _result(param: str, block: content.ToolResultBlock, names: dict[str, str], ignored: set[str]) -> Result:
    name = names.get(block.tool_use_id)
    if name is None:
        raise NodeError(
            "invalid_request",
            f"{param}.tool_use_id: no call before it has the id '{block.tool_use_id}'",
            f"{param}.tool_use_id",
        )
    parts: list[Text] = []
    for place, each in enumerate(block.content):
        try:
            parts += _parts(f"{param}.content.{place}", each)
        except NodeError as fault:
            if fault.code != "unsupported_feature":
                raise
            # Else one screenshot would end the chat for good.
            ignored.add(f"messages.content.content.{each.type}")
            parts.append(Text(f"[{each.type} omitted: this model reads text]"))
    return Result(call=_id(block.tool_use_id), name=name, parts=tuple(parts), failed=block.is_error)


def _parts(param: str, block: content.Block | content.ResultBlock | content.SourceBlock) -> list[Text]:
    """The texts of something that is no call and no result."""
    if isinstance(block, content.DocumentBlock):
        source = block.source
        if isinstance(source, content.ForeignSource):
            raise _no_text(param, f"document of type {source.type!r}")
        head = [Text(text) for text in (block.title, block.context) if text]
        if isinstance(source, content.PlainSource):
            return [*head, Text(source.data)]
        inner = [
            part
            for place, each in enumerate(source.content)
            for part in _parts(f"{param}.source.content.{place}", each)
        ]
        return [*head, *inner]
    if isinstance(block, content.SearchResultBlock):
        return [Text(block.title), Text(block.source), *(Text(each.text) for each in block.content)]
    return [Text(_only_text(param, block).text)]


def _only_text(
    param: str, block: content.Block | content.ResultBlock | content.SourceBlock
) -> content.TextBlock:
    if isinstance(block, content.TextBlock):
        return block
    if isinstance(block, content.ImageBlock | content.DocumentBlock | content.ForeignBlock):
        raise _no_text(param, block.type)
    raise NodeError(
        "invalid_request", f"{param}: a block of type {block.type!r} cannot stand in this message", param
    )


def _no_text(param: str, kind: str) -> NodeError:
    return NodeError(
        "unsupported_feature", f"{param}: {kind} is not supported; models served here read text", param
    )


def _id(sent: str) -> str:
    return sent.removeprefix(ID_PREFIX)


def _input(block: content.ToolUseBlock) -> Json | Text:
    return Text(block.input) if isinstance(block.input, str) else Json.of(block.input)


def _tools(wanted: CountTokensRequest, ignored: set[str]) -> list[Tool]:
    tools: list[Tool] = []
    for tool in wanted.tools:
        if isinstance(tool, HostedTool):
            ignored.add(f"tools.{tool.type}")
        else:
            tools.append(
                Tool(
                    name=tool.name,
                    description=tool.description,
                    input=Json.of(tool.input_schema),
                    strict=tool.strict,
                )
            )
    if wanted.tools and not tools:
        kinds = ", ".join(repr(tool.type) for tool in wanted.tools)
        raise NodeError(
            "unsupported_feature",
            f"tools: only tools that the client runs are known here, not {kinds}",
            "tools",
        )
    return tools


def _choice(wanted: CountTokensRequest, tools: Sequence[Tool]) -> Choice:
    choice = wanted.tool_choice
    if choice is None or choice.type == "auto":
        return "auto"
    if choice.type == "none":
        return "none"
    if choice.type == "any":
        return "required"
    hosted = [tool for tool in wanted.tools if isinstance(tool, HostedTool)]
    if choice.name in {tool.name for tool in hosted}:
        raise NodeError(
            "unsupported_feature",
            f"tool_choice: '{choice.name}' is no tool that the client runs; only these can be called here",
            "tool_choice",
        )
    return Named(str(choice.name))


def _thinking(wanted: CountTokensRequest, ignored: set[str]) -> Thinking:
    effort = wanted.output_config.effort
    asked = wanted.thinking
    if asked is None or not wanted.thinks:
        if effort is not None:
            ignored.add("output_config.effort")
        return "off"
    if asked.type == "between_tools":
        ignored.add("thinking.type")
    budget = asked.budget_tokens if asked.type == "enabled" else None
    return On(effort=None if effort is None else EFFORTS[effort], budget=budget)
