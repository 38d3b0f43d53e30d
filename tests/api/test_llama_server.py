"""llama-server's own routes, as its clients use them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import models
from support.node import Answer, RunningNode, running_node

MODEL = "llm-node-demo"
PROMPT = "The node"
GREEDY: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "n_predict": 12}


def complete(node: RunningNode, **fields: Any) -> Any:
    answer = node.post("/completion", {**GREEDY, **fields})
    assert answer.status == 200, answer.body
    return answer.json()


def stream(node: RunningNode, path: str = "/completion", **fields: Any) -> list[Any]:
    answer = node.post(path, {**GREEDY, "stream": True, **fields})
    assert answer.status == 200, answer.body
    events = answer.body.decode().split("\n\n")
    assert events.pop() == ""
    return [json.loads(event.removeprefix("data: ")) for event in events]


def tokens_of(node: RunningNode, content: str, **fields: Any) -> list[Any]:
    answer = node.post("/tokenize", {"model": MODEL, "content": content, **fields})
    found: list[Any] = answer.json()["tokens"]
    return found


def error(answer: Answer) -> Any:
    assert answer.status == 400, answer.body
    return answer.json()["error"]


# ---- completions ---------------------------------------------------------------------------------------


def test_a_completion(node: RunningNode) -> None:
    found = complete(node, return_tokens=True)
    plain = {"model": MODEL, "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
    other = node.post("/v1/completions", plain).json()
    assert found["content"] == other["choices"][0]["text"] != ""
    assert (found["stop"], found["model"], found["prompt"]) == (True, MODEL, PROMPT)
    assert (found["stop_type"], found["stopping_word"], found["truncated"]) == ("limit", "", False)
    assert (found["tokens_predicted"], len(found["tokens"])) == (12, 12)
    assert found["tokens_evaluated"] == other["usage"]["prompt_tokens"]
    text = node.post("/detokenize", {"model": MODEL, "tokens": found["tokens"]}).json()
    assert text["content"] == text["text"] == found["content"]
    assert complete(node)["tokens"] == []
    settings = found["generation_settings"]
    assert (settings["n_predict"], settings["temperature"], settings["top_k"]) == (12, 0, 40)
    took = found["timings"]
    assert took["predicted_n"] == 12 and took["predicted_ms"] > 0 and took["predicted_per_second"] > 0
    assert took["prompt_n"] + took["cache_n"] == found["tokens_evaluated"]
    assert took["predicted_per_token_ms"] == pytest.approx(took["predicted_ms"] / 12)


def test_a_stream_says_the_same(node: RunningNode) -> None:
    whole = complete(node, return_tokens=True)
    *events, last = stream(node)
    assert "".join(event["content"] for event in events) == whole["content"]
    assert [token for event in events for token in event["tokens"]] == whole["tokens"]
    assert len(events) > 4 and not any(event["stop"] for event in events)
    assert (last["stop"], last["content"], last["stop_type"]) == (True, "", "limit")
    assert last["tokens_predicted"] == 12 and last["timings"]["predicted_n"] == 12
    assert last["generation_settings"]["n_predict"] == 12
    assert stream(node, "/completions")[-1]["stop"], "the older name"


def test_what_ended_it(node: RunningNode) -> None:
    word = complete(node)["content"].split()[1]
    found = complete(node, stop=[word])
    assert (found["stop_type"], found["stopping_word"]) == ("word", word)
    assert stream(node, stop=[word])[-1]["stopping_word"] == word
    nothing = complete(node, n_predict=0)
    assert (nothing["content"], nothing["tokens_predicted"]) == ("", 0)
    long = complete(node, n_predict=-1, ignore_eos=True, prompt="a " * 450)
    assert (long["stop_type"], long["truncated"]) == ("limit", True)


def test_log_probabilities(node: RunningNode) -> None:
    found = complete(node, n_probs=3, n_predict=5)["completion_probabilities"]
    assert len(found) == 5
    for token in found:
        best = token["top_logprobs"]
        assert len(best) == 3 and best[0]["id"] == token["id"] and token["logprob"] <= 0
        assert bytes(token["bytes"]).decode(errors="replace") == token["token"]
    *events, _ = stream(node, n_probs=3, n_predict=5)
    streamed = [token for event in events for token in event["completion_probabilities"]]
    assert [token["id"] for token in streamed] == [token["id"] for token in found]


def test_fields_that_are_wanted(node: RunningNode) -> None:
    fields = ["content", "timings/predicted_n", "generation_settings/n_predict", "no/such"]
    found = complete(node, response_fields=fields)
    assert found == {
        "content": complete(node)["content"],
        "timings/predicted_n": 12,
        "generation_settings/n_predict": 12,
    }
    assert stream(node, response_fields=fields[:2])[-1] == {"content": "", "timings/predicted_n": 12}


def test_prompts_in_all_forms(node: RunningNode) -> None:
    wanted = complete(node)["content"]
    tokens = tokens_of(node, PROMPT, add_special=True)
    half = len(tokens) // 2
    text = node.post("/detokenize", {"model": MODEL, "tokens": tokens[half:]}).json()["content"]
    for prompt in (tokens, {"prompt_string": PROMPT}, [*tokens[:half], text]):
        found = complete(node, prompt=prompt)
        assert found["content"] == wanted, prompt
    several = complete(node, prompt=[PROMPT, tokens, {"prompt_string": "An engine"}])
    assert [each["index"] for each in several] == [0, 1, 2]
    assert several[0]["content"] == several[1]["content"] == wanted != several[2]["content"]
    assert [each["content"] for each in complete(node, n_cmpl=2)] == [wanted, wanted]
    last = [event for event in stream(node, n=2) if event["stop"]]
    assert {event["index"] for event in last} == {0, 1}, "the older name"
    for prompt in (
        [],
        [True],
        [[]],
        [-1],
        [PROMPT, None],
        {"prompt_string": PROMPT, "multimodal_data": ["x"]},
    ):
        assert (
            error(node.post("/completion", {**GREEDY, "prompt": prompt}))["type"] == "invalid_request_error"
        )


def test_samplers_that_are_not_named_are_off(node: RunningNode) -> None:
    drawn = {"temperature": 50, "seed": 4, "top_k": 1}
    likeliest = complete(node)["content"]
    assert complete(node, **drawn)["content"] == likeliest, "of one there is no choice"
    for samplers in (["temperature", "infill"], "t"):
        assert complete(node, **drawn, samplers=samplers)["content"] != likeliest
    for samplers in (["top_k", "temperature"], "kt"):
        assert complete(node, **drawn, samplers=samplers)["content"] == likeliest
    answer = node.post("/completion", {**GREEDY, "samplers": ["top_k"]})
    assert answer.headers["X-LLM-Node-Ignored"] == "samplers", "their order"


def test_biases_in_all_forms(node: RunningNode) -> None:
    first = complete(node, return_tokens=True, n_predict=1)["tokens"][0]
    for bias in ([[first, False]], {str(first): False}, [[first, -500]]):
        assert complete(node, return_tokens=True, n_predict=1, logit_bias=bias)["tokens"] != [first]
    token = tokens_of(node, "engine")[-1]
    for name in (token, "engine"):
        found = complete(node, return_tokens=True, n_predict=1, logit_bias=[[name, 900]])
        assert found["tokens"][0] in tokens_of(node, "engine")
    for bias in ([[first, True]], [[first]], 3, [[-1, 1]], {"x": "y"}):
        assert (
            error(node.post("/completion", {**GREEDY, "logit_bias": bias}))["error_code"] == "invalid_request"
        )


def test_a_schema(node: RunningNode) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    found = complete(node, json_schema=schema, n_predict=60)
    assert json.loads(found["content"])["ok"] in (True, False)
    assert error(node.post("/completion", {**GREEDY, "json_schema": {"not": {}}}))["error_code"] == (
        "unsupported_parameter"
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grammar", 'root ::= "a"'),
        ("mirostat", 2),
        ("dry_multiplier", 0.5),
        ("xtc_probability", 0.5),
        ("typical_p", 0.5),
        ("lora", [{"id": 0, "scale": 1}]),
        ("post_sampling_probs", True),
    ],
)
def test_what_would_change_the_answer_is_refused(node: RunningNode, field: str, value: Any) -> None:
    found = error(node.post("/completion", {**GREEDY, field: value}))
    assert found["error_code"] == "unsupported_parameter" and field in found["message"], found


def test_what_means_nothing_is_taken_and_hints_are_named(node: RunningNode) -> None:
    usual = {"mirostat": 0, "typical_p": 1.0, "dry_multiplier": 0.0, "top_n_sigma": -1.0, "grammar": ""}
    harmless = {"cache_prompt": False, "id_slot": 2, "dry_base": 1.75, "mirostat_tau": 5.0, "min_keep": 0}
    answer = node.post("/completion", {**GREEDY, **usual, **harmless})
    assert answer.status == 200 and "X-LLM-Node-Ignored" not in answer.headers
    hints = {
        "n_keep": 4,
        "t_max_predict_ms": 1000,
        "n_indent": 4,
        "repeat_last_n": 64,
        "sampler_of_tomorrow": 1,
    }
    answer = node.post("/completion", {**GREEDY, **hints})
    assert set(answer.headers["X-LLM-Node-Ignored"].split(", ")) == set(hints)


def test_errors_are_in_its_words(node: RunningNode) -> None:
    found = error(node.post("/completion", {**GREEDY, "prompt": "a " * 4000}))
    assert found["type"] == "exceed_context_size_error" and found["n_ctx"] == 1024, found
    assert found["n_prompt_tokens"] > 1024 and found["code"] == 400
    missing = node.post("/completion", {**GREEDY, "model": "no-such-model"})
    assert (missing.status, missing.json()["error"]["type"]) == (404, "not_found_error")


# ---- what the server says of itself ----------------------------------------------------------------------


def test_health(node: RunningNode) -> None:
    for path in ("/health", "/v1/health"):
        assert node.get(path).json() == {"status": "ok"}


def test_props_and_slots(node: RunningNode) -> None:
    complete(node)
    props = node.get(f"/props?model={MODEL}").json()
    assert (props["model_alias"], props["is_sleeping"]) == (MODEL, False)
    settings = props["default_generation_settings"]
    assert settings["n_ctx"] == 1024 and settings["params"]["temperature"] == 0.8
    assert "messages" in props["chat_template"] and Path(props["model_path"]).is_file()
    assert props["modalities"] == {"vision": False, "audio": False}
    shown = node.post("/api/show", {"model": MODEL}).json()
    assert shown["template"] == props["chat_template"], "Ollama's clients see it, too"
    slots = node.get(f"/slots?model={MODEL}").json()
    assert len(slots) == props["total_slots"] > 0
    assert [slot["id"] for slot in slots] == list(range(len(slots)))
    assert all(slot["n_ctx"] == 1024 and not slot["is_processing"] for slot in slots)
    assert node.get(f"/slots?model={MODEL}&fail_on_no_slot=1").status == 200


def test_tokens_with_their_pieces(node: RunningNode) -> None:
    plain = tokens_of(node, "An engine é")
    pieces = tokens_of(node, "An engine é", with_pieces=True)
    assert [each["id"] for each in pieces] == plain
    parts = [each["piece"] for each in pieces]
    data = b"".join(part.encode() if isinstance(part, str) else bytes(part) for part in parts)
    assert data.decode().strip() == "An engine é"
    assert len(tokens_of(node, "<|end|>")) == 1 < len(tokens_of(node, "<|end|>", parse_special=False))
    own = node.post("/tokenize", {"model": MODEL, "text": "<|end|>"}).json()
    assert own["count"] == len(own["tokens"]) > 1, "the node's own form has its own defaults"
    for body in ({"model": MODEL}, {"model": MODEL, "text": "a", "content": "b"}):
        assert error(node.post("/tokenize", body))["param"] == "text"


def test_routes_without_their_prefix(node: RunningNode) -> None:
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 4,
    }
    one, other = (node.post(path, chat).json() for path in ("/chat/completions", "/v1/chat/completions"))
    assert one["choices"] == other["choices"]
    assert node.get("/models").json()["data"] == node.get("/v1/models").json()["data"]
    assert node.get(f"/models/{MODEL}").json()["id"] == MODEL
    wrong = node.post("/messages", {**chat, "max_tokens": 0}).json()
    assert wrong["type"] == "error", "with the errors of its family"


def test_timings_are_in_the_answers_of_openai_s_routes(node: RunningNode) -> None:
    chat = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "hi"}],
        "temperature": 0,
        "max_tokens": 4,
    }
    assert node.post("/v1/chat/completions", chat).json()["timings"]["predicted_n"] == 4
    for path, body in (("/v1/chat/completions", chat), ("/v1/completions", {**GREEDY, "max_tokens": 4})):
        body.pop("n_predict", None)
        for options in ({}, {"stream_options": {"include_usage": True}}):
            answer = node.post(path, {**body, "stream": True, **options})
            events = [json.loads(line[6:]) for line in answer.body.decode().split("\n\n") if "{" in line]
            timed = [event for event in events if "timings" in event]
            assert timed == [events[-1]] and timed[0]["timings"]["predicted_n"] == 4


# ---- gaps and vectors ------------------------------------------------------------------------------------

FIM = ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", "<|file_sep|>"]


@pytest.fixture(scope="module")
def small(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with a model that fills every gap with the same text, and an encoder."""
    folder = tmp_path_factory.mktemp("llama_server")
    (folder / "models").mkdir()
    words = [(name, models.CONTROL) for name in FIM] + [
        ("return ", models.USER_DEFINED),
        ("1", models.USER_DEFINED),
    ]
    follows: dict[str | int, str | int] = {"<|fim_middle|>": "return ", "return ": "1"}
    models.talker(folder / "models/gap.gguf", words, follows, "{{ messages[0].content }}", context=512)
    models.encoder(folder / "models/embeds.gguf", ranks=False)
    folders = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    options = ["--gpu-backend", "cpu", "--demo-model", "no", "--default-model", "gap"]
    with running_node(folder / "node", [*folders, *options]) as running:
        yield running


