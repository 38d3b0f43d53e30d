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
HEADING = ["MODEL", "STATE", "DEVICE", "MEMORY", "CACHE", "CONTEXT", "RUN", "WAIT", "TOK/S", "KEPT BY"]

KEPT_BY = {"pin": "pin", "loading": "its load", "busy": "its answers", "residency": "its turn"}
"""What keeps a model where another needs the room."""


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
    places = {place["model_id"]: place for place in system["line"]}
    table.show([HEADING, *_rows(system["workers"], places, gpus)])
    for line in _devices(system["devices"]):
        click.echo(line)


def _rows(
    models: list[Mapping[str, Any]], places: Mapping[str, Mapping[str, Any]], gpus: Mapping[str, str]
) -> Iterator[list[str]]:
    """A row of each model, and of one with several workers a row of each of these below it.

    `places`: of those that wait for room. `gpus`: their names for people, by id."""
    for model in models:
        yield _row(model, places.get(model["model_id"]), gpus)
        for number, worker in enumerate(model.get("workers", ()), start=1):
            yield _row({"model_id": f"  worker {number}", **worker}, None, gpus)


def _row(worker: Mapping[str, Any], place: Mapping[str, Any] | None, gpus: Mapping[str, str]) -> list[str]:
    facts, busy = worker.get("facts"), worker.get("occupancy")
    memory = worker.get("held_bytes")
    needed = f"{size(place['needs_bytes'])} needed" if place else "-"
    return [
        str(worker["model_id"]),
        _state(worker, place),
        ", ".join(gpus.get(device, device) for device in worker.get("devices", ())) or "-",
        size(memory) if memory else needed,
        _cache(busy) if busy else "-",
        str(facts["context_length"]) if facts else "-",
        str(busy["running"]) if busy else "-",
        str(worker.get("parked", 0) + busy["queued"] if busy else worker.get("parked") or "-"),
        f"{worker['tokens_per_second']:.0f}" if "tokens_per_second" in worker else "-",
        _kept_by(worker),
    ]


def _state(worker: Mapping[str, Any], place: Mapping[str, Any] | None) -> str:
    status = str(worker["status"])
    if status == "waiting" and place is not None:
        seconds = place["expected_seconds"]
        return f"waiting {ordinal(place['position'])}" + (f", ~{seconds} s" if seconds else "")
    if worker.get("draining"):
        return "draining"
    if status == "loading":
        return f"loading {worker['progress']:.0%}"
    if status == "failed":
        crash, code = worker.get("last_crash"), worker["error"]["code"]
        if crash is None or code != "engine_crashed":
            return f"failed: {code}"
        call = "" if crash["call"] == NO_CALL else f" in {crash['call']}"
        often = crash["in_a_row"]
        time = f", {ordinal(often)} time" if often > 1 else ""
        pause = worker.get("retry_after")
        if pause is not None:  # and then whoever asks next has it loaded
            status = f"cooling {pause} s" if pause else "crashed"
        return f"{status}: {crash['ending']}{call}{time}"
    left = worker.get("goes_in_seconds")
    return status if left is None else f"{status}, {left} s more"


def _kept_by(worker: Mapping[str, Any]) -> str:
    """Nothing keeps a model that may go for another at once."""
    if (kept_by := worker.get("kept_by")) is None:
        return "-"
    seconds = worker["turn_seconds"]
    return KEPT_BY[kept_by] if seconds is None else f"its turn, {seconds} s more"


def ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th, 11th."""
    last = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{last}"


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
        state = "" if device["state"] == "ok" else f"; {device['state']}"
        if device["account"] != device["id"]:
            yield f"{name}: its memory is the host's{state}"
            continue
        ours, limit = size(device["reserved_bytes"]), size(device["limit_bytes"])
        others, free = size(device["foreign_bytes"]), size(device["free_bytes"])
        yield f"{name}: models hold {ours} of {limit}, others {others}; {free} free{state}"


def size(count: int) -> str:
    """Bytes for people: GB and MB are powers of 1024, as `nvidia-smi` counts."""
    return f"{count / (1 << 30):.1f}GB" if count >= (1 << 30) / 10 else f"{count / (1 << 20):.0f}MB"
