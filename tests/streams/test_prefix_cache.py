"""The prefix cache and the KV cache under pressure, on real models: cheaper, and never different."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.node import RunningNode, running_node
from support.streams import Alone, UnderWay, greedy, session, text_of

BEGINNING = (
    "Once upon a time there was a little girl named Lily. She loved to play outside in the park with her "
    "friends. One day, she saw a big red ball under a tree. "
)


def arguments(engines: Path, models: Path, *more: str) -> list[str]:
    return ["--engines-dir", str(engines), "--models-dir", str(models), "--gpu-backend", "cpu", *more]


GUESSED = "the cat and the dog and the cat and the dog and the cat and the dog and the"


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
    assert answer.status == 200, answer.body
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


async def test_a_shared_beginning_is_read_once(keeping: RunningNode, alone: Alone, model: str) -> None:
    names = ("Tom", "Max", "Anna", "Ben", "Sue", "Tim", "Mia")
    bodies = [greedy(model, f"{BEGINNING}{name} said:", 30) for name in names]
    async with session() as client:
        together = await asyncio.gather(*(text_of(client, keeping.url, body) for body in bodies))
    for body, (text, reason) in zip(bodies, together, strict=True):
        alone.assert_said(body, text, reason)
    _, tokens, known = cached(keeping, model, f"{BEGINNING}Lily said:")
    assert known > tokens // 2


async def test_a_cache_that_is_too_small_fails_nobody(
    engines: Path, models: Path, alone: Alone, model: str, tmp_path: Path
) -> None:
    """Twice as much as fits: whoever gives way comes back, and says the same."""
    room = 1024
    more = ["--cache-tokens", str(room), "--context-length", "512", "--max-sequences", "12"]
    # Without guesses all get on at the same pace, and so all are far when the room is used up.
    more += ["--speculation", "off"]
    prompts = [f"{name} had a {thing}." for name in ("Lily", "Tom", "Max") for thing in ("dog", "cat")]
    bodies = [{**greedy(model, prompt, 400), "ignore_eos": True, "logprobs": 0} for prompt in prompts]
    under_way = UnderWay()
    async with session() as client:
        with running_node(tmp_path, arguments(engines, models, *more)) as small:
            together = await asyncio.gather(
                *(
                    text_of(client, small.url, body, watch=functools.partial(under_way.saw, index))
                    for index, body in enumerate(bodies)
                )
            )
    assert under_way.most > room, "nobody had to give way"
    for body, (text, reason) in zip(bodies, together, strict=True):
        alone.assert_said(body, text, reason)


def test_repetitions_are_guessed_and_stay_the_same(keeping: RunningNode, alone: Alone, model: str) -> None:
    """A text that repeats itself is what n-gram lookup is for."""
    body = {**greedy(model, GUESSED, 120), "ignore_eos": True}
    # A fresh one: what steps took beside others, on a busy machine, may say that no guess pays.
    keeping.reload(model)
    answer = keeping.post("/v1/completions", body)
    assert answer.status == 200, answer.body
    (choice,), usage = answer.json()["choices"], answer.json()["usage"]
    alone.assert_said(body, choice["text"], choice["finish_reason"])
    assert sum(usage["completion_tokens_details"].values()) > 0
