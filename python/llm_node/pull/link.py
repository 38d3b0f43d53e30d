"""One GGUF file by its URL, continued where it stopped. Nothing of what a server answers is ever shown, so a
node is no peephole into the network that it stands in."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import aiohttp

from llm_node.files import FULL
from llm_node.node import NodeError
from llm_node.pull.name import Link

MAGIC = b"GGUF"
SILENCE_SECONDS = 30.0
TRIES = 5
BLOCK = 1 << 20


async def size_of(link: Link) -> int:
    """Bytes of the file. Raises `NodeError`."""
    async with _session() as session:
        try:
            async with session.get(link.url, headers={"Range": "bytes=0-3"}) as response:
                _check(response)
                if await response.content.read(4) != MAGIC:
                    raise _no_model()
                return _total(response)
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            raise _unreachable(error) from None


async def fetch(link: Link, into: Path, told: Callable[[int], None]) -> None:
    """The file, into `into`. What is there of it is continued, if the file is still the same. `told` learns
    how many bytes there are."""
    async with _session() as session:
        for attempt in range(TRIES):
            try:
                await _once(session, link, into, told)
                return
            except (aiohttp.ClientError, asyncio.TimeoutError) as error:
                if attempt == TRIES - 1:
                    raise _unreachable(error) from None
                await asyncio.sleep(attempt)
            except OSError as error:
                if error.errno in FULL:
                    raise NodeError("disk_full", f"The disk is full: {into.parent}", "model") from None
                raise


async def _once(session: aiohttp.ClientSession, link: Link, into: Path, told: Callable[[int], None]) -> None:
    mark = into.with_suffix(".etag")
    have, etag = _known(into, mark)
    headers = {"Range": f"bytes={have}-", "If-Range": etag} if have else {}
    async with session.get(link.url, headers=headers) as response:
        if response.status == 416:
            return  # all of it is there
        _check(response)
        if response.status != 206:
            have = 0
        tag = response.headers.get("ETag", "")
        mark.write_text(json.dumps("" if tag.startswith("W/") else tag), encoding="utf-8")
        expected = _total(response)
        with into.open("r+b" if have else "wb") as file:
            file.seek(have)
            async for block in response.content.iter_chunked(BLOCK):
                if have == 0 and not block.startswith(MAGIC):
                    raise _no_model()
                await asyncio.to_thread(file.write, block)
                have += len(block)
                told(have)
        if have != expected:
            raise aiohttp.ClientPayloadError(f"{have} of {expected} bytes")


def _known(into: Path, mark: Path) -> tuple[int, str]:
    """Bytes that are there, and what file they are of. Without a mark nobody can tell."""
    try:
        etag = json.loads(mark.read_text(encoding="utf-8"))
        return (into.stat().st_size, str(etag)) if etag else (0, "")
    except (OSError, ValueError):
        return 0, ""


def _session() -> aiohttp.ClientSession:
    timeout = aiohttp.ClientTimeout(total=None, connect=SILENCE_SECONDS, sock_read=SILENCE_SECONDS)
    return aiohttp.ClientSession(
        timeout=timeout, trust_env=True, headers={"Accept-Encoding": "identity"}, auto_decompress=False
    )


def _total(response: aiohttp.ClientResponse) -> int:
    if response.status == 206:
        _, _, total = response.headers.get("Content-Range", "").rpartition("/")
        if total.isdigit():
            return int(total)
    if response.content_length is None or response.status == 206:
        raise NodeError("source_unreachable", "The server does not say how long the file is", "model")
    return response.content_length


def _check(response: aiohttp.ClientResponse) -> None:
    if response.status in (401, 403):
        raise NodeError(
            "gated_model", f"The server answers {response.status}: it wants to know who asks", "model"
        )
    if response.status in (404, 410):
        raise NodeError("model_not_found", "There is no file at this URL", "model")
    if response.status == 429:
        raise NodeError("source_busy", "The server wants to be left alone for a while", "model")
    if response.status not in (200, 206):
        raise aiohttp.ClientError(f"the server answers {response.status}")


def _no_model() -> NodeError:
    return NodeError("model_corrupt", "What is at this URL does not begin with GGUF: it is no model", "model")


def _unreachable(error: BaseException) -> NodeError:
    return NodeError(
        "source_unreachable", f"The file cannot be fetched: {str(error) or type(error).__name__}", "model"
    )
