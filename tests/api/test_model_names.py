"""Which model is meant: by no name, by an alias, by a name with a tag that it has not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.engines import fake_engine
from support.node import Answer, RunningNode, running_node


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("names")
    fake_engine(folder / "engines")
    (folder / "models").mkdir()
    for name in ("one", "other"):
        (folder / f"models/{name}.toy").write_bytes(b"TOY1")
    arguments = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    return [*arguments, "--gpu-backend", "cpu", "--demo-model", "no"]


@pytest.fixture(scope="module")
def undecided(folders: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node that has aliases, and no default model."""
    aliases = ["--alias", "claude-sonnet=one,gpt=other"]
    with running_node(tmp_path_factory.mktemp("undecided"), [*folders, *aliases]) as node:
        yield node


def complete(node: RunningNode, **fields: Any) -> Answer:
    return node.post("/v1/completions", {"prompt": "a", "max_tokens": 2, **fields})


def unload(node: RunningNode, *names: str) -> None:
    for name in names:
        node.post("/api/models/unload", {"model_id": name})


def loaded(node: RunningNode) -> list[str]:
    models = node.get("/api/models").json()["models"]
    return [model["model_id"] for model in models if model["status"] == "loaded"]


def test_no_name_means_the_model_that_is_loaded(undecided: RunningNode) -> None:
    unload(undecided, "one", "other")
    for absent in ({}, {"model": None}, {"model": ""}):
        answer = complete(undecided, **absent)
        assert answer.status == 400, answer.body
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("invalid_request", "model")
        assert "'one', 'other'" in error["message"] and "no model is loaded" in error["message"]
    assert complete(undecided, model="other").status == 200
    answer = complete(undecided)
    assert answer.status == 200, answer.body
    assert answer.json()["model"] == "other"
    assert complete(undecided, model="one").status == 200
    assert "several models are loaded" in complete(undecided).json()["error"]["message"]


def test_an_alias_is_its_model_and_the_answer_says_the_name_that_was_sent(undecided: RunningNode) -> None:
    unload(undecided, "one", "other")
    for name, model in (("claude-sonnet", "one"), ("gpt:latest", "other"), ("one:latest", "one")):
        answer = complete(undecided, model=name)
        assert answer.status == 200, answer.body
        assert answer.json()["model"] == name
        assert undecided.get(f"/v1/models/{name}").json()["id"] == model
    assert loaded(undecided) == ["one", "other"], "one model, whatever it is called"
    assert complete(undecided, model="claude-opus").status == 404
    unload(undecided, "claude-sonnet", "gpt")
    assert loaded(undecided) == []


@pytest.mark.parametrize("alias", ["x\u0000", "x\u202e", "one:latest", "other.toy"])
def test_what_is_no_name_or_that_of_another_is_no_alias(undecided: RunningNode, alias: str) -> None:
    answer = undecided.post("/api/models/alias", {"model": "other", "alias": alias})
    assert answer.status == 400, answer.body
    error = answer.json()["error"]
    assert (error["code"], error["param"]) == ("invalid_request", "alias")


def test_the_default_model_is_loaded_for_who_names_none(folders: list[str], tmp_path: Path) -> None:
    with running_node(tmp_path, [*folders, "--default-model", "other"]) as node:
        answer = complete(node)
        assert answer.status == 200, answer.body
        assert answer.json()["model"] == "other"
        assert loaded(node) == ["other"]


def test_models_for_clients_of_either_vendor(undecided: RunningNode) -> None:
    body = undecided.get("/v1/models").json()
    assert (body["object"], body["has_more"]) == ("list", False)
    assert [body["first_id"], body["last_id"]] == [model["id"] for model in body["data"]] == ["one", "other"]
    assert complete(undecided, model="one").status == 200
    for model in (undecided.get("/v1/models/one").json(), undecided.get("/v1/models").json()["data"][0]):
        assert (model["object"], model["type"], model["display_name"]) == ("model", "model", "one")
        assert model["created"] > 1_700_000_000 and model["created_at"].startswith("20")
        assert model["context_length"] > 0
    for name in ("one.toy", "one:latest", "claude-sonnet"):
        assert undecided.get(f"/v1/models/{name}").json()["id"] == "one", "by any of its names"
    error = undecided.get("/v1/models/onne").json()["error"]
    assert error["code"] == "model_not_found" and "did you mean 'one'" in error["message"]
