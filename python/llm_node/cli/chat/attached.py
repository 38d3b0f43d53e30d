"""Files as a part of what a user says."""

from __future__ import annotations

import re
from pathlib import Path

from llm_node.cli.chat.conversation import ConversationError

LARGEST = 4 << 20
"""Bytes of a file; a model's context is full long before."""


def read(path: Path) -> str:
    """A text file as a fenced block under its name. Raises `OSError` or `ConversationError`."""
    if path.stat().st_size > LARGEST:
        raise ConversationError(f"{path} is larger than {LARGEST >> 20} MiB")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConversationError(f"{path} is no text") from None
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    ending = "" if text.endswith("\n") or not text else "\n"
    return f"{path.name}:\n{fence}{path.suffix.removeprefix('.')}\n{text}{ending}{fence}\n"
