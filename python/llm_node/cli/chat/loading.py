"""Having the node load a model, and showing how far it is."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from dataclasses import dataclass
from typing import Any

from llm_node import demo
from llm_node.cli.failure import Failed
from llm_node.cli.remote import Remote, RemoteError
from llm_node.cli.visible import visible
from llm_node.errors import Exit

LOOK_SECONDS = 0.4
QUARTERS = 4


@dataclass(frozen=True)
class Loaded:
    """A model that is ready."""

    model: str
    context_length: int | None


async def choose(node: Remote) -> tuple[str, str | None]:
    """The model that is meant by who names none, and what is to be said of it."""
    rows = (await node.get("/api/models"))["models"]
    loaded = [row["model_id"] for row in rows if row["status"] == "loaded"]
    if len(loaded) == 1:
        return loaded[0], None
    if any(row["model_id"] == demo.NAME for row in rows):
        return demo.NAME, f"{demo.NAME} answers questions about llm-node, and knows nothing else."
    raise Failed("name a model; `llm-node list` shows them", Exit.NOT_FOUND)


async def load(node: Remote, model: str) -> Loaded:
    """Load it, or find it loaded. Whoever looks at stderr sees how far it is. Raises `RemoteError`."""
    watching = asyncio.create_task(_watch(node, model)) if sys.stderr.isatty() else None
    try:
        answer: dict[str, Any] = await node.post("/api/models/load", {"model_id": model})
    finally:
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    facts = answer.get("facts") or {}
    return Loaded(answer.get("model_id", model), facts.get("context_length"))


async def _watch(node: Remote, model: str) -> None:
    """Says nothing where it is quick."""
    said, has_begun = 0, False
    try:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            with contextlib.suppress(RemoteError, Failed):
                rows = (await node.get("/api/models"))["models"]
                progress = next((row.get("progress") for row in rows if row["model_id"] == model), None)
                if not has_begun:
                    sys.stderr.write(visible(f"loading {model} …"))
                    has_begun = True
                if progress is not None and int(progress * QUARTERS) > said:
                    said = int(progress * QUARTERS)
                    sys.stderr.write(f" {said * 100 // QUARTERS} %")
                sys.stderr.flush()
    finally:
        if has_begun:
            sys.stderr.write("\n")
