"""`node.json` in the home folder: where the node is that runs here.

A node that serves writes it, and the commands that look for one read it. It tells of the last that started,
and of those that ran by then. Once the last has ended, it tells of the one before, if that still runs.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

NAME = "node.json"


@dataclass(frozen=True)
class NodeRecord:
    """A node that runs, or ran."""

    node_id: str
    """As `/readyz` answers; another one is another node."""
    url: str
    pid: int
    key: str
    """For its user's commands, where it asks for keys."""
    fingerprint: str | None = None
    """SHA-256 of its certificate, where it does TLS: commands know it by that, whatever name it is for."""
    before: NodeRecord | None = None
    """The node that ran in this home when this one started."""

    def all(self) -> Iterator[NodeRecord]:
        """This one, and those before it."""
        known: NodeRecord | None = self
        while known is not None:
            yield known
            known = known.before

    @contextlib.contextmanager
    def kept_in(self, home: Path) -> Iterator[None]:
        """Write it for as long as the block runs. Where it cannot be written, the log says so."""
        self.write(home)
        try:
            yield
        finally:
            known = read(home)
            if known is not None and known.node_id == self.node_id:  # another node may have started since
                with contextlib.suppress(OSError):
                    (home / NAME).unlink()

    def write(self, home: Path) -> None:
        """Put it there. Where it cannot be written, the log says so."""
        try:
            self._write(home)
        except OSError as error:
            log.warning("commands will not find this node: %s: %s", home / NAME, error.strerror)

    def _write(self, home: Path) -> None:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = home / f".{NAME}.{self.pid}"
        fresh.unlink(missing_ok=True)
        try:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(descriptor, "w", encoding="utf-8") as file:
                json.dump(asdict(self), file)
            os.replace(fresh, home / NAME)
        finally:
            fresh.unlink(missing_ok=True)


def read(home: Path) -> NodeRecord | None:
    """What stands there, if it is a record."""
    try:
        return _of(json.loads((home / NAME).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _of(found: dict[str, Any]) -> NodeRecord:
    fingerprint, before = found.get("fingerprint"), found.get("before")
    return NodeRecord(
        str(found["node_id"]),
        str(found["url"]),
        int(found["pid"]),
        str(found["key"]),
        None if fingerprint is None else str(fingerprint),
        None if before is None else _of(before),
    )
