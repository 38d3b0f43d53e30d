"""The node's sizes for every model are wishes; a load's own are not."""

from __future__ import annotations

from pathlib import Path

from support.node import running_node


def test_a_model_that_cannot_be_so_large_is_loaded_as_large_as_it_can_be(
    engines: Path, tmp_path: Path
) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    sizes = ["--context-length", "1000000", "--max-sequences", "1000", "--cache-tokens", "2000000000"]
    with running_node(tmp_path / "node", [*arguments, *sizes]) as node:
        question = {"model": "llm-node-demo", "prompt": "Hello", "max_tokens": 2}
        assert node.post("/v1/completions", question).status == 200
        (model,) = node.get("/api/models").json()["models"]
        assert model["facts"]["context_length"] == model["context_length"]
        assert "the node's default" in node.log_text()
        assert node.post("/api/models/unload", {"model_id": "llm-node-demo"}).status == 200
        refused = node.post("/api/models/load", {"model_id": "llm-node-demo", "context_length": 1_000_000})
        assert refused.status == 400
        assert refused.json()["error"]["param"] == "context_length"
        refused = node.post("/api/models/load", {"model_id": "llm-node-demo", "max_sequences": 1000})
        assert refused.status == 400, refused.body
        assert "1000" in refused.json()["error"]["message"]


def test_a_small_cache_shortens_what_nobody_named(engines: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", [*arguments, "--cache-tokens", "256"]) as node:
        question = {"model": "llm-node-demo", "prompt": "Hello", "max_tokens": 2}
        answer = node.post("/v1/completions", question)
        assert answer.status == 200, answer.body
        assert node.reload("llm-node-demo", cache_tokens=100)["facts"]["context_length"] == 100
        for load, words in [
            ({"cache_tokens": 100, "context_length": 300}, "no room for a context of 300"),
            ({"cache_tokens": 600, "max_sequences": 64, "options": {"cache_mode": "split"}}, "cache_tokens"),
            ({"options": {"n_ubatch": "0"}}, "n_ubatch"),
            ({"options": {"cache_mode": "foo"}}, "cache_mode"),
        ]:
            node.post("/api/models/unload", {"model_id": "llm-node-demo"})
            refused = node.post("/api/models/load", {"model_id": "llm-node-demo", **load})
            error = refused.json()["error"]
            assert (refused.status, error["code"]) == (400, "invalid_request"), (load, refused.body)
            assert words in error["message"], error


def test_a_pool_longer_than_the_model_s_own_context_is_no_cause_for_a_warning(
    engines: Path, tmp_path: Path
) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        facts = node.reload("llm-node-demo", max_sequences=2, options={"cache_mode": "unified"})["facts"]
        assert facts["context_length"] == 1024
        question = {"model": "llm-node-demo", "prompt": "Hello", "max_tokens": 2}
        assert node.post("/v1/completions", question).status == 200
        assert "n_ctx_train" not in node.log_text()


def test_a_tiny_context_is_planned_as_it_is_loaded(engines: Path, tmp_path: Path) -> None:
    """llama.cpp gives each sequence 256 tokens at least."""
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    tiny = {"model_id": "llm-node-demo", "context_length": 4, "max_sequences": 64}
    with running_node(tmp_path / "node", arguments) as node:
        planned = node.post("/api/models/plan", tiny).json()
        assert planned["verdict"] == "fits"
        (use,) = planned["memory"]
        loaded = node.post("/api/models/load", tiny).json()
        assert use["total_bytes"] == sum(each["total_bytes"] for each in loaded["memory"])
        assert use["cache_bytes"] > 8 << 20
    limit = ["--vram-limit", str(use["total_bytes"] - (4 << 20))]
    with running_node(tmp_path / "other", [*arguments, *limit]) as node:
        planned = node.post("/api/models/plan", tiny).json()
        refused = node.post("/api/models/load", tiny)
        assert (refused.status, planned["verdict"]) == (507, "refused"), (use, planned, refused.body)
        assert planned["error"]["message"] == refused.json()["error"]["message"]
