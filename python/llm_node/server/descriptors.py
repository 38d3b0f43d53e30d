"""How many files and sockets this process may have open."""

from __future__ import annotations

import sys

ENOUGH = 65_536
"""As many as anybody needs. There are programs that walk through all possible descriptors, so a limit of a
billion is not handed down to workers."""


def raise_limit() -> int:
    """Raise the soft limit as far as it may be, and give what it is then."""
    if sys.platform == "win32":
        return ENOUGH
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return ENOUGH if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # macOS has a further limit, which it does not tell
        return soft
    return wanted
