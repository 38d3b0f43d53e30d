"""What a page shows of a terminal is what a terminal shows: blocks marked `console` are run, where they
have prompts. Those without have tests of their own.

A line that begins with `$ ` is a command, and those below it are what it prints; `…` stands for anything, on
a line of its own for any lines. The node is at another port than in the pages.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import RunningNode, node_environment, running_node

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "127.0.0.1:3000"
BLOCK = re.compile(r"^```console\n(\$ .*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    page for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]) if BLOCK.search(page.read_text())
]


@pytest.fixture(scope="module")
def node(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """With a home of its own, since commands of the pages change it."""
    folder = tmp_path_factory.mktemp("node")
    with running_node(folder, ["--engines-dir", str(engines), "--gpu-backend", "cpu"]) as running:
        yield running


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Each with what it is said to print."""
    for (block,) in (match.groups() for match in BLOCK.finditer(page.read_text(encoding="utf-8"))):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            lines = part.splitlines()
            count = next(index for index, line in enumerate(lines) if not line.endswith("\\")) + 1
            yield "\n".join(lines[:count]), "\n".join(lines[count:])


def is_like(shown: str, printed: str) -> bool:
    """Whatever stands at the ends of lines."""
    anything = re.escape("…")
    pattern = re.escape(shown).replace(f"\\\n{anything}\\\n", "\\n(?s:.*)\\n")
    pattern = re.sub(rf"{anything}$", "(?s:.*)", pattern).replace(anything, ".*")
    plain = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch(pattern, plain) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_page_shows_is_what_is_seen(
    page: Path, node: RunningNode, engines: Path, tmp_path: Path
) -> None:
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    settings = {"LLM_NODE_ENGINES_DIR": str(engines), "LLM_NODE_GPU_BACKEND": "cpu"}
    environment = node_environment(node.log.parent, **settings)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    host, port = node.address
    for typed, shown in commands(page):
        done = subprocess.run(
            ["sh", "-c", typed.replace(ADDRESS, f"{host}:{port}").replace("curl ", "curl -sS ")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
            cwd=tmp_path,
            env=environment,
        )
        assert done.returncode == 0, f"{typed}\n{done.stdout}"
        assert is_like(shown, done.stdout), f"{typed}\n{done.stdout}"


def test_it_sees_what_differs() -> None:
    assert is_like("a …\n…\nz", "a b\nc\nd\nz\n") and is_like("{\n…", "{\n 1\n}")
    assert not is_like("a …\n…\nz", "a b\nc\ny\n") and not is_like("a", "a\nb") and not is_like("a…c", "a\nc")
    assert len(PAGES) > 3, "there are some"
