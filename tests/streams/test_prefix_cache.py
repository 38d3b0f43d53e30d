"""The prefix cache and the KV cache under pressure, on real models: cheaper, and never different."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import RunningNode, running_node
from support.streams import assert_same_or_tied, greedy, session, text_of

BEGINNING = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her "
    "friends. One day, she saw a big red ball under a tree. "
)


def arguments(engines: Path, models: Path, *more: str) -> list[str]:
    return ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu", *more]


@pytest.fixture(scope="module")
def plain(engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that keeps nothing."""
    folder = tmp_path_factory.mktemp("plain")
    with running_node(folder, arguments(engines, models, "--prefix-cache", "no")) as node:
        yield node


@pytest.fixture(scope="module", params=["split", "unified"])
def keeping(
    request: pytest.FixtureRequest, engines: Path, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningNode]:
    """A node with a prefix cache, in either form of llama.cpp's KV cache."""
    folder = tmp_path_factory.mktemp("keeping")
    mode = f"cache_mode={request.param}"
    with running_node(folder, arguments(engines, models, "--engine-option", mode)) as node:
        yield node


def cached(node: RunningNode, model: str, prompt: str) -> tuple[str, int, int]:
    """A greedy answer, the tokens of its prompt, and how many of them were cached."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24, "ignore_eos": True}
    answer = node.post("/v1/completions", body)
    assert answer.status == 200, answer.text
    usage = answer.json()["usage"]
    text = answer.json()["choices"][0]["text"]
    return text, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def test_a_conversation_is_read_once(keeping: RunningNode, plain: RunningNode, model: str) -> None:
    prompt = f"{BEGINNING}It was a sunny day, and"
    for turn in range(4):
        text, tokens, known = cached(keeping, model, prompt)
        _, _, without = cached(plain, model, prompt)
        assert without == 0
        # All but what the last turn added; the text of its end may tokenise anew.
        assert turn == 0 or tokens - known <= 20, (turn, tokens, known)
        prompt += f"{text} Then"


async def test_a_shared_beginning_is_read_once(keeping: RunningNode, plain: RunningNode, model: str) -> None:
    prompts = [f"{BEGINNING}{name} said:" for name in ("Tom", "Max", "Anna", "Ben", "Sue", "Tim", "Mia")]
    async with session() as client:
        together = await asyncio.gather(*(greedy(client, keeping.url, model, each, 30) for each in prompts))
        alone = [await greedy(client, plain.url, model, each, 30) for each in prompts]
    for one, (other, _) in zip(alone, together, strict=True):
        assert_same_or_tied(model, one, other)
    _, tokens, known = cached(keeping, model, f"{BEGINNING}Lily said:")
    assert known > tokens // 2


async def test_a_cache_that_is_too_small_fails_nobody(
    engines: Path, models: Path, plain: RunningNode, model: str, tmp_path: Path
) -> None:
    """Twice as much as fits: whoever gives way comes back, and says the same."""
    more = ("--cache-tokens", "1024", "--context-length", "512", "--max-sequences", "12")
    prompts = [
        f"{name} had a {thing}." for name in ("Lily", "Tom", "Max") for thing in ("dog", "cat", "hat", "car")
    ]
    async with session() as client:
        with running_node(tmp_path, arguments(engines, models, *more)) as small:
            together = await asyncio.gather(
                *(greedy(client, small.url, model, each, 400) for each in prompts)
            )
        for prompt, (tokens, _) in zip(prompts, together, strict=True):
            assert_same_or_tied(model, await greedy(client, plain.url, model, prompt, 400), tokens)


async def test_repetitions_are_guessed_and_stay_the_same(
    keeping: RunningNode, plain: RunningNode, model: str
) -> None:
    """A text that repeats itself is what n-gram lookup is for."""
    prompt = "the cat and the dog and the cat and the dog and the cat and the dog and the"
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 120, "ignore_eos": True}
    async with session() as client:
        expected = await greedy(client, plain.url, model, prompt, 120)
        assert_same_or_tied(model, expected, (await greedy(client, keeping.url, model, prompt, 120))[0])
        assert (await text_of(client, keeping.url, body))[1] == "length"
