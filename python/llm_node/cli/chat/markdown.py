"""Markdown as it comes, for a terminal: prose word by word, code line by line, a table once it is whole.

What is written depends on the text alone, not on the pieces in which it comes. A line's kind is decided by
its beginning; bold, italic and code are switched on as they open, and end with their line at the latest.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping

from pygments import highlight
from pygments.formatters import TerminalFormatter
from pygments.lexer import Lexer
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llm_node.cli.chat.layout import RESET, Layout

BOLD, ITALIC, STRUCK, CODE, DIM = "\x1b[1m", "\x1b[3m", "\x1b[9m", "\x1b[36m", "\x1b[2m"
_OFF = {BOLD: "\x1b[22m", ITALIC: "\x1b[23m", STRUCK: "\x1b[29m", CODE: "\x1b[39m"}
_STYLES: Mapping[str, Mapping[int, tuple[str, ...]]] = {
    "*": {1: (ITALIC,), 2: (BOLD,), 3: (BOLD, ITALIC)},
    "_": {1: (ITALIC,), 2: (BOLD,), 3: (BOLD, ITALIC)},
    "~": {2: (STRUCK,)},
}
_ESCAPABLE = frozenset("\\`*_{}[]()#+-.!|~>")
_RULE = "─"
_LONGEST_RULE = 40

_UNDECIDED = re.compile(r" *(|#{1,6}|[-*_+]{1,}|\d{1,9}[.)]?|`{1,2}|~{1,2}|>)")
_FENCE = re.compile(r"( *)(`{3,}|~{3,})([^`]*)")
_HEADING = re.compile(r" {0,3}#{1,6} ")
_BULLET = re.compile(r"( *)[-*+] ")
_NUMBER = re.compile(r"( *)(\d{1,9}[.)]) ")
_QUOTE = re.compile(r" {0,3}> ?")
_IS_RULE = re.compile(r" {0,3}(-{3,}|\*{3,}|_{3,}) *")
_SEPARATOR = re.compile(r" *:?-+:? *")
_CELL_BORDER = re.compile(r"(?<!\\)\|")


class Markdown:
    """Takes text, gives what to write."""

    def __init__(self, width: Callable[[], int]) -> None:
        """`width`: of the terminal, in cells."""
        self._width = width
        self._inline = Inline(Layout(width))
        self._line: list[str] = []
        self._is_flowing = False
        self._fence: str | None = None
        self._lexer: Lexer | None = None
        self._table: list[str] = []

    def feed(self, text: str) -> str:
        """More of the text."""
        return "".join([self._take(character) for character in text])

    def finish(self) -> str:
        """The text has ended. What was written then ends with a line break, if it is anything."""
        done = "" if not (self._is_flowing or self._line) else self._take("\n")
        done += self._end_table()
        self._fence = None
        return done

    def _take(self, character: str) -> str:
        if self._is_flowing:
            if character != "\n":
                return self._inline.put(character)
            self._is_flowing = False
            return self._inline.end() + "\n"
        if character == "\n":
            line = "".join(self._line)
            self._line.clear()
            return self._whole(line)
        self._line.append(character)
        if self._fence is not None or self._table_goes_on():
            return ""
        line = "".join(self._line)
        if _UNDECIDED.fullmatch(line) or _FENCE.match(line) or line.lstrip().startswith("|"):
            return ""
        self._line.clear()
        return self._end_table() + self._begin(line)

    def _table_goes_on(self) -> bool:
        return bool(self._table) and "".join(self._line).lstrip()[:1] in ("", "|")

    def _begin(self, line: str) -> str:
        """A line of prose, of which this is known by now."""
        self._is_flowing = True
        first, rest, text = "", "", line
        styles: tuple[str, ...] = ()
        if match := _HEADING.match(line):
            styles, text = (BOLD,), line[match.end() :]
        elif match := _QUOTE.match(line):
            first = rest = "│ "
            text = line[match.end() :]
        elif match := _BULLET.match(line):
            first, text = f"{match[1]}• ", line[match.end() :]
            rest = " " * len(first)
        elif match := _NUMBER.match(line):
            first, text = f"{match[1]}{match[2]} ", line[match.end() :]
            rest = " " * len(first)
        return self._inline.begin(first, rest, styles) + "".join(map(self._inline.put, text))

    def _whole(self, line: str) -> str:
        """A line that ended before its kind was known, or whose kind needs all of it."""
        if self._fence is not None:
            return self._code(line)
        if line.lstrip().startswith("|"):
            self._table.append(line)
            return ""
        done = self._end_table()
        if match := _FENCE.fullmatch(line):
            self._fence = match[2]
            self._lexer = _lexer(match[3].strip())
            return f"{done}{DIM}{line}{RESET}\n"
        if _IS_RULE.fullmatch(line):
            return f"{done}{DIM}{_RULE * min(self._width(), _LONGEST_RULE)}{RESET}\n"
        if not line.strip():
            return done + "\n"
        done += self._begin(line)
        self._is_flowing = False
        return done + self._inline.end() + "\n"

    def _code(self, line: str) -> str:
        fence = self._fence or ""
        ending = line.strip()
        if len(ending) >= len(fence) and set(ending) == {fence[0]}:
            self._fence = None
            return f"{DIM}{line}{RESET}\n"
        if self._lexer is None:
            return line + "\n"
        coloured: str = highlight(line, self._lexer, TerminalFormatter())
        return coloured.rstrip("\n") + "\n"

    def _end_table(self) -> str:
        lines, self._table = self._table, []
        rows = [_cells(line) for line in lines]
        if len(rows) < 2 or not all(_SEPARATOR.fullmatch(cell) for cell in rows[1]):
            return "".join(self._begin(line) + self._end_line() for line in lines)
        return _drawn(rows, self._width())

    def _end_line(self) -> str:
        self._is_flowing = False
        return self._inline.end() + "\n"


class Inline:
    """What stands inside a line: bold, italic, struck, code."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._on: set[str] = set()
        self._fixed: tuple[str, ...] = ()
        self._run = ""
        self._ticks = 0
        self._is_escaped = False
        self._before = " "

    def begin(self, first: str = "", rest: str = "", styles: tuple[str, ...] = ()) -> str:
        """See `Layout.begin`; `styles` hold for the whole line."""
        done = self._layout.begin(first, rest)
        self._fixed = styles
        for style in styles:
            self._layout.style(style)
        return done

    def put(self, character: str) -> str:
        """One character that is no line break."""
        if self._ticks:
            return self._in_code(character)
        done = ""
        if self._run:
            if character == self._run[0]:
                self._run += character
                return ""
            done = self._resolve(character)
            if self._ticks:
                return done + self._in_code(character)
        if self._is_escaped:
            self._is_escaped = False
            return done + (
                self._plain(character) if character in _ESCAPABLE else self._plain("\\" + character)
            )
        if character == "\\":
            self._is_escaped = True
            return done
        if character in "*_~`":
            self._run = character
            return done
        return done + self._plain(character)

    def end(self) -> str:
        """The line ends."""
        done = ""
        if self._ticks and len(self._run) == self._ticks:
            self._layout.style(_OFF[CODE], CODE)
        elif self._ticks:
            done = self._plain(self._run)
        elif self._run:
            done = self._resolve("\n")
        if self._is_escaped:
            done += self._plain("\\")
        self._run, self._ticks, self._is_escaped, self._before = "", 0, False, " "
        self._on.clear()
        return done + self._layout.end()

    def _in_code(self, character: str) -> str:
        if character == "`":
            self._run += character
            return ""
        run, self._run = self._run, ""
        if run and len(run) == self._ticks:
            self._ticks = 0
            self._layout.style(_OFF[CODE], CODE)
            self._before = "`"
            return self.put(character)
        return self._plain(run + character)

    def _resolve(self, after: str) -> str:
        """What a run of marks means, by what stands before and behind it."""
        run, self._run = self._run, ""
        if run[0] == "`":
            if after == "\n":
                return self._plain(run)
            self._ticks = len(run)
            self._layout.style(CODE)
            return ""
        styles = _STYLES[run[0]].get(len(run), ())
        before = self._before
        opens, closes = not after.isspace(), not before.isspace()
        if run[0] == "_":  # within a word it is a letter
            opens, closes = opens and not before.isalnum(), closes and not after.isalnum()
        elif run == "*" and before.isascii() and before.isalnum() and after.isascii() and after.isalnum():
            return self._plain(run)
        if styles and closes and self._on.issuperset(styles):
            for style in reversed(styles):
                self._on.remove(style)
                if style not in self._fixed:
                    self._layout.style(_OFF[style], style)
        elif styles and opens and self._on.isdisjoint(styles):
            for style in styles:
                self._on.add(style)
                if style not in self._fixed:
                    self._layout.style(style)
        else:
            return self._plain(run)
        self._before = run[0]
        return ""

    def _plain(self, text: str) -> str:
        self._before = text[-1:] or self._before
        return "".join(map(self._layout.put, text))


