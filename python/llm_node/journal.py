"""The last lines of the log, kept in memory however the node was started, for `/api/logs`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Any

LINES = 2_000
"""As many are kept."""
BEHIND = 1_000
"""As many may wait for a reader who follows; one who reads more slowly misses the oldest."""

Line = dict[str, Any]
"""`time` (seconds since 1970), `level`, `logger`, `message`."""


class Journal(logging.Handler):
    """Keeps what is logged. Any thread may log; lines are read in the event loop."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: deque[Line] = deque(maxlen=LINES)
        self._followers: set[_Follower] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`; called with its lock held."""
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + logging.Formatter().formatException(record.exc_info)
        line = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
        }
        self._lines.append(line)
        for follower in self._followers:
            follower.tell(line)

    def last(self, count: int, model: str | None = None) -> list[Line]:
        """The last lines, oldest first; with `model`, those that name it."""
        with _held(self):
            lines = list(self._lines)
        found = [line for line in lines if concerns(line, model)]
        return found[len(found) - min(count, len(found)) :]

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Keep what is logged for as long as the block runs."""
        root = logging.getLogger()
        root.addHandler(self)
        try:
            yield
        finally:
            root.removeHandler(self)

    async def follow(self, count: int, model: str | None = None) -> AsyncIterator[Line]:
        """The last lines, and from there on each as it comes. Ends when the caller stops."""
        follower = _Follower(asyncio.get_running_loop())
        with _held(self):
            before = self.last(count, model)
            self._followers.add(follower)
        try:
            for line in before:
                yield line
            while True:
                line = await follower.next()
                if concerns(line, model):
                    yield line
        finally:
            with _held(self):
                self._followers.discard(follower)


class _Follower:
    """Lines on their way to one reader."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lines: deque[Line] = deque(maxlen=BEHIND)
        self._came = asyncio.Event()

    def tell(self, line: Line) -> None:
        """From any thread."""
        self._lines.append(line)
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._came.set)

    async def next(self) -> Line:
        """Waits for it."""
        while not self._lines:
            self._came.clear()
            await self._came.wait()
        return self._lines.popleft()


def concerns(line: Line, model: str | None) -> bool:
    """Is the line about this model? Those that are have its name in quotes."""
    return model is None or f"'{model}'" in line["message"]


@contextlib.contextmanager
def _held(journal: Journal) -> Iterator[None]:
    journal.acquire()
    try:
        yield
    finally:
        journal.release()
