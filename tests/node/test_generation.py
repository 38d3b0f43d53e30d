"""`Generation` and `Client`: what happens to several requests, without loss, ended by an error or an ending
each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from llm_node.node import Client, Generation, NodeError


@dataclass
class Happening:
    """What `Client` looks at in an event."""

    kind: str
    stream: int = 0
    text: str = ""
    fault: NodeError | None = None
    number: int = 0


def of_requests(count: int) -> tuple[Client, Generation]:
    """A client with so many streams, numbered as its requests are."""
    generation = Generation()
    client = of(generation)
    client.streams = {index: index for index in range(count)}
    return client, generation


def of(
    receiver: Any,
    connection: Any = None,
    run_again: Callable[[int, NodeError], None] = lambda index, fault: None,
) -> Client:
    return Client(None, 7, receiver, connection, run_again)  # type: ignore[arg-type]  # nothing asks the core


def take(client: Client, happening: Happening) -> None:
    client._event(happening)  # type: ignore[arg-type]


async def test_what_happened_in_between_comes_at_once() -> None:
    client, generation = of_requests(1)
    for text in "abc":
        take(client, Happening("piece", text=text))
    assert [event.text for _, event in await anext(generation)] == ["a", "b", "c"]


async def test_it_ends_when_every_request_has_ended() -> None:
    client, generation = of_requests(2)
    take(client, Happening("finished", 1))
    waiting = asyncio.ensure_future(anext(generation))
    assert [index for index, _ in await waiting] == [1]
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    assert not waiting.done()
    take(client, Happening("finished", 0))
    assert [index for index, _ in await waiting] == [0]
    with pytest.raises(StopAsyncIteration):
        await anext(generation)


async def test_an_error_comes_after_what_came_before_it() -> None:
    client, generation = of_requests(2)
    take(client, Happening("piece", text="a"))
    take(client, Happening("failed", fault=NodeError("engine_crashed", "gone")))
    client.take(b"nothing more is taken")
    assert [event.text for _, event in await anext(generation)] == ["a"]
    with pytest.raises(NodeError, match="gone"):
        await anext(generation)


async def test_what_has_not_begun_runs_again_once_after_a_crash() -> None:
    generation = Generation()
    again: list[int] = []
    client = of(generation, run_again=lambda index, fault: again.append(index))
    client.streams = {10: 0, 11: 1, 12: 2}
    take(client, Happening("started", 11))
    for number in (10, 12):
        take(client, Happening("failed", number, fault=NodeError("engine_crashed", "gone")))
    assert (again, client.has_ended) == ([0, 2], False)
    take(client, Happening("finished", 11))
    assert not client.has_ended, "two are still to come"
    client.returned.clear()
    client.streams = {20: 0, 22: 2}
    take(client, Happening("finished", 20))
    take(client, Happening("failed", 22, fault=NodeError("engine_crashed", "gone again")))
    assert [index for index, _ in await anext(generation)] == [1, 1, 0]
    with pytest.raises(NodeError, match="gone again"):
        await anext(generation)


async def test_what_has_begun_does_not_run_again_and_no_other_error_is_a_reason() -> None:
    for kind, code in (("started", "engine_crashed"), ("", "queue_full")):
        generation = Generation()
        client = of(generation, run_again=lambda index, fault: pytest.fail("it ran again"))
        client.streams = {0: 0}
        if kind:
            take(client, Happening(kind))
        take(client, Happening("failed", fault=NodeError(code, "gone")))
        assert client.has_ended


async def test_a_waiting_reader_sees_the_error() -> None:
    client, generation = of_requests(1)
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    client.end(NodeError("shutting_down", "going"))
    with pytest.raises(NodeError, match="going"):
        await waiting


async def test_a_cancelled_wait_loses_nothing() -> None:
    client, generation = of_requests(1)
    waiting = asyncio.ensure_future(anext(generation))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    take(client, Happening("piece", text="a"))
    assert [event.text for _, event in await anext(generation)] == ["a"]


def test_a_defect_of_a_receiver_ends_its_client_and_goes_no_further() -> None:
    class Broken:
        error: Exception | None = None

        def pass_on(self, data: bytes) -> None:
            raise RuntimeError("broken")

        def overflow(self) -> None: ...

        def socket(self) -> int | None:
            return None

        def event(self, index: int, event: Any) -> None: ...

        def end(self, error: Exception | None, number: int = 0) -> None:
            self.error = error

    broken = Broken()
    client = of(broken, broken)
    client.take(b"data")
    assert isinstance(broken.error, RuntimeError)
    assert client.has_ended
