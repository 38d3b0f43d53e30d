"""One answer of a node: asked for, taken in as it comes, and what it came to."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llm_node.cli.chat.interrupt import Interrupted, interruptible
from llm_node.cli.remote import Remote


class Sink(Protocol):
    """Where an answer is shown as it comes."""

    def reasoning(self, text: str) -> None:
        """What the model thinks before it answers."""

    def text(self, text: str) -> None:
        """What it answers."""

    def call(self, words: str) -> None:
        """What it calls, in words."""

    def end(self) -> None:
        """Nothing more comes."""


@dataclass
class Answer:
    """What has come of one so far."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[dict[str, Any]] = field(default_factory=list)
    """As OpenAI has them, each with its arguments whole once the answer has ended."""
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def message(self) -> dict[str, Any]:
        """As a message of the conversation."""
        found: dict[str, Any] = {"role": "assistant", "content": self.text}
        if self.reasoning:
            found["reasoning_content"] = self.reasoning
        if self.tool_calls:
            found["tool_calls"] = self.tool_calls
        return found

    def figures(self, context_length: int | None) -> str:
        """A line for people: how much, how fast, and how full the context is."""
        parts = []
        tokens = self.usage.get("completion_tokens")
        if tokens is not None:
            parts.append(f"{tokens} tokens")
        if self.first is not None and self.last is not None:
            if tokens and tokens > 1 and self.last > self.first:
                parts.append(f"{(tokens - 1) / (self.last - self.first):.1f} tokens/s")
            parts.append(f"first after {self.first - self.began:.2f} s")
        total = self.usage.get("total_tokens")
        if total is not None:
            parts.append(f"context {total}" + (f" of {context_length}" if context_length else ""))
        return ", ".join(parts)


async def ask(node: Remote, body: dict[str, Any], answer: Answer, sink: Sink) -> bool:
    """Ask for an answer and show it. False where Ctrl-C ended it; `answer` has what came, also where this
    raises."""
    try:
        await interruptible(_take_in(node, body, answer, sink))
        return True
    except Interrupted:
        return False
    finally:
        for call in answer.tool_calls:
            sink.call(call_in_words(call))
        sink.end()


async def _take_in(node: Remote, body: dict[str, Any], answer: Answer, sink: Sink) -> None:
    wanted = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer.began = time.monotonic()
    async for event in node.events("POST", "/v1/chat/completions", json=wanted):
        answer.usage = event.get("usage") or answer.usage
        for choice in event.get("choices", ()):
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
            _take(choice.get("delta") or {}, answer, sink)


def _take(delta: dict[str, Any], answer: Answer, sink: Sink) -> None:
    reasoning, text = delta.get("reasoning_content"), delta.get("content")
    if reasoning or text:
        answer.last = time.monotonic()
        answer.first = answer.first or answer.last
    if reasoning:
        answer.reasoning += reasoning
        sink.reasoning(reasoning)
    if text:
        answer.text += text
        sink.text(text)
    for piece in delta.get("tool_calls") or ():
        _take_call(piece, answer.tool_calls)


def _take_call(piece: dict[str, Any], calls: list[dict[str, Any]]) -> None:
    """A piece of a call; those of one call have its number."""
    index = piece.get("index", len(calls))
    while len(calls) <= index:
        calls.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[index], piece.get("function") or {}
    call["id"] = piece.get("id") or call["id"]
    for key in ("name", "arguments"):
        call["function"][key] += function.get(key) or ""


def call_in_words(call: dict[str, Any]) -> str:
    """A tool call in one line."""
    function = call["function"]
    try:
        arguments = json.dumps(json.loads(function["arguments"]), ensure_ascii=False)
    except ValueError:
        arguments = " ".join(function["arguments"].split())
    return f"{function['name']}({arguments})"


def ending(answer: Answer, context_length: int | None, *, is_whole: bool) -> str:
    """The line behind an answer."""
    figures = answer.figures(context_length)
    if not is_whole:
        return f"stopped; {figures}" if figures else "stopped"
    if answer.finish_reason == "length":
        return f"cut by its length; {figures}"
    return figures


def usage_in_words(answer: Answer) -> str:
    """All figures that the node gave."""

    def flat(values: Mapping[str, Any], before: str) -> list[str]:
        found: list[str] = []
        for key, value in values.items():
            name = f"{before}{key}"
            found += flat(value, f"{name}.") if isinstance(value, Mapping) else [f"{name} {value}"]
        return found

    return ", ".join(flat(answer.usage, ""))