GAP = {"input_prefix": "def f():\n", "prompt": "    ", "input_suffix": "\n", "temperature": 0}


def test_an_infill(small: RunningNode) -> None:
    found = small.post("/infill", GAP).json()
    assert (found["content"], found["stop_type"]) == ("return 1", "eos")
    assert (found["model"], found["generation_settings"]["top_k"]) == ("gap", 40), "nobody named it"
    bare = found["tokens_evaluated"]
    extra = [{"filename": "a.py", "text": "x" * 50}, {"text": "y" * 50}]
    known = small.post("/infill", {**GAP, "input_extra": extra})
    assert known.json()["tokens_evaluated"] > bare + 100 and "X-LLM-Node-Ignored" not in known.headers
    assert known.json()["content"] == "return 1"
    long = small.post("/infill", {**GAP, "input_extra": [{"text": "x" * 700}, *extra]})
    assert long.json()["tokens_evaluated"] == known.json()["tokens_evaluated"], "the first goes first"
    assert long.headers["X-LLM-Node-Ignored"] == "input_extra"
    for wrong in ({}, {"filename": 3, "text": "x"}, {"text": None}):
        assert error(small.post("/infill", {**GAP, "input_extra": [wrong]}))["code"] == 400
    cut = small.post("/infill", {**GAP, "input_prefix": "x" * 600})
    assert error(cut)["type"] == "exceed_context_size_error", "what stands around the gap is never cut"


