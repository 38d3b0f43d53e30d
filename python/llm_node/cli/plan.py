"""`llm-node plan`: what a load would come to, without one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import completion, failure, fitting, options, table
from llm_node.cli.ps import size

if TYPE_CHECKING:
    from llm_node.settings import Settings

OF_A_LOAD = ("context_length", "max_sequences", "cache_tokens", "threads")
"""Settings that a load may have of its own."""

BASIS = {
    "measured": "as it was measured before",
    "engine": "by its engine",
    "file_size": "by the size of its files; its engine cannot say",
}


@click.command()
@click.argument("model", shell_complete=completion.models)
@click.option("--engine", metavar="ID", help="The engine that is to load it; else the first that fits.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: what POST /api/models/plan answers.")
@options.settings_options
@click.pass_context
def plan(
    context: click.Context, /, model: str, engine: str | None, as_json: bool, **given: options.Given
) -> None:
    """Show what loading MODEL would take, what there is, and who would have to go. Nothing is loaded.

    Asks the node that runs; without one it looks at this machine. Ends with 1 where it would be refused.
    """
    import asyncio

    settings = options.settings(context.obj, given)
    named = {name for each in (context.obj, given) for name, value in each.items() if value}
    wishes = {name: getattr(settings, name) for name in OF_A_LOAD if name in named}
    if engine is not None:
        wishes["engine"] = engine
    planned = asyncio.run(_of_node(settings, model, wishes)) or _of_machine(settings, model, wishes)
    if as_json:
        table.show_json(planned)
    else:
        for line in lines(planned):
            click.echo(line)
    if planned["verdict"] == "refused":
        context.exit(1)


async def _of_node(settings: Settings, model: str, wishes: Mapping[str, Any]) -> dict[str, Any] | None:
    from llm_node.cli import remote

    async with remote.if_running(settings) as node:
        if node is None:
            return None
        try:
            planned: dict[str, Any] = await node.post("/api/models/plan", {"model_id": model, **wishes})
            return planned
        except remote.RemoteError as error:
            raise failure.of(error) from None


def _of_machine(settings: Settings, model: str, wishes: Mapping[str, Any]) -> dict[str, Any]:
    from llm_node.cli import own_node

    return own_node.look_up(settings, lambda node: node.plan_load(model, **wishes))


def lines(planned: Mapping[str, Any]) -> list[str]:
    """For people."""
    by = f" with {planned['engine']}" if planned["engine"] else ""
    basis = BASIS.get(planned["basis"], "")
    if planned["measured_at"]:
        basis = f"as it was measured on {date.fromtimestamp(planned['measured_at'])}"
    said = [f"{planned['model_id']}{by}: {_verdict(planned)}{_time(planned)}"]
    for use in planned["memory"]:
        parts = ", ".join(f"{part} {size(use[f'{part}_bytes'])}" for part in ("weights", "cache", "compute"))
        said.append(f"  takes {size(use['total_bytes'])} of {use['device']} ({parts}), {basis}")
    for need in planned["devices"]:
        there = f"{size(need['available_bytes'])} of {size(need['limit_bytes'])}"
        said.append(f"  {need['device']} has {there} left for it")
    if shape := planned["shape"]:
        length, sequences, cells = (shape[of] for of in ("context_length", "max_sequences", "cache_tokens"))
        said.append(f"  context: {length} tokens, {sequences} sequences, a cache of {cells} tokens")
    if planned["verdict"] == "refused" and (offers := planned["would_fit"]):
        said.append(f"  would fit {fitting.said(offers)}")
    elif planned["largest_context"]:
        said.append(f"  longest context {planned['largest_context']}{_longer(planned['would_fit'] or ())}")
    return said


def _longer(offers: Sequence[Mapping[str, Any]]) -> str:
    """Those with a longer context, for which the engine is to have other options."""
    named = [(offer["context_length"], fitting.engine_options(offer)) for offer in offers]
    return "".join(f"; {length} with {options}" for length, options in named if options)


def _verdict(planned: Mapping[str, Any]) -> str:
    match planned["verdict"]:
        case "loaded":
            return "it is loaded, or being loaded"
        case "fits":
            return "there is room"
        case "after_shrinking":
            spares = ", ".join(f"{spare['model_id']} ({size(spare['bytes'])})" for spare in planned["shrink"])
            return f"there is room after shrinking the context of {spares}"
        case "after_unloading":
            leavers = ", ".join(_leaver(leaver) for leaver in planned["unload"])
            return f"there is room after unloading {leavers}" if leavers else "there is room in a moment"
        case "after_waiting":
            holders = ", ".join(str(holder["model_id"]) for holder in planned["holders"])
            wait = f", about {seconds} s" if (seconds := planned["wait_seconds"]) else ""
            return f"it waits until {holders or 'others'} may go{wait}"
        case _:
            return f"refused: {planned['error']['message']}"


def _time(planned: Mapping[str, Any]) -> str:
    seconds = planned["ready_seconds"]
    return f". Ready in about {_seconds(seconds)}" if seconds else ""


def _seconds(seconds: float) -> str:
    return f"{max(seconds, 0.1):.1f} s" if seconds < 10 else f"{seconds:.0f} s"


def _leaver(leaver: Mapping[str, Any]) -> str:
    idle = leaver["idle_seconds"]
    use = "it answers" if idle is None else f"unused for {idle} s"
    return f"{leaver['model_id']} ({use}, back in {_seconds(leaver['reload_seconds'])})"
