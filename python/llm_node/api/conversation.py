"""A conversation in neutral words, as every dialect fills it: the mirror of
`rust/core/src/chat/conversation.rs`, where each type and field is explained.

Dialects make these and nothing else: what a model's template wants is made of them in Rust. `neutral` gives
what goes into the JSON of a request; texts that are JSON themselves (schemas, inputs of calls, variables)
stay texts in it, so that the order of their keys is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic_core import to_json

Neutral = dict[str, Any]


def dump(value: Any) -> str:
    """JSON without needless spaces, in UTF-8."""
    return to_json(value).decode()


@dataclass(frozen=True, slots=True)
class Text:
    """A part that is plain text."""

    text: str

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"text": self.text}


Part = Text
"""A piece of what somebody says. Images join here once models read them."""


@dataclass(frozen=True, slots=True)
class Json:
    """JSON as the input of a call or a tool: a text that is kept as it is."""

    text: str

    @staticmethod
    def of(value: Any) -> Json:
        """What was parsed already, as text again."""
        return Json(to_json(value).decode())

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"object": self.text}


def call_input(arguments: str) -> Json | Text:
    """A JSON object as it was sent. What was cut short is no error: it would end the chat for good."""
    if not arguments.strip():
        return Json("{}")
    try:
        is_object = isinstance(json.loads(arguments, parse_constant=_no_constant), dict)
    except (ValueError, RecursionError):
        is_object = False
    return Json(arguments) if is_object else Text(arguments)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool. `input`: a JSON object, or the plain text of what takes such or was cut short."""

    id: str
    """Without the dialect's prefix, where there is one."""
    name: str
    input: Json | Text

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"id": self.id, "name": self.name, "input": self.input.neutral()}


@dataclass(frozen=True, slots=True)
class System:
    """Instructions of whoever runs the application."""

    text: str

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"system": {"text": self.text}}


@dataclass(frozen=True, slots=True)
class User:
    """What a person says."""

    parts: tuple[Part, ...]
    name: str | None = None
    """Which person it is, where several take part."""

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"user": {"parts": [part.neutral() for part in self.parts], "name": self.name}}


@dataclass(frozen=True, slots=True)
class Assistant:
    """What the model said: what it thought before, its text, its calls. As the last message it is the
    beginning of the answer."""

    reasoning: str = ""
    text: str = ""
    calls: tuple[Call, ...] = ()

    def neutral(self) -> Neutral:
        """As the request has it."""
        calls = [call.neutral() for call in self.calls]
        return {"assistant": {"reasoning": self.reasoning, "text": self.text, "calls": calls}}


@dataclass(frozen=True, slots=True)
class Result:
    """What came of the call with the id `call`, of the tool `name`."""

    call: str
    name: str
    parts: tuple[Part, ...]
    failed: bool = False

    def neutral(self) -> Neutral:
        """As the request has it."""
        parts = [part.neutral() for part in self.parts]
        return {"result": {"call": self.call, "name": self.name, "parts": parts, "failed": self.failed}}


Message = System | User | Assistant | Result


@dataclass(frozen=True, slots=True)
class Grammar:
    """What a plain text must look like: a regular expression, or a grammar in llguidance's Lark."""

    syntax: Literal["regex", "lark"]
    definition: str

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {self.syntax: self.definition}


@dataclass(frozen=True, slots=True)
class TextInput:
    """A tool's input that is plain text, by a grammar if there is one."""

    grammar: Grammar | None = None

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"text": None if self.grammar is None else self.grammar.neutral()}


@dataclass(frozen=True, slots=True)
class Tool:
    """Something that the model may call. `input`: the JSON schema of an object, or plain text. `strict`: its
    input must be valid by the schema in every case."""

    name: str
    input: Json | TextInput
    description: str | None = None
    strict: bool = False

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {
            "name": self.name,
            "description": self.description,
            "input": self.input.neutral(),
            "strict": self.strict,
        }


@dataclass(frozen=True, slots=True)
class Named:
    """This tool must be called."""

    name: str

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"named": self.name}


@dataclass(frozen=True, slots=True)
class Among:
    """Only these tools may be called, and one of them must be where it is `required`."""

    names: tuple[str, ...]
    required: bool = False

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"among": {"names": list(self.names), "required": self.required}}


Choice = Literal["none", "auto", "required"] | Named | Among
"""Which tools the model may or must call."""

Effort = Literal["minimal", "low", "medium", "high", "max"]


@dataclass(frozen=True, slots=True)
class On:
    """The model is to think before it answers: how hard, and in how many tokens at most."""

    effort: Effort | None = None
    budget: int | None = None

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"on": {"effort": self.effort, "budget": self.budget}}


Thinking = Literal["model", "off"] | On
"""`model`: as its template has it."""


def thinking_by_effort(effort: str | None) -> Thinking:
    """How OpenAI's clients say it: a word, or nothing."""
    match effort:
        case None:
            return "model"
        case "none":
            return "off"
        case "minimal" | "low" | "medium" | "high":
            return On(effort)
        case _:
            return On("max")


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages so far, and what the model may do in its next one."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    choice: Choice = "auto"
    parallel: bool = True
    """May one answer hold several calls?"""
    thinking: Thinking = "model"
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables for the model's template, which win over all others but the messages."""

    def neutral(self) -> Neutral:
        """`Conversation` of `rust/core/src/chat/conversation.rs`."""
        return {
            "messages": [message.neutral() for message in self.messages],
            "tools": [tool.neutral() for tool in self.tools],
            "choice": self.choice if isinstance(self.choice, str) else self.choice.neutral(),
            "parallel": self.parallel,
            "thinking": self.thinking if isinstance(self.thinking, str) else self.thinking.neutral(),
            "variables": dump(dict(self.variables)),
        }


@dataclass(frozen=True, slots=True)
class Schema:
    """The answer is JSON by this schema. `strict`: all of it must be enforced; else what cannot be is left
    out of it, and told."""

    schema: Json
    strict: bool = False

    def neutral(self) -> Neutral:
        """As the request has it."""
        return {"schema": {"schema": self.schema.text, "strict": self.strict}}


Format = Literal["text", "object"] | Schema | Grammar
"""What the text of an answer must look like. `object`: any JSON object."""


def neutral_format(wanted: Format) -> str | Neutral:
    """The `format` of a request."""
    return wanted if isinstance(wanted, str) else wanted.neutral()
