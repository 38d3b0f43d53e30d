"""A node that runs takes a new library of an engine: what it has loaded with the old one is loaded anew."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llm_node.conformance import Engine

if TYPE_CHECKING:
    from llm_node.settings import Settings


async def renew(settings: Settings, engine: Engine) -> None:
    """Tell the node that runs here, if it has this engine from this folder. Says what became of its models.

    Answers under way may end before. A model is loaded as the node loads it by itself.
    """
    from llm_node.cli import failure, remote

    try:
        url = await remote.running(settings)
        if url is None:
            return
        async with remote.at(url, settings) as node:
            # So that it sees a version or an extension that changed, too.
            known = (await node.get("/api/engines", refresh="true"))["engines"]
            if not any(_is_in(engine.folder, entry) for entry in known):
                return
            for row in (await node.get("/api/models"))["models"]:
                if row["status"] != "loaded":
                    continue
                if (row["engine"], row["gpu_backend"]) != (engine.id, engine.gpu_backend):
                    continue
                model = row["model_id"]
                await node.post("/api/models/unload", {"model_id": model})
                await node.post("/api/models/load", {"model_id": model, "engine": engine.id})
                click.echo(f"{model} is loaded anew, on the node at {url}", err=True)
    except remote.RemoteError as error:
        failure.of(error).show()
    except failure.Failed as error:
        error.show()


def _is_in(folder: Path, entry: Mapping[str, Any]) -> bool:
    return Path(entry["path"]).resolve() == folder.resolve()
