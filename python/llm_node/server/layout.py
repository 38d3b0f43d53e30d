"""How the home folder is laid out: a number in it, so that no node takes for its own what a newer one left.
A home without the number is of the first layout.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

LAYOUT = 1
NAME = "layout"


def newer(home: Path) -> int | None:
    """The layout of a home that only a newer llm-node knows; None: this one knows it."""
    try:
        number = int((home / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return number if number > LAYOUT else None


def note(home: Path) -> None:
    """Say which layout a home has that does not say it. Where nothing can be written, it is left as it is."""
    file = home / NAME
    if file.exists():
        return
    try:
        file.write_text(f"{LAYOUT}\n", encoding="utf-8")
    except OSError:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)  # a full disk takes the name and not the number
