"""`Generation`: events of several requests, gathered without loss, ended by an error or an ending each."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from llm_node.node import Generation, NodeError


@dataclass
class Happening:
    """What `Generation` looks at in an event."""

    kind: str
    text: str = ""
    fault: NodeError | None = None


async def test_what_happened_in_between_comes_at_once() -> None:
    generation = Generation(1)
    for text in "abc":
        generation.put(0, Happening("piece", text))
    assert [event.text for _, event in await anext(generation)] == ["a", "b", "c"]


async def test_it_ends_when_every_request_has_ended() -> None:
    generation = Generation(2)
    generation.put(1, Happening("finished"))
    waiting = asyncio.ensure_future(anext(generation))
    assert [index for index, _ in await waiting] == [1]
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    assert not waiting.done()
    generation.put(0, Happening("finished"))
    assert [index for index, _ in await waiting] == [0]
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_an_error_comes_after_what_came_before_it() -> None:
    generation = Generation(1)
    generation.put(0, Happening("piece", "a"))
    generation.put(0, Happening("failed", fault=NodeError("engine_crashed", "gone")))
    assert [event.text for _, event in await anext(generation)] == ["a"]
    with pytest.raises(NodeError, match="gone"):
        await anext(generation)


async def test_a_waiting_reader_sees_the_error() -> None:
    generation = Generation(1)
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    generation.fail(NodeError("shutting_down", "going"))
    with pytest.raises(NodeError, match="going"):
        await waiting


async def test_a_cancelled_wait_loses_nothing() -> None:
    generation = Generation(1)
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    generation.put(0, Happening("piece", "a"))
    assert [event.text for _, event in await anext(generation)] == ["a"]
