"""Markdown as it comes: what is written depends on the text, not on its pieces, and loses nothing of it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_node.cli.chat.markdown import Markdown
from llm_node.cli.visible import visible

COLOURS = re.compile(r"\x1b\[[\d;]*m")

ENDINGS = ("\x1b[0m", "\x1b[22m", "\x1b[23m", "\x1b[29m", "\x1b[39m", "\x1b[39;49;00m")

EVERYTHING = """\
# A **title**
Some *prose*, long enough to be wrapped, with snake_case_name, 2*3*4, **bold**, `code` and ~~old~~ words.
これは**重要**な文です。とても長い文なので折り返されます。

- one
  - two, which is quite long and is wrapped at some place
1. first
> quoted, and long enough to be wrapped as well, at least once
---
```python
def f(x):
    return "a" + x  # comment
```
| a | **b** |
|---|--:|
| 1 | 2 |

\\*literal\\* `unclosed
**"""


def drawn(text: str, pieces: list[str] | None = None, width: int = 40) -> str:
    markdown = Markdown(lambda: width)
    return "".join(map(markdown.feed, pieces or [text])) + markdown.finish()


def shown(text: str, width: int = 40) -> str:
    return COLOURS.sub("", drawn(text, width=width))


PIECES = st.lists(
    st.text(st.sampled_from(list('ab c\n\n**__~~``|-#>1.\\"é重👍')), max_size=12), min_size=1, max_size=30
)


@settings(max_examples=50)
@given(PIECES)
def test_any_cut_of_the_text_gives_the_same(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert drawn(text, pieces) == drawn(text) == drawn(text, list(text))


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_any_cut_of_a_text_with_everything(size: int) -> None:
    pieces = [EVERYTHING[at : at + size] for at in range(0, len(EVERYTHING), size)]
    assert drawn(EVERYTHING, pieces) == drawn(EVERYTHING)


@settings(max_examples=50)
@given(st.text(st.sampled_from(list("abcé重 \n*_~`#>-1.\\\"'")), max_size=200))
def test_no_letter_is_lost(text: str) -> None:
    """Marks may go; letters and digits stay, in their order."""

    def letters(of: str) -> list[str]:
        return [character for character in of if character.isalnum()]

    assert letters(shown(text)) == letters(text)


@settings(max_examples=50)
@given(st.text(st.sampled_from(list("abcde fg 重\n*`")), max_size=300))
def test_no_line_is_wider_than_the_terminal(text: str) -> None:
    from rich.cells import cell_len

    for line in shown(text, width=20).splitlines():
        assert cell_len(line) <= 20 or len(line.split()) == 1, line


@settings(max_examples=50)
@given(st.text())
def test_colours_end_with_their_line(text: str) -> None:
    """However it is wrapped, so that nothing which follows is dressed by mistake."""
    for line in visible(text).replace("|", "").split("\n"):
        found = COLOURS.findall(drawn(line))
        assert not found or found[-1] in ENDINGS


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("# Title\n", "\x1b[1mTitle\x1b[0m\n"),
        ("a **b** c\n", "a \x1b[1mb\x1b[22m c\n"),
        ("*a*\n", "\x1b[3ma\x1b[23m\n"),
        ("`a*b*c`\n", "\x1b[36ma*b*c\x1b[39m\n"),
        ("snake_case_name 2*3*4 a * b\n", "snake_case_name 2*3*4 a * b\n"),
        ("- item\n", "• item\n"),
        ("* item\n", "• item\n"),
        ("**bold** first\n", "\x1b[1mbold\x1b[22m first\n"),
        ("1. one\n", "1. one\n"),
        ("1.5 is a number\n", "1.5 is a number\n"),
        ("> said\n", "│ said\n"),
        ("#hashtag\n", "#hashtag\n"),
        ("\\*a\\*\n", "*a*\n"),
        ("open **end\nnext\n", "open \x1b[1mend\x1b[0m\nnext\n"),
        ("a|b\n", "a|b\n"),
        ("| no table\n", "| no table\n"),
    ],
)
def test_marks(text: str, wanted: str) -> None:
    assert drawn(text) == wanted


def test_words_come_as_soon_as_they_are_whole() -> None:
    markdown = Markdown(lambda: 40)
    assert markdown.feed("one") == ""
    assert markdown.feed(" two thr") == "one two"
    assert markdown.feed("ee\n") == " three\n"


def test_code_comes_line_by_line_and_is_not_wrapped() -> None:
    markdown = Markdown(lambda: 20)
    markdown.feed("```\n")
    line = "x = " + "1" * 60
    assert markdown.feed(line) == ""
    assert markdown.feed("\ny") == f"{line}\n"


def test_a_table_comes_when_it_is_whole() -> None:
    markdown = Markdown(lambda: 40)
    assert markdown.feed("| a | b |\n|---|--:|\n| 1 | 22 |\n") == ""
    lines = COLOURS.sub("", markdown.feed("end")).splitlines()
    assert [line.split() for line in lines if "─" not in line] == [["a", "b"], ["1", "22"]]


def test_wrapped_lines_of_an_item_begin_below_its_text() -> None:
    assert shown("- one two three\n", width=10) == "• one two\n  three\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("plain\n\tté👍", "plain\n\tté👍"),
        ("\x1b[2J\x07", "\u241b[2J\u2407"),
        ("a\rb\x7f", "a\u240db\u2421"),
        ("\x9b31m", "\\u009b31m"),
        ("\u202eevil\u2066", "\\u202eevil\\u2066"),
        ("\ud800", "\\ud800"),
        ("\u2028", "\\u2028"),
    ],
)
def test_what_would_drive_the_terminal_is_shown(text: str, wanted: str) -> None:
    assert visible(text) == wanted


@settings(max_examples=50)
@given(st.text())
def test_nothing_drives_the_terminal(text: str) -> None:
    for character in visible(text):
        assert character in "\n\t" or (character >= " " and not "\x7f" <= character <= "\x9f")
