"""What is possible in place of what was refused: a longer context for a prompt, other options for a load."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node

DEMO = "llm-node-demo"
MIB = 1 << 20


@contextmanager
def toy_node(folder: Path, models: dict[str, str], *more: str, **engine: Any) -> Iterator[RunningNode]:
    """`models`: what stands in their files."""
    fake_engine(folder / "engines", "toy", **engine)
    (folder / "models").mkdir()
    for model, text in models.items():
        (folder / f"models/{model}.toy").write_text(f"TOY1\n{text}\n")
    places = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*places, "--gpu-backend", "cpu", *more]) as node:
        yield node


def refusal(client: openai.OpenAI, stream: bool = False, **fields: Any) -> dict[str, Any]:
    """The body of the error of a prompt that is too long."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"max_tokens": 1, **fields}, stream=stream)
    body = caught.value.body
    assert isinstance(body, dict) and body["code"] == "context_length_exceeded", body
    return body


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_too_long_is_told_how_long_a_context_could_be(
    engines: Path, tmp_path: Path, stream: bool
) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", arguments) as node:
        assert node.reload(DEMO, context_length=256)["facts"]["context_length"] == 256
        with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
            fields: dict[str, Any] = {"model": DEMO, "prompt": "An engine is here. " * 100}
            error = refusal(client, stream, **fields)
            has = "This model's maximum context length is 256 tokens, but "
            assert error["message"].startswith(has), error
            assert error["message"].endswith(
                " Load the model with a larger context_length: there is room here for up to 1024 tokens."
            )
            assert (error["context_length"], error["largest_context"]) == (256, 1024)
            asked = {"model_id": DEMO, "context_length": error["largest_context"]}
            assert node.post("/api/models/load", asked).status == 200
            assert client.completions.create(**fields, max_tokens=1).choices
            # No model is longer than it is.
            error = refusal(client, stream, model=DEMO, prompt="An engine is here. " * 1000)
            assert error["context_length"] == error["largest_context"] == 1024
            assert error["message"].endswith(" for the prompt and at least 1 for the answer.")


def test_a_longer_context_than_there_is_room_for_is_not_promised(tmp_path: Path) -> None:
    models = {"m": f"n_context=1000000\nestimate_bytes={10 * MIB}"}
    with toy_node(tmp_path, models, "--vram-limit", "16M") as node:
        asked = {"model_id": "m", "context_length": 1024, "max_sequences": 1}
        assert node.post("/api/models/load", asked).status == 200
        with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
            error = refusal(client, model="m", prompt="x" * 800_000)
            longest = error["largest_context"]
            assert 1024 < longest < 200_000
            words = f" No context_length beyond {longest} tokens is possible here."
            assert error["message"].endswith(words), error
            grown = node.post("/api/models/load", {**asked, "context_length": longest})
            assert grown.status == 200, grown.body
            fits: Any = {"model": "m", "prompt": "x" * (longest - 8), "max_tokens": 1}
            assert client.completions.create(**fits).choices


def test_nothing_is_said_of_a_longer_context_where_no_engine_can_say(tmp_path: Path) -> None:
    with (
        toy_node(tmp_path, {"m": "n_context=2048"}, defines={"FAKE_NO_MEMORY": None}) as node,
        openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client,
    ):
        asked = {"model_id": "m", "context_length": 64, "max_sequences": 1}
        assert node.post("/api/models/load", asked).status == 200
        error = refusal(client, model="m", prompt="x" * 1000)
        assert error["context_length"] == 64 and "largest_context" not in error
        assert error["message"].endswith(" at least 1 for the answer.")
