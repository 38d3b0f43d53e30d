"""The line that asks: keys, blocks, history and completion, by prompt_toolkit."""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BLOCK = '"""'
"""Begins and ends a text of several lines."""


class Key(enum.Enum):
    """What came instead of a text."""

    LEAVE = enum.auto()
    """Ctrl-D."""
    NOTHING = enum.auto()
    """Ctrl-C without a text."""


class Prompt:
    """Asks for one text after the other."""

    def __init__(self, history_file: Path | None, completer: Completer) -> None:
        """`history_file`: None keeps nothing."""
        self._session: PromptSession[str | Key] = PromptSession(
            multiline=True,
            key_bindings=_keys(),
            prompt_continuation="... ",
            history=InMemoryHistory() if history_file is None else _history(history_file),
            completer=completer,
            complete_while_typing=False,
        )

    async def ask(self) -> str | Key:
        """The next text, without the marks of a block."""
        given = await self._session.prompt_async(">>> ")
        if isinstance(given, Key):
            return given
        text = given.strip()
        if len(text) >= 2 * len(BLOCK) and text.startswith(BLOCK) and text.endswith(BLOCK):
            return text[len(BLOCK) : -len(BLOCK)].strip("\n")
        return text


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.text.strip()
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        elif text.startswith(BLOCK) and (text == BLOCK or not text.endswith(BLOCK)):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event: KeyPressEvent) -> None:
        # Never an exception: one out of a key's binding leaves the terminal as it is.
        if event.current_buffer.text:
            event.current_buffer.reset()
        else:
            event.app.exit(result=Key.NOTHING)

    @keys.add("c-d")
    def _(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.delete()
        else:
            event.app.exit(result=Key.LEAVE)

    return keys


class _PrivateHistory(FileHistory):
    """A line that begins with a blank is not kept."""

    def store_string(self, string: str) -> None:
        """See `History`."""
        if not string.startswith(" "):
            super().store_string(string)


def _history(file: Path) -> History:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600))
        file.chmod(0o600)
    except OSError:  # where nothing can be kept
        return InMemoryHistory()
    return _PrivateHistory(str(file))


class Words(Completer):
    """Completes commands, and what stands behind them."""

    def __init__(
        self, commands: Iterable[str], models: Callable[[], Iterable[str]], arguments: Mapping[str, str]
    ) -> None:
        """`arguments`: of a command, `model` or `path`."""
        self._commands = sorted(commands)
        self._models = models
        self._arguments = arguments
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """See `Completer`."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        command, blank, rest = text.partition(" ")
        kind = self._arguments.get(command)
        if not blank:
            found: Iterable[str] = (name for name in self._commands if name.startswith(command))
            yield from (Completion(name, -len(command)) for name in found)
        elif kind == "model":
            found = (name for name in self._models() if name.startswith(rest))
            yield from (Completion(name, -len(rest)) for name in found)
        elif kind == "path":
            yield from self._paths.get_completions(Document(rest), event)
