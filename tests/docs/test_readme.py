"""The README is for a stranger: short, with one picture."""

from __future__ import annotations

import re
from pathlib import Path


def test_the_readme_is_short(repository: Path) -> None:
    text = (repository / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 450
    assert len(re.findall(r"!\[", text)) == 1
    (commands,) = re.findall(r"```\n(.*?)```", text, re.DOTALL)
    assert len(commands.splitlines()) == 3


def test_the_picture_asks_no_other_server(repository: Path) -> None:
    picture = (repository / "docs/terminal.svg").read_text(encoding="utf-8")
    assert "An&#160;engine&#160;is&#160;a&#160;shared&#160;library" in picture
    assert not re.search(r"(href|src|url)\s*[=(]\s*[\"']?https?:", picture)
