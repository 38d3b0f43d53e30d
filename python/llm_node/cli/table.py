"""A table for people, a JSON text for programs: how a verb answers on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from llm_node.cli.visible import visible_in_line


def show(rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell; the first row is the heading, the last column is free."""
    rows = [[visible_in_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        click.echo("  ".join([*cells, row[-1]]).rstrip())


def show_json(value: Any) -> None:
    """For programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_json_line(value: Any) -> None:
    """One of many, each as soon as it is there."""
    click.echo(json.dumps(value, ensure_ascii=False))


def size(count: int | None) -> str:
    """Bytes, for people."""
    if count is None:
        return "?"
    return f"{count / (1 << 30):.1f} GiB" if count >= 1 << 30 else f"{count / (1 << 20):.1f} MiB"
