"""A conversation: what was said, with what parameters, and as a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_node import files

FORMAT = "llm-node-chat/1"
LARGEST = 64 << 20
"""Bytes of a saved chat."""
THINKING = {"off": "none", "on": "medium"}
"""Words of people for a `reasoning_effort`; others are taken as they are."""

Message = dict[str, Any]


class ConversationError(ValueError):
    """A parameter or a file is of no use. The message says why."""


@dataclass
class Conversation:
    """What the next request is made of."""

    model: str
    system: str | None = None
    messages: list[Message] = field(default_factory=list)
    """Those of user and assistant."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Further fields of a request: temperature, max_tokens, …"""

    def body(self) -> dict[str, Any]:
        """The request for the next answer."""
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return {"model": self.model, "messages": [*before, *self.messages], **self.parameters}

    def say(self, text: str) -> None:
        """The user says it."""
        self.messages.append({"role": "user", "content": text})

    def undo(self) -> str | None:
        """Take back the last thing that the user said, and what followed. Gives it; None: there is none."""
        for index in reversed(range(len(self.messages))):
            if self.messages[index]["role"] == "user":
                said = str(self.messages[index]["content"])
                del self.messages[index:]
                return said
        return None

    def set(self, key: str, value: str) -> None:
        """A parameter by its name in a request; `none` takes it away. Raises `ConversationError`."""
        if value == "none":
            self.parameters.pop(key, None)
            return
        try:
            found = json.loads(value, parse_constant=str)
        except ValueError:
            found = value
        _check({**self.parameters, key: found})
        self.parameters[key] = found

    def think(self, level: str) -> None:
        """How much the model thinks: on, off, or a level such as low or high."""
        self.parameters["reasoning_effort"] = THINKING.get(level, level)

    def save(self, path: Path) -> None:
        """Raises `OSError`."""
        content = {
            "format": FORMAT,
            "model": self.model,
            "system": self.system,
            "messages": self.messages,
            "parameters": self.parameters,
        }
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def load(self, saved: Saved) -> None:
        """Go on with what was saved, but for the model."""
        self.system, self.messages, self.parameters = saved.system, saved.messages, saved.parameters


@dataclass(frozen=True)
class Saved:
    """A conversation out of a file."""

    system: str | None
    messages: list[Message]
    parameters: dict[str, Any]

    @staticmethod
    def read(path: Path) -> Saved:
        """Raises `OSError`, or `ConversationError`."""
        try:
            content = json.loads(files.read_text(path, LARGEST))
        except ValueError as error:
            raise ConversationError(f"{path} is no saved chat: {error}") from None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ConversationError(f"{path} is no saved chat: its format is not {FORMAT}")
        system, messages, parameters = (content.get(key) for key in ("system", "messages", "parameters"))
        if not (
            (system is None or isinstance(system, str))
            and isinstance(messages, list)
            and all(map(_is_message, messages))
            and isinstance(parameters, dict)
        ):
            raise ConversationError(f"{path} is no saved chat: system, messages or parameters are wrong")
        _check(parameters)
        return Saved(system, messages, parameters)


def _is_message(found: object) -> bool:
    """Has it a role, and what was said as a text?"""
    return isinstance(found, dict) and all(isinstance(found.get(key), str) for key in ("role", "content"))


def _check(parameters: Mapping[str, Any]) -> None:
    """Raises `ConversationError` for what no node takes. Names that are unknown here are left to the node: it
    may be of another version."""
    from llm_node.api import body
    from llm_node.node import NodeError
    from llm_node.schema.chat import ChatCompletionRequest
    from llm_node.schema.wire import Ignored

    for key in ("model", "messages", "stream"):
        if key in parameters:
            raise ConversationError(f"{key} is no parameter")
    if parameters.get("n", 1) != 1:
        raise ConversationError("n: a chat shows one answer to a question; /retry asks for another")
    asked = {"messages": [{"role": "user", "content": ""}], **parameters}
    try:
        body.parse(json.dumps(asked).encode(), ChatCompletionRequest, Ignored("ignore"))
    except NodeError as fault:
        raise ConversationError(fault.message) from None


def response_format(text: str) -> dict[str, Any]:
    """Of `json`, or of a file with a JSON schema. Raises `OSError` or `ConversationError`."""
    if text == "json":
        return {"type": "json_object"}
    path = Path(text)
    try:
        schema = json.loads(files.read_text(path))
    except ValueError as error:
        raise ConversationError(f"{path} is no JSON schema: {error}") from None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
