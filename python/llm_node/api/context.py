"""What a route finds in its application and its request. Set once, in `server/`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

from aiohttp import web

from llm_node import errors
from llm_node.api.store import Store
from llm_node.journal import Journal
from llm_node.node import Node
from llm_node.pull import Pulls
from llm_node.schema.wire import Unknown

NODE = web.AppKey("NODE", Node)
PULLS = web.AppKey("PULLS", Pulls)
JOURNAL = web.AppKey("JOURNAL", Journal)
ERROR_FORMS = web.AppKey("ERROR_FORMS", errors.Forms)
"""How errors are written, by the path of a request."""
KEEP_ALIVE = web.AppKey("KEEP_ALIVE", float)
"""Seconds of silence after which a stream gets what changes nothing."""
QUEUE_LIMIT = web.AppKey("QUEUE_LIMIT", int)
"""Requests that may wait for one model."""
TRANSFER_TIMEOUT = web.AppKey("TRANSFER_TIMEOUT", float)
"""Seconds for which a body may stand still on its way."""

STORE = web.AppKey("STORE", Store)
"""Answers that are kept."""

UNKNOWN_FIELDS = web.AppKey[Unknown | None]("UNKNOWN_FIELDS")
"""One rule for fields that nobody knows; None: each dialect has its own."""

IGNORED: web.RequestKey[dict[str, None]] = web.RequestKey("IGNORED")
"""In a request: what was asked for in vain, by name, in order."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="unknown")
"""The id of the request that this task answers, as in `x-request-id` and the log."""

ERROR_CODE: ContextVar[str] = ContextVar("error_code", default="")
"""What error the request came to, for its line in the log: a stream that fails has status 200 by then."""

PROBE: web.RequestKey[Callable[[], None]] = web.RequestKey("PROBE")
"""In a request whose answer is a stream: a function that sends what changes nothing, to show whether a client
that sends no more still reads."""
