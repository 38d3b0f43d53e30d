"""A time table of what `llm-node engine check --json` wrote, for docs/benchmarks.md.

`python tools/time_checks.py "llama.cpp"=llama.json "C, --quick"=c.json` has a column for each file.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

SHOWN_SECONDS = 2.0
"""A check that takes less wherever it was asked shares a row with all such."""


def read(path: Path) -> dict[str, float | None]:
    """Seconds of each check; None where it was skipped."""
    checks = json.loads(path.read_text(encoding="utf-8"))["checks"]
    return {one["name"]: None if one["status"] == "skipped" else one["seconds"] for one in checks}


def table(columns: Mapping[str, Mapping[str, float | None]]) -> str:
    """The rows, as Markdown."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    long = [
        name for name in names if max((column.get(name) or 0) for column in columns.values()) >= SHOWN_SECONDS
    ]
    rest = [name for name in names if name not in long]
    lines = [_line(["seconds", *columns]), _line(["---"] + ["---:"] * len(columns))]
    for name in long:
        lines.append(_line([f"`{name}`", *(_cell(column.get(name)) for column in columns.values())]))
    for title, those in ((f"the other {len(rest)}", rest), (f"all {len(names)}", names)):
        sums = (sum(column.get(name) or 0 for name in those) for column in columns.values())
        lines.append(_line([title, *map(_cell, sums)]))
    return "".join(lines)


def _cell(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.1f}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main() -> int:
    columns = dict(argument.rsplit("=", 1) for argument in sys.argv[1:])
    sys.stdout.write(table({title: read(Path(path)) for title, path in columns.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
