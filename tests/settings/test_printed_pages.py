"""docs/errors.md and docs/settings.md are printed from their tables; `make gen` writes them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from llm_node.schema.admin import LoadRequest


def test_pages_are_current(repository: Path) -> None:
    result = subprocess.run(
        [sys.executable, str(repository / "tools/generate_docs.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_the_page_of_http_names_every_field_of_load(repository: Path) -> None:
    page = (repository / "docs/http.md").read_text(encoding="utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| `POST /api/models/load` |")]
    assert set(re.findall(r'"(\w+)"', row.split("`")[3])) == set(LoadRequest.model_fields)
