"""Many streams at once, of which some may break off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp

from support.streams import session, stream

TOKENS = 60
"""Of an answer."""
SECONDS = 120.0
"""For all of them."""


def body(number: int) -> dict[str, Any]:
    """A request of a conversation of its own, to a fake engine."""
    prompt = f"Request {number} of many"
    return {"model": "slow", "prompt": prompt, "temperature": 0, "max_tokens": TOKENS, "ignore_eos": True}


def for_openai(number: int, **more: Any) -> Any:
    """The same by the official client."""
    fields = body(number) | more
    own = {"ignore_eos": fields.pop("ignore_eos")}
    return {**fields, "extra_body": own}


async def outcome(client: aiohttp.ClientSession, url: str, number: int) -> str | None:
    """The text of a whole stream; None: it broke off, or there was none."""
    text = ""
    try:
        async for chunk in stream(client, url, body(number)):
            if "error" in chunk:
                print(f"request {number} failed: {chunk}")
                return None
            text += str(chunk["choices"][0]["text"])
            if chunk["choices"][0]["finish_reason"]:
                return text
    except (aiohttp.ClientError, AssertionError) as error:
        print(f"request {number} failed after {len(text)} characters: {error!r}")
        return None
    print(f"request {number} has no end after {len(text)} characters")
    return None


async def many(
    url: str,
    count: int,
    at_once: int,
    *,
    after: int = -1,
    act: Callable[[], object] | None = None,
    headers: Mapping[str, str] | None = None,
    seconds: float = SECONDS,
) -> list[str | None]:
    """Streams, so many at once. `act` is done once `after` of them have ended."""
    outcomes: list[str | None] = [None] * count
    left = iter(range(count))
    ended = 0
    async with session(headers) as client:

        async def work() -> None:
            nonlocal ended
            for number in left:
                outcomes[number] = await outcome(client, url, number)
                ended += 1
                if ended == after and act is not None:
                    await asyncio.to_thread(act)

        await asyncio.wait_for(asyncio.gather(*(work() for _ in range(at_once))), seconds)
    return outcomes
