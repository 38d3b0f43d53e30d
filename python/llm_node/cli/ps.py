"""`llm-node ps`: what the node that runs has loaded, and how busy it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import failure, options, table

if TYPE_CHECKING:
    from llm_node.settings import Settings

WATCH_SECONDS = 2.0
NO_CALL = "none"
"""Of a worker that died while nothing was asked of it."""
HEADING = ["MODEL", "STATE", "DEVICE", "MEMORY", "CACHE", "CONTEXT", "RUN", "WAIT", "TOK/S"]


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON: what GET /api/system answers.")
@click.option("--watch", is_flag=True, help="Show it anew every two seconds, until Ctrl-C.")
@options.settings_options
@click.pass_context
def ps(context: click.Context, /, as_json: bool, watch: bool, **given: options.Given) -> None:
    """Show what is loaded on the node that runs, how busy it is, and what memory is left."""
    import asyncio

    shown = _show(options.of_who_asks(context.obj, given), as_json=as_json, watch=watch)
    if not watch:
        asyncio.run(shown)
        return
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(shown)


async def _show(settings: Settings, *, as_json: bool, watch: bool) -> None:
    import asyncio

    from llm_node.cli import remote

    async with remote.connected(settings) as node:
        while True:
            try:
                system = await node.get("/api/system")
            except remote.RemoteError as error:
                raise failure.of(error) from None
            if watch:
                click.clear()  # of a terminal alone
            _print(system, as_json=as_json)
            if not watch:
                return
            await asyncio.sleep(WATCH_SECONDS)


def _print(system: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        table.show_json(system)
        return
    gpus = {
        device["id"]: f"GPU {device['index']}" for device in system["devices"] if device["kind"] != "host"
    }
    table.show([HEADING, *_rows(system["workers"], system["line"], gpus)])
    for line in _devices(system["devices"]):
        click.echo(line)


def _rows(models: list[Mapping[str, Any]], line: list[str], gpus: Mapping[str, str]) -> Iterator[list[str]]:
    """A row of each model, and of one with several workers a row of each of these below it.

    `gpus`: their names for people, by id."""
    for model in models:
        yield _row(model, line, gpus)
        for number, worker in enumerate(model.get("workers", ()), start=1):
            yield _row({"model_id": f"  worker {number}", **worker}, line, gpus)


def _row(worker: Mapping[str, Any], line: list[str], gpus: Mapping[str, str]) -> list[str]:
    facts, busy = worker.get("facts"), worker.get("occupancy")
    memory = worker.get("held_bytes")
    return [
        str(worker["model_id"]),
        _state(worker, line),
        ", ".join(gpus.get(device, device) for device in worker.get("devices", ())) or "-",
        size(memory) if memory else "-",
        _cache(busy) if busy else "-",
        str(facts["context_length"]) if facts else "-",
        str(busy["running"]) if busy else "-",
        str(busy["queued"] if busy else worker.get("waiting", "-")),
        f"{worker['tokens_per_second']:.0f}" if "tokens_per_second" in worker else "-",
    ]


def _state(worker: Mapping[str, Any], line: list[str]) -> str:
    status = str(worker["status"])
    if status == "waiting" and worker["model_id"] in line:
        return f"waiting, {line.index(worker['model_id']) + 1}. in line"
    if worker.get("draining"):
        return "draining"
    if status == "loading":
        return f"loading {worker['progress']:.0%}"
    if status == "failed":
        pause, crash = worker.get("retry_after"), worker.get("last_crash")
        if pause is None or crash is None:
            return f"failed: {worker['error']['code']}"
        call = "" if crash["call"] == NO_CALL else f" in {crash['call']}"
        return f"cooling {pause} s: {crash['ending']}{call}"
    if worker.get("pinned"):
        return f"{status}, pinned"
    left = worker.get("goes_in_seconds")
    return status if left is None else f"{status}, {left} s more"


def _cache(busy: Mapping[str, Any]) -> str:
    """How much of it is in use, without what is only kept in case it is asked for again."""
    capacity = busy["cache_tokens"]
    if not capacity:
        return "-"
    return f"{max(0, busy['cache_used'] - busy['kept_tokens']) / capacity:.0%} of {capacity}"


def _devices(devices: list[Mapping[str, Any]]) -> Iterator[str]:
    for device in devices:
        is_host = device["kind"] == "host"
        name = "Host" if is_host else f"GPU {device['index']} {device['name']}"
        ours, limit = size(device["reserved_bytes"]), size(device["limit_bytes"])
        others, free = size(device["foreign_bytes"]), size(device["free_bytes"])
        state = "" if device["state"] == "ok" else f"; {device['state']}"
        yield f"{name}: models hold {ours} of {limit}, others {others}; {free} free{state}"


def size(count: int) -> str:
    """Bytes for people: GB and MB are powers of 1024, as `nvidia-smi` counts."""
    return f"{count / (1 << 30):.1f}GB" if count >= (1 << 30) / 10 else f"{count / (1 << 20):.0f}MB"
