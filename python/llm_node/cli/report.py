"""What `llm-node doctor` found, as a text for an issue: nothing in it tells who asks, or which models."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from llm_node.settings import ALL, Settings
from llm_node.version import ABI_VERSION, __version__

if TYPE_CHECKING:
    from llm_node.cli.doctor import Finding


def text(settings: Settings, findings: Iterable[Finding]) -> str:
    """In Markdown."""
    python = f"Python {platform.python_version()}"
    changed = [row.name for row in ALL if not settings.has_default(row.name)]
    lines = [
        f"llm-node {__version__} (engine ABI {ABI_VERSION}), {python}, {platform.platform()}",
        f"settings that are not the default: {', '.join(changed) or 'none'}",
    ]
    names = _named(settings)
    found = (f"{it.level:<5} {_without(it.nameless or it.message, settings, names)}" for it in findings)
    return "\n".join(["```text", *lines, *dict.fromkeys(found), "```"])


def _named(settings: Settings) -> set[str]:
    """Names of models in the settings."""
    aliases = settings.all_aliases()
    others = (settings.default_model, settings.draft_model)
    return {*settings.models, *aliases, *aliases.values(), *(str(it) for it in others if it)}


def _without(message: str, settings: Settings, names: Iterable[str]) -> str:
    """The message without names of models, and with words in place of the user's own folders."""
    folders = {
        Path.home(): "~",
        settings.home: "LLM_NODE_HOME",
        settings.models_dir: "MODELS_DIR",
        **dict.fromkeys(settings.engines_dir, "ENGINES_DIR"),
    }
    words = {str(folder): word for folder, word in folders.items() if folder != Path(folder.anchor)}
    for each in sorted([*words, *names], key=len, reverse=True):
        pattern = rf"(?<![\w.-]){re.escape(each)}(?![\w-]|\.\w)"
        message = re.sub(pattern, lambda _, each=each: words.get(each, "MODEL"), message)  # type: ignore[misc]
    return message
