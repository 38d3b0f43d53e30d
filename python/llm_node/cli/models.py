"""`llm-node models`: every model that was found."""

from __future__ import annotations

import asyncio
from typing import Any

import click

from llm_node.cli import options, table
from llm_node.node import NodeError
from llm_node.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /api/models answers.")
@options.settings_options
@click.pass_context
def models(context: click.Context, /, as_json: bool, **given: options.Given) -> None:
    """List the models that were found."""
    settings = options.settings(context.obj, given)
    try:
        found = asyncio.run(_find(settings))
    except NodeError as fault:
        raise click.ClickException(fault.message) from None
    if as_json:
        table.show_json({"models": found})
        return
    table.show([["MODEL", "ARCHITECTURE", "FORMAT", "SIZE", "STATUS"], *(_row(model) for model in found)])
    if not found:
        click.echo(f"No model in {settings.models_dir}; name another folder with --models-dir", err=True)


async def _find(settings: Settings) -> list[dict[str, Any]]:
    async with options.node(settings, needs_device=False) as node:
        return await node.models()


def _row(model: dict[str, Any]) -> list[str]:
    size = model.get("size_bytes")
    shown = f"{size / (1 << 20):.1f} MiB" if isinstance(size, int) else "?"
    return [
        str(model.get("model_id")),
        str(model.get("architecture") or "?"),
        str(model.get("format") or "?"),
        shown,
        str(model.get("status") or model.get("state") or "?"),
    ]
