"""What a route finds in its application. Set once, in `server/app.py`."""

from __future__ import annotations

from contextvars import ContextVar

from aiohttp import web

from llm_node.node import Node

NODE = web.AppKey("NODE", Node)
KEEP_ALIVE = web.AppKey("KEEP_ALIVE", float)
"""Seconds of silence after which a stream gets an SSE comment."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="unknown")
"""The id of the request that this task answers, as in `x-request-id` and the log."""

ERROR_CODE: ContextVar[str] = ContextVar("error_code", default="")
"""What error the request came to, for its line in the log: a stream that fails has status 200 by then."""
