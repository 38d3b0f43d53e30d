"""Reads a request's body: capped, parsed, and validated, or refused with a typed error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import web
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from llm_node.node import NodeError
from llm_node.schema.wire import FEATURE, INVALID, UNSUPPORTED, Wire

Shape = TypeVar("Shape", bound=Wire)


async def read(request: web.Request, shape: type[Shape]) -> Shape:
    """The body as `shape`. Raises `NodeError`; a body over the limit is aiohttp's own 413."""
    return parse(await request.read(), shape)


def parse(data: bytes, shape: type[Shape]) -> Shape:
    """Bytes as `shape`. Raises `NodeError` with `param` naming the field that was wrong."""
    try:
        # Refuses NaN, lone surrogates, and nesting without end.
        content = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise NodeError("invalid_json", f"The body is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise NodeError("invalid_json", "The body should be a JSON object")
    try:
        return shape.model_validate(content)
    except ValidationError as error:
        raise _fault(error.errors(include_url=False, include_input=False), content) from None


def _fault(errors: Sequence[ErrorDetails], content: Mapping[str, Any]) -> NodeError:
    first = errors[0]
    param = _path(first, content)
    if first["type"] == "extra_forbidden":
        return NodeError("unsupported_parameter", f"{param} is not a parameter of this route", param)
    if first["type"] in (INVALID, UNSUPPORTED, FEATURE):
        inner = str(first.get("ctx", {}).get("param", ""))
        return NodeError(first["type"], first["msg"], ".".join(filter(None, (param, inner))) or None)
    # A field that may have several types has an error for each of them.
    words = dict.fromkeys(_words(error) for error in errors if _path(error, content) == param)
    message = "; or ".join(words)
    return NodeError("invalid_request", f"{param}: {message}" if param else message, param or None)


def _words(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _path(error: ErrorDetails, content: Mapping[str, Any]) -> str:
    """The dotted path of the field in what the client sent: "messages.0.content".

    The location also names the members of unions, which the client never wrote: those are left out.
    """
    found: list[str] = []
    here: Any = content
    for part in error["loc"]:
        if isinstance(here, dict) and isinstance(part, str) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and 0 <= part < len(here):
            here = here[part]
        elif error["type"] == "missing" and part == error["loc"][-1]:
            pass
        else:
            continue
        found.append(str(part))
    return ".".join(found)
