"""`llm-node list`: every model that was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from llm_node.cli import options, table

if TYPE_CHECKING:
    from llm_node.node import Node
    from llm_node.settings import Settings


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, as GET /api/models answers.")
@click.option("--all", "with_unlisted", is_flag=True, help="Also files that are not listed, and why.")
@options.settings_options
@click.pass_context
def models(context: click.Context, /, as_json: bool, with_unlisted: bool, **given: options.Given) -> None:
    """List the models that were found, and why some cannot be loaded.

    A node that runs is asked; otherwise the folders are looked through.
    """
    import asyncio

    from llm_node.cli import own_node

    settings = options.of_who_asks(context.obj, given)
    listed = asyncio.run(_of_running(settings, options.of_a_node(context.obj, given)))
    if listed is not None:
        found, unlisted = listed["models"], listed["unlisted"]
        obstacles = {
            model["model_id"]: (error["code"], error["message"])
            for model in found
            if (error := model.get("error"))
        }
    else:
        found, obstacles, unlisted = own_node.look_up(settings, _models_and_obstacles)
    if as_json:
        table.show_json({"models": found, **({"unlisted": unlisted} if with_unlisted else {})})
        return
    heading = [
        "MODEL",
        "ARCHITECTURE",
        "FORMAT",
        "SIZE",
        "CONTEXT",
        "TOOLS",
        "FROM",
        "STATUS",
        "WHAT IS WRONG",
    ]
    rows = [_row(model, obstacles.get(model["model_id"])) for model in found]
    table.show([heading, *rows, *_stopped_pulls(settings)])
    if unlisted and with_unlisted:
        click.echo()
        table.show(
            [["NOT LISTED", "FROM", "WHY"], *([it["path"], it["origin"], it["why"]] for it in unlisted)]
        )
    elif unlisted:
        click.echo(f"{len(unlisted)} more files are not listed: `llm-node list --all` says why", err=True)
    if not found:
        hint = (
            "fetch one with `llm-node pull ORG/REPO`, put NAME.gguf there, or name a folder with --models-dir"
        )
        click.echo(f"No model in {settings.models_dir}; {hint}", err=True)


async def _of_running(settings: Settings, unheeded: Sequence[str]) -> dict[str, Any] | None:
    """The models of the node that runs, and what is not listed; None: none runs."""
    from llm_node.cli import failure, remote

    try:
        async with remote.if_running(settings, unheeded) as node:
            return None if node is None else await node.get("/api/models", all="true")
    except remote.RemoteError as error:
        raise failure.of(error) from None


async def _models_and_obstacles(
    node: Node,
) -> tuple[list[dict[str, Any]], dict[str, tuple[str, str]], list[dict[str, Any]]]:
    found, unlisted = await node.models(), await node.unlisted()
    if node.gpu_backend is None:
        # That there is no GPU is no model's fault. Their own defects are said without one.
        errors = ((model["model_id"], model.get("error")) for model in found)
        return found, {name: (error["code"], error["message"]) for name, error in errors if error}, unlisted
    return found, await node.obstacles(), unlisted


def _stopped_pulls(settings: Settings) -> list[list[str]]:
    """What is there of pulls that are under way or were stopped: typing them again goes on."""
    from llm_node.pull.store import Store

    return [
        [
            it.model,
            "?",
            "gguf",
            table.size(it.total),
            "?",
            "?",
            "own",
            f"{it.bytes * 100 // max(it.total, 1)} % pulled",
            "",
        ]
        for it in Store(settings.models_dir).partials()
    ]


def _row(model: dict[str, Any], obstacle: tuple[str, str] | None) -> list[str]:
    code, message = obstacle or ("", "")
    return [
        str(model.get("model_id")),
        str(model.get("architecture") or "?"),
        str(model.get("format") or "?"),
        table.size(model.get("size_bytes")),
        str(model.get("context_length") or "?"),
        _tools(model),
        str(model.get("origin") or "?"),
        code or str(model.get("status") or "?"),
        " ".join(message.split()),
    ]


def _tools(model: dict[str, Any]) -> str:
    """How a loaded model writes calls, or that it has no tools."""
    facts = model.get("facts")
    if facts is None:
        return "?"
    chat = facts.get("chat")
    return str(chat["syntax"]) if chat and chat["tools"] else "none"
