"""Text of a model as a terminal may show it: what would drive the terminal is shown, and not obeyed."""

from __future__ import annotations

import unicodedata

_BIDIRECTIONAL = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DELETE = "\x7f"
_PICTURES = 0x2400
"""Where Unicode has a picture for each of ASCII's control characters."""
_LAYOUT = {ord(character): chr(_PICTURES + ord(character)) for character in "\n\t"}


def visible(text: str) -> str:
    """The text with every control character but line breaks and tabs replaced by what stands for it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_shown, text))


def visible_in_line(text: str) -> str:
    """The same with line breaks and tabs replaced, too: names of files may have them."""
    return visible(text).translate(_LAYOUT)


def _shown(character: str) -> str:
    if character in "\n\t" or character.isprintable():
        return character
    if character < " ":
        return chr(_PICTURES + ord(character))
    if character == _DELETE:
        return "\u2421"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _BIDIRECTIONAL:
        return f"\\u{ord(character):04x}"
    return character
