"""`llm-node search`: repositories of the hub with GGUF files."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import options, table
from llm_node.cli.visible import visible

if TYPE_CHECKING:
    from llm_node.settings import Settings


FITS: Mapping[bool | None, str] = {True: "~yes", False: "~no", None: "?"}
"""By the size of the weights alone; `pull --dry-run` tells it exactly."""
SILENCE_SECONDS = 3.0
"""Whoever waits longer for the hub is told so: its client tries again for half a minute, without a word."""


@click.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.settings_options
@click.pass_context
def search(context: click.Context, /, words: tuple[str, ...], as_json: bool, **given: options.Given) -> None:
    """Look for models on the Hugging Face hub, by downloads; without WORDS, those that many look at now.

    FITS tells whether some version of it has room on this machine, by the size of its weights alone.
    """
    import asyncio

    found = asyncio.run(_search(options.settings(context.obj, given), " ".join(words)))
    if as_json:
        table.show_json({"models": found})
        return
    rows = [[visible(str(it["id"])), f"{it['downloads'] or 0:,}", FITS[it["fits"]]] for it in found]
    table.show([["MODEL", "DOWNLOADS", "FITS"], *rows])
    if found:
        click.echo(f"fetch one: llm-node pull {visible(str(found[0]['id']))}", err=True)


async def _search(settings: Settings, words: str) -> list[dict[str, Any]]:
    from llm_node.cli import failure, fetching, remote

    try:
        async with fetching.node_for_files(settings) as node, _told_of_silence():
            found: list[dict[str, Any]] = (await node.get("/api/models/search", q=words))["models"]
            return found
    except remote.RemoteError as error:
        raise failure.of(error) from None


@contextlib.asynccontextmanager
async def _told_of_silence() -> AsyncIterator[None]:
    import asyncio

    said = "the hub does not answer yet; waiting (Ctrl-C stops)"
    timer = asyncio.get_running_loop().call_later(
        SILENCE_SECONDS, functools.partial(click.echo, said, err=True)
    )
    try:
        yield
    finally:
        timer.cancel()
