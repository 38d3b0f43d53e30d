"""From Ollama's words to a conversation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llm_node.api.conversation import (
    Assistant,
    Call,
    Conversation,
    Json,
    Message,
    On,
    Result,
    System,
    Text,
    Thinking,
    Tool,
    User,
)
from llm_node.node import NodeError
from llm_node.schema.ollama import chat
from llm_node.schema.ollama.options import Generation

ID_PREFIX = "call_"
"""Stands before the ids of calls."""


def of_chat(wanted: chat.ChatRequest, ignored: set[str]) -> Conversation:
    """What the model is to go on from. Adds to `ignored` what is asked for in vain."""
    tools = tuple(
        Tool(
            name=tool.function.name,
            description=tool.function.description,
            input=Json.of(tool.function.parameters),
        )
        for tool in wanted.tools
    )
    return Conversation(
        messages=tuple(_messages(wanted.messages, ignored)), tools=tools, thinking=thinking(wanted)
    )


def of_prompt(wanted: chat.GenerateRequest) -> Conversation:
    """A prompt alone is a conversation of one turn."""
    instructions: list[Message] = [System(text=wanted.system)] if wanted.system else []
    return Conversation(messages=(*instructions, User((Text(wanted.prompt),))), thinking=thinking(wanted))


def thinking(wanted: Generation) -> Thinking:
    """Is it to think?"""
    if wanted.think is None:
        return "model"
    if wanted.think is False:
        return "off"
    return On(effort=None if wanted.think is True else wanted.think)


class _Calls:
    """The calls that no result has come of yet. Most clients name a result's tool alone, or nothing, and send
    calls back without their ids."""

    def __init__(self) -> None:
        self._count = 0
        self._open: list[tuple[str, str]] = []

    def made(self, call: chat.ToolCall) -> Call:
        """The call, with an id in any case."""
        given = call.id.removeprefix(ID_PREFIX)
        number, self._count = self._count, self._count + 1
        found = Call(id=given or f"{number}", name=call.function.name, input=_input(call.function))
        self._open.append((found.id, found.name))
        return found

    def answered(self, message: chat.Message, param: str) -> tuple[str, str]:
        """Id and name of the call that a result is of: by its id, its tool, or the order."""
        wanted = message.tool_call_id.removeprefix(ID_PREFIX)
        for index, (call, name) in enumerate(self._open):
            if (not wanted or call == wanted) and (wanted or message.tool_name in ("", name)):
                return self._open.pop(index)
        raise NodeError(
            "invalid_request", f"{param}: a message of role 'tool' without a call before it", param
        )


def _input(function: chat.Function) -> Json | Text:
    arguments = function.arguments
    return Text(arguments) if isinstance(arguments, str) else Json.of(arguments)


def _messages(messages: Sequence[chat.Message], ignored: set[str]) -> Iterator[Message]:
    calls = _Calls()
    for index, message in enumerate(messages):
        if message.role == "system":
            yield System(text=message.content)
        elif message.role == "user":
            yield User((Text(message.content),))
        elif message.role == "assistant":
            made = tuple(calls.made(call) for call in message.tool_calls)
            yield Assistant(reasoning=message.thinking, text=message.content, calls=made)
        else:
            call, name = calls.answered(message, f"messages.{index}")
            parts = [Text(message.content)]
            if message.images:
                ignored.add("messages.images")
                parts.append(Text("[image omitted: this model reads text]"))
            yield Result(call=call, name=name, parts=tuple(parts))
