"""Writes an answer as it comes, dressed for a terminal. Only ever appends."""

from __future__ import annotations

import os
import sys
import time
from typing import TextIO

from llm_node.cli.chat.data import folded
from llm_node.cli.chat.layout import RESET, Layout
from llm_node.cli.chat.markdown import DIM, Markdown
from llm_node.cli.visible import visible

USUAL_COLUMNS = 80
"""Of a terminal that does not tell."""


class TerminalWriter:
    """For a terminal: Markdown is drawn unless `plain`, thinking is dim or hidden, and nothing that a model
    writes drives the terminal."""

    def __init__(self, out: TextIO, *, plain: bool, hide_thinking: bool) -> None:
        self._out = out
        self._plain = plain
        self._hides = hide_thinking
        self._markdown = Markdown(columns)
        self._thought: _Thought | None = None
        self._ends = "\n"

    def reasoning(self, text: str) -> None:
        """What the model thinks."""
        if self._thought is None:
            self._thought = _Thought(plain=self._plain, hidden=self._hides)
            self._write(self._thought.begin())
        self._write(self._thought.more(visible(text)))

    def text(self, text: str) -> None:
        """What it answers."""
        self._end_thought()
        shown = visible(text)
        self._write(shown if self._plain else self._markdown.feed(shown))

    def call(self, words: str) -> None:
        """A tool call, in a line of its own."""
        self.end()
        self._write(folded(words))

    def end(self) -> None:
        """The answer has ended; the next thing begins a line."""
        self._end_thought()
        self._write(self._markdown.finish())
        if self._ends != "\n":
            self._write("\n")

    def _end_thought(self) -> None:
        if self._thought is not None:
            self._write(self._thought.end())
            self._thought = None

    def _write(self, text: str) -> None:
        if text:
            self._ends = text[-1]
            self._out.write(text)
            self._out.flush()


class _Thought:
    """What a model thinks, as lines of their own."""

    def __init__(self, *, plain: bool, hidden: bool) -> None:
        self._plain = plain
        self._hidden = hidden
        self._began = time.monotonic()
        self._layout = Layout(columns)
        self._is_in_line = False

    def begin(self) -> str:
        return self._dim("thinking …") + "\n"

    def more(self, text: str) -> str:
        if self._hidden:
            return ""
        if self._plain:
            self._is_in_line = not text.endswith("\n")
            return text
        return "".join(map(self._put, text))

    def end(self) -> str:
        seconds = time.monotonic() - self._began
        rest = "" if self._hidden or not self._is_in_line else "\n" if self._plain else self._put("\n")
        return f"{rest}{self._dim(f'… for {seconds:.1f} s')}\n\n"

    def _put(self, character: str) -> str:
        if character == "\n":
            self._is_in_line = False
            return self._layout.end() + "\n"
        done = ""
        if not self._is_in_line:
            self._is_in_line = True
            done = self._layout.begin()
            self._layout.style(DIM)
        return done + self._layout.put(character)

    def _dim(self, words: str) -> str:
        return words if self._plain else f"{DIM}{words}{RESET}"


def columns() -> int:
    """Of the terminal, as it is by now. The variable of that name tells what it was when the shell began."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or USUAL_COLUMNS
    except OSError:
        return USUAL_COLUMNS
