"""Clients of streams, and what may differ between two greedy answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import aiohttp

# By how much two tokens may differ and be tied, in nats. Floats that are added in another order, and a KV
# cache in half precision, stay far below a hundredth. Where weights are quantised, activations are rounded to
# 8 bits in each layer, and a last digit that changes there moves margins of the demo model by up to 0.2,
# whatever the processor.
TIE = 0.02
QUANTISED = {"llm-node-demo": 0.25}


async def stream(
    client: aiohttp.ClientSession, url: str, body: dict[str, object]
) -> AsyncIterator[dict[str, object]]:
    async with client.post(f"{url}/v1/completions", json={**body, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])


async def text_of(client: aiohttp.ClientSession, url: str, body: dict[str, object]) -> tuple[str, str | None]:
    text, reason = "", None
    async for chunk in stream(client, url, body):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:  # type: ignore[attr-defined]
            text += choice["text"]
            reason = choice["finish_reason"] or reason
    return text, reason


def session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))


async def greedy(
    client: aiohttp.ClientSession, url: str, model: str, prompt: str, tokens: int
) -> tuple[list[str], list[float]]:
    """The tokens of a greedy answer, and by how much each was likelier than the next best (nats)."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens, "logprobs": 2}
    picked: list[str] = []
    margins: list[float] = []
    async for chunk in stream(client, url, body):
        assert "error" not in chunk, chunk
        for choice in chunk["choices"]:  # type: ignore[attr-defined]
            if choice["logprobs"]:
                picked += choice["logprobs"]["tokens"]
                best = [sorted(each.values(), reverse=True) for each in choice["logprobs"]["top_logprobs"]]
                margins += [each[0] - each[1] for each in best]
    return picked, margins


def assert_same_or_tied(model: str, alone: tuple[list[str], list[float]], together: list[str]) -> None:
    """Equal, or parted at a tie: a batch adds floats up in another order than a single sequence does."""
    tokens, margins = alone
    for position, (one, other) in enumerate(zip(tokens, together, strict=False)):
        if one != other:
            tie = QUANTISED.get(model, TIE)
            assert margins[position] < tie, (position, margins[position], tokens, together)
            return
    assert len(tokens) == len(together)
