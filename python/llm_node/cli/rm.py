"""`llm-node rm`: delete a model of the models folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_node.cli import completion, options

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=completion.models)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--force", is_flag=True, help="Also where it answers requests, which may go on for 30 s.")
@options.settings_options
@click.pass_context
def rm(
    context: click.Context, /, models: tuple[str, ...], yes: bool, force: bool, **given: options.Given
) -> None:
    """Delete models of the models folder, or what is there of pulls that were stopped.

    Of a link, the link is deleted, and never what lies behind it.

    What other programs have brought is theirs: how to delete that is said. Without a terminal to ask on,
    nothing is deleted unless -y is given.
    """
    import asyncio

    from llm_node.cli import asking

    asking.check(yes=yes)
    asyncio.run(_remove(options.settings(context.obj, given), models, yes=yes, force=force))


async def _remove(settings: Settings, models: tuple[str, ...], *, yes: bool, force: bool) -> None:
    from llm_node.cli import asking, failure, fetching, remote

    try:
        async with fetching.node_for_files(settings) as node:
            for model in models:
                if not asking.agreed(f"Delete {model}?", yes=yes, default=False):
                    continue
                removed = await node.post("/api/models/remove", {"model": model, "force": force})
                left_in = removed.get("left_in")
                words = "deleted" if left_in is None else f"off the list; its files are still in {left_in}"
                click.echo(f"{removed['model_id']} is {words}", err=True)
    except remote.RemoteError as error:
        raise failure.of(error) from None
