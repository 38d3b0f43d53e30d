"""Having a node pull a model, and showing how far it is: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import click

from llm_node.cli import remote
from llm_node.cli.remote import Remote
from llm_node.cli.visible import visible
from llm_node.settings import Settings

Event = Mapping[str, Any]
TENTHS = 10


@contextlib.asynccontextmanager
async def node_for_files(settings: Settings) -> AsyncIterator[Remote]:
    """The node that runs, or one of our own that needs no device: it loads nothing."""
    async with contextlib.AsyncExitStack() as stack:
        url = await remote.running(settings)
        if url is None:
            from llm_node.cli import embedded

            url = await stack.enter_async_context(embedded.serving(settings, loads_models=False))
        yield await stack.enter_async_context(remote.at(url, settings))


async def pull(
    node: Remote, wish: Mapping[str, Any], *, show: Callable[[Event], None] | None = None
) -> dict[str, Any]:
    """Pull a model, and give its row. Who waits sees how far it is, unless `show` takes the events. Raises
    `RemoteError`. Cancelling it stops the pull, also in a node that runs."""
    pull_id: str | None = None
    with contextlib.ExitStack() as stack:
        take = show if show is not None else stack.enter_context(_shown())
        try:
            async for event in node.events("POST", "/api/models/pull", json=dict(wish)):
                pull_id = event["pull_id"]
                take(event)
                if event["event"] == "ready":
                    row: dict[str, Any] = event["row"]
                    return row
        except asyncio.CancelledError:
            if pull_id is not None:
                await node.delete(f"/api/models/pulls/{pull_id}")
            raise
    raise remote.RemoteError("internal", "the pull ended without a result")


@contextlib.contextmanager
def _shown() -> Any:
    if sys.stderr.isatty():
        with _Bar() as bar:
            yield bar.take
    else:
        yield _Lines().take


class _Lines:
    """What is fetched and why, and each tenth of it."""

    def __init__(self) -> None:
        self._said = 0

    def take(self, event: Event) -> None:
        """Say what is new in it."""
        match event["event"]:
            case "resolved":
                for line in event["why"]:
                    click.echo(visible(line), err=True)
            case "progress" | "verifying" if event["total"]:
                tenths = event["bytes"] * TENTHS // event["total"]
                if tenths > self._said:
                    self._said = tenths
                    click.echo(f"{tenths * 100 // TENTHS} %", err=True)
            case "waiting":
                click.echo("waiting for another pull", err=True)


class _Bar:
    """The same with a bar, which is the one line that is drawn anew."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._task = self._progress.add_task("looking", total=None)
        self._lines = _Lines()

    def __enter__(self) -> _Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def take(self, event: Event) -> None:
        """Show what is new in it."""
        match event["event"]:
            case "resolved":
                for line in event["why"]:
                    self._progress.console.print(visible(line), markup=False, highlight=False)
                self._progress.update(self._task, description="fetching", total=event["total"])
            case "progress":
                self._progress.update(self._task, completed=event["bytes"], total=event["total"])
            case "verifying":
                self._progress.update(self._task, description="checking", completed=event["bytes"])
            case "waiting":
                self._progress.update(self._task, description="waiting for another pull")
            case "ready":
                self._progress.update(self._task, description="ready")
