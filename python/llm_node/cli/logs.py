"""`llm-node logs`: the log of the node that runs."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import completion, failure, options, table
from llm_node.cli.visible import visible

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("model", required=False, shell_complete=completion.models)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0, max=2000), default=100, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print lines of JSON, as GET /api/logs has them.")
@options.settings_options
@click.pass_context
def logs(
    context: click.Context,
    /,
    model: str | None,
    follow: bool,
    lines: int,
    as_json: bool,
    **given: options.Given,
) -> None:
    """Print the last lines of the log of the node that runs; with MODEL, those that name it."""
    import asyncio

    query = {"lines": str(lines), **({} if model is None else {"model": model})}
    show = table.show_json_line if as_json else _print
    asyncio.run(_show(options.of_who_asks(context.obj, given), query, follow, show))


async def _show(
    settings: Settings, query: dict[str, str], follow: bool, show: Callable[[dict[str, Any]], None]
) -> None:
    from llm_node.cli import remote

    async with remote.connected(settings) as node:
        try:
            if follow:
                async for line in node.events("GET", "/api/logs", params={**query, "follow": "true"}):
                    show({key: line[key] for key in line if key != "event"})
            else:
                found = (await node.get("/api/logs", **query))["lines"]
                for line in found:
                    show(line)
                if not found and "model" in query and query["lines"] != "0":
                    click.echo(f"no line of the log names {query['model']}", err=True)
        except remote.RemoteError as error:
            raise failure.of(error) from None


def _print(line: dict[str, Any]) -> None:
    at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line["time"]))
    words = f"{line['level'].upper()} {line['logger']}: {line['message']}"
    click.echo(visible(f"{at} {words}") if sys.stdout.isatty() else f"{at} {words}")
