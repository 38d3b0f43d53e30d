"""What a route finds in its application and its request. Set once, in `server/`."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from llm_node import errors
from llm_node.api.store import Store
from llm_node.journal import Journal
from llm_node.keys import Key
from llm_node.node import Event, Node
from llm_node.pull import Pulls
from llm_node.schema.wire import Unknown

NODE = web.AppKey("NODE", Node)
PULLS = web.AppKey("PULLS", Pulls)
JOURNAL = web.AppKey("JOURNAL", Journal)
ERROR_FORMS = web.AppKey("ERROR_FORMS", errors.Forms)
"""How errors are written, by the path of a request."""
PING_INTERVAL = web.AppKey("PING_INTERVAL", float)
"""Seconds of silence after which a stream gets what changes nothing."""
QUEUE_LIMIT = web.AppKey("QUEUE_LIMIT", int)
"""Requests that may wait for one model."""
WARMING = web.AppKey[list[str]]("WARMING")
"""Models that are to be loaded before the node takes requests, and have not been tried yet."""
TRANSFER_TIMEOUT = web.AppKey("TRANSFER_TIMEOUT", float)
"""Seconds for which a body may stand still on its way."""

SETTINGS_FILE = web.AppKey("SETTINGS_FILE", Path)
"""Which need not be there."""
STORE = web.AppKey("STORE", Store)
"""Answers that are kept."""

UNKNOWN_FIELDS = web.AppKey[Unknown | None]("UNKNOWN_FIELDS")
"""One rule for fields that nobody knows; None: each dialect has its own."""

IGNORED: web.RequestKey[dict[str, None]] = web.RequestKey("IGNORED")
"""In a request: what was asked for in vain, by name, in order."""

KEY: web.RequestKey[Key] = web.RequestKey("KEY")
"""In a request: whose key it has, where keys are asked for."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="unknown")
"""The id of the request that this task answers, as in `x-request-id` and the log."""


@dataclass
class Took:
    """What the answers to one request took, for its line in the log."""

    model: str = ""
    """As it was asked for; empty where nothing was generated."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_token_ns: int = 0
    """Until the last of several answers had its first token; then until its end."""
    wrote_ns: int = 0

    def add(self, model: str, event: Event) -> None:
        """`event`: an answer's ending."""
        self.model = model
        self.prompt_tokens += event.prompt_tokens
        self.completion_tokens += event.completion_tokens
        self.first_token_ns = max(self.first_token_ns, event.waited_ns + event.read_ns)
        self.wrote_ns = max(self.wrote_ns, event.wrote_ns)

    def __str__(self) -> str:
        if not self.model:
            return ""
        seconds = self.wrote_ns / 1e9
        speed = f" {self.completion_tokens / seconds:.1f}/s" if seconds > 0 else ""
        first = f"{self.first_token_ns / 1e9:.3f}s"
        return f" {self.model!r} {self.prompt_tokens}+{self.completion_tokens} tokens, first {first}{speed}"


TOOK: ContextVar[Took] = ContextVar("took")
"""Of the request that this task answers; the same for all tasks that help it."""

ERROR_CODE: ContextVar[str] = ContextVar("error_code", default="")
"""What error the request came to, for its line in the log: a stream that fails has status 200 by then."""

PROBE: web.RequestKey[Callable[[], None]] = web.RequestKey("PROBE")
"""In a request whose answer is a stream: a function that sends what changes nothing, to show whether a client
that sends no more still reads."""
