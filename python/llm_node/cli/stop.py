"""`llm-node stop`: unload models of the node that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from llm_node.cli import completion, failure, options

if TYPE_CHECKING:
    from llm_node.settings import Settings

STOPPABLE = ("loaded", "loading", "waiting")


@click.command()
@click.argument("models", nargs=-1, metavar="MODEL...", shell_complete=completion.models)
@click.option("--all", "all_models", is_flag=True, help="All models that are loaded.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0, max=3600),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long answers under way may go on.",
)
@options.settings_options
@click.pass_context
def stop(
    context: click.Context,
    /,
    models: tuple[str, ...],
    all_models: bool,
    wait: float,
    **given: options.Given,
) -> None:
    """Unload models of the node that runs, and give their memory back. The node goes on."""
    if bool(models) == all_models:
        raise click.UsageError("name models, or --all and none" if models else "name models, or --all")
    import asyncio

    asyncio.run(_stop(options.of_who_asks(context.obj, given), models, wait))


async def _stop(settings: Settings, models: tuple[str, ...], wait: float) -> None:
    from llm_node.cli import remote

    async with remote.connected(settings) as node:
        try:
            rows = (await node.get("/api/models"))["models"]
            loaded = [row["model_id"] for row in rows if row["status"] in STOPPABLE]
            for model in models or loaded:
                await node.post("/api/models/unload", {"model_id": model, "timeout_seconds": wait})
                click.echo(f"{model} is unloaded", err=True)
        except remote.RemoteError as error:
            raise failure.of(error) from None
    if not (models or loaded):
        click.echo("no model is loaded", err=True)
