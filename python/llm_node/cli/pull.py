"""`llm-node pull`: fetch a model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import options, table

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("model")
@click.option("--sha256", metavar="HEX", help="What the file of a link must have.")
@click.option("--update", is_flag=True, help="Fetch what its repository has by now, where it is here.")
@click.option("--discard", is_flag=True, help="Forget what is there of a pull that was stopped.")
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
    update: bool,
    discard: bool,
    dry_run: bool,
    as_json: bool,
    quiet: bool,
    **given: options.Given,
) -> None:
    """Fetch a model: ORG/REPO or ORG/REPO:VERSION of the Hugging Face hub, or a link to a GGUF file.

    Where no version is named, it is the largest that fits this machine well, and the reasons are said. What
    was stopped goes on when it is typed again, or is forgotten by --discard.

    Nothing is updated by itself: --update compares the files that are here with those of the repository, and
    fetches the ones that differ. A model that is loaded stays as it is until it is loaded again.
    """
    import asyncio

    if discard and (update or dry_run):
        raise click.UsageError("--discard fetches nothing: it goes with neither --update nor --dry-run")
    settings = options.settings(context.obj, given)
    if discard:
        asyncio.run(_discard(settings, model))
        return
    wish = {
        "model": model,
        "update": update,
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
            show = table.show_json_line if as_json else _say_nothing if quiet else None
            row = await interruptible(fetching.pull(node, wish, show=show))
    except Interrupted:
        raise failure.Failed("stopped; the same command goes on from there", Exit.INTERRUPTED) from None
    except remote.RemoteError as error:
        raise failure.of(error) from None
    if not (as_json or quiet):
        click.echo(f"{row['model_id']} is here. Chat: llm-node run {row['model_id']}", err=True)


async def _discard(settings: Settings, model: str) -> None:
    from llm_node.cli import failure, fetching, remote
    from llm_node.errors import Exit

    try:
        async with fetching.node_for_files(settings) as node:
            pulls = (await node.get("/api/models/pulls"))["pulls"]
            found = [it["pull_id"] for it in pulls if it["model"] == model and it["event"] != "ready"]
            if not found:
                raise failure.Failed(f"no pull of {model} was stopped", Exit.NOT_FOUND)
            for pull_id in found:
                await node.delete(f"/api/models/pulls/{pull_id}?discard=true")
    except remote.RemoteError as error:
        raise failure.of(error) from None
    click.echo(f"what was there of {model} is deleted", err=True)


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


def _say_nothing(event: Any) -> None:
    """For who wants it so."""
