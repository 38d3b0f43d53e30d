"""A `Node` in a program of one's own: it starts once, and ends for good."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from llm_node.node import Node, NodeError
from llm_node.settings import Settings


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(Settings(home=tmp_path, gpu_backend="cpu", caches=()))


async def test_it_starts_once(node: Node) -> None:
    async with node:
        with pytest.raises(NodeError, match="was started before"):
            await node.start()
        assert node.is_ready and await node.models()


async def test_what_is_closed_does_not_start(node: Node) -> None:
    await node.start()
    await node.close()
    with pytest.raises(NodeError, match="make another `Node`") as caught:
        await node.start()
    assert caught.value.code == "shutting_down" and not node.is_ready


async def test_what_is_closed_while_it_starts_does_not_run(node: Node) -> None:
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0)  # it has begun
    await node.close()
    with pytest.raises(NodeError, match="make another `Node`"):
        await starting
    assert not node.is_ready


async def test_wrong_arguments_are_named(node: Node) -> None:
    async with node:
        for name, value in {"context_length": 2**40, "cache_tokens": 2**70, "devices": 0}.items():
            for call in (node.load, node.plan_load):
                with pytest.raises(NodeError, match=f"{name} is {value}: expected") as caught:
                    await call("llm-node-demo", **{name: value})
                assert (caught.value.code, caught.value.param) == ("invalid_request", name)
        with pytest.raises(NodeError, match="half of a surrogate pair") as caught:
            await anext(node.generate("llm-node-demo", {"prompt": {"text": "\ud800"}}))
        assert caught.value.param == "prompt.text"
