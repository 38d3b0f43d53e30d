"""docs/errors.md and docs/settings.md are printed from their tables; `make gen` writes them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_pages_are_current(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(repository / "tools/generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
