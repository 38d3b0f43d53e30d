"""Messages and tools of OpenAI's clients, in neutral words."""

from __future__ import annotations

from typing import Any

from llm_node.api.conversation import (
    Among,
    Assistant,
    Call,
    Choice,
    Conversation,
    Grammar,
    Json,
    Message,
    Named,
    Result,
    System,
    Text,
    TextInput,
    Tool,
    User,
    call_input,
    dump,
    thinking_by_effort,
)
from llm_node.node import NodeError
from llm_node.schema import messages as wire
from llm_node.schema import tools
from llm_node.schema.chat import Chat

PREFIX = "call_"
"""Before the ids of calls; the node's own have none."""


def of(wanted: Chat) -> Conversation:
    """The conversation of a request. Raises `NodeError`."""
    old_form = bool(wanted.functions)
    offered = [_function(one) for one in wanted.functions or ()] + [_tool(one) for one in wanted.tools or ()]
    choice = _old_choice(wanted) if old_form else _choice(wanted)
    if not offered and choice == "required":
        raise NodeError("invalid_request", "a tool must be called, but there is none", "tool_choice")
    return Conversation(
        messages=_messages(wanted.messages),
        tools=tuple(offered),
        choice=choice if offered else "auto",
        parallel=wanted.parallel_tool_calls and not old_form,
        thinking=thinking_by_effort(wanted.reasoning_effort),
        variables=wanted.chat_template_kwargs,
    )


def _function(one: tools.Function) -> Tool:
    return Tool(one.name, Json.of(one.parameters), one.description, one.strict)


def _tool(one: tools.Tool) -> Tool:
    if one.custom is not None:
        form = one.custom.format.grammar
        grammar = None if form is None else Grammar(form.syntax, form.definition)
        return Tool(one.custom.name, TextInput(grammar), one.custom.description)
    assert one.function is not None  # noqa: S101  # its validator says so
    return _function(one.function)


def _choice(wanted: Chat) -> Choice:
    choice = wanted.tool_choice
    if isinstance(choice, str):
        return choice
    if isinstance(choice, tools.ChosenTool):
        return Named(choice.name)
    allowed = choice.allowed_tools
    return Among(tuple(one.name for one in allowed.tools), required=allowed.mode == "required")


def _old_choice(wanted: Chat) -> Choice:
    choice = wanted.function_call
    return choice if isinstance(choice, str) else Named(choice.name)


def _messages(messages: list[wire.Message]) -> tuple[Message, ...]:
    """What came of calls is told by the names of the tools."""
    called: dict[str, str] = {}
    neutral: list[Message] = []
    for place, message in enumerate(messages):
        parts = (Text(message.content or ""),)
        match message.role:
            case "system" | "developer":
                neutral.append(System(message.content or ""))
            case "user":
                neutral.append(User(parts, message.name or None))
            case "assistant":
                calls = tuple(_calls(message))
                called |= {call.id: call.name for call in calls}
                reasoning = message.reasoning_content or message.reasoning or message.thinking or ""
                neutral.append(Assistant(reasoning, message.content or "", calls))
            case _:
                neutral.append(Result(*_whose(message, place, called), parts))
    return tuple(neutral)


def _calls(message: wire.Message) -> list[Call]:
    calls = [_call(one) for one in message.tool_calls]
    if message.function_call is not None:
        # The old form has no ids: a function's name stands for the call.
        old = message.function_call
        calls.append(Call(old.name, old.name, _input(old.arguments)))
    return calls


def _call(one: tools.ToolCall) -> Call:
    identity = one.id.removeprefix(PREFIX)
    if one.custom is not None:
        return Call(identity, one.custom.name, Text(one.custom.input))
    assert one.function is not None  # noqa: S101  # its validator says so
    return Call(identity, one.function.name, _input(one.function.arguments))


def _input(arguments: str | dict[str, Any]) -> Json | Text:
    return Json(dump(arguments)) if isinstance(arguments, dict) else call_input(arguments)


def _whose(message: wire.Message, place: int, called: dict[str, str]) -> tuple[str, str]:
    """The id and the tool of the call that a message tells the result of."""
    identity = (message.tool_call_id or message.name or "").removeprefix(PREFIX)
    if identity not in called:
        what = "tool_call_id" if message.role == "tool" else "name"
        raise NodeError(
            "invalid_request",
            f"messages.{place}.{what}: no earlier message of the assistant has a call {identity!r}",
            f"messages.{place}.{what}",
        )
    return identity, called[identity]