def test_gaps_in_the_words_of_others(small: RunningNode, node: RunningNode) -> None:
    plain = {"prompt": "def f():\n", "suffix": "\n", "temperature": 0}
    assert small.post("/v1/completions", plain).json()["choices"][0]["text"] == "return 1"
    ollama = {"prompt": "def f():\n", "suffix": "\n", "stream": False, "options": {"temperature": 0}}
    assert small.post("/api/generate", ollama).json()["response"] == "return 1"
    assert "insert" in small.post("/api/show", {"model": "gap"}).json()["capabilities"]
    for path, body in (("/infill", GAP), ("/v1/completions", plain), ("/api/generate", ollama)):
        refused = node.post(path, {**body, "model": MODEL})
        assert refused.status == 400 and b"gap" in refused.body, refused.body


def test_embeddings_in_its_shape(small: RunningNode) -> None:
    body = {"model": "embeds", "content": ["a cat", "dog"]}
    found = small.post("/embedding", body).json()
    wanted = small.post("/v1/embeddings", {"model": "embeds", "input": ["a cat", "dog"]}).json()["data"]
    assert [(each["index"], each["embedding"]) for each in found] == [
        (each["index"], [each["embedding"]]) for each in wanted
    ]
    (one,) = small.post("/embeddings", {"model": "embeds", "input": "a cat"}).json()
    same = pytest.approx(found[0]["embedding"][0], abs=1e-6)
    assert one["embedding"] == [same], "the other names of path and field"
    (raw,) = small.post("/embedding", {**body, "content": "a cat", "embd_normalize": -1}).json()
    length = sum(value**2 for value in raw["embedding"][0]) ** 0.5
    assert [value / length for value in raw["embedding"][0]] == pytest.approx(one["embedding"][0], abs=1e-6)
    assert error(small.post("/embedding", {**body, "embd_normalize": 0}))["error_code"] == "invalid_request"
