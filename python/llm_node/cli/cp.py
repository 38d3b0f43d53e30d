"""`llm-node cp`: a further name for a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_node.cli import completion, options

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("model", shell_complete=completion.models)
@click.argument("name")
@options.settings_options
@click.pass_context
def cp(context: click.Context, /, model: str, name: str, **given: options.Given) -> None:
    """Give MODEL the further NAME, for clients that insist on one of theirs. No bytes are copied.

    It holds at once on the node that runs, and is written into its settings file, in the model's own table.
    """
    import asyncio

    asyncio.run(_copy(options.settings(context.obj, given), model, name))


async def _copy(settings: Settings, model: str, name: str) -> None:
    from llm_node.cli import failure, fetching, remote

    try:
        async with fetching.node_for_files(settings) as node:
            named = await node.post("/api/models/alias", {"model": model, "alias": name})
    except remote.RemoteError as error:
        raise failure.of(error) from None
    click.echo(f"{named['alias']} is {named['model_id']}", err=True)
