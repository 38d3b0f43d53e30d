"""Linux's watch on folders (inotify): what anybody does to anything below one."""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

CHANGES = 0x2 | 0x4 | 0x8 | 0x40 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
"""Written, attributes, closed after writing, moved, created, deleted."""
HEAD = struct.Struct("iIII")


class Watch:
    """What was done, as (folder, name, mask)."""

    def __init__(self, root: Path) -> None:
        self._c = ctypes.CDLL(None, use_errno=True)
        self._number = self._c.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._number >= 0
        self._folders: dict[int, Path] = {}
        for folder in [root, *(path for path in root.rglob("*") if path.is_dir() and not path.is_symlink())]:
            watch = self._c.inotify_add_watch(self._number, os.fsencode(folder), CHANGES)
            assert watch >= 0, folder
            self._folders[watch] = folder

    def changes(self) -> list[tuple[Path, str, int]]:
        """Since the beginning, or since it was asked last."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._number, 1 << 16):
                while data:
                    watch, mask, _, length = HEAD.unpack_from(data)
                    name = data[HEAD.size : HEAD.size + length].rstrip(b"\0").decode(errors="replace")
                    found.append((self._folders[watch], name, mask))
                    data = data[HEAD.size + length :]
        return found

    def close(self) -> None:
        os.close(self._number)


@contextlib.contextmanager
def watched(root: Path) -> Iterator[Watch]:
    watch = Watch(root)
    try:
        yield watch
    finally:
        watch.close()
