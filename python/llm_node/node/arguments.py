"""What callers of the Python API give, on its way to the core as JSON. What cannot go is refused by name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from llm_node._core import Fault


def wrong(name: str, value: object, needed: str) -> Fault:
    """That an argument is not what it has to be."""
    shown = repr(value)
    if len(shown) > 200:
        shown = f"{shown[:200]}…"
    return Fault("invalid_request", f"{name} is {shown}: {needed}", name.partition("[")[0])


def as_json(arguments: Mapping[str, Any]) -> str:
    """All of them as one object. Raises `Fault` for the first that JSON cannot say."""
    try:
        return json.dumps(arguments, allow_nan=False)
    except (TypeError, ValueError):
        for name, value in arguments.items():
            _check(name, value)
        raise


def _check(name: str, value: object) -> None:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        if isinstance(value, Mapping):
            for key, inner in value.items():
                _check(f"{name}.{key}", inner)
        raise wrong(name, value, str(error)) from None


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
    """What can be gone through. Raises `Fault`."""
    try:
        return list(value)
    except TypeError:
        raise wrong(name, value, "it has to be a sequence") from None
