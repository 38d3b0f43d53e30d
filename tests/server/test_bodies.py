"""Bodies that are large: what nobody means is refused before it costs anything, and what somebody means holds
up nobody else."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from llm_node.api.body import parse
from llm_node.node import NodeError
from llm_node.schema import bounds
from llm_node.schema.chat import ChatCompletionRequest
from llm_node.schema.completions import CompletionRequest
from llm_node.schema.embeddings import EmbeddingRequest
from llm_node.schema.tokens import DetokenizeRequest
from llm_node.schema.wire import Wire
from support.node import RunningNode

MODEL = "llm-node-demo"
CHAT, PLAIN = "/v1/chat/completions", "/v1/completions"
MESSAGE = {"role": "user", "content": "a"}
PART = {"type": "text", "text": "a"}


def chat(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [MESSAGE], "max_tokens": 1, **changes}


def plain(**changes: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": "The", "max_tokens": 1, **changes}


def many(count: int, value: Any = 1) -> dict[str, Any]:
    return {f"key{number}": value for number in range(count)}


BUSY_SECONDS = 10
"""Half a second is what it should take, but the machine that tests may be busy. Without bounds it was up to
a minute on an idle one."""

Body = Callable[[], dict[str, Any]]

TOO_MUCH: dict[str, tuple[str, Body, str]] = {
    "messages": (CHAT, lambda: chat(messages=[MESSAGE] * 90_000), "messages"),
    "messages that are wrong": (CHAT, lambda: chat(messages=[{"role": "x", "y": 1}] * 90_000), "messages"),
    "very many messages": (CHAT, lambda: chat(messages=[MESSAGE] * 300_000), "body"),
    "a few fields": (CHAT, lambda: chat(**many(2_000)), "body"),
    "a few fields of a message": (CHAT, lambda: chat(messages=[{**MESSAGE, **many(2_000)}]), "messages.0"),
    "empty messages": (CHAT, lambda: chat(messages=[[]] * 3_000_000), "body"),
    "messages for a template": ("/apply-template", lambda: chat(messages=[MESSAGE] * 90_000), "messages"),
    "parts": (CHAT, lambda: chat(messages=[{"role": "user", "content": [PART] * 300_000}]), "body"),
    "fields": (CHAT, lambda: chat(**many(700_000)), "body"),
    "fields of a message": (CHAT, lambda: chat(messages=[{**MESSAGE, **many(700_000)}]), "body"),
    "tools": (CHAT, lambda: chat(tools=[{"type": "function", "function": {"name": "f"}}] * 2_000), "tools"),
    "biases": (CHAT, lambda: chat(logit_bias={str(token): 1 for token in range(300_000)}), "logit_bias"),
    "values": (CHAT, lambda: chat(chat_template_kwargs={"x": [1] * 3_000_000}), "chat_template_kwargs"),
    "lists": (CHAT, lambda: chat(chat_template_kwargs={"x": [[[]]] * 300_000}), "body"),
    "stops": (PLAIN, lambda: plain(stop=[1] * 1_000_000), "stop"),
    "tokens": (PLAIN, lambda: plain(prompt=[1] * 4_000_000), "prompt"),
    "tokens of several": (PLAIN, lambda: plain(prompt=[[1] * 1000] * 4_000), "prompt"),
    "prompts": (PLAIN, lambda: plain(prompt=["a"] * 3_000), "prompt"),
    "prompts and answers": (PLAIN, lambda: plain(prompt=["a"] * 256, n=128), "n"),
    "prompts and biases": (
        PLAIN,
        lambda: plain(prompt=["a"] * 256, logit_bias={str(token): 1 for token in range(30_000)}),
        "logit_bias",
    ),
    "text and answers": (CHAT, lambda: chat(n=128, messages=[{**MESSAGE, "content": "a" * 9_000_000}]), "n"),
    "inputs": ("/v1/embeddings", lambda: {"model": MODEL, "input": ["a"] * 300_000}, "input"),
    "tokens to text": ("/detokenize", lambda: {"model": MODEL, "tokens": [5] * 4_000_000}, "tokens"),
    "options": ("/api/models/load", lambda: {"model_id": MODEL, "options": many(100_000, [1])}, "options"),
}  # fmt: skip


class Neighbour:
    """Another client: it asks whether the node is alive, again and again."""

    def __init__(self, node: RunningNode) -> None:
        self._node = node
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.longest = 0.0

    def _ask(self) -> None:
        while not self._ended.wait(0.02):
            began = time.monotonic()
            assert self._node.get("/healthz").status == 200
            self.longest = max(self.longest, time.monotonic() - began)

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


@pytest.fixture(scope="module")
def loaded(node: RunningNode) -> Iterator[RunningNode]:
    assert node.post("/api/models/load", {"model_id": MODEL}).status == 200
    yield node


@pytest.mark.parametrize("name", TOO_MUCH)
def test_too_much_is_named_and_holds_up_nobody(loaded: RunningNode, name: str) -> None:
    path, body, param = TOO_MUCH[name]
    raw = json.dumps(body(), separators=(",", ":")).encode()
    assert len(raw) < 16 << 20
    with Neighbour(loaded) as neighbour:
        answer = loaded.post(path, raw=raw)
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)
    assert "at most" in error["message"]
    assert neighbour.longest < BUSY_SECONDS


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {**chat(), "messages": [MESSAGE] * 10_000}),
        (CHAT, {**chat(), "messages": [{"role": "user", "content": [PART] * 10_000}]}),
        (CHAT, {**chat(), "messages": [{"role": "user", "content": "ab " * 5_000_000}]}),
        (PLAIN, {**plain(), "prompt": [1] * 1_000_000}),
        ("/tokenize", {"model": MODEL, "text": "a b " * 1_000_000}),
    ],
)
def test_much_holds_up_nobody(loaded: RunningNode, path: str, body: dict[str, Any]) -> None:
    raw = json.dumps(body, separators=(",", ":")).encode()
    with Neighbour(loaded) as neighbour:
        answer = loaded.post(path, raw=raw)
    if answer.status != 200:  # the model is small; that much is for it to say
        error = answer.json()["error"]
        assert error["code"] in ("context_length_exceeded", "invalid_request"), error
        assert "at most" not in error["message"]
    assert neighbour.longest < BUSY_SECONDS


def wrong(shape: type[Wire], body: dict[str, Any]) -> ValidationError:
    with pytest.raises(ValidationError) as caught:
        shape.model_validate({"model": MODEL, **body})
    return caught.value


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        (ChatCompletionRequest, {"messages": [{"role": "x", "y": 1}] * 10_000}),
        (ChatCompletionRequest, {"messages": [MESSAGE], "stop": [1] * 1_000}),
        (CompletionRequest, {"prompt": [1, *["a"] * 10_000]}),
        (CompletionRequest, {"prompt": [[1, *["a"] * 10_000]] * 10}),
        (CompletionRequest, {"prompt": ["a", *[1.5] * 2_000]}),
        (DetokenizeRequest, {"tokens": ["a"] * 10_000}),
        (EmbeddingRequest, {"input": ["a", *[1] * 2_000]}),
    ],
)
def test_a_list_ends_at_its_first_mistake(shape: type[Wire], body: dict[str, Any]) -> None:
    """Every error costs more than what it is about."""
    assert wrong(shape, body).error_count() < 5


@pytest.mark.parametrize(
    "body",
    [
        chat(messages=[MESSAGE] * bounds.LONGEST["messages"]),
        chat(messages=[{"role": "user", "content": [PART] * 100}] * 500),
        chat(logit_bias={str(token): -100 for token in range(bounds.LONGEST["logit_bias"])}),
        chat(n=128),
        chat(metadata=many(500)),
        plain(prompt=["a"] * bounds.MOST_PROMPTS),
        plain(prompt=["a"] * 32, n=128),
        plain(prompt=[1] * bounds.MOST_TOKENS),
        plain(prompt=[[1] * 500] * bounds.MOST_PROMPTS),
        plain(n="3", prompt=None),
        plain(n=True, prompt={"a": [1]}),
        plain(prompt=[]),
        plain(messages="text", tools=3, input=[[], {}, 1]),
        plain(messages={"a": {}}),
    ],
)
def test_what_may_be_and_what_has_any_shape(body: dict[str, Any]) -> None:
    bounds.check(body, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("good", "bad", "words"),
    [
        (
            f"{'[' * (bounds.DEEPEST - 1)}{']' * (bounds.DEEPEST - 1)}",
            f"{'[' * bounds.DEEPEST}{']' * bounds.DEEPEST}",
            f"nested more than {bounds.DEEPEST} deep",
        ),
        (
            '["\\\\\\"[[", ' + '[{"a":' * 60 + '"[[[["' + "}]" * 60 + "]",
            '[{"a":' * 64 + "1" + "}]" * 64,
            f"nested more than {bounds.DEEPEST} deep",
        ),
        ("9" * bounds.MOST_DIGITS, "9" * (bounds.MOST_DIGITS + 1), f"more than {bounds.MOST_DIGITS} digits"),
        ("0", "-" + "9" * 10_000, f"more than {bounds.MOST_DIGITS} digits"),
    ],
)
def test_json_that_is_beyond_the_parser_is_called_that(good: str, bad: str, words: str) -> None:
    """It is JSON all the same. Of digits the parser has a limit itself, and may get another."""

    def said(value: str) -> str:
        body = f'{{"model": "m", "prompt": "a", "no_such_field": {value}}}'
        with pytest.raises(NodeError) as caught:
            parse(body.encode(), CompletionRequest)
        return str(caught.value)

    assert "no_such_field is not a parameter" in said(good)
    assert words in said(bad)
    assert "not JSON" not in said(bad)


def test_nesting_without_end_is_no_json() -> None:
    with pytest.raises(NodeError) as caught:
        parse(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, CompletionRequest)
    assert caught.value.code == "invalid_json"
