"""Where requests wait for a model, those of different sources take turns."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from llm_node.keys import Scope, add
from support.engines import fake_engine
from support.node import RunningNode, running_node
from support.streams import greedy, session, text_of

MANY = 60
MOST_BEFORE = MANY // 3
"""Answers of the one who asks much that may have ended before the other is served: those under way, and by a
wide margin those that the machine let pass while the request came in."""


def arguments(folder: Path, **lacks: None) -> list[str]:
    """For a node with an engine that takes 0.1 s for an answer of 20 tokens."""
    fake_engine(folder / "engines", defines={"FAKE_STEP_US": 5000, "FAKE_EOG_EVERY": 0, **lacks})
    (folder / "models").mkdir()
    (folder / "models/toy.toy").write_text("TOY1\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    return [*places, "--gpu-backend", "cpu", "--max-sequences", "2"]


@pytest.fixture(scope="module", params=["batch", "stream"])
def node(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("turns")
    lacks = {"FAKE_NO_BATCH": None} if request.param == "stream" else {}
    with running_node(folder, arguments(folder, **lacks)) as running:
        running.reload("toy")
        yield running


async def ended_before(
    node: RunningNode, many: dict[str, Any], one: dict[str, Any], keys: Sequence[str] = ("", "")
) -> int:
    """How many answers of the client who asks for many have ended when another's one has. `keys`: of both."""
    first_key, second_key = ({"Authorization": f"Bearer {key}"} if key else {} for key in keys)
    async with session(first_key) as first, session(second_key) as second:
        asked = [asyncio.create_task(text_of(first, node.url, many)) for _ in range(MANY)]
        # Each of them is in the queue, or further.
        done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        assert done
        await text_of(second, node.url, one)
        ended = sum(task.done() for task in asked)
        for text, reason in await asyncio.gather(*asked):
            assert (text, reason) == (asked[0].result()[0], "length")
        return ended


async def test_one_client_s_many_requests_do_not_hold_up_another_s(node: RunningNode) -> None:
    body = greedy("toy", "ab", 20)
    assert await ended_before(node, {**body, "user": "many"}, {**body, "user": "one"}) <= MOST_BEFORE


async def test_a_short_request_of_nobody_in_particular_passes_long_ones(node: RunningNode) -> None:
    assert await ended_before(node, greedy("toy", "ab", 20), greedy("toy", "ab", 2)) <= MOST_BEFORE


async def test_requests_of_one_source_keep_their_order(node: RunningNode) -> None:
    body = {**greedy("toy", "ab", 20), "prompt_cache_key": "same", "user": "whoever"}
    assert await ended_before(node, body, {**body, "user": "another"}) == MANY


async def test_a_key_says_more_than_what_its_client_says_of_itself(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first, second = (add(file, name, Scope.ADMIN) for name in ("first", "second"))
    with running_node(tmp_path, [*arguments(tmp_path), "--api-key-file", str(file)]) as node:
        assert node.post("/api/models/load", {"model_id": "toy"}, key=first).status == 200
        body = {**greedy("toy", "ab", 20), "user": "same"}
        assert await ended_before(node, body, body, (first, second)) <= MOST_BEFORE
        assert await ended_before(node, body, {**body, "user": "another"}, (first, first)) == MANY


def own_address() -> str:
    """At which other machines would reach this one. Sends nothing."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine is on no network")
        return str(probe.getsockname()[0])


async def test_who_says_nothing_of_itself_is_known_by_its_address(tmp_path: Path) -> None:
    """On this machine's loopback it is the connection, for all who are there have one address."""
    address = own_address()
    beyond = ["--host", address, "--allow-open", "yes"]
    with running_node(tmp_path, [*arguments(tmp_path), *beyond], address=address) as node:
        node.reload("toy")
        body = greedy("toy", "ab", 20)
        assert await ended_before(node, body, body) == MANY, "two clients, one source"
        assert await ended_before(node, {**body, "user": "many"}, body) <= MOST_BEFORE


async def test_who_left_is_not_served(node: RunningNode) -> None:
    async with session() as client:
        body = {**greedy("toy", "ab", 20), "user": "leaves"}
        asked = [asyncio.create_task(text_of(client, node.url, body)) for _ in range(MANY)]
        await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
        for task in asked[MANY // 2 :]:
            task.cancel()
        results = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(isinstance(result, asyncio.CancelledError) for result in results) >= MANY // 2 - 1
        assert all(not isinstance(result, aiohttp.ClientError) for result in results)
        assert (await text_of(client, node.url, greedy("toy", "ab", 2)))[1] == "length"
