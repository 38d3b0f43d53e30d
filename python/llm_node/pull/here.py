"""Files that are here already, under whatever name: found by their sha256, without reading any of them.

The records of pulls have it, and the hub's client, llama.cpp and Ollama name the files of their caches by it.
LM Studio notes none.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from llm_node.pull.store import Store

Caches = Sequence[tuple[str, Path]]
"""Programs, each with a folder of its models: `Settings.cache_folders`."""


def find(store: Store, caches: Caches, sha256: str, size: int | None) -> Path | None:
    """A file with this hash that can be read, one of the models folder before those of other programs. One
    with another number of bytes than `size` is not it. None: there is none."""
    for path in (*store.with_hash(sha256), *_of_others(caches, sha256)):
        # Not `Path.is_file`, which raises where a folder on the way is closed.
        if os.path.isfile(path) and os.access(path, os.R_OK) and size in (None, os.path.getsize(path)):
            return path
    return None


def _of_others(caches: Caches, sha256: str) -> Iterator[Path]:
    for program, folder in caches:
        if program == "ollama":
            yield folder / "blobs" / f"sha256-{sha256}"
        elif program in ("hub", "llama-cpp"):
            yield from folder.glob(f"models--*/blobs/{sha256}")
