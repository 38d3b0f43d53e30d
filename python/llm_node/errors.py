"""THE TABLE: what each error code means in HTTP, and the body that errors have in each API dialect.

JSON answers and a stream's frames are both made here, so they cannot disagree. The codes themselves are
Rust's (`rust/core/src/error.rs`); a test fails when one has no row here. `docs/errors.md` is printed
from this table. Nothing here knows aiohttp.
"""

from __future__ import annotations

import enum
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

log = logging.getLogger(__name__)


class Failure(Protocol):
    """What a `llm_node.NodeError` offers."""

    @property
    def code(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def param(self) -> str | None: ...
    @property
    def details(self) -> Mapping[str, object] | None: ...


class Exit(enum.IntEnum):
    """What `llm-node` ends with."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    NO_ROOM = 4
    NOT_ALLOWED = 5
    UNREACHABLE = 6
    DEFECT = 7
    INTERRUPTED = 130


EXITS: Mapping[Exit, str] = {
    Exit.DONE: "Done.",
    Exit.FAILED: "Failed; the message says at what.",
    Exit.USAGE: "Wrong usage: an option, a setting or a parameter.",
    Exit.NOT_FOUND: "What was named is not there.",
    Exit.NO_ROOM: "No room: memory or disk.",
    Exit.NOT_ALLOWED: "Not allowed.",
    Exit.UNREACHABLE: "The node, or where models are fetched from, cannot be reached.",
    Exit.DEFECT: "`serve`: a defect of the node ended it by itself; its log says more. Start it again.",
    Exit.INTERRUPTED: "Ended by Ctrl-C.",
}
"""What each means; for the documentation."""


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    status: int
    """Of the HTTP answer."""
    type: str
    """`error.type` in the body."""
    when: str
    """When it happens; for the documentation."""
    retry_after: float | None = None
    """Seconds for `Retry-After`, where trying again helps and nothing better was measured."""
    exit: Exit = Exit.FAILED
    """What a command that ends with this error ends with."""

    @property
    def anthropic(self) -> str:
        """The type that Anthropic's API gives it."""
        return _ANTHROPIC.get(self.status, "invalid_request_error" if self.status < 500 else "api_error")


_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
"""By status; see the property."""

_REQUEST = "invalid_request_error"
_UNSUPPORTED = "unsupported_error"
_PERMISSION = "permission_error"
_PLUGIN = "plugin_error"
_RESOURCE = "resource_error"
_SERVER = "server_error"
_SOURCE = "source_error"

TABLE: Mapping[str, Row] = {
    "invalid_json": Row(400, _REQUEST, "The body is not JSON, is nested too deep, or is not an object."),
    "malformed_request": Row(
        400,
        _REQUEST,
        "The bytes are no HTTP/1 request, or its body is cut or corrupt; the message says why.",
    ),
    "invalid_request": Row(
        400,
        _REQUEST,
        "A field has the wrong type or range; `param` names it, the message says what was expected.",
        exit=Exit.USAGE,
    ),
    "unsupported_parameter": Row(
        400,
        _REQUEST,
        "A parameter that would change the answer cannot be honoured. It is never dropped silently.",
        exit=Exit.USAGE,
    ),
    "context_length_exceeded": Row(
        400,
        _REQUEST,
        "The prompt leaves no room for an answer in the context; both numbers are in the message, and in "
        "`prompt_tokens` and `context_length`. `largest_context` is the longest context that the model could "
        "be loaded with here, where its engine can say. Nothing is truncated.",
    ),
    "architecture_mismatch": Row(
        400, _UNSUPPORTED, "The engine's manifest does not name the model's architecture."
    ),
    "format_mismatch": Row(400, _UNSUPPORTED, "No engine reads the model's format."),
    "unsupported_feature": Row(
        400,
        _UNSUPPORTED,
        "The engine or the model lacks what was asked for (embeddings, images, a chat template).",
    ),
    "invalid_api_key": Row(
        401, "authentication_error", "The API key is missing or unknown.", exit=Exit.NOT_ALLOWED
    ),
    "insufficient_scope": Row(
        403, _PERMISSION, "An inference key was used on an admin route.", exit=Exit.NOT_ALLOWED
    ),
    "host_not_allowed": Row(
        403,
        _PERMISSION,
        "The `Host` header has a name that public DNS may point here; `--allow-host` allows it. Or it lacks "
        "the node's own port, and an admin route was asked of a node with `--behind-balancer`.",
        exit=Exit.NOT_ALLOWED,
    ),
    "origin_not_allowed": Row(
        403,
        _PERMISSION,
        "A web page of another origin sent the request; `--cors-origin` allows that origin.",
        exit=Exit.NOT_ALLOWED,
    ),
    "gated_model": Row(
        403,
        _PERMISSION,
        "The model's owner wants its terms to be accepted on its page, and a token of who accepted them.",
        exit=Exit.NOT_ALLOWED,
    ),
    "model_not_found": Row(
        404, _REQUEST, "No model of that name; the message lists near names.", exit=Exit.NOT_FOUND
    ),
    "previous_response_not_found": Row(
        400,
        _REQUEST,
        "`previous_response_id` names an answer that is not kept: it was made with `store` false or by "
        "another key, or is too old, or the node was started since.",
    ),
    "model_loaded_differently": Row(
        409,
        _REQUEST,
        "The model is being loaded with another engine or option than was asked for; the message names both.",
    ),
    "not_found": Row(404, _REQUEST, "No such route, or nothing of that id.", exit=Exit.NOT_FOUND),
    "method_not_allowed": Row(
        405, _REQUEST, "The route does not know the method; `Allow` lists those it knows."
    ),
    "request_timeout": Row(
        408, _REQUEST, "Headers (`--header-timeout`) or body (`--transfer-timeout`) did not come in time."
    ),
    "request_too_large": Row(
        413,
        _REQUEST,
        "The body is larger than `--max-body`, unpacked or not; or an answer is too long to be kept as a "
        "whole.",
    ),
    "unsupported_encoding": Row(
        415, _REQUEST, "The body's `Content-Encoding` is one that the node does not read."
    ),
    "expectation_failed": Row(417, _REQUEST, "The `Expect` header asks for more than `100-continue`."),
    "headers_too_large": Row(431, _REQUEST, "The request line or a header is longer than 64 KiB."),
    "queue_full": Row(
        429,
        "rate_limit_error",
        "More requests wait for this model than `--queue-limit` allows.",
        retry_after=1,
    ),
    "cancelled": Row(
        499,
        _SERVER,
        "The client left, or the request was cancelled. Nearly always seen in the access log alone.",
    ),
    "abi_mismatch": Row(500, _PLUGIN, "The engine was built for another version of the engine ABI."),
    "load_failed": Row(
        500, _PLUGIN, "The engine could not load the model; the message has the engine's own words."
    ),
    "model_corrupt": Row(500, _PLUGIN, "The model file is damaged."),
    "internal": Row(500, _SERVER, "A defect of the node. Its log has the details under the request id."),
    "engine_fault": Row(
        502,
        _PLUGIN,
        "The engine failed at its work, or gave what the interface forbids; the message names the call.",
    ),
    "engine_not_found": Row(
        503, _PLUGIN, "No engine can take the model; the message lists every candidate with its reason."
    ),
    "engine_crashed": Row(
        503,
        _PLUGIN,
        "The model's worker died or stands still; the message has the signal and the engine call. "
        "With `crashes`: this request was under way so often, alone or again. The node does not run it once "
        "more by itself, and after the second time for a while not at all. After six crashes in a row "
        "`retry_after` is null, and the model has to be loaded or unloaded.",
        retry_after=2,
    ),
    "gpu_not_found": Row(503, _RESOURCE, "There is no usable GPU, and nobody chose the CPU."),
    "too_many_connections": Row(
        503, _SERVER, "As many connections are open as `--max-connections` allows.", retry_after=5
    ),
    "shutting_down": Row(
        503, _SERVER, "The node is going down, or the model was unloaded meanwhile.", retry_after=5
    ),
    "model_loading": Row(
        503, _SERVER, "The model is still being loaded, or waits for memory.", retry_after=2
    ),
    "checksum_mismatch": Row(
        502, _SOURCE, "A file that was fetched is not the one that its source promised; it was deleted."
    ),
    "source_unreachable": Row(
        502,
        _SOURCE,
        "Where models are fetched from cannot be reached, or answers what cannot be understood.",
        exit=Exit.UNREACHABLE,
    ),
    "source_busy": Row(
        503,
        _SOURCE,
        "Where models are fetched from wants to be left alone for a while.",
        retry_after=60,
        exit=Exit.UNREACHABLE,
    ),
    "offline": Row(
        503,
        _SOURCE,
        "The node fetches nothing: `--offline yes`, or `HF_HUB_OFFLINE`.",
        exit=Exit.UNREACHABLE,
    ),
    "timeout": Row(504, "timeout_error", "A deadline passed: of a load, or of a request."),
    "oom_vram": Row(
        507,
        _RESOURCE,
        "The model does not fit the GPU memory that is free and allowed, or, on a node that computes on the "
        "CPU, what `--vram-limit` allows of the host's. Nothing was allocated. `would_fit` lists what a load "
        "may say instead.",
        exit=Exit.NO_ROOM,
    ),
    "oom_ram": Row(
        507,
        _RESOURCE,
        "The model does not fit the host's memory. `would_fit` lists what a load may say instead.",
        exit=Exit.NO_ROOM,
    ),
    "disk_full": Row(
        507,
        _RESOURCE,
        "The disk has no room for the model; both numbers are in the message.",
        exit=Exit.NO_ROOM,
    ),
}


Body = Callable[[Row, Failure, str], Mapping[str, Any]]
"""Makes the body of an error: of its row, the failure, and the request's id."""


def _plain(row: Row, failure: Failure, request_id: str) -> dict[str, Any]:
    """`{"error": {"message", "type", "code", "param", ...}}`, further fields of `details` beside them."""
    return {"error": fields(failure.code, failure.message, failure.param, failure.details)}


PLAIN_SCHEMA: Mapping[str, Any] = {
    "title": "Error",
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}


@dataclass(frozen=True)
class Form:
    """How one API dialect writes errors."""

    body: Body = _plain
    schema: Mapping[str, Any] = field(default_factory=lambda: PLAIN_SCHEMA)
    """The JSON schema of such a body, with a title."""
    names: Mapping[str, str] = field(default_factory=dict)
    """What it calls a parameter that a fault names in neutral words, where that is something else."""
    id_header: str | None = None
    """A header of its own for the request's id, on every answer."""


PLAIN = Form()
"""For all routes that are no dialect's."""


class Forms:
    """Which form a path has: that of the longest path that was added and is a beginning of it."""

    def __init__(self) -> None:
        self._forms: dict[str, Form] = {}

    def add(self, path: str, form: Form) -> None:
        """`path`: a route's, or the beginning of several. What stands in braces is left out."""
        beginning = path.partition("{")[0].rstrip("/")
        if beginning:  # the route "/" is the beginning of no other
            self._forms[beginning] = form

    def of(self, path: str) -> Form:
        """That of any path, also of one without a route."""
        while path:
            form = self._forms.get(path)
            if form is not None:
                return form
            path = path.rpartition("/")[0]
        return PLAIN


@dataclass(frozen=True)
class Named:
    """A failure that names its parameter in a dialect's words."""

    code: str
    message: str
    param: str | None
    details: Mapping[str, object] | None


@dataclass(frozen=True)
class Reply:
    """An error as it goes out. `status` and `headers` are for an answer that has not begun."""

    status: int
    headers: Mapping[str, str]
    body: Mapping[str, Any]


def reply(failure: Failure, form: Form = PLAIN, request_id: str = "unknown") -> Reply:
    """The row of the table for a failure. A code without a row is a defect, and answered as one."""
    row = TABLE.get(failure.code)
    if row is None:
        log.error("error code %r has no row in the table: %s", failure.code, failure.message)
        return internal(request_id, form)
    return Reply(row.status, _headers(row, failure.details), body(failure, form, request_id))


def internal(request_id: str, form: Form = PLAIN) -> Reply:
    """For anything unmapped. The caller has logged it under the request id."""
    return reply(defect(request_id), form, request_id)


def defect(request_id: str) -> Failure:
    """What is said of anything unmapped."""
    message = f"Internal error; the node's log has the details under request id {request_id}"
    return Named("internal", message, None, None)


_INNER = re.compile(r"prompt\.chat\.(\w+)|(format)\.")
"""A place within a request of the core, and the neutral name of what a client said there."""


def body(failure: Failure, form: Form = PLAIN, request_id: str = "unknown") -> Mapping[str, Any]:
    """The body alone, as the dialect writes it."""
    param, message = failure.param, failure.message
    if param is not None:
        inner = _INNER.match(param)
        neutral = inner[1] or inner[2] if inner else param
        param = form.names.get(neutral, neutral)
        if message.startswith(f"{failure.param} is "):
            message = param + message.removeprefix(failure.param or "")
    named = Named(failure.code, message, param, failure.details)
    return form.body(TABLE.get(failure.code, TABLE["internal"]), named, request_id)


def fields(
    code: str, message: str, param: str | None = None, details: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """The error object alone; also for errors that are part of a report, such as a rejected engine's."""
    row = TABLE.get(code, TABLE["internal"])
    fixed = {"message": message, "type": row.type, "code": code, "param": param}
    return {**fixed, **{key: value for key, value in (details or {}).items() if key not in fixed}}


def _headers(row: Row, details: Mapping[str, object] | None) -> dict[str, str]:
    seconds = (details or {}).get("retry_after", row.retry_after)
    if not isinstance(seconds, int | float):
        return {}  # also where a null says that no time makes it better
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
