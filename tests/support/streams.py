"""Clients of streams, and what may differ between two greedy answers."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import gguf

from support.node import RunningNode

# By how much two tokens may differ and be tied, in nats. Floats that are added in another order, and a KV
# cache in half precision, stay far below a hundredth. Where weights are quantised, activations are rounded to
# 8 bits in each layer, and a last digit that changes there moves margins of the demo model by up to 0.2,
# whatever the processor.
TIE = 0.02
QUANTISED = {"llm-node-demo": 0.25}

# Tokens that are no text, and those of them at which an answer ends.
UNSEEN = re.compile(r"<s>|</s>|<\|\w+\|>")
ENDS = ("</s>", "<|end|>")
END = "\N{END OF TEXT}"


async def stream(
    client: aiohttp.ClientSession, url: str, body: dict[str, Any]
) -> AsyncGenerator[dict[str, Any], None]:
    async with client.post(f"{url}/v1/completions", json={**body, "stream": True}) as reply:
        assert reply.status == 200, await reply.text()
        async for line in reply.content:
            if line.startswith(b"data: ") and line != b"data: [DONE]\n":
                yield json.loads(line[6:])


async def text_of(
    client: aiohttp.ClientSession,
    url: str,
    body: dict[str, Any],
    *,
    leaves: int | None = None,
    watch: Callable[[dict[str, Any]], None] | None = None,
) -> tuple[str, str | None]:
    """Text and finish reason of a streamed answer. A client that leaves after so many events gets none."""
    text, reason, events = "", None, 0
    async with contextlib.aclosing(stream(client, url, body)) as chunks:
        async for chunk in chunks:
            assert "error" not in chunk, chunk
            if watch:
                watch(chunk)
            for choice in chunk["choices"]:
                text += choice["text"]
                reason = choice["finish_reason"] or reason
            events += 1
            if events == leaves and not reason:
                break
    return text, reason


class UnderWay:
    """How many tokens the answers have that have begun and not ended, as their clients see it.

    Where these are more than a KV cache holds, somebody had to give way. Answers with log-probabilities are
    counted exactly; others come several tokens at a time, and count less than they are.
    """

    def __init__(self) -> None:
        self.most = 0
        """Of all together, when they were most."""
        self._now: dict[int, int] = {}

    def saw(self, index: int, chunk: dict[str, Any]) -> None:
        """Something came for the request of that number."""
        for choice in chunk["choices"]:
            tokens = len(choice["logprobs"]["tokens"]) if choice["logprobs"] else bool(choice["text"])
            self._now[index] = self._now.get(index, 0) + tokens
            if choice["finish_reason"]:
                self.left(index)
        self.most = max(self.most, sum(self._now.values()))

    def left(self, index: int) -> None:
        """It is not under way any more."""
        self._now.pop(index, None)


def session(headers: Mapping[str, str] | None = None) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers)


def greedy(model: str, prompt: str, tokens: int) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": tokens}


class Alone:
    """What a model says to a request without company, on a node that keeps nothing and guesses nothing."""

    def __init__(self, node: RunningNode, model: str, file: Path) -> None:
        self._node = node
        self._model = model
        self._tie = QUANTISED.get(model, TIE)
        self._numbers = numbers(file)
        # By tokens before: what follows, each token with the likeliest in its place (nats).
        self._known: dict[tuple[int, ...], list[tuple[str, dict[str, float]]]] = {}

    def assert_said(self, body: dict[str, Any], text: str, reason: str | None) -> None:
        """A greedy answer is what is said alone, or parts from it where two tokens are tied: a batch adds
        floats up in another order than a single sequence does. What follows such a token is what is said
        alone after it. No finish reason: only the beginning of the answer came."""

        def seen(token: str) -> str:
            if token in ENDS and not body.get("ignore_eos"):
                return END
            return "" if UNSEEN.fullmatch(token) else token

        # Tokens before, and the text that has to follow.
        ways = [(self._tokens(body["prompt"]), text + (END if reason == "stop" else ""))]
        most = len(ways[0][0]) + body["max_tokens"]
        parted = []
        while ways:
            before, rest = ways.pop()
            for token, likely in self._after(before, most - len(before)):
                if not rest and reason != "length":
                    return
                for other in likely.keys() - {token}:
                    if likely[other] > likely[token] - self._tie and rest.startswith(seen(other)):
                        ways.append(([*before, self._numbers[other]], rest.removeprefix(seen(other))))
                if not rest.startswith(seen(token)):
                    parted.append((rest, likely))
                    break
                before, rest = [*before, self._numbers[token]], rest.removeprefix(seen(token))
            else:
                if not rest:
                    return
                parted.append((rest, {}))
        raise AssertionError(f"{body}: {text!r} ({reason}) parts from what is said alone: {parted}")

    def _after(self, before: list[int], count: int) -> list[tuple[str, dict[str, float]]]:
        known = self._known.get(tuple(before), [])
        if len(known) < count:
            body = {"model": self._model, "prompt": before, "temperature": 0, "max_tokens": count}
            answer = self._ask("/v1/completions", {**body, "ignore_eos": True, "logprobs": 5})
            logprobs = answer["choices"][0]["logprobs"]
            known = list(zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True))
            assert len(known) == count
            self._known[tuple(before)] = known
        return known[:count]

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._ask("/tokenize", {"model": self._model, "text": text})["tokens"]
        return tokens

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        answer = self._node.post(path, body)
        assert answer.status == 200, answer.body
        return answer.json()


def numbers(file: Path) -> dict[str, int]:
    """The vocabulary of a GGUF file: the number of each token, by what it says."""
    field = gguf.GGUFReader(file).get_field("tokenizer.ggml.tokens")
    assert field is not None
    found: dict[str, int] = {}
    for number, token in enumerate(field.contents()):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
        # A byte of its own is also there for what has no other token.
        said = chr(int(byte[1], 16)) if byte else token.replace("\N{LOWER ONE EIGHTH BLOCK}", " ")
        if not byte or said not in found:
            found[said] = number
    return found
