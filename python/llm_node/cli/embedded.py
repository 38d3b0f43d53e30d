"""A node of one's own for as long as a command runs: the same application, on a free port of this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

import click

from llm_node import advice
from llm_node.cli import greeting, own_node
from llm_node.cli.failure import Failed
from llm_node.node import Node, keep_memory_private
from llm_node.server import descriptors
from llm_node.server.address import resolve, url
from llm_node.server.app import make_app, make_runner
from llm_node.server.listener import Listener, most_connections
from llm_node.settings import LEVELS, LOG_FORMAT, Settings

LOOPBACK = "127.0.0.1"
DRAIN_SECONDS = 1.0
"""What was asked for has ended by then, or nobody waits for it."""
LOG_BYTES = 1 << 20
"""Of the log's file, and of the one before it."""


@contextlib.asynccontextmanager
async def serving(settings: Settings, *, loads_models: bool = True) -> AsyncIterator[str]:
    """The URL of a node of these settings. Raises `NodeError` where it cannot start. One that loads no models
    needs neither a device nor an engine."""
    with _logging_to(settings.home / "logs" / "run.log", LEVELS[settings.log_level]):
        keep_memory_private()
        node = own_node.make(settings, needs_device=loads_models)
        runner = make_runner(make_app(node, dataclasses.replace(settings, api_key_file=None)))
        try:
            await runner.setup()
            if loads_models:
                await _check_engines(node)
            most = most_connections(settings.max_connections, descriptors.raise_limit())
            listener = Listener(runner, settings, most_connections=most)
            listener.open(await resolve(LOOPBACK, 0))
            try:
                yield url(LOOPBACK, listener.port)
            finally:
                await listener.close()
        finally:
            await node.close(DRAIN_SECONDS)
            await runner.cleanup()


async def _check_engines(node: Node) -> None:
    """Ends the command where no model could be loaded, whatever it is."""
    engines = await node.engines()
    if reason := greeting.wrong_backend(engines, node.gpu_backend):
        raise Failed(reason)
    if not advice.usable(engines, node.gpu_backend):
        raise Failed(greeting.NO_ENGINE)


@contextlib.contextmanager
def _logging_to(file: Path, level: int) -> Iterator[None]:
    """The node's log is not for the one who chats."""
    root = logging.getLogger()
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler: logging.Handler = _LogFile(file, maxBytes=LOG_BYTES, backupCount=1, encoding="utf-8")
    except OSError:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    before = root.level
    root.addHandler(handler)
    root.setLevel(level)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        with contextlib.suppress(OSError):  # it writes what it holds still; that it cannot was said
            handler.close()


class _LogFile(RotatingFileHandler):
    """Says in one line, once, that it cannot be written: on a disk that is full, for one."""

    _is_said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of the base
        """See `logging.Handler`, which would print a traceback for each record."""
        error = sys.exc_info()[1]
        if not self._is_said:
            self._is_said = True
            reason = error.strerror if isinstance(error, OSError) else error
            click.echo(f"the log {self.baseFilename} cannot be written: {reason}", err=True)
