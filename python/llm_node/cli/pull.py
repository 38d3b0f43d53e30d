"""`llm-node pull`: fetch a model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import options, table

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("model")
@click.option("--sha256", metavar="HEX", help="What the file of a link must have.")
@click.option("--dry-run", is_flag=True, help="Show all versions and which would be fetched. Fetch nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what happens as lines of JSON.")
@click.option("--quiet", is_flag=True, help="Say nothing but errors.")
@options.settings_options
@click.pass_context
def pull(
    context: click.Context,
    /,
    model: str,
    sha256: str | None,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: options.Given,
) -> None:
    """Fetch a model: ORG/REPO or ORG/REPO:VERSION of the Hugging Face hub, or a link to a GGUF file.

    Where no version is named, it is the largest that fits this machine well, and the reasons are said. What
    was stopped goes on when it is typed again.
    """
    import asyncio

    settings = options.settings(context.obj, given)
    wish = {
        "model": model,
        **({} if sha256 is None else {"sha256": sha256}),
        **({} if settings.context_length is None else {"context_length": settings.context_length}),
    }
    asyncio.run(_pull(settings, wish, dry_run=dry_run, as_json=as_json, quiet=quiet))


async def _pull(
    settings: Settings, wish: dict[str, Any], *, dry_run: bool, as_json: bool, quiet: bool
) -> None:
    from llm_node.cli import failure, fetching, remote
    from llm_node.cli.chat.interrupt import Interrupted, interruptible
    from llm_node.errors import Exit

    try:
        async with fetching.node_for_files(settings) as node:
            if dry_run:
                _show_table(await node.post("/api/models/pull", {**wish, "dry_run": True}), as_json=as_json)
                return
            show = _print_json if as_json else _say_nothing if quiet else None
            row = await interruptible(fetching.pull(node, wish, show=show))
    except Interrupted:
        raise failure.Failed("stopped; the same command goes on from there", Exit.INTERRUPTED) from None
    except remote.RemoteError as error:
        raise failure.of(error) from None
    if not (as_json or quiet):
        click.echo(f"{row['model_id']} is here. Chat: llm-node run {row['model_id']}", err=True)


def _show_table(planned: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        table.show_json(planned)
        return
    rows = [
        [
            it["version"],
            table.size(it["size_bytes"]),
            f"{it['bits']:g}",
            table.size(it["needs_bytes"]),
            "yes" if it["fits"] else "no",
            "chosen" if it["version"] == planned["chosen"] else "",
        ]
        for it in planned["versions"]
    ]
    if rows:
        table.show([["VERSION", "SIZE", "BITS", "NEEDS", "FITS", ""], *rows])
    for line in planned["why"]:
        click.echo(line, err=True)


def _print_json(event: Any) -> None:
    click.echo(json.dumps(event, ensure_ascii=False))


def _say_nothing(event: Any) -> None:
    """For who wants it so."""
