"""Draw docs/terminal.svg: a real chat with the demo model, as a terminal shows it.

`python tools/terminal_picture.py [ENGINES [OUT]]`, with the Python of .venv: a folder of engines, and one for
the picture in place of docs/.
"""

from __future__ import annotations

import io
import os
import re
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from support.terminal import on_a_terminal  # noqa: E402

PICTURE = "terminal.svg"
COLUMNS = 78
QUESTIONS = ("What is an engine?", "What happens when an engine crashes?")
EXTERNAL_FONT = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)
"""rich names fonts on a server of others; whoever looks at a picture asks nobody."""


def answers(engines: Path) -> list[str]:
    """What the terminal shows for each question."""
    shown = []
    program = Path(sys.executable).with_name("llm-node")
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HOME": home}
        for question in QUESTIONS:
            arguments = ["run", "llm-node-demo", question, "--temperature", "0"]
            folders = ["--engines-dir", engines, "--gpu-backend", "cpu"]
            with on_a_terminal([program, *arguments, *folders], environment, columns=COLUMNS) as terminal:
                if terminal.wait():
                    raise SystemExit(terminal.raw)
                shown.append(terminal.raw.replace("\r\n", "\n"))
    return shown


def draw(engines: Path) -> str:
    """The picture."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for question, answer in zip(QUESTIONS, answers(engines), strict=True):
        console.print(Text(f'$ llm-node run llm-node-demo "{question}"', style="bold"))
        console.print(Text.from_ansi(answer))
    picture = console.export_svg(title="llm-node run", theme=DIMMED_MONOKAI, unique_id="terminal")
    return EXTERNAL_FONT.sub("", picture)


if __name__ == "__main__":
    out = Path(sys.argv[2]) if sys.argv[2:] else ROOT / "docs"
    drawn = draw(Path(sys.argv[1]) if sys.argv[1:] else ROOT / "engines")
    (out / PICTURE).write_text(drawn, encoding="utf-8")
