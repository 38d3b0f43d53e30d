"""Reads a request's body: capped in size and time, unpacked, parsed, and validated, or refused with a typed
error. A large one is parsed in a thread, so that nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from aiohttp import StreamReader, web
from aiohttp.http_exceptions import (
    BadStatusLine,
    HttpProcessingError,
    InvalidHeader,
    InvalidURLError,
    LineTooLong,
    TransferEncodingError,
)
from pydantic import ValidationError
from pydantic_core import ErrorDetails, from_json

from llm_node.api.context import ERROR_FORMS, IGNORED, NODE, TRANSFER_TIMEOUT, UNKNOWN_FIELDS
from llm_node.node import NodeError
from llm_node.schema import bounds
from llm_node.schema.wire import FEATURE, INVALID, UNSUPPORTED, ForModel, Ignored, Wire

Shape = TypeVar("Shape", bound=Wire)


ENCODINGS = frozenset({"identity", "gzip", "deflate", "br", "zstd"})
"""What aiohttp unpacks; the last two where their libraries are there, which it says itself."""

SLOWEST = 4096
"""Bytes in a second, on the whole: a body that comes slower is given up."""

LARGE = 256 << 10
"""From so many bytes on, a body is parsed in a thread."""


async def read(request: web.Request, shape: type[Shape]) -> Shape:
    """The body as `shape`; where it names no model, with the one that is meant. Raises `NodeError`; a body
    over the limit is aiohttp's own 413."""
    wanted = await _read(request, shape)
    if isinstance(wanted, ForModel) and not wanted.model:
        return wanted.model_copy(update={"model": await request.app[NODE].chosen()})
    return wanted


async def _read(request: web.Request, shape: type[Shape]) -> Shape:
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding.lower() not in ENCODINGS:
        raise NodeError("unsupported_encoding", f"The Content-Encoding {encoding[:99]!r} is not read here")
    transfer = ", ".join(request.headers.getall("Transfer-Encoding", ("chunked",)))
    if transfer.lower() != "chunked":
        reason = f"of its Transfer-Encoding {transfer[:99]!r} only chunked is undone here"
        raise NodeError("malformed_request", f"The body cannot be read: {reason}")
    data = await _receive(request)
    ignored = Ignored(request.app[UNKNOWN_FIELDS])
    if len(data) < LARGE:
        found = parse(data, shape, ignored)
    else:
        found = await asyncio.to_thread(parse, data, shape, ignored)
    ignore(request, ignored.names)
    return found


def ignore(request: web.Request, names: Iterable[str]) -> None:
    """These were asked for in vain, and the answer is right without them: its headers and the log say so."""
    request.setdefault(IGNORED, {}).update(dict.fromkeys(names))


def relax(request: web.Request, names: Iterable[str]) -> None:
    """The same for what the core names in neutral words."""
    dialect = request.app[ERROR_FORMS].of(request.path).names
    ignore(request, (dialect.get(name, name) for name in names))


async def _receive(request: web.Request) -> bytes:
    watch = None
    if not request.content.is_eof():
        watch = _Watch(request.content, request.app[TRANSFER_TIMEOUT])
    try:
        return await request.read()
    except web.RequestPayloadError as error:
        cause = error.__cause__
        reason = words_of(cause) if isinstance(cause, HttpProcessingError) else str(error)
        raise NodeError("malformed_request", f"The body cannot be read: {reason}") from None
    finally:
        if watch is not None:
            watch.end()


_UNQUOTED = {
    InvalidHeader: "Invalid HTTP header",
    InvalidURLError: "Invalid URL",
    LineTooLong: "A line is too long",
    TransferEncodingError: "Invalid chunk",
}
"""Errors of aiohttp's parser that are hardly more than the bytes they are about."""


def words_of(error: HttpProcessingError) -> str:
    """What aiohttp's parser says, in one line, and without the bytes that it quotes: they may be somebody's
    prompt, or a key."""
    for kind, words in _UNQUOTED.items():
        if isinstance(error, kind):
            return words
    said, _, _ = error.message.partition("\n\n")
    if isinstance(error, BadStatusLine):
        said = re.split(" ['\"]", said)[0]
    return " ".join(said.split()).removesuffix(":")


class _Watch:
    """Gives a body up that does not go on, or is slow for too long."""

    def __init__(self, content: StreamReader, seconds: float) -> None:
        self._content = content
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._expect()

    def end(self) -> None:
        """It is here, or nobody waits for it any more."""
        self._timer.cancel()

    def _expect(self) -> None:
        self._timer = self._loop.call_later(self._seconds, self._look, self._content.total_bytes)

    def _look(self, before: int) -> None:
        now = self._content.total_bytes
        slowest = (self._loop.time() - self._began - self._seconds) * SLOWEST
        if now > before and now >= slowest:
            self._expect()
            return
        how = f"nothing of it for {self._seconds:g} s" if now == before else f"less than {SLOWEST} bytes/s"
        self._content.set_exception(
            NodeError("request_timeout", f"The body did not come in time: {now} bytes, {how}")
        )


def parse(data: bytes, shape: type[Shape], ignored: Ignored | None = None) -> Shape:
    """Bytes as `shape`; `ignored` then names what is ignored in them. Raises `NodeError` with `param` naming
    the field that was wrong."""
    try:
        bounds.check_bytes(data)
        bounds.check_depth(data)
        # Refuses NaN and lone surrogates.
        content = from_json(data, allow_inf_nan=False)
    except bounds.TooMuch as error:
        raise _too_much(error) from None
    except ValueError as error:
        raise NodeError("invalid_json", _unreadable(error)) from None
    if not isinstance(content, dict):
        raise NodeError("invalid_json", "The body should be a JSON object")
    try:
        bounds.check(content, data)
    except bounds.TooMuch as error:
        raise _too_much(error) from None
    ignored = Ignored() if ignored is None else ignored
    try:
        found = shape.model_validate(content, context=ignored)
    except ValidationError as error:
        raise _fault(error.errors(include_url=False, include_input=False), content) from None
    ignored.settle(content)
    return found


_TOO_LONG = "number out of range"
"""What the parser says of a whole number that is JSON all the same."""


def _unreadable(error: ValueError) -> str:
    if isinstance(error, bounds.TooDeep):
        return f"The body is more than is read: {error}"
    reason = str(error)
    if reason.startswith(_TOO_LONG):
        words = f"a whole number has more than {bounds.MOST_DIGITS} digits"
        return f"The body is more than is read: {words}{reason.removeprefix(_TOO_LONG)}"
    return f"The body is not JSON: {reason}"


def _too_much(error: bounds.TooMuch) -> NodeError:
    return NodeError("invalid_request", str(error), error.param)


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
    last = len(error["loc"]) - 1
    for index, part in enumerate(error["loc"]):
        if isinstance(here, dict) and isinstance(part, str) and part in here:
            here = here[part]
        elif isinstance(here, list) and isinstance(part, int) and 0 <= part < len(here):
            here = here[part]
        elif error["type"] == "missing" and index == last:
            pass
        else:
            continue
        found.append(str(part))
    return ".".join(found)
