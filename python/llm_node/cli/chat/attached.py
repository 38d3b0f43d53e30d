"""Files as a part of what a user says."""

from __future__ import annotations

import re
from pathlib import Path

from llm_node import files
from llm_node.cli.chat.conversation import ConversationError


def read(path: Path) -> str:
    """A text file as a fenced block under its name. Raises `OSError` or `ConversationError`."""
    try:
        text = files.read_text(path)
    except UnicodeDecodeError:
        raise ConversationError(f"{path} is no text") from None
    longest = max(map(len, re.findall(r"`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    ending = "" if text.endswith("\n") or not text else "\n"
    return f"{path.name}:\n{fence}{path.suffix.removeprefix('.')}\n{text}{ending}{fence}\n"
