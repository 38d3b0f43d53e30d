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
        assert refused.status != 200
        assert "1000" in refused.json()["error"]["message"]
