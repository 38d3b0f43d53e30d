"""Embeddings over HTTP, with an engine that makes them of any tokens, and with real encoders."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support import models
from support.engines import fake_engine
from support.node import RunningNode, running_node


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("embedder")
    fake_engine(folder / "engines")
    (folder / "models").mkdir()
    (folder / "models/toy.toy").write_bytes(b"TOY1")
    folders = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*folders, "--gpu-backend", "cpu", "--demo-model", "no"]) as node:
        yield node


def embed(node: RunningNode, value: Any, **fields: Any) -> Any:
    answer = node.post("/v1/embeddings", {"model": "toy", "input": value, **fields})
    assert answer.status == 200, answer.body
    body = answer.json()
    assert [it["index"] for it in body["data"]] == list(range(len(body["data"])))
    return [it["embedding"] for it in body["data"]], body["usage"]["prompt_tokens"]


def test_tokens_give_what_their_text_gives(embedder: RunningNode) -> None:
    texts = ["a dog", "the node"]
    tokens = [embedder.post("/tokenize", {"model": "toy", "text": text}).json()["tokens"] for text in texts]
    wanted = embed(embedder, texts)
    assert wanted[0][0] != wanted[0][1]
    assert embed(embedder, tokens) == wanted
    assert embed(embedder, [tokens[0], texts[1]]) == wanted
    assert embed(embedder, tokens[0]) == embed(embedder, texts[0])
    (packed,), _ = embed(embedder, tokens[0], encoding_format="base64")
    data = base64.b64decode(packed)
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(wanted[0][0], abs=1e-6)


def test_dimensions_are_the_first_numbers_at_length_1(embedder: RunningNode) -> None:
    ((whole,), _), ((short,), _) = embed(embedder, "a dog"), embed(embedder, "a dog", dimensions=2)
    assert len(short) == 2 < len(whole)
    assert short == pytest.approx([value / math.hypot(*whole[:2]) for value in whole[:2]], abs=1e-6)
    answer = embedder.post("/v1/embeddings", {"model": "toy", "input": "a dog", "dimensions": len(whole) + 1})
    assert answer.json()["error"]["param"] == "dimensions", answer.body


@pytest.mark.parametrize(
    ("value", "param"),
    [([[0], [2**31 - 1]], "input"), ([-1], "input.0"), ([[]], "input.0"), ([True], "input.0")],
)
def test_tokens_that_are_none_are_refused(embedder: RunningNode, value: Any, param: str) -> None:
    answer = embedder.post("/v1/embeddings", {"model": "toy", "input": value})
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", param)


def test_what_is_too_long_is_refused(embedder: RunningNode) -> None:
    for value in ("a" * 1_000_000, [1] * 100_000):
        answer = embedder.post("/v1/embeddings", {"model": "toy", "input": value})
        assert answer.json()["error"]["code"] == "context_length_exceeded", answer.body


@pytest.fixture(scope="module")
def encoders(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("encoders")
    (folder / "models").mkdir()
    for name, ranks in (("embeds", False), ("ranks", True)):
        models.encoder(folder / f"models/{name}.gguf", ranks=ranks)
    folders = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*folders, "--gpu-backend", "cpu", "--demo-model", "no"]) as node:
        yield node


def test_an_encoder_embeds(encoders: RunningNode) -> None:
    answer = encoders.post("/v1/embeddings", {"model": "embeds", "input": ["a cat", "dog"]})
    assert answer.status == 200, answer.body
    one, other = (it["embedding"] for it in answer.json()["data"])
    assert len(one) == len(other) == 32 and one != other


def test_the_official_client_embeds(encoders: RunningNode) -> None:
    """It asks for base64 by itself."""
    with openai.OpenAI(base_url=f"{encoders.url}/v1", api_key="none", max_retries=0) as client:
        made = client.embeddings.create(model="embeds", input=["a cat", "a cat", "dog"])
        plain = client.embeddings.create(model="embeds", input="a cat", encoding_format="float")
    one, two, three = (it.embedding for it in made.data)
    assert one == pytest.approx(two, abs=1e-5) and one != pytest.approx(three, abs=1e-3)
    assert math.hypot(*one) == pytest.approx(1, abs=1e-4)
    assert plain.data[0].embedding == pytest.approx(one, abs=1e-5)
    assert plain.usage.prompt_tokens > 0


def test_a_reranker_gives_scores_and_no_embeddings(encoders: RunningNode) -> None:
    answer = encoders.post("/v1/embeddings", {"model": "ranks", "input": ["a cat", "dog"]})
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert error["code"] == "unsupported_feature" and "rank" in error["message"], error
