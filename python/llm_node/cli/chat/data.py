"""Writes an answer as it comes, for a file or a pipe."""

from __future__ import annotations

from typing import TextIO

from llm_node.cli.visible import visible

LONGEST_CALL = 200
"""Characters of a tool call that are shown."""


class DataWriter:
    """For a file or a pipe: the answer's text and nothing else. Tool calls are told aside."""

    def __init__(self, out: TextIO, aside: TextIO) -> None:
        self._out = out
        self._aside = aside
        self._ends = ""

    def reasoning(self, text: str) -> None:
        """Is no part of the answer."""

    def text(self, text: str) -> None:
        """As it is."""
        self._ends = text[-1:]
        self._out.write(text)
        self._out.flush()

    def call(self, words: str) -> None:
        """A tool call, in a line of its own."""
        self._aside.write(folded(words))

    def end(self) -> None:
        """A line break, unless there is one."""
        if self._ends not in ("", "\n"):
            self._out.write("\n")
        self._out.flush()


def folded(call: str) -> str:
    """A tool call as a line."""
    shown = visible(call)
    return f"→ {shown if len(shown) <= LONGEST_CALL else f'{shown[:LONGEST_CALL]}…'}\n"
