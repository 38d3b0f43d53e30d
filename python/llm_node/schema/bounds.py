"""How much a request may have of anything.

Validating costs far more than parsing, and nobody else has a turn meanwhile. So the numbers are looked at
first: they stop what no client means, far above what any does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOST_FIELDS = 1_000
"""Of an object whose fields have meanings: the body, and each message."""
MOST_VALUES = 500_000
"""Of the body in all, tokens apart."""
MOST_TOKENS = 1 << 21
"""Of all prompts that are given as tokens."""
MOST_PROMPTS = 2_048
MOST_REQUESTS = 4_096
"""Prompts, times the answers to each."""
MOST_BIASES = 1 << 20
"""Entries of `logit_bias`, times these: each has its own copy."""
MOST_BYTES = 32 << 20
"""Of the body, times the answers to each prompt, for the same reason."""

DEEPEST = 128
"""Lists and objects within each other: what the core reads of a part of the body."""
MOST_DIGITS = 4_300
"""Of a whole number, as far as the parser goes."""

LONGEST = {
    "messages": 20_000,
    "input": 20_000,
    "tools": 1_024,
    "functions": 1_024,
    "logit_bias": 32_768,
    "options": 1_024,
    "stop": 1_024,
}
"""Of fields that are lists or objects."""

PROMPTS = frozenset({"prompt", "input", "content", "tokens", "documents", "texts"})


class TooDeep(ValueError):
    """Lists and objects are nested too deep."""

    def __init__(self) -> None:
        super().__init__(f"lists and objects are nested more than {DEEPEST} deep")


class TooMuch(ValueError):
    """The message says of what, how much there is, and how much may be."""

    def __init__(self, param: str, what: str, count: int, most: int) -> None:
        super().__init__(f"{param}: {count} {what} are too many; at most {most} are taken")
        self.param = param


def check_bytes(data: bytes) -> None:
    """Raise `TooMuch` where parsing alone would take seconds: strings and containers cost far more than the
    bytes between them. A guess that is never too low decides for nearly all bodies."""
    if data.count(b'"') // 2 + _brackets(data) <= MOST_VALUES:
        return
    plain = _without_escapes(data)
    found = plain.count(b'"') // 2
    if found <= MOST_VALUES:
        found += _brackets(_outside_of_strings(plain))
    if found > MOST_VALUES:
        raise TooMuch("body", "strings, lists and objects", found, MOST_VALUES)


def check_depth(data: bytes) -> None:
    """Raise `TooDeep`. What is no JSON at all may be too deep as well."""
    if _brackets(data) <= DEEPEST:
        return
    brackets = _outside_of_strings(_without_escapes(data)).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(DEEPEST):  # each time the innermost go
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise TooDeep


_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _without_escapes(data: bytes) -> bytes:
    """Each quotation mark that is left is one of JSON's own."""
    return data.replace(b"\\\\", b"").replace(b'\\"', b"")


def _outside_of_strings(plain: bytes) -> bytes:
    return b"".join(plain.split(b'"')[::2])


def _brackets(data: bytes) -> int:
    return data.count(b"[") + data.count(b"{")


def check(body: Mapping[str, Any], data: bytes) -> None:
    """Raise `TooMuch`. `body`: as it was parsed from `data`. It may have any shape."""
    _fields("body", body)
    # Each value has a comma behind it, or is the last of its list or object.
    may_be_many = data.count(b",") + _brackets(data) > MOST_VALUES
    left, prompts, size = MOST_VALUES, 1, len(data)
    for name, value in body.items():
        if not isinstance(value, list | dict):
            continue
        if name in PROMPTS and not _is_conversation(value):
            prompts = _prompts(name, value)
            continue
        most = LONGEST.get(name, MOST_VALUES)
        if len(value) > most:
            raise TooMuch(name, "entries", len(value), most)
        if name in ("messages", "input"):
            for index, message in enumerate(value):
                if isinstance(message, dict):
                    _fields(f"{name}.{index}", message)
        if may_be_many:
            left = _spend(value, left, name)
    answers = body.get("n", body.get("n_cmpl"))
    answers = answers if isinstance(answers, int) and answers > 0 else 1
    biases = body.get("logit_bias")
    biases = len(biases) if isinstance(biases, dict) else 0
    if answers > 1 and answers * size > MOST_BYTES:
        raise TooMuch("n", f"answers to a body of {size} bytes", answers, max(1, MOST_BYTES // size))
    if prompts * answers > MOST_REQUESTS:
        raise TooMuch("n", f"answers to each of {prompts} prompts", answers, MOST_REQUESTS // prompts)
    if prompts * answers * biases > MOST_BIASES:
        most = MOST_BIASES // (prompts * answers)
        raise TooMuch("logit_bias", f"entries for {prompts * answers} answers", biases, most)


def _is_conversation(value: list[Any] | dict[str, Any]) -> bool:
    """Is it no list of prompts, but one of messages and the like?"""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _fields(param: str, value: Mapping[str, Any]) -> None:
    if len(value) > MOST_FIELDS:
        raise TooMuch(param, "fields", len(value), MOST_FIELDS)


def _prompts(name: str, value: list[Any] | dict[str, Any]) -> int:
    """How many there are: it is one where the list is one of tokens."""
    lists = [each for each in value if isinstance(each, list)]
    tokens = sum(map(len, lists)) if lists else len(value)
    if tokens > MOST_TOKENS:
        raise TooMuch(name, "tokens", tokens, MOST_TOKENS)
    if isinstance(value, dict) or not value or isinstance(value[0], int):
        return 1
    if len(value) > MOST_PROMPTS:
        raise TooMuch(name, "entries", len(value), MOST_PROMPTS)
    return len(value)


def _spend(value: Any, left: int, name: str) -> int:
    """What is left of the values that a body may have."""
    waiting = [value]
    while waiting:
        each = waiting.pop()
        left -= len(each)
        if left < 0:
            raise TooMuch(name, "values in the body, or more,", MOST_VALUES - left, MOST_VALUES)
        inner = each.values() if isinstance(each, dict) else each
        waiting.extend(one for one in inner if isinstance(one, list | dict))
    return left
