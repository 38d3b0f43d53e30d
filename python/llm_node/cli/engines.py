"""`llm-node engines`: every engine that was found, with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import greeting, options, table

if TYPE_CHECKING:
    from llm_node.node import Node
    from llm_node.settings import Settings

SHOWN = 12
"""Of an engine's architectures: llama.cpp knows well over a hundred."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /api/engines answers.")
@options.settings_options
@click.pass_context
def engines(context: click.Context, /, as_json: bool, **given: options.Given) -> None:
    """List the engines that were found, and why some cannot be used.

    A node that runs is asked; otherwise the folders are looked through.
    """
    import asyncio

    from llm_node.cli import own_node

    settings = options.of_who_asks(context.obj, given)
    listed = asyncio.run(_of_running(settings, options.of_a_node(context.obj, given)))
    found, gpu_backend = listed or own_node.look_up(settings, _engines_and_backend)
    if as_json:
        table.show_json({"engines": found})
        return
    heading = ["ENGINE", "VERSION", "BACKEND", "STATUS", "CHECKED", "ARCHITECTURES, OR WHAT IS WRONG"]
    table.show([heading, *(_row(engine) for engine in found)])
    if not found and listed:
        click.echo("The node that runs has no engine; start one with --engines-dir", err=True)
    elif not found:
        folders = ", ".join(str(path) for path in settings.engines_dir)
        click.echo(f"No engine in {folders}; name another folder with --engines-dir", err=True)
    elif gpu_backend is not None and (reason := greeting.wrong_backend(found, gpu_backend)):
        click.echo(f"A node would not start: {reason}", err=True)


async def _of_running(
    settings: Settings, unheeded: Sequence[str]
) -> tuple[list[dict[str, Any]], str | None] | None:
    """Those of the node that runs, and its backend; None: none runs."""
    from llm_node.cli import failure, remote

    try:
        async with remote.if_running(settings, unheeded) as node:
            if node is None:
                return None
            found = (await node.get("/api/engines"))["engines"]
            return found, (await node.get("/api/system"))["gpu_backend"]
    except remote.RemoteError as error:
        raise failure.of(error) from None


async def _engines_and_backend(node: Node) -> tuple[list[dict[str, Any]], str | None]:
    return await node.engines(), node.gpu_backend


def _row(engine: dict[str, Any]) -> list[str]:
    error = engine.get("error")
    words = error["message"] if error else _some(engine.get("architectures") or ())
    cells = [engine.get(key) or "?" for key in ("id", "version", "gpu_backend", "status")]
    return [*map(str, cells), _claim(engine.get("conformance")), " ".join(str(words).split())]


def _claim(said: dict[str, str] | None) -> str:
    """What the engine says of itself; `engine check` tells whether it is so."""
    return "-" if said is None else f"{said['level']}, {said['date']}"


def _some(names: Sequence[str]) -> str:
    left = f", and {len(names) - SHOWN} more (see --json)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + left
