"""`llm-node show`: what is known of a model, and what it takes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from llm_node.cli import completion, options, table
from llm_node.cli.visible import visible

if TYPE_CHECKING:
    from llm_node.node import Node
    from llm_node.settings import Settings

LENGTHS = (4096, 16_384, 65_536)
"""Tokens of context for which it is said what a model takes, beside its own longest."""
FIRST_BYTES = 1 << 20


@click.command()
@click.argument("model", shell_complete=completion.models)
@click.option("--verify", is_flag=True, help="Read all files, and compare them with what was promised.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.settings_options
@click.pass_context
def show(context: click.Context, /, model: str, verify: bool, as_json: bool, **given: options.Given) -> None:
    """Show what is known of MODEL: its header, where it lies, what it needs, and why it was chosen.

    Asks the node that runs, which tells what the model can, if it is loaded; without one the folders are
    looked through. What it needs is its engine's own estimate.
    """
    import asyncio

    from llm_node.cli import own_node

    settings = options.settings(context.obj, given)
    unheeded = options.of_a_node(context.obj, given)
    known = asyncio.run(_of_running(settings, model, unheeded))
    if known is None:
        known = own_node.look_up(settings, lambda node: _of_folders(node, model))
    if verify:
        known["verified"] = _verified(known)
    if as_json:
        table.show_json(known)
    else:
        _print(known)
    if verify and "differs" in known["verified"].values():
        from llm_node.cli import failure

        raise failure.Failed("checksum_mismatch: a file is not what was promised; fetch it anew")


async def _of_running(settings: Settings, name: str, unheeded: Sequence[str]) -> dict[str, Any] | None:
    """What the node that runs knows of it; None: none runs."""
    from llm_node.cli import failure, remote

    try:
        async with remote.if_running(settings, unheeded) as node:
            if node is None:
                return None
            model_id = (await node.get(f"/v1/models/{quote(name, safe='/:')}"))["id"]
            rows = (await node.get("/api/models"))["models"]
            row = next((row for row in rows if row["model_id"] == model_id and "path" in row), None)
            if row is None:
                raise remote.RemoteError("model_not_found", f"the file of '{model_id}' has gone")

            async def plan(length: int) -> int:
                asked = {"model_id": model_id, "context_length": length, "max_sequences": 1}
                planned = await node.post("/api/models/plan", asked)
                return sum(use["total_bytes"] for use in planned["memory"])

            return _known(row, await _needs(plan, row))
    except remote.RemoteError as error:
        raise failure.of(error) from None


async def _of_folders(node: Node, name: str) -> dict[str, Any]:
    row = await node.model(name)

    async def plan(length: int) -> int:
        planned = await node.plan(row["path"], context_length=length)
        return sum(use[part] for use in planned["memory"] for part in ("weights", "cache", "compute"))

    return _known(row, await _needs(plan, row))


def _known(row: dict[str, Any], needs: list[dict[str, Any]]) -> dict[str, Any]:
    record = _record(Path(row["path"]))
    version = str(row["model_id"]).partition(":")[2]
    return {
        **{key: row.get(key) for key in ("model_id", "format", "architecture", "quantization", "size_bytes")},
        **{
            key: row.get(key)
            for key in ("context_length", "task", "origin", "path", "files", "also", "error")
        },
        "header": _header(Path(row["path"])),
        "needs": needs,
        "sha256": {
            path: promised
            for path in row.get("files", ())
            if (promised := _promised(record, Path(path))) is not None
        },
        "why": record.get("why", {}).get(version, []),
        "facts": row.get("facts"),
    }


def _header(path: Path) -> dict[str, Any] | None:
    """Of a GGUF file that can be read."""
    from llm_node.node import NodeError, gguf_header

    size = FIRST_BYTES
    with contextlib.suppress(OSError, NodeError):
        length = path.stat().st_size
        with path.open("rb") as file:
            while True:
                file.seek(0)
                text = gguf_header(file.read(size), length)
                if text is not None:
                    header: dict[str, Any] = json.loads(text)
                    return header
                if size >= length:
                    return None
                size *= 2
    return None


async def _needs(plan: Callable[[int], Awaitable[int]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Bytes by tokens of context; nothing where no engine can say. `plan`: the bytes for one length."""
    from llm_node.cli.remote import RemoteError
    from llm_node.node import NodeError

    longest = row.get("context_length")
    lengths = sorted(
        {*(length for length in LENGTHS if longest is None or length < longest), *filter(None, [longest])}
    )
    try:
        needs = [{"context_length": length, "bytes": await plan(length)} for length in lengths]
        return [need for need in needs if need["bytes"]]
    except (NodeError, RemoteError):
        return []


