"""Files that somebody names: they are read as far as makes sense, and never without end."""

from __future__ import annotations

import errno
import os
import select
import stat
import sys
from io import FileIO
from pathlib import Path

LARGEST = 4 << 20
"""Bytes of a file that people write: settings, keys, templates, schemas, texts to talk about."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""Why a file is not written: there is no room for it, or for one as large."""

SILENCE_SECONDS = 5.0
"""How long a pipe, or a device, may bring nothing."""


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """All of a file, or of a pipe that ends. Raises `OSError`, also where it holds more than `largest` bytes,
    as a device without an end does, and where it is silent for `SILENCE_SECONDS`; its `strerror` says so."""
    content = bytearray()
    with open(path, "rb", buffering=0, opener=_open) as file:
        waits = not stat.S_ISREG(os.fstat(file.fileno()).st_mode)
        while len(content) <= largest:
            if waits and not _brings_something(file):
                reason = f"nothing came for {SILENCE_SECONDS:g} s: this is no file, and nobody writes into it"
                raise OSError(errno.ENODATA, reason, str(path))
            piece = file.read(largest + 1 - len(content))
            if piece is None:  # another reader was faster
                continue
            if not piece:
                break
            content += piece
    if len(content) > largest:
        reason = f"there are more than {largest >> 20} MiB in it, or no end at all: name a smaller file"
        raise OSError(errno.EINVAL, reason, str(path))
    return bytes(content)


def read_text(path: Path, largest: int = LARGEST) -> str:
    """As `read_bytes`, of a text in UTF-8. Raises `UnicodeDecodeError` too. Ends of lines are `\\n`. A byte
    order mark, which editors of Windows put first, is left out."""
    return read_bytes(path, largest).decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")


def _open(path: str, flags: int) -> int:
    """Without waiting for who writes into a pipe."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _brings_something(file: FileIO) -> bool:
    """Are there bytes of it, or is its end there?"""
    if sys.platform == "win32":
        return True  # it cannot be looked at
    looking = select.poll()
    looking.register(file, select.POLLIN)
    return bool(looking.poll(SILENCE_SECONDS * 1000))
