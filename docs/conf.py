"""The documentation as a site: `make docs` builds it with Sphinx from the pages as they lie here.

The sources are those of the whole repository, since pages link to files outside of this folder.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

project = "llm-node"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = [
    "docs/*.md",
    "examples/README.md",
    "engines/README.md",
    "deploy/haproxy/README.md",
    "deploy/prometheus/README.md",
    "deploy/ray/README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]
exclude_patterns = [".*", "benches", "python", "rust", "target", "tests", "tools", "web", "engines/*/*"]
html_theme = "furo"
html_title = "llm-node"
html_copy_source = False
html_show_copyright = False
myst_heading_anchors = 4
highlight_language = "none"

_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_ANCHOR = re.compile(r"^<a id=\"([^\"]+)\"></a>$", re.MULTILINE)


def _links(app: Any, page: str, source: list[str]) -> None:
    """What no page of the site shows is named instead of linked to: folders of the repository, the README.
    Anchors that are written out become those of MyST, which links to these alone."""

    def shown(match: re.Match[str]) -> str:
        target = ((ROOT / page).parent / match[2]).resolve()
        if target.is_dir() or target == ROOT / "README.md":
            return f"{match[1]} (`{target.relative_to(ROOT).as_posix()}` of the repository)"
        return match[0]

    source[0] = _ANCHOR.sub(r"(\1)=", _LINK.sub(shown, source[0]))


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _links)
