"""The Hugging Face hub, as far as pulls need it. Its client runs in a child process, see `child.py`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm_node.node import NodeError

log = logging.getLogger(__name__)

CHILD = Path(__file__).with_name("child.py")
LONGEST_LINE = 128 << 20
"""Bytes of one answer: the beginning of a file, in base64."""

ALLOWED = (".gguf", ".safetensors", ".json", ".txt", ".model", ".jinja")
"""What is ever fetched: no pickles, and no code."""

HINTS = {
    "gated_model": "accept the terms on its page, then set HF_TOKEN or run `hf auth login`",
    "offline": "set HF_HUB_OFFLINE=0",
}


@dataclass(frozen=True)
class File:
    """A file of a repository."""

    path: str
    """As in the repository, with slashes."""
    size: int
    sha256: str | None = None
    """Of a large one."""
    blob_id: str | None = None
    """What git calls it: of a small one, this is the hash of its content."""


@dataclass(frozen=True)
class Repository:
    """A repository at one commit."""

    name: str
    commit: str
    files: Sequence[File]


@dataclass(frozen=True)
class Account:
    """Who this user is to the hub."""

    hub: str
    """Its URL."""
    token: Literal["none", "valid", "refused"]


class Hub:
    """The child process and what it is asked. An asynchronous context manager, which ends the process."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._talk: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Hub:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(CHILD),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            start_new_session=True,  # Ctrl-C is for us
        )
        self._talk = asyncio.create_task(_log(self._process.stderr))
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._talk is not None:
            await self._talk

    async def repository(self, name: str, revision: str | None) -> Repository:
        """What is in it at the commit that `revision` is now. Raises `NodeError`."""
        answer = await self._ask("info", repository=name, revision=revision)
        files = [
            File(each["path"], each["size"], each["sha256"], each["blob_id"])
            for each in answer["files"]
            if _is_plain(each["path"]) and isinstance(each["size"], int)
        ]
        return Repository(answer["repository"], answer["commit"], files)

    async def head(self, repository: Repository, file: File, size: int) -> bytes:
        """The beginning of a file: so many bytes, or all of it."""
        answer = await self._ask(
            "head", repository=repository.name, commit=repository.commit, path=file.path, size=size
        )
        return base64.b64decode(answer["data"])

    async def fetch(
        self, repository: Repository, file: File, folder: Path, told: Callable[[int], None]
    ) -> None:
        """The file, into the folder. `told` learns how many bytes of it have come."""
        await self._ask(
            "fetch",
            told,
            repository=repository.name,
            commit=repository.commit,
            path=file.path,
            folder=str(folder),
        )

    async def search(self, words: str, *, base: str | None = None, limit: int = 20) -> list[dict[str, Any]]:
        """Repositories with GGUF files; with `base`, those that were made from that model."""
        found: list[dict[str, Any]] = (await self._ask("search", words=words, base=base, limit=limit))[
            "models"
        ]
        return found

    async def account(self) -> Account:
        """Does the hub answer, and take the token that is set here? Raises `NodeError` where it does not
        answer."""
        return Account(**await self._ask("account"))

    async def _ask(
        self, operation: str, told: Callable[[int], None] | None = None, **request: Any
    ) -> dict[str, Any]:
        process = self._process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("used outside of its context")
        line = json.dumps({"operation": operation, **request}) + "\n"
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line.encode())
            await process.stdin.drain()
        while answer := await process.stdout.readline():
            content: dict[str, Any] = json.loads(answer)
            if "done" in content:
                done: dict[str, Any] = content["done"]
                return done
            if "error" in content:
                code = content["error"]
                hint = f"; {HINTS[code]}" if code in HINTS else ""
                raise NodeError(code, f"{content['message'].rstrip('.')}{hint}", "model")
            if told is not None:
                told(content["bytes"])
        raise NodeError("source_unreachable", "The process that speaks to the hub has ended; see the log")


async def _log(stream: asyncio.StreamReader | None) -> None:
    while stream is not None and (line := await stream.readline()):
        log.info("hub: %s", line.decode(errors="replace").rstrip())


def _is_plain(path: str) -> bool:
    """Does it stay in its folder, and is it of a kind that is fetched?"""
    parts = path.split("/")
    return (
        path.lower().endswith(ALLOWED)
        and "\\" not in path
        and ":" not in path
        and all(part and not part.startswith(".") for part in parts)
    )