def _lexer(language: str) -> Lexer | None:
    try:
        return get_lexer_by_name(language.split()[0], stripnl=False) if language else None
    except ClassNotFound:
        return None


def _cells(line: str) -> list[str]:
    inner = line.strip().removeprefix("|")
    cells = _CELL_BORDER.split(inner)
    if len(cells) > 1 and not cells[-1].strip():
        cells.pop()
    return [cell.strip().replace("\\|", "|") for cell in cells]


def _drawn(rows: list[list[str]], width: int) -> str:
    heading, marks, *body = rows
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for index, cell in enumerate(heading):
        mark = marks[index].strip() if index < len(marks) else ""
        right, left = mark.endswith(":"), mark.startswith(":")
        table.add_column(_styled(cell), justify="center" if right and left else "right" if right else "left")
    for row in body:
        table.add_row(*map(_styled, row[: len(heading)]))
    console = Console(
        file=io.StringIO(), width=width, force_terminal=True, color_system="standard", legacy_windows=False
    )
    with console.capture() as capture:
        console.print(table)
    return "".join(f"{line.rstrip()}\n" for line in capture.get().splitlines() if line.strip())


def _styled(cell: str) -> Text:
    inline = Inline(Layout(lambda: 1 << 16))
    return Text.from_ansi(inline.begin() + "".join(map(inline.put, cell)) + inline.end())
