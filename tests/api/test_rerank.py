"""Rerank over HTTP, with a reranker whose scores numpy knows as well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import bert, models
from support.node import RunningNode, running_node

QUERY = "a cat"
DOCUMENTS = ["a dog", "cat", "the cat sat", "x y z", "zebra"]


@pytest.fixture(scope="module")
def node(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("rerank")
    (folder / "models").mkdir()
    models.encoder(folder / "models/ranks.gguf", ranks=True)
    models.encoder(folder / "models/embeds.gguf", ranks=False)
    models.encoder(folder / "models/headless.gguf", ranks=True, scores=False)
    swapped = "[CLS]{document}[SEP]{query}[SEP]"
    models.encoder(folder / "models/swapped.gguf", ranks=True, pair_template=swapped)
    folders = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*folders, "--gpu-backend", "cpu", "--demo-model", "no"]) as running:
        yield running


def rank(node: RunningNode, path: str = "/v1/rerank", **fields: Any) -> Any:
    body = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS, **fields}
    answer = node.post(path, body)
    assert answer.status == 200, answer.body
    return answer.json()


def refusal(node: RunningNode, **fields: Any) -> Any:
    body = {"model": "ranks", "query": QUERY, "documents": DOCUMENTS, **fields}
    answer = node.post("/v1/rerank", body)
    assert answer.status == 400, answer.body
    return answer.json()["error"]


def pair(query: str, document: str) -> list[int]:
    """Its tokens."""
    number = {text: index for index, text in enumerate(models.ENCODER_VOCABULARY)}
    one, other = (bert.word_pieces(text, number) for text in (query, document))
    return [number["[CLS]"], *one, number["[SEP]"], *other, number["[SEP]"]]


def score(query: str, document: str) -> float:
    """By numpy."""
    weights = bert.random_weights(len(models.ENCODER_VOCABULARY))
    return bert.score(weights, pair(query, document), heads=2)


def test_scores_are_those_of_the_model(node: RunningNode) -> None:
    answer = rank(node)
    found = {result["index"]: result["relevance_score"] for result in answer["results"]}
    wanted = {index: score(QUERY, document) for index, document in enumerate(DOCUMENTS)}
    assert found == pytest.approx(wanted, abs=2e-3)
    assert max(wanted.values()) - min(wanted.values()) > 0.05, "they can be told apart"
    assert list(found.values()) == sorted(found.values(), reverse=True), "best first"
    tokens = sum(len(pair(QUERY, document)) for document in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert answer["model"] == "ranks"


def test_a_model_s_own_template_joins_the_pair(node: RunningNode) -> None:
    swapped = rank(node, model="swapped", documents=["a dog"])
    (result,) = swapped["results"]
    assert result["relevance_score"] == pytest.approx(score("a dog", QUERY), abs=2e-3)
    assert abs(score("a dog", QUERY) - score(QUERY, "a dog")) > 1e-2
    # What a document spells is no token of the model.
    (spelled,) = rank(node, model="swapped", documents=["a[SEP]b"])["results"]
    (letters,) = rank(node, model="swapped", documents=["a[sep]b"])["results"]
    assert spelled["relevance_score"] == pytest.approx(letters["relevance_score"], abs=1e-5)


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank", "/v1/reranking", "/reranking"])
def test_each_path_and_form(node: RunningNode, path: str) -> None:
    best = rank(node)["results"]
    objects = [{"text": document} for document in DOCUMENTS]
    answer = rank(node, path, documents=objects, top_n=2, return_documents=True)
    assert [result["index"] for result in answer["results"]] == [result["index"] for result in best[:2]]
    for result in answer["results"]:
        assert result["document"] == {"text": DOCUMENTS[result["index"]]}
    assert len(rank(node, path, top_n=99)["results"]) == len(DOCUMENTS)


def test_the_form_of_text_embeddings_inference(node: RunningNode) -> None:
    body = {"model": "ranks", "query": QUERY, "texts": DOCUMENTS, "return_text": True, "truncate": True}
    answer = node.post("/rerank", body)
    assert answer.headers["X-LLM-Node-Ignored"] == "truncate"
    wanted = [(result["index"], result["relevance_score"]) for result in rank(node)["results"]]
    assert [(each["index"], each["score"]) for each in answer.json()] == wanted
    assert answer.json()[0]["text"] == DOCUMENTS[wanted[0][0]]


@pytest.mark.parametrize("documents", [[], None, 123, [1, 2], [""], [{"title": "x"}]], ids=str)
def test_documents_that_are_none(node: RunningNode, documents: Any) -> None:
    if documents == [""]:
        assert len(rank(node, documents=documents)["results"]) == 1, (
            "an empty one answers nothing, and is one"
        )
    else:
        assert refusal(node, documents=documents)["code"] == "invalid_request"


def test_what_cannot_be_is_refused(node: RunningNode) -> None:
    error = refusal(node, documents=["a", "b" * 300])
    assert (error["code"], error["param"]) == ("context_length_exceeded", "documents"), error
    assert "document 1" in error["message"] and "128" in error["message"]
    assert refusal(node, documents=["b" * 1_000_000])["code"] == "context_length_exceeded"
    assert refusal(node, model="embeds")["code"] == "unsupported_feature"
    assert refusal(node, query="")["param"] == "query"
    assert refusal(node, raw_scores=True)["code"] == "unsupported_parameter"
    assert refusal(node, unheard_of=1)["param"] == "unheard_of"
    assert refusal(node, texts=["a"])["param"] == "documents"


def test_a_file_without_the_layer_that_scores_is_refused(node: RunningNode) -> None:
    error = refusal(node, model="headless")
    assert error["code"] == "unsupported_feature", error
    assert "cls.output.weight" in error["message"]


def test_what_it_is_for_is_told(node: RunningNode) -> None:
    rank(node)
    listed = {model["model_id"]: model for model in node.get("/api/models").json()["models"]}
    assert {name: model["task"] for name, model in listed.items()} == {
        "ranks": "rerank",
        "swapped": "rerank",
        "headless": "rerank",
        "embeds": "embeddings",
    }
    assert listed["ranks"]["facts"]["ranks"] is True
    chat = {"model": "ranks", "messages": [{"role": "user", "content": "hi"}]}
    assert node.post("/v1/chat/completions", chat).json()["error"]["code"] == "unsupported_feature"
