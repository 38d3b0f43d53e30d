"""What callers of the Python API give, on its way to the core as JSON. What cannot go is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard

from llm_node._core import Fault
from llm_node.settings import DEVICES, OF_MODELS
from llm_node.settings_values import MOST_TOKENS

HALF = "there is half of a surrogate pair in it, which is no character; decode bytes with errors='replace'"
LEAST = 2.0**-126
"""The core has numbers of 32 bits, in which what is smaller would be 0."""


def wrong(name: str, value: object, needed: str) -> Fault:
    """That an argument is not what it has to be."""
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]}…"
    return Fault("invalid_request", f"{name} is {shown}: {needed}", name.partition("[")[0])


def as_json(arguments: Mapping[str, Any]) -> str:
    """All of them as one object. Raises `Fault` for the first that JSON cannot say."""
    try:
        return _dump(arguments)
    except (TypeError, ValueError):
        for name, value in arguments.items():
            _check(name, value)
        raise


def _check(name: str, value: object) -> None:
    try:
        _dump(value)
    except UnicodeEncodeError:
        _go_in(name, value)
        raise wrong(name, value, HALF) from None
    except (TypeError, ValueError) as error:
        _go_in(name, value)
        raise wrong(name, value, str(error)) from None


def _go_in(name: str, value: object) -> None:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check(f"{name}.{key}", inner)


def _dump(value: object) -> str:
    text = json.dumps(value, allow_nan=False, ensure_ascii=False)
    text.encode()
    return text


def text(name: str, value: str) -> str:
    """Text that can be encoded. Raises `Fault`."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise wrong(name, value, HALF) from None
    return value


def option(name: str, value: object) -> None:
    """Raise `Fault` for a whole number that this option of a load cannot have, as the settings have it."""
    parse = OF_MODELS.get(name)
    if parse is None or not _is_whole(value):
        return
    try:
        parse(value if name == DEVICES else str(value))
    except ValueError as error:
        raise wrong(name, value, str(error)) from None


def tokens(name: str, value: object) -> None:
    """Raise `Fault` for a whole number that is none of tokens."""
    if _is_whole(value) and not 1 <= value <= MOST_TOKENS:
        raise wrong(name, value, f"expected a whole number from 1 to {MOST_TOKENS}")


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def above_zero(value: Any) -> Any:
    """A number that is above 0, however little, is so for the core. All else stays what it is."""
    return LEAST if isinstance(value, int | float) and 0 < value < LEAST else value


def path(name: str, value: str | os.PathLike[str]) -> str:
    """Where a file or a folder is. Raises `Fault`."""
    try:
        given = os.fspath(value)
    except TypeError:
        given = None
    if not isinstance(given, str):
        raise wrong(name, value, "it has to be a path, as text or as a pathlib.Path")
    return given


def mapping(name: str, value: Mapping[str, Any] | None) -> dict[str, Any]:
    """A mapping; none is an empty one. Raises `Fault`."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong(name, value, "it has to be a mapping")
    return dict(value)


def items(name: str, value: Iterable[Any]) -> list[Any]:
    """What can be gone through. Raises `Fault`, also for bytes, which may be numbers as well as text."""
    if isinstance(value, bytes | bytearray | memoryview):
        raise wrong(name, value, "these are bytes; decode them to text, or give a list of numbers")
    try:
        return list(value)
    except TypeError:
        raise wrong(name, value, "it has to be a sequence") from None
