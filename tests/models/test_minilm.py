"""A real embedding model, converted here, against numpy on its own weights: all-MiniLM-L6-v2."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support import bert
from support.node import RunningNode, running_node

HEADS = 12
TEXTS = [
    "A cat sits on the mat.",
    "The feline rests upon a rug.",
    "Stock markets fell sharply on Monday.",
    "How do I reset my password?",
    "Where can I change the password of my account?",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "def add(a, b): return a + b",
    "naïve café résumé",
    "1234567890",
    "antidisestablishmentarianism",
    "!",
    "The quick brown fox jumps over the lazy dog. " * 12,
]


@pytest.fixture(scope="module")
def files(repository: Path) -> Path:
    """The model as its maker publishes it, fetched once into the cache."""
    fetch = repository.parent / "shared/models/fetch.py"
    if not fetch.is_file():
        pytest.skip(f"needs {fetch}, which a public clone has not")
    cache = repository / ".cache/models"
    got = subprocess.run([sys.executable, fetch, cache, "minilm"], capture_output=True, text=True)
    if got.returncode != 0:
        pytest.skip(f"all-MiniLM-L6-v2 cannot be fetched: {got.stderr[-300:]}")
    return cache / "all-minilm-l6-v2"


@pytest.fixture(scope="module")
def weights(files: Path) -> bert.Weights:
    return bert.read_safetensors(files / "model.safetensors")


@pytest.fixture(scope="module")
def vocabulary(files: Path) -> dict[str, int]:
    read: dict[str, Any] = json.loads((files / "tokenizer.json").read_text())
    found: dict[str, int] = read["model"]["vocab"]
    return found


@pytest.fixture(scope="module")
def node(
    engines: Path,
    weights: bert.Weights,
    vocabulary: dict[str, int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningNode]:
    folder = tmp_path_factory.mktemp("minilm")
    (folder / "models").mkdir()
    texts = sorted(vocabulary, key=vocabulary.__getitem__)
    bert.write(folder / "models/minilm.gguf", weights, texts, heads=HEADS)
    folders = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*folders, "--gpu-backend", "cpu", "--demo-model", "no"]) as running:
        yield running


def test_vectors_are_the_model_s_own(
    node: RunningNode, weights: bert.Weights, vocabulary: dict[str, int]
) -> None:
    answer = node.post("/v1/embeddings", {"model": "minilm", "input": TEXTS})
    assert answer.status == 200, answer.body
    found = [each["embedding"] for each in answer.json()["data"]]
    lengths = 0
    for text, vector in zip(TEXTS, found, strict=True):
        tokens = [vocabulary["[CLS]"], *bert.word_pieces(text, vocabulary), vocabulary["[SEP]"]]
        lengths += len(tokens)
        wanted = bert.hidden(weights, tokens, heads=HEADS).mean(0)
        cosine = float(wanted @ np.array(vector) / np.linalg.norm(wanted) / np.linalg.norm(vector))
        assert cosine >= 0.999, text
    assert answer.json()["usage"]["prompt_tokens"] == lengths


def test_meanings_that_are_near_are_near(node: RunningNode) -> None:
    answer = node.post("/v1/embeddings", {"model": "minilm", "input": TEXTS[:5]}).json()
    vectors = np.array([each["embedding"] for each in answer["data"]])
    near = vectors @ vectors.T
    assert near[0, 1] > near[0, 2] and near[3, 4] > max(near[3, :3])
