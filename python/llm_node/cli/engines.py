"""`llm-node engines`: every engine that was found, with its verdict."""

from __future__ import annotations

from typing import Any

import click

from llm_node.cli import options, table
from llm_node.node import Node


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /api/engines answers.")
@options.settings_options
@click.pass_context
def engines(context: click.Context, /, as_json: bool, **given: options.Given) -> None:
    """List the engines that were found, and why some cannot be used."""
    settings = options.settings(context.obj, given)
    found = options.look_up(settings, Node.engines)
    if as_json:
        table.show_json({"engines": found})
        return
    heading = ["ENGINE", "VERSION", "BACKEND", "STATUS", "ARCHITECTURES, OR WHAT IS WRONG"]
    table.show([heading, *(_row(engine) for engine in found)])
    if not found:
        folders = ", ".join(str(path) for path in settings.engines_dir)
        click.echo(f"No engine in {folders}; name another folder with --engines-dir", err=True)


def _row(engine: dict[str, Any]) -> list[str]:
    error = engine.get("error")
    words = error["message"] if error else ", ".join(engine.get("architectures") or ())
    cells = [engine.get(key) or "?" for key in ("id", "version", "gpu_backend", "status")]
    return [*map(str, cells), " ".join(str(words).split())]
