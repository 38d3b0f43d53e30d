"""Models that other programs have fetched: found, named, loaded, and never written to."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_node.settings import Settings
from support.hub import sha256, stand_in_hub
from support.node import PROGRAM, RunningNode, node_environment, running_node
from support.watch import watched

NAMES = {
    "org/From-Hub:Q4_0": "hub",
    "org/From-Llama:Q8_0": "llama-cpp",
    "publisher/From-Studio:Q4_K_M": "lm-studio",
    "ollama/qwen3:4b": "ollama",
    "org/By-Ollama:Q4_0": "ollama",
}


@pytest.fixture(scope="module")
def home(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with the caches of four programs: the hub's made by its client, the others by their
    documented layout."""
    home = tmp_path_factory.mktemp("home")
    content = demo_model.read_bytes()
    with stand_in_hub() as hub:
        hub.put("org/From-Hub", "model-Q4_0.gguf", content)
        fetch = "import huggingface_hub as h; h.hf_hub_download('org/From-Hub', 'model-Q4_0.gguf')"
        subprocess.run(
            [sys.executable, "-c", fetch],
            check=True,
            capture_output=True,
            env=node_environment(home, **hub.environment()),
        )
    llama = home / ".cache/llama.cpp"
    llama.mkdir(parents=True)
    shutil.copy(demo_model, llama / "org_From-Llama_model-Q8_0.gguf")
    (llama / "org_From-Llama_model-Q8_0.gguf.etag").write_text('"x"')
    (llama / "manifest=org=From-Llama=latest.json").write_text("{}")
    studio = home / ".lmstudio/models/publisher/From-Studio"
    studio.mkdir(parents=True)
    shutil.copy(demo_model, studio / "model-Q4_K_M.gguf")
    ollama = home / ".ollama/models"
    (ollama / "blobs").mkdir(parents=True)
    shutil.copy(demo_model, ollama / f"blobs/sha256-{sha256(content)}")
    layer = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": f"sha256:{sha256(content)}",
        "size": len(content),
    }
    for name in ("registry.ollama.ai/library/qwen3/4b", "hf.co/org/By-Ollama/Q4_0"):
        manifest = ollama / "manifests" / name
        manifest.parent.mkdir(parents=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [layer]}))
    # The same model in the models folder and in a cache is one row.
    own = home / ".llm-node/models/publisher/From-Studio"
    own.mkdir(parents=True)
    return home


@pytest.fixture(scope="module")
def node(engines: Path, home: Path) -> Iterator[RunningNode]:
    arguments = ["--engines-dir", str(engines), "--gpu-backend", "cpu"]
    with running_node(home, arguments) as running:
        yield running


def test_all_are_found_under_their_names(node: RunningNode) -> None:
    found = {row["model_id"]: row["origin"] for row in node.get("/api/models").json()["models"]}
    assert found == {"llm-node-demo": "demo", **NAMES}


def test_they_are_loaded_and_nothing_is_written(node: RunningNode, home: Path) -> None:
    question = [{"role": "user", "content": "What is an engine?"}]
    with (
        watched(home / ".cache") as cache,
        watched(home / ".ollama") as ollama,
        watched(home / ".lmstudio") as studio,
    ):
        for name in ("from-hub", "From-Llama:q8_0", "from-studio", "qwen3:4b", "by-ollama"):
            body = {"model": name, "messages": question, "max_tokens": 2}
            answer = node.post("/v1/chat/completions", body)
            assert answer.status == 200, answer.body
            node.post("/api/models/unload", {"model_id": name})
        assert [*cache.changes(), *ollama.changes(), *studio.changes()] == []


@pytest.mark.parametrize(
    ("model", "command"),
    [
        ("org/From-Hub", "hf cache rm model/org/From-Hub"),
        ("ollama/qwen3:4b", "ollama rm qwen3:4b"),
        ("org/By-Ollama", "ollama rm hf.co/org/By-Ollama:Q4_0"),
        ("From-Studio", "LM Studio's; delete it there"),
    ],
)
def test_they_are_deleted_by_their_own_program(node: RunningNode, model: str, command: str) -> None:
    answer = node.post("/api/models/remove", {"model": model})
    assert answer.json()["error"]["code"] == "unsupported_feature"
    assert command in answer.json()["error"]["message"]


def test_what_is_here_already_is_not_pulled(node: RunningNode) -> None:
    answer = node.post("/api/models/pull", {"model": "org/From-Hub"})
    assert b'"ready"' in answer.body and b'"resolved"' not in answer.body


def test_the_same_model_in_two_places_is_one(node: RunningNode, home: Path, demo_model: Path) -> None:
    own = home / ".llm-node/models/publisher/From-Studio/model-Q4_K_M.gguf"
    shutil.copy(demo_model, own)
    try:
        (row,) = [
            r for r in node.get("/api/models").json()["models"] if r["model_id"].startswith("publisher")
        ]
        assert (row["origin"], row["path"]) == ("own", str(own))
        assert row["also"] == [str(home / ".lmstudio/models/publisher/From-Studio/model-Q4_K_M.gguf")]
    finally:
        own.unlink()


def test_another_file_of_the_same_name_is_told_by_list_all(
    node: RunningNode, home: Path, demo_model: Path
) -> None:
    """The first of a name is the one that is meant."""
    own = home / ".llm-node/models/publisher/From-Studio/model-Q4_K_M.gguf"
    own.write_bytes(demo_model.read_bytes() + bytes(32))
    try:
        listed = node.get("/api/models?all=true").json()
        (row,) = [row for row in listed["models"] if row["model_id"].startswith("publisher")]
        assert (row["path"], row["also"]) == (str(own), [])
        (other,) = [row for row in listed["unlisted"] if row["origin"] == "lm-studio"]
        assert other["path"] == str(home / ".lmstudio/models/publisher/From-Studio/model-Q4_K_M.gguf")
        assert other["why"] == f"'publisher/From-Studio:Q4_K_M' is the name of {own}"
    finally:
        own.unlink()


def test_lm_studio_s_folder_is_a_models_folder_too(engines: Path, home: Path, tmp_path: Path) -> None:
    named = ["--models-dir", str(home / ".lmstudio/models"), "--engines-dir", str(engines)]
    listed = subprocess.run(
        [PROGRAM, "list", "--json", *named, "--gpu-backend", "cpu", "--caches", "none"],
        capture_output=True,
        check=True,
        env=node_environment(tmp_path),
    )
    found = {row["model_id"]: row["origin"] for row in json.loads(listed.stdout)["models"]}
    assert found["publisher/From-Studio:Q4_K_M"] == "own"


def test_where_programs_keep_their_models(tmp_path: Path) -> None:
    def folders(**variables: str) -> list[tuple[str, str]]:
        settings = Settings(home=tmp_path, caches=("hub", "llama-cpp", "ollama"))
        return [(name, str(path)) for name, path in settings.cache_folders(variables)]

    assert folders(HF_HOME="/hf", LLAMA_CACHE="/l", OLLAMA_MODELS="/o") == [
        ("hub", "/hf/hub"),
        ("llama-cpp", "/l"),
        ("ollama", "/o"),
    ]
    assert folders(HF_HUB_CACHE="/cache", HF_HOME="/hf")[0] == ("hub", "/cache")
    assert folders(XDG_CACHE_HOME="/x")[:2] == [("hub", "/x/huggingface/hub"), ("llama-cpp", "/x/llama.cpp")]
    none = Settings.load({"home": (str(tmp_path),), "caches": ("none",)}, environment={})
    assert none.cache_folders({}) == []