def _record(path: Path) -> dict[str, Any]:
    """What the pull noted, in the folder of the repository."""
    from llm_node.pull.store import RECORD

    for folder in (path.parent, path.parent.parent):
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
            return {**found, "folder": str(folder)}
    return {}


def _promised(record: dict[str, Any], path: Path) -> str | None:
    """The hash that a file was promised to have: by the pull, or by the name of the blob in a cache."""
    if "folder" in record and path.is_relative_to(record["folder"]):
        noted = record.get("files", {}).get(path.relative_to(record["folder"]).as_posix())
        if noted is not None:
            promised: str | None = noted["sha256"]
            return promised
    blob = path.resolve().name.removeprefix("sha256-")
    return blob if len(blob) == 64 and set(blob) <= set("0123456789abcdef") else None


def _verified(known: dict[str, Any]) -> dict[str, str]:
    from llm_node.pull.store import sha256_of

    found = {}
    for path in known["files"]:
        digest, promised = sha256_of(Path(path)), known["sha256"].get(path)
        found[path] = (
            "nothing was promised" if promised is None else "right" if digest == promised else "differs"
        )
    return found


def _print(known: dict[str, Any]) -> None:
    header, facts = known["header"] or {}, known["facts"] or {}
    parameters = header.get("parameters")
    weights = f"{parameters:,} parameters, " if parameters else ""
    rows = [
        ("name", header.get("name")),
        ("licence", header.get("license")),
        ("architecture", known["architecture"]),
        ("weights", f"{weights}{known['quantization'] or '?'}, {table.size(known['size_bytes'])}"),
        ("context", f"{known['context_length']:,} tokens" if known["context_length"] else None),
        ("for", known["task"]),
        ("template", _template(header, known["task"]) if header else None),
        ("can", _abilities(facts, header) if facts else "known once it is loaded"),
        *(
            ("needs", f"{table.size(it['bytes'])} with {it['context_length']:,} tokens")
            for it in known["needs"]
        ),
        ("from", known["origin"]),
        *(("file", _with_target(path, known["origin"])) for path in known["files"]),
        *(("sha256", digest) for digest in known["sha256"].values()),
        *(("also", path) for path in known["also"] or ()),
        *(("why", line) for line in known["why"]),
        *(("verified", f"{Path(path).name}: {said}") for path, said in known.get("verified", {}).items()),
        ("problem", (known["error"] or {}).get("message")),
    ]
    click.echo(visible(known["model_id"]))
    before = None
    for name, value in rows:
        if value is not None:
            click.echo(f"  {'' if name == before else name:<13} {visible(str(value))}")
            before = name


def _template(header: dict[str, Any], task: str | None) -> str:
    if header.get("has_chat_template"):
        return "yes"
    return "in chat_template.jinja" if task == "chat" else "none"


def _with_target(path: str, origin: str) -> str:
    """And where the bytes are, of a link in the models folder."""
    is_link = origin == "own" and Path(path).is_symlink()
    return f"{path}, a link to {Path(path).resolve()}" if is_link else path


def _abilities(facts: dict[str, Any], header: dict[str, Any]) -> str:
    # A GGUF file that says nothing of how vectors of tokens become one is refused by `/v1/embeddings`.
    gives_vectors = facts.get("n_embedding") and header.get("pools", True)
    chat = facts.get("chat") or {}
    able = {"chat": bool(chat), "tools": chat.get("tools"), "thinking": chat.get("thinking"),
            "gaps in a text": facts.get("fills_gaps"), "vectors": gives_vectors}  # fmt: skip
    return ", ".join(name for name, value in able.items() if value) or "go on with a text"
