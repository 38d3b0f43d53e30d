"""How a stream is written: templates that Rust fills between the beginning of an answer and its end.

A dialect makes a template out of ordinary dicts in which the words of `TEXT`, `ID` and so on stand where
something is filled in; `sse.Framing` makes bytes of them, and `Template` finds the words again. They are
random and drawn anew by each process, so nothing that a client sends can be one.

An answer is a row of *blocks*: runs of text, of reasoning, and of the input of one call. For each of the
three parts there are up to four templates: where a block begins, for each piece (*delta*), where it has ended
by itself, and where a limit cut it off. What has no template is not written. See `rust/node/src/frames.rs`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field

from llm_node.node import Frames as NativeFrames
from llm_node.node import PartTemplates as NativePart
from llm_node.node import Template as NativeTemplate

_NAMES = ("text", "json", "base64", "name", "id", "call", "block", "number", "logprobs", "tokens")
_RANDOM = uuid.uuid4().hex
_WORDS = {name: f"{_RANDOM}{number}" for number, name in enumerate(_NAMES)}

TEXT = _WORDS["text"]
"""The piece in a delta, all of the block's text at its end: a JSON string."""
JSON = _WORDS["json"]
"""The same text as it is, for calls: a JSON object."""
BASE64 = _WORDS["base64"]
"""The same text as base64. Inside of a string."""
NAME = _WORDS["name"]
"""The called tool's name: a JSON string."""
ID = _WORDS["id"]
"""The call's id, 24 letters and digits. May stand inside of a string, behind a dialect's prefix."""
CALL = _WORDS["call"]
"""Number of the call in its answer, from 0. A number, or inside of a string; so are the next two."""
BLOCK = _WORDS["block"]
"""Number of the block among those that are written, from 0."""
NUMBER = _WORDS["number"]
"""One more each time, from `Frames.number` on."""
LOGPROBS = _WORDS["logprobs"]
"""The log-probabilities of a piece of text, at its end those of the block, by `Frames.logprobs`; null where
there are none."""
TOKENS = _WORDS["tokens"]
"""The numbers of the tokens behind a piece: a list."""

_INSIDE = frozenset({"base64", "id", "call", "block", "number"})
_KEEPS_QUOTES = frozenset({"base64", "id"})
# A request makes several templates: words that begin alike are found fast.
_HOLE = re.compile(f'"{_RANDOM}([0-9])"|{_RANDOM}([0-9])')


class Template:
    """Frames with holes. Without any bytes it writes nothing."""

    def __init__(self, framed: bytes = b"") -> None:
        """`framed`: one frame or several, as `sse.Framing.frame` makes them."""
        self.segments: list[tuple[bytes, str]] = []
        text, end = framed.decode(), 0
        for found in _HOLE.finditer(text):
            quoted = found[1] is not None
            name = _NAMES[int(found[1] or found[2])]
            if not quoted and name not in _INSIDE:
                raise ValueError(f"the hole {name!r} is a whole value, and stands inside of a string")
            keeps_quotes = quoted and name in _KEEPS_QUOTES
            before = text[end : found.start() + keeps_quotes]
            end = found.end() - keeps_quotes
            self.segments.append((before.encode(), name))
        self.tail = text[end:].encode()

    def native(self) -> NativeTemplate:
        """As the node has it."""
        return self.segments, self.tail


@dataclass(frozen=True)
class Part:
    """The templates of one part. Without `cut`, a block that was cut off ends as others do."""

    begin: Template | None = None
    delta: Template | None = None
    end: Template | None = None
    cut: Template | None = None

    def native(self) -> NativePart:
        """As the node has it."""
        all_four = (self.begin, self.delta, self.end, self.cut)
        begin, delta, end, cut = (None if one is None else one.native() for one in all_four)
        return begin, delta, end, cut


@dataclass(frozen=True)
class Frames:
    """How one answer is written. Python writes what stands around it: what `started` brings, the ending, an
    error."""

    text: Part = field(default_factory=Part)
    reasoning: Part = field(default_factory=Part)
    input: Part = field(default_factory=Part)
    """Of calls."""
    tools: Mapping[str, tuple[Part, str]] = field(default_factory=dict)
    """Tools whose calls are written in another way than `input`: how, and the name that is told of each."""
    logprobs: str | None = None
    """How log-probabilities are written, a pattern of `rust/node/src/pattern.rs`; None: not at all."""
    number: int = 0
    """The first for `NUMBER`. The `finished` event has the next one."""
    keeps: bool = False
    """Shall the `finished` event bring the blocks, for endings that tell everything again?"""

    def native(self, chunked: bool) -> NativeFrames:
        """As the node has it. `chunked`: does the connection take HTTP/1.1's chunked coding?"""
        further: dict[int, int] = {}
        tools: dict[str, tuple[int, str]] = {}
        parts: list[NativePart] = []
        for tool, (part, name) in self.tools.items():
            if id(part) not in further:
                further[id(part)] = len(parts)
                parts.append(part.native())
            tools[tool] = (further[id(part)], name)
        three = (self.text.native(), self.reasoning.native(), self.input.native())
        return (*three, parts, tools, self.logprobs, chunked, self.keeps, self.number)
