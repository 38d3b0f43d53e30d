"""What a model takes before it is here: by its engine's own estimate, which reads headers alone.

A file with the true header, the true length and a hole in place of the weights gives the same figures as the
model. So nothing here computes memory.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_node.node import Node, NodeError, gguf_header
from llm_node.pull import snapshot
from llm_node.pull.choose import ROWS, Figures, Machine, Need, Version
from llm_node.pull.hub import File, Hub, Repository

FIRST_BYTES = 1 << 20
"""Of a file, that are asked for first. Headers with a large vocabulary have 5 to 15 MiB."""
MOST_BYTES = 64 << 20
USUAL_TOKENS = ROWS[0][0]
"""Of context, where nobody names a number."""


@dataclass(frozen=True)
class Probe:
    """One version, as its header and its engine have it."""

    version: Version
    figures: Figures
    parameters: int | None
    context_length: int | None


async def probe(node: Node, hub: Hub, repository: Repository, version: Version, tokens: int | None) -> Probe:
    """Look at a version, with so many tokens of context where it takes them. Raises `NodeError`: where no
    engine here runs it, among others."""
    with tempfile.TemporaryDirectory(prefix="llm-node-") as folder:
        if snapshot.is_one(version):
            hollow = await snapshot.hollow(hub, repository, version, Path(folder))
            path, parameters, context_length = hollow.folder, hollow.parameters, hollow.context_length
        else:
            headers = [await _header(hub, repository, file) for file in version.files]
            path, *_ = [
                _hollow(Path(folder), file, prefix)
                for file, (prefix, _) in zip(version.files, headers, strict=True)
            ]
            parameters = sum(header["parameters"] for _, header in headers)
            context_length = headers[0][1]["context_length"]
        wanted = tokens or USUAL_TOKENS
        planned = await node.plan(path, context_length=min(wanted, context_length or wanted))
    return Probe(version, _figures(version.size, planned["memory"]), parameters or None, context_length)


async def machine(node: Node) -> Machine:
    """What models may take here, once all that are loaded have gone."""
    gpu = host = 0
    has_gpu_memory = False
    for device in (await node.system(fresh=True))["devices"]:
        room = min(device["limit_bytes"], device["free_bytes"] + device["reserved_bytes"])
        if device["account"] == "host":
            host += room
        else:
            gpu += room
            has_gpu_memory = True
    on_cpu = node.gpu_backend == "cpu"
    return Machine(Need(gpu, host), on_cpu=on_cpu, has_gpu_memory=has_gpu_memory)


async def _header(hub: Hub, repository: Repository, file: File) -> tuple[bytes, Mapping[str, Any]]:
    size = FIRST_BYTES
    while True:
        prefix = await hub.head(repository, file, min(size, file.size))
        text = await asyncio.to_thread(gguf_header, prefix, file.size)
        if text is not None:
            return prefix, json.loads(text)
        if size >= min(file.size, MOST_BYTES):
            raise NodeError("model_corrupt", f"{file.path}: its header has more than {size} bytes", "model")
        size *= 2


def _hollow(folder: Path, file: File, prefix: bytes) -> Path:
    path = folder / file.path.rpartition("/")[2]
    with path.open("wb") as hollow:
        hollow.write(prefix)
        hollow.truncate(file.size)
    return path


def _figures(size: int, memory: list[dict[str, Any]]) -> Figures:
    def need(field: str) -> Need:
        return Need(
            sum(use[field] for use in memory if not use["is_host"]),
            sum(use[field] for use in memory if use["is_host"]),
        )

    per_token = need("cache_per_token")
    # An engine that does not say what a token takes says what the usual length takes.
    cache = need("cache_per_sequence") if per_token.total else need("cache")
    compute = need("compute")
    rest = Need(cache.gpu + compute.gpu, cache.host + compute.host)
    return Figures(size, need("weights"), rest, per_token)
