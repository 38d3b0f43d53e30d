"""Batch invariance: what a request is answered does not depend on what runs beside it. rust/core checks it on
a toy engine, this on real models."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st

from support.node import RunningNode, running_node
from support.streams import Alone, UnderWay, session, text_of

# Shared, so that there is something to keep; two of them too long to be read in one piece beside answers, and
# two of which a lookup can guess how they go on.
BEGINNINGS = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her "
    "friends. One day, she saw a big red ball under a tree. It was not her ball, so she asked her mom what "
    "to do. Her mom said that they should look for the child who had lost it.",
    "An engine is a shared library. The node loads it, asks it what it can do and gives it a model. ",
    "the cat and the dog and the bird and " * 6,
    "",
)
ENDINGS = (
    "Then Tom said:",
    "Lily had a dog.",
    "How do I add an engine? How do I add an engine? How do I add",
    "one two three four one two three four one two",
    "the cat and the dog and",
    "The",
)
CONTEXT_LENGTH = 512
CACHE_TOKENS = 560
# More than the 256 tokens that admission keeps room for: two that were let in come to be too many.
LONG = 440


@dataclass(frozen=True)
class Ask:
    """A request, and what its client does."""

    prompt: str
    max_tokens: int
    late: float = 0.0
    """Seconds after the others."""
    streamed: bool = True
    logprobs: int | None = None
    leaves: int | None = None
    """After so many events, or milliseconds where it does not stream."""

    def body(self, model: str) -> dict[str, Any]:
        wanted = {"model": model, "prompt": self.prompt, "temperature": 0, "max_tokens": self.max_tokens}
        # One that is to be long must not end early.
        ending = {"ignore_eos": True} if self.max_tokens == LONG else {}
        return {**wanted, **ending, "logprobs": self.logprobs}


@st.composite
def asks(draw: st.DrawFn) -> Ask:
    # Long answers take most of the time.
    max_tokens = LONG if draw(st.integers(0, 9)) == 0 else draw(st.integers(1, 60))
    beginning = "" if max_tokens == LONG else draw(st.sampled_from(BEGINNINGS))
    cut = draw(st.sampled_from((len(beginning), len(beginning), 90, 30)))
    return Ask(
        prompt=beginning[:cut] + draw(st.sampled_from(ENDINGS)),
        max_tokens=max_tokens,
        late=draw(st.sampled_from((0.0, 0.0, 0.002, 0.01, 0.05))),
        streamed=draw(st.booleans()),
        logprobs=draw(st.sampled_from((None, None, None, 2))),
        leaves=draw(st.none() | st.none() | st.none() | st.integers(1, 30)),
    )


# These together are more than the pool holds, each alone is less.
TOO_MANY = [Ask(prompt, LONG, logprobs=0) for prompt in ("GPU memory", "What")]


@dataclass
class Seen:
    """What clients saw, all together."""

    cached: int = 0
    guessed: int = 0
    under_way: UnderWay = field(default_factory=UnderWay)

    def usage(self, usage: dict[str, Any]) -> None:
        self.cached += usage["prompt_tokens_details"]["cached_tokens"]
        self.guessed += sum(usage["completion_tokens_details"].values())

    def event(self, index: int, chunk: dict[str, Any]) -> None:
        self.under_way.saw(index, chunk)
        if chunk.get("usage"):
            self.usage(chunk["usage"])


async def whole(
    client: aiohttp.ClientSession, url: str, body: dict[str, Any], leaves: int | None, seen: Seen
) -> tuple[str, str | None]:
    """The text, and why it ended; `None` where the client left."""

    async def ask() -> Any:
        async with client.post(f"{url}/v1/completions", json=body) as reply:
            assert reply.status == 200, await reply.text()
            return await reply.json()

    try:
        answer = await asyncio.wait_for(ask(), leaves and leaves / 1000)
    except asyncio.TimeoutError:
        return "", None
    seen.usage(answer["usage"])
    return answer["choices"][0]["text"], answer["choices"][0]["finish_reason"]


async def answers(url: str, model: str, company: list[Ask], seen: Seen) -> list[tuple[str, str | None]]:
    async def one(index: int, ask: Ask) -> tuple[str, str | None]:
        await asyncio.sleep(ask.late)
        if not ask.streamed:
            return await whole(client, url, ask.body(model), ask.leaves, seen)
        body = {**ask.body(model), "stream_options": {"include_usage": True}}
        watch = functools.partial(seen.event, index)
        said = await text_of(client, url, body, leaves=ask.leaves, watch=watch)
        seen.under_way.left(index)
        return said

    async with session() as client:
        return await asyncio.gather(*(one(*each) for each in enumerate(company)))


@pytest.fixture(scope="module", params=["split", "unified"])
def crowded(
    request: pytest.FixtureRequest, engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningNode]:
    """A node with room for few, in either form of llama.cpp's KV cache."""
    arguments = ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu"]
    arguments += ["--context-length", str(CONTEXT_LENGTH), "--max-sequences", "4"]
    arguments += ["--engine-option", f"cache_mode={request.param}"]
    if request.param == "unified":
        arguments += ["--cache-tokens", str(CACHE_TOKENS)]
    # No step is short enough for that, so prompts beside answers come in the smallest pieces.
    arguments += ["--target-step-ms", "1"]
    with running_node(tmp_path_factory.mktemp("crowded"), arguments) as node:
        node.extra["shares a pool"] = request.param == "unified"
        yield node


def test_answers_are_batch_invariant(crowded: RunningNode, alone: Alone, model: str) -> None:
    """Batches, pieces of prompts, kept beginnings, guesses, waiting, giving way, clients that leave."""
    seen = Seen()

    # Always the same examples. One that fails is not made smaller: what happens in it depends on the time.
    @settings(max_examples=40, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
    @example(TOO_MANY)
    @given(st.lists(asks(), min_size=2, max_size=10))
    def check(company: list[Ask]) -> None:
        said = asyncio.run(answers(crowded.url, model, company, seen))
        for ask, (text, reason) in zip(company, said, strict=True):
            assert reason or ask.leaves
            alone.assert_said(ask.body(model), text, reason)

    check()
    assert seen.cached > 0
    assert seen.guessed > 0
    if crowded.extra["shares a pool"]:
        # More had begun and not ended than fits: somebody had given way.
        assert seen.under_way.most > CACHE_TOKENS
