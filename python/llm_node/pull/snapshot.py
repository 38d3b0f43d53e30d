"""A repository without GGUF files: weights in safetensors, with what tells an engine how to use them.

As `rust/node/src/models/snapshot.rs` reads it from a folder.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_node.node import NodeError
from llm_node.pull.choose import Version
from llm_node.pull.hub import File, Hub, Repository

FORMAT = "safetensors"
"""Also what its one version is called."""
CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
WHOLE = "model.safetensors"
BESIDE = frozenset(
    {
        "added_tokens.json",
        "chat_template.json",
        "generation_config.json",
        "merges.txt",
        "sentencepiece.bpe.model",
        "special_tokens_map.json",
        "spiece.model",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.json",
        "vocab.txt",
    }
)
"""The tokenizer's files, and which of its tokens end an answer."""

MOST_JSON = 16 << 20
LENGTH_BYTES = 8
"""Of the number of bytes of a file's header, at its beginning."""
LONGEST_HEADER = 64 << 20


@dataclass(frozen=True)
class Hollow:
    """A snapshot whose files have true headers and holes in place of weights."""

    folder: Path
    parameters: int
    context_length: int | None


async def version(hub: Hub, repository: Repository) -> Version | None:
    """The model of such a repository; None: it holds none. Raises `NodeError` (`model_corrupt`) for a file of
    weights that its index names and it has not."""
    files = {file.path: file for file in repository.files}
    config = files.get(CONFIG)
    weights = await _weights(hub, repository, files)
    if config is None or not weights:
        return None
    index = [files[INDEX]] if INDEX in files else []
    beside = [file for file in repository.files if file.path in BESIDE]
    return Version(FORMAT, (config, *weights, *index, *beside))


def is_one(version: Version) -> bool:
    """Is this version a snapshot?"""
    return version.files[0].path == CONFIG


async def hollow(hub: Hub, repository: Repository, version: Version, into: Path) -> Hollow:
    """What an engine needs of it to say what it takes. Raises `NodeError`."""
    folder = into / repository.name.rpartition("/")[2]
    folder.mkdir()
    parameters, context_length = 0, None
    for file in version.files:
        path = folder / file.path
        if file.path.endswith(f".{FORMAT}"):
            prefix, tensors = await _header(hub, repository, file)
            with path.open("wb") as hole:
                hole.write(prefix)
                hole.truncate(file.size)
            parameters += _parameters(tensors)
        elif file.path in (CONFIG, INDEX):
            content = await _json(hub, repository, file)
            path.write_text(json.dumps(content), encoding="utf-8")
            if file.path == CONFIG:
                context_length = _context_length(content)
    return Hollow(folder, parameters, context_length)


async def _weights(hub: Hub, repository: Repository, files: Mapping[str, File]) -> Sequence[File]:
    """The files of its weights, each once: some repositories hold them in a second form as well."""
    if INDEX in files:
        places = (await _json(hub, repository, files[INDEX])).get("weight_map")
        named = {it for it in places.values() if isinstance(it, str)} if isinstance(places, dict) else set()
        missing = sorted(name for name in named if name not in files or "/" in name)
        if missing or not named:
            what = f"names {missing[0]}, which is not there" if missing else "names no file of weights"
            raise NodeError("model_corrupt", f"{repository.name}: its {INDEX} {what}", "model")
        return [files[name] for name in sorted(named)]
    if WHOLE in files:
        return [files[WHOLE]]
    return [file for path, file in sorted(files.items()) if path.endswith(f".{FORMAT}") and "/" not in path]


async def _json(hub: Hub, repository: Repository, file: File) -> dict[str, Any]:
    text = await hub.head(repository, file, min(file.size, MOST_JSON))
    try:
        content = json.loads(text)
    except ValueError as error:
        raise _damaged(repository, file, str(error)) from None
    if not isinstance(content, dict):
        raise _damaged(repository, file, "it is no object")
    return content


async def _header(hub: Hub, repository: Repository, file: File) -> tuple[bytes, dict[str, Any]]:
    prefix = await hub.head(repository, file, min(LENGTH_BYTES, file.size))
    length = LENGTH_BYTES + int.from_bytes(prefix, "little")
    if len(prefix) < LENGTH_BYTES or length > min(file.size, LONGEST_HEADER):
        raise _damaged(repository, file, f"a header of {length} bytes in a file of {file.size} bytes")
    prefix = await hub.head(repository, file, length)
    try:
        tensors = json.loads(prefix[LENGTH_BYTES:])
    except ValueError as error:
        raise _damaged(repository, file, str(error)) from None
    if not isinstance(tensors, dict):
        raise _damaged(repository, file, "its header is no object")
    return prefix, tensors


def _parameters(tensors: Mapping[str, Any]) -> int:
    shapes = (it.get("shape") for it in tensors.values() if isinstance(it, dict))
    return sum(
        math.prod(shape)
        for shape in shapes
        if isinstance(shape, list) and all(isinstance(length, int) for length in shape)
    )


def _context_length(config: Mapping[str, Any]) -> int | None:
    # Models that see and hear keep the language model's numbers one level down.
    inner = config.get("text_config")
    for place in (config, inner if isinstance(inner, dict) else {}):
        length = place.get("max_position_embeddings")
        if isinstance(length, int) and length > 0:
            return length
    return None


def _damaged(repository: Repository, file: File, why: str) -> NodeError:
    return NodeError("model_corrupt", f"{repository.name}/{file.path}: damaged: {why}", "model")
