"""The pictures in the pages: made of a real page and a real terminal, by tools that still can."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOST_BYTES = 150_000
BEGINNING = b"\x89PNG\r\n\x1a\n"

# Each starts a node, and the page's waits until there are figures to draw.
pytestmark = pytest.mark.timeout(300)


def drawn(repository: Path, tool: str, engines: Path, out: Path) -> None:
    command = [sys.executable, repository / "tools" / tool, engines, out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr


def size_of(png: bytes) -> tuple[int, int]:
    assert png.startswith(BEGINNING)
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")


def test_the_pictures_of_the_page(repository: Path, engines: Path, tmp_path: Path) -> None:
    if not (shutil.which("chromium") or shutil.which("google-chrome")):
        pytest.skip("no Chromium: `sudo apt-get install chromium` brings one")
    drawn(repository, "page_picture.py", engines, tmp_path)
    for name in ("page.png", "page-models.png", "page-live.png"):
        fresh, shown = (tmp_path / name).read_bytes(), (repository / "docs" / name).read_bytes()
        assert size_of(fresh) == size_of(shown)
        assert 10_000 < len(shown) <= MOST_BYTES


def test_the_picture_of_the_terminal(repository: Path, engines: Path, tmp_path: Path) -> None:
    drawn(repository, "terminal_picture.py", engines, tmp_path)

    def words(folder: Path) -> list[str]:
        """What stands in it, without figures, which differ each time."""
        text = (folder / "terminal.svg").read_text(encoding="utf-8")
        found = re.findall(r">([^<>]+)</text>", text)
        return [word for word in found if word.strip() and not re.search(r"\d", word)]

    assert words(tmp_path) == words(repository / "docs")
