"""Words wrapped to a terminal's width. Output is only ever appended, so a word is held until it is whole."""

from __future__ import annotations

from collections.abc import Callable

from rich.cells import get_character_cell_size

TAB = "    "
RESET = "\x1b[0m"


class Layout:
    """Takes characters, and gives what to write. Styles are escape sequences of no width."""

    def __init__(self, width: Callable[[], int]) -> None:
        """`width`: of the terminal, in cells; asked anew for each line."""
        self._width = width
        self._limit = width()
        self._column = 0
        self._spaces = 0
        self._word: list[str] = []
        self._word_width = 0
        self._is_wide = False
        self._prefix = ""
        self._prefix_width = 0
        self._styles: list[str] = []

    def begin(self, first: str = "", rest: str = "") -> str:
        """A line begins with `first`, and what does not fit goes on behind `rest`."""
        self._limit = max(self._width(), 8)
        self._prefix = rest
        self._prefix_width = min(sum(map(get_character_cell_size, rest)), self._limit // 2)
        self._column = sum(map(get_character_cell_size, first))
        return first

    def style(self, sequence: str, off: str = "") -> None:
        """From here on; `off` is the sequence that it ends."""
        self._word.append(sequence)
        if off in self._styles:
            self._styles.remove(off)
        else:
            self._styles.append(sequence)

    def put(self, character: str) -> str:
        """One character that is no line break."""
        if character in " \t":
            done = self._end_word()
            self._spaces += len(TAB) if character == "\t" else 1
            return done
        width = get_character_cell_size(character)
        # Wide characters have no spaces between words: a line may break before and behind each.
        done = self._end_word() if width and (self._is_wide or width > 1) else ""
        self._is_wide = width > 1 or (self._is_wide and not width)
        self._word.append(character)
        self._word_width += width
        return done

    def end(self) -> str:
        """The line ends, and styles with it. Gives no line break."""
        done = self._end_word()
        self._spaces = 0
        if self._styles:
            done += RESET
            self._styles.clear()
        return done

    def _end_word(self) -> str:
        word, width = "".join(self._word), self._word_width
        self._word.clear()
        self._word_width, self._is_wide = 0, False
        if not width:
            return word
        spaces, self._spaces = self._spaces, 0
        if self._column + spaces + width > self._limit and self._column > self._prefix_width:
            self._column = self._prefix_width + width
            return f"\n{self._prefix}{word}"
        self._column += spaces + width
        if self._column > self._limit:  # a word longer than a line, which the terminal breaks
            self._column %= self._limit
        return " " * spaces + word
