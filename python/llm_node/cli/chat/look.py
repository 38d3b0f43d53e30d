"""How a chat is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Look:
    """How things are shown."""

    plain: bool
    """Neither colours nor Markdown."""
    hide_thinking: bool
    verbose: bool
