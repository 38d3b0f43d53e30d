"""A node as a client of its HTTP API sees it: how the commands find the one that runs, and talk to it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import click

from llm_node.cli.failure import Failed
from llm_node.errors import Exit
from llm_node.server import record
from llm_node.server.record import NodeRecord
from llm_node.settings import Settings

LOOK_SECONDS = 2.0
"""How long a node that is said to run here may take to say so."""
CONNECT_SECONDS = 10.0
LONGEST_EVENT = 64 << 20
"""Bytes of one server-sent event."""


@dataclass(eq=False)
class RemoteError(Exception):
    """An error as the node answered it; `errors.Failure`."""

    code: str
    message: str
    param: str | None = None
    details: Mapping[str, object] | None = None


class Remote:
    """The node at a URL. An asynchronous context manager."""

    def __init__(self, url: str, key: str | None = None, fingerprint: str | None = None) -> None:
        """`fingerprint`: of the certificate that it shows, whatever name that is for."""
        self.url = url
        self._trust = _trust(fingerprint)
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Remote:
        timeout = aiohttp.ClientTimeout(total=None, connect=CONNECT_SECONDS)
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        self._session = aiohttp.ClientSession(timeout=timeout, read_bufsize=LONGEST_EVENT, headers=headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str) -> Any:
        """The JSON of an answer. Raises `RemoteError`, or `Failed` where nobody answers."""
        async with self._ask("GET", path, params=query) as response:
            return await response.json(content_type=None)

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """As `get`."""
        async with self._ask("POST", path, json=body) as response:
            return await response.json(content_type=None)

    async def delete(self, path: str) -> Any:
        """As `get`."""
        async with self._ask("DELETE", path) as response:
            return await response.json(content_type=None)

    async def events(self, method: str, path: str, **request: Any) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream. `request`: aiohttp's. Raises as `get` does, also in its midst."""
        async with self._ask(method, path, **request) as response:
            async for line in response.content:
                field, _, data = line.decode(errors="replace").partition(":")
                if field != "data":
                    continue
                if data.strip() == "[DONE]":
                    return
                yield _event(data, response.status)

    @contextlib.asynccontextmanager
    async def _ask(self, method: str, path: str, **request: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        if self._session is None:
            raise RuntimeError("used outside of its context")
        if "json" in request:
            request |= _written(request.pop("json"))
        try:
            async with self._session.request(method, self.url + path, ssl=self._trust, **request) as response:
                if response.status >= 400:
                    raise _error(await _json(response), response.status)
                yield response
        except (aiohttp.ClientPayloadError, aiohttp.ServerDisconnectedError):
            raise Failed(
                f"the node at {self.url} ended before it had answered in full", Exit.UNREACHABLE
            ) from None
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            words = f"the node at {self.url} cannot be reached: {_why(error)}"
            raise Failed(words, Exit.UNREACHABLE) from None


def _written(body: Any) -> dict[str, Any]:
    """The body of a request, and its kind. What was typed may be any bytes, and JSON has only text."""
    try:
        data = json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Failed(
            "a name or a text that was given is not in UTF-8: nothing was sent", Exit.USAGE
        ) from None
    return {"data": data, "headers": {"Content-Type": "application/json"}}


def _why(error: Exception) -> str:
    """Without the words of the libraries, where the system has some."""
    # What is wrong with a certificate the system has no words for.
    if isinstance(error, aiohttp.ClientConnectorError) and not isinstance(error, aiohttp.ClientSSLError):
        number = error.os_error.errno or 0
        # What the resolver says has a negative number, and words of its own.
        return os.strerror(number) if number > 0 else error.os_error.strerror or str(error)
    return str(error) or type(error).__name__


def at(url: str, settings: Settings) -> Remote:
    """The node at a URL, with the key that is named for it, or with this user's where the node runs here."""
    last = record.read(settings.home)
    for known in [] if last is None else last.all():
        if known.url == url:
            named = None if settings.node is None else settings.api_key
            return Remote(url, named or known.key, known.fingerprint)
    return Remote(url, settings.api_key)


def _trust(fingerprint: str | None) -> aiohttp.Fingerprint | bool:
    return True if fingerprint is None else aiohttp.Fingerprint(bytes.fromhex(fingerprint))


async def running(settings: Settings, unheeded: Sequence[str] = ()) -> str | None:
    """The URL of the node to talk to: the one that was named, or the one that runs here.

    `unheeded`: flags that it does not heed, which is said.
    """
    url = settings.node or await _recorded(settings)
    if url is not None and unheeded:
        click.echo(
            f"The node at {url} has settings of its own: {', '.join(unheeded)} changes nothing.", err=True
        )
    return url


async def _recorded(settings: Settings) -> str | None:
    """That of the node which started last in this home. Where more run there, that is said."""
    last = await last_that_runs(settings)
    if last is None:
        return None
    url, *others = [known.url for known in last.all()]
    if others:
        also = " and ".join(others)
        words = f"The one at {url} is asked, with --node URL another: {also}"
        click.echo(f"Several nodes run in this home. {words}", err=True)
    return url


async def last_that_runs(settings: Settings) -> NodeRecord | None:
    """Of the nodes that run in this home. Those that have ended are left out of its `before`, too."""
    last = record.read(settings.home)
    found: NodeRecord | None = None
    for known in reversed([] if last is None else list(last.all())):
        if await answers(known):
            found = replace(known, before=found)
    return found


async def answers(known: NodeRecord) -> bool:
    """Is the node there that this record tells of?"""
    timeout = aiohttp.ClientTimeout(total=LOOK_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{known.url}/readyz", ssl=_trust(known.fingerprint)) as response,
        ):
            answer = await response.json(content_type=None)
            # One that is not ready says who it is in its error.
            named = answer.get("error", answer).get("node_id")
            return bool(named == known.node_id)
    except (aiohttp.ClientError, asyncio.TimeoutError, ValueError, AttributeError):
        return False


@contextlib.asynccontextmanager
async def if_running(settings: Settings, unheeded: Sequence[str] = ()) -> AsyncIterator[Remote | None]:
    """The node that `running` finds, to be talked to; None: there is none."""
    url = await running(settings, unheeded)
    if url is None:
        yield None
        return
    async with at(url, settings) as remote:
        yield remote


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Remote]:
    """The node that runs. Ends the command where there is none."""
    async with if_running(settings) as remote:
        if remote is None:
            raise Failed(
                "no node runs here; start one with `llm-node serve`, or name one with --node URL",
                Exit.UNREACHABLE,
            )
        yield remote


async def _json(response: aiohttp.ClientResponse) -> Any:
    try:
        return await response.json(content_type=None)
    except ValueError:
        return None


def _event(data: str, status: int) -> dict[str, Any]:
    try:
        event: dict[str, Any] = json.loads(data)
    except ValueError:
        raise RemoteError("internal", f"an event that is no JSON: {data[:200]}") from None
    if "error" in event:
        raise _error(event, status)
    return event


def _error(answer: Any, status: int) -> RemoteError:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return RemoteError("internal", f"HTTP {status}, and no error that llm-node knows")
    code, message = str(error.get("code")), str(error.get("message"))
    return RemoteError(code, message, error.get("param"), error)
