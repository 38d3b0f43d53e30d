"""Reading files that somebody names: as much as makes sense, and never without end."""

from __future__ import annotations

import errno
from pathlib import Path

LARGEST = 4 << 20
"""Bytes of a file that people write: settings, keys, templates, schemas, texts to talk about."""


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All of a file, or of a pipe that ends. Raises `OSError`, also where it holds more than `largest` bytes,
    as a device without an end does; its `strerror` says so."""
    with path.open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        reason = f"there are more than {largest >> 20} MiB in it, or no end at all: name a smaller file"
        raise OSError(errno.EINVAL, reason, str(path))
    return content


def read_text(path: Path, largest: int = LARGEST) -> str:
    """As `read_bytes`, of a text in UTF-8. Raises `UnicodeDecodeError` too. All ends of lines are `\\n`."""
    return read_bytes(path, largest).decode().replace("\r\n", "\n").replace("\r", "\n")
