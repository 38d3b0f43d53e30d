"""`llm-node models`: every model that was found."""

from __future__ import annotations

from typing import Any

import click

from llm_node.cli import options, table
from llm_node.node import Node


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /api/models answers.")
@options.settings_options
@click.pass_context
def models(context: click.Context, /, as_json: bool, **given: options.Given) -> None:
    """List the models that were found."""
    settings = options.settings(context.obj, given)
    found = options.look_up(settings, Node.models)
    if as_json:
        table.show_json({"models": found})
        return
    table.show([["MODEL", "ARCHITECTURE", "FORMAT", "SIZE", "STATUS"], *(_row(model) for model in found)])
    if not found:
        click.echo(f"No model in {settings.models_dir}; name another folder with --models-dir", err=True)


def _row(model: dict[str, Any]) -> list[str]:
    size = model.get("size_bytes")
    shown = f"{size / (1 << 20):.1f} MiB" if isinstance(size, int) else "?"
    return [
        str(model.get("model_id")),
        str(model.get("architecture") or "?"),
        str(model.get("format") or "?"),
        shown,
        str(model.get("status") or "?"),
    ]
