"""What is possible in place of what was refused: a longer context for a prompt, other options for a load."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from support.engines import fake_engine
from support.node import RunningNode, command, running_node

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


def total(node: RunningNode, **options: Any) -> tuple[int, int]:
    """What a load of the demo model would take, and its cache alone."""
    (use,) = node.post("/api/models/plan", {"model_id": DEMO, **options}).json()["memory"]
    return use["total_bytes"], use["cache_bytes"]


def test_a_refused_load_is_told_what_would_fit_and_that_does(engines: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    whole: dict[str, Any] = {"context_length": 1024, "max_sequences": 1}
    with running_node(tmp_path / "roomy", arguments) as node:
        bytes_, cache = total(node, **whole)
    limit = ["--vram-limit", str(bytes_ - cache // 4)]
    with running_node(tmp_path / "node", [*arguments, *limit]) as node:
        node.extra["home"] = tmp_path / "node"
        refused = node.post("/api/models/load", {"model_id": DEMO, **whole})
        error = refused.json()["error"]
        assert (refused.status, error["code"]) == (507, "oom_vram")
        assert re.fullmatch(r"Insufficient VRAM: required \w+, available \w+", error["message"])
        shorter, smaller = error["would_fit"]
        assert list(shorter) == ["context_length"] and 256 <= shorter["context_length"] < 1024
        small = {"cache_type_k": "q8_0", "cache_type_v": "q8_0"}
        assert smaller == {"context_length": 1024, "options": small}
        assert error["largest_context"] == shorter["context_length"]
        planned = node.post("/api/models/plan", {"model_id": DEMO, **whole}).json()
        assert (planned["verdict"], planned["would_fit"]) == ("refused", error["would_fit"])
        longer = {"model_id": DEMO, **whole, "context_length": shorter["context_length"] + 256}
        assert node.post("/api/models/load", longer).status == 507, "it is the longest"
        assert node.workers() == []
        words = (
            f"would fit with context_length {shorter['context_length']}, or with context_length 1024 "
            'and cache_type_k = cache_type_v = "q8_0"'
        )
        sizes = ("--context-length", "1024", "--max-sequences", "1")
        said = command(node, "plan", DEMO, *sizes)
        assert said.returncode == 1 and f"\n  {words}\n" in said.stdout, said
        said = command(node, "run", DEMO, "Hello")
        assert said.returncode == 4 and said.stderr.endswith(f"\nIt {words}\n"), said
        # One that has its cache so already.
        own = {"model_id": DEMO, "cache_tokens": 65536, "options": small}
        assert all("options" not in offer for offer in refusal_of(node, own)["would_fit"])
    for offer in error["would_fit"]:
        # What one load comes to is counted for the next.
        with running_node(tmp_path / f"node-{len(offer)}", [*arguments, *limit]) as node:
            loaded = node.post("/api/models/load", {"model_id": DEMO, **whole, **offer})
            assert loaded.status == 200, loaded.body
            assert loaded.json()["facts"]["context_length"] == offer["context_length"]
            asked = {"model": DEMO, "prompt": "An engine is", "max_tokens": 2}
            assert node.post("/v1/completions", asked).status == 200


def refusal_of(node: RunningNode, load: dict[str, Any]) -> dict[str, Any]:
    """The error of a load that has no room."""
    refused = node.post("/api/models/load", load)
    assert refused.status == 507, refused.body
    error: dict[str, Any] = refused.json()["error"]
    return error


def test_a_plan_says_how_long_a_context_could_be_with_a_smaller_cache(engines: Path, tmp_path: Path) -> None:
    arguments = ["--engines-dir", str(engines), "--models-dir", str(tmp_path), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "roomy", arguments) as node:
        bytes_, cache = total(node, context_length=1024, max_sequences=1)
        assert node.post("/api/models/plan", {"model_id": DEMO}).json()["would_fit"] is None, "it is whole"
    limit = ["--vram-limit", str(bytes_ - cache // 4)]
    with running_node(tmp_path / "node", [*arguments, *limit]) as node:
        node.extra["home"] = tmp_path / "node"
        shorter = {"model_id": DEMO, "context_length": 256, "max_sequences": 1}
        planned = node.post("/api/models/plan", shorter).json()
        assert planned["verdict"] == "fits"
        longest, longer = (offer["context_length"] for offer in planned["would_fit"])
        assert 256 < longest == planned["largest_context"] < longer
        said = command(node, "plan", DEMO, "--context-length", "256", "--max-sequences", "1")
        words = f'longest context {longest}; {longer} with cache_type_k = cache_type_v = "q8_0"'
        assert f"\n  {words}\n" in said.stdout, said


def test_what_is_offered_has_every_size_that_was_asked_for(tmp_path: Path) -> None:
    """The toy takes these options, and its cache is none the smaller: nobody is told of them."""
    models = {"m": f"n_context=1000000\nestimate_bytes={10 * MIB}", "big": f"estimate_bytes={20 * MIB}"}
    knows = {"options": ["cache_type_k", "cache_type_v"]}
    with toy_node(tmp_path, models, "--vram-limit", "16M", manifest=knows) as node:
        load = {"model_id": "m", "context_length": 200_000, "cache_tokens": 400_000, "max_sequences": 2}
        (offer,) = refusal_of(node, load)["would_fit"]
        length = offer["context_length"]
        assert offer == {"context_length": length, "cache_tokens": length} and 1024 < length < 200_000
        loaded = node.post("/api/models/load", {**load, **offer})
        assert loaded.status == 200, loaded.body
        assert node.post("/api/models/unload", {"model_id": "m"}).status == 200
        assert refusal_of(node, {"model_id": "big"})["would_fit"] == []
        asked = node.post("/v1/completions", {"model": "big", "prompt": "x"})
        assert (asked.status, asked.json()["error"]["would_fit"]) == (507, [])


def test_what_would_fit_is_not_said_where_no_engine_can_say(tmp_path: Path) -> None:
    models = {"m": f"estimate_bytes={20 * MIB}"}
    with toy_node(tmp_path, models, "--vram-limit", "16M", defines={"FAKE_MEMORY_ALONE": None}) as node:
        assert "would_fit" not in refusal_of(node, {"model_id": "m"})
        assert node.post("/api/models/plan", {"model_id": "m"}).json()["would_fit"] is None


def test_an_engine_is_asked_once_what_would_fit(tmp_path: Path) -> None:
    models = dict.fromkeys("ab", f"n_context=1000000\nestimate_bytes={10 * MIB}")
    with toy_node(tmp_path, models, "--vram-limit", "16M", defines={"FAKE_TELL_OPENINGS": None}) as node:

        def openings() -> int:
            return node.log_text().count("the toy opens a model")

        def load(model: str) -> dict[str, Any]:
            return {"model_id": model, "context_length": 200_000, "max_sequences": 1}

        first = refusal_of(node, load("a"))["would_fit"]
        alone = openings() - 1
        assert first and alone >= 1
        before = openings()
        for _ in range(3):
            assert refusal_of(node, load("a"))["would_fit"] == first
        assert openings() - before == 3, "each of the loads itself"
        before = openings()
        with ThreadPoolExecutor(8) as at_once:
            planned = list(at_once.map(lambda _: node.post("/api/models/plan", load("b")).json(), range(8)))
        assert [plan["would_fit"] for plan in planned] == [first] * 8
        assert openings() - before == alone, "they share one process"
        # Another file under that name.
        (tmp_path / "models/a.toy").write_text(f"TOY1\nn_context=1000000\nestimate_bytes={12 * MIB}\n")
        assert refusal_of(node, load("a"))["would_fit"] != first
