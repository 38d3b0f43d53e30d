"""Answers that keep to a format, asked for by the official client of a real node."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openai
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

from support.models import CONTROL, USER_DEFINED, talker
from support.node import RunningNode, running_node

MODEL = "llm-node-demo"
QUESTION: Any = [{"role": "user", "content": "What is an engine?"}]
ASKED: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 300, "seed": 7}
SCHEMA: Any = {
    "type": "object",
    "properties": {
        "zeal": {"enum": ["low", "high"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 2},
    },
    "required": ["zeal", "age", "names"],
}


@pytest.fixture
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def schema(wanted: Any = SCHEMA, *, strict: bool = True) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": wanted, "strict": strict}}


def check(text: str | None) -> None:
    """Is it by `SCHEMA`, its keys in that order?"""
    found = json.loads(text or "")
    assert list(found)[:3] == ["zeal", "age", "names"]
    assert found["zeal"] in ("low", "high")
    assert isinstance(found["age"], int)
    assert 0 <= found["age"] <= 120
    assert len(found["names"]) <= 2
    assert all(isinstance(name, str) and len(name) <= 8 for name in found["names"])


def grammar(syntax: str, definition: str) -> Any:
    return {"type": "grammar", "grammar": {"syntax": syntax, "definition": definition}}


@pytest.mark.parametrize("seed", range(3))
def test_an_answer_by_a_schema_validates_and_has_its_keys_in_order(client: openai.OpenAI, seed: int) -> None:
    answer = client.chat.completions.create(**{**ASKED, "seed": seed}, response_format=schema())
    (choice,) = answer.choices
    assert choice.finish_reason == "stop"
    check(choice.message.content)


def test_a_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, response_format=schema())
    chunks = list(client.chat.completions.create(**ASKED, response_format=schema(), stream=True))
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert len(chunks) > 4


def test_answers_of_one_request_keep_to_it_each(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASKED, response_format=schema(), n=3)
    texts = [choice.message.content or "" for choice in answer.choices]
    for text in texts:
        check(text)
    assert len(set(texts)) > 1


def test_the_client_parses_models(client: openai.OpenAI) -> None:
    class Engine(BaseModel):
        kind: Literal["steam", "diesel"]
        cylinders: int = Field(ge=0, le=99)
        parts: list[bool] = Field(max_length=4)

    parsed = client.chat.completions.parse(
        model=MODEL, messages=QUESTION, seed=3, max_tokens=300, response_format=Engine
    )
    assert isinstance(parsed.choices[0].message.parsed, Engine)


def test_any_object(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_object"}
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 400}, response_format=wanted)
    (choice,) = answer.choices
    assert (choice.message.content or "").startswith("{")
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content or ""), dict)


def test_expressions_and_grammars_in_both_kinds_of_completion(client: openai.OpenAI) -> None:
    regex = grammar("regex", "[a-c]{3,5}-[0-9]{2}")
    answer = client.completions.create(
        model=MODEL, prompt="An engine", max_tokens=40, extra_body={"response_format": regex}
    )
    assert re.fullmatch("[a-c]{3,5}-[0-9]{2}", answer.choices[0].text)
    lark = grammar("lark", 'start: "yes" | "no" " " /[0-9]{1,4}/ "%"')
    chat = client.chat.completions.create(**{**ASKED, "max_tokens": 60}, response_format=lark)
    assert re.fullmatch("yes|no [0-9]{1,4}%", chat.choices[0].message.content or "")


def test_log_probabilities_are_of_what_is_admitted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **ASKED, response_format=grammar("regex", "[ab]"), logprobs=True, top_logprobs=4
    )
    assert answer.choices[0].logprobs is not None
    (token,) = answer.choices[0].logprobs.content or []
    assert {each.token for each in token.top_logprobs} == {"a", "b"}
    assert sum(2.718281828**each.logprob for each in token.top_logprobs) == pytest.approx(1, abs=1e-4)


FIRST: Any = {"model": MODEL, "prompt": "Engines have", "n_predict": 1}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def likeliest(node: RunningNode, **more: Any) -> dict[int, float]:
    """Of the first token of an answer, with their log-probabilities."""
    reply = node.post("/completion", {**FIRST, "n_probs": 128, **more})
    assert reply.status == 200, reply.body
    return {it["id"]: it["logprob"] for it in reply.json()["completion_probabilities"][0]["top_logprobs"]}


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_log_probabilities_are_a_log_softmax_of_what_is_admitted(
    node: RunningNode, temperature: float
) -> None:
    """In double precision, of the logits as they are without a mask."""
    masked = likeliest(node, temperature=temperature, json_schema=DIGIT)
    assert 9 < len(masked) < 128, "they are all told"
    # So that they are all among the likeliest, each lifted by the same.
    free = likeliest(node, temperature=temperature, logit_bias=[[token, 40] for token in masked])
    logits = np.array([free[token] for token in masked], np.float64)
    wanted = logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())
    assert np.abs(wanted - list(masked.values())).max() < 1e-4


@pytest.mark.parametrize("stream", [False, True])
def test_a_bias_that_forbids_all_that_a_format_admits_is_told_so(node: RunningNode, stream: bool) -> None:
    """Not that it forbids all that the model could generate."""
    bias = [[token, False] for token in likeliest(node, json_schema=DIGIT)]
    reply = node.post("/completion", {**FIRST, "json_schema": DIGIT, "logit_bias": bias, "stream": stream})
    assert b"logit_bias forbids every token that may come next in the format" in reply.body
    assert b'"invalid_request"' in reply.body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("wanted", "code", "part"),
    [
        (
            schema({"properties": {"a": {"items": {"not": {}}}}}),
            "unsupported_parameter",
            '"not" at #/properties/a/items',
        ),
        (schema({"type": "string", "pattern": "(?=a)"}), "unsupported_parameter", '"pattern" at #'),
        (grammar("regex", "("), "invalid_request", "regular expression"),
        (grammar("lark", "root ::= x"), "invalid_request", "grammar"),
        (schema({"title": "a" * 270_000}), "invalid_request", "262144"),
    ],
)
def test_row_08_what_cannot_be_enforced_is_refused_before_the_answer(
    client: openai.OpenAI, wanted: Any, code: str, part: str, stream: bool
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED, response_format=wanted, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, "response_format")
    assert part in caught.value.message


TREE: Any = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 3},
                "children": {"type": "array", "maxItems": 1, "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
        }
    },
    "$ref": "#/$defs/node",
}
CIRCLE: Any = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
CHAIN: Any = {
    "$defs": {f"d{number}": {"items": {"$ref": f"#/$defs/d{number + 1}"}} for number in range(4000)},
    "$ref": "#/$defs/d0",
}


def test_row_09_references_to_themselves_are_followed_or_refused(
    node: RunningNode, client: openai.OpenAI
) -> None:
    ended = 0
    for seed in range(8):
        answer = client.chat.completions.create(**{**ASKED, "seed": seed}, response_format=schema(TREE))
        (choice,) = answer.choices
        if choice.finish_reason == "stop":
            ended += 1
            assert Draft202012Validator(TREE).is_valid(json.loads(choice.message.content or ""))
    assert ended
    worker = node.workers()
    for hopeless in (CIRCLE, CHAIN):
        for strict in (False, True):
            wanted = {**ASKED, "max_tokens": 8, "response_format": schema(hopeless, strict=strict)}
            reply = node.post("/v1/chat/completions", wanted)
            assert reply.status in (200, 400), reply.body
            if reply.status == 400:
                assert reply.json()["error"]["param"] == "response_format"
    assert node.workers() == worker, "it is the same worker"


def test_ending_where_the_format_does_cannot_be_ignored(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**ASKED, response_format=schema(), extra_body={"ignore_eos": True})
    assert (caught.value.code, caught.value.param) == ("invalid_request", "ignore_eos")


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_not_enforced_is_told(node: RunningNode, stream: bool) -> None:
    wanted = schema({**SCHEMA, "not": {"required": ["x"]}}, strict=False)
    reply = node.post("/v1/chat/completions", {**ASKED, "response_format": wanted, "stream": stream})
    assert reply.status == 200
    assert reply.headers["X-LLM-Node-Ignored"] == "#/not"
    plain = node.post("/v1/chat/completions", {**ASKED, "response_format": schema(), "stream": stream})
    assert "X-LLM-Node-Ignored" not in plain.headers


MANY = [{"properties": {f"{letter}{number}": {}}} for letter in "ab" for number in range(100)]
HOSTILE: dict[str, Any] = {
    "alternatives": {"allOf": [{"anyOf": MANY[:100]}, {"anyOf": MANY[100:]}]},
    "a pattern of patterns": {"type": "string", "pattern": "((a{1,200}b{1,200}){1,200}c){1,200}"},
    "a circle": {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
    "many optional properties": {"properties": {f"p{number}": {"type": "string"} for number in range(900)}},
    "options of the grammar": {"x-guidance": {"lenient": True}, "type": "nothing"},
}


def test_hostile_schemas_are_answered_in_time_and_cost_no_neighbour_anything(
    node: RunningNode, client: openai.OpenAI
) -> None:
    told = {"model": MODEL, "prompt": "An engine is", "max_tokens": 400, "temperature": 0}
    alone = client.completions.create(**told).choices[0].text
    with ThreadPoolExecutor(1) as beside:
        neighbour = beside.submit(lambda: client.completions.create(**told).choices[0].text)
        for name, wanted in HOSTILE.items():
            began = time.monotonic()
            asked = {**ASKED, "max_tokens": 8, "response_format": schema(wanted)}
            assert node.post("/v1/chat/completions", asked).status in (200, 400), name
            assert time.monotonic() - began < 6, name
        assert neighbour.result() == alone


THINKING = (
    "{% for m in messages %}<|user|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}"
    "{{ m.content }}{% endfor %}"
)


CALLING = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|user|>"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    '{% for c in m.tool_calls or [] %}\n<call>{"name": "{{ c.function.name }}", '
    '"arguments": {{ c.function.arguments | tojson }}}</call>{% endfor %}{% endfor %}'
)


@pytest.fixture(scope="module")
def thinkers(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with models that think first: `opened` since its prompt says so, `opens` by itself."""
    folder = tmp_path_factory.mktemp("thinkers")
    (folder / "models").mkdir()
    words = [("<|user|>", CONTROL), ("<think>", CONTROL), ("</think>", CONTROL), ("hm", USER_DEFINED)]
    follows: dict[str | int, str | int] = {"<think>": "hm", "hm": "</think>", "<0x3F>": "<think>"}
    opened = THINKING + "{% if add_generation_prompt %}<think>{% endif %}"
    talker(folder / "models/opened.gguf", words, follows, opened)
    talker(folder / "models/opens.gguf", words, follows, THINKING)
    talker(folder / "models/calls.gguf", words, follows, CALLING)
    talker(folder / "models/endless.gguf", words, {"<think>": "hm", "hm": "hm", "</think>": "<0x61>"}, opened)
    places = ["--engines-dir", str(engines), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*places, "--gpu-backend", "cpu"]) as running:
        yield running


@pytest.mark.parametrize("model", ["opened", "opens"])
def test_row_10_a_format_begins_behind_what_the_model_thinks(thinkers: RunningNode, model: str) -> None:
    asked = {"model": model, "messages": [{"role": "user", "content": "yes or no?"}], "temperature": 0}
    wanted = {**asked, "response_format": grammar("regex", "yes|no"), "max_tokens": 20}
    (choice,) = thinkers.post("/v1/chat/completions", wanted).json()["choices"]
    assert choice["message"]["reasoning_content"] == "hm"
    assert choice["message"]["content"] in ("yes", "no")
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_row_10_a_call_that_must_be_made_comes_behind_what_the_model_thinks(
    thinkers: RunningNode, stream: bool
) -> None:
    parameters = {"type": "object", "properties": {"n": {"enum": [7]}}, "required": ["n"]}
    asked: Any = {
        "model": "calls",
        "messages": [{"role": "user", "content": "yes or no?"}],
        "tools": [
            {"type": "function", "function": {"name": "pick", "strict": True, "parameters": parameters}}
        ],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": 150,
    }
    with openai.OpenAI(base_url=f"{thinkers.url}/v1", api_key="none", max_retries=0) as client:
        if stream:
            with client.chat.completions.stream(**asked) as events:
                (choice,) = events.get_final_completion().choices
        else:
            (choice,) = client.chat.completions.create(**asked).choices
    assert choice.finish_reason == "tool_calls"
    assert (choice.message.model_extra or {})["reasoning_content"] == "hm" and not choice.message.content
    (call,) = choice.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("pick", {"n": 7})


@pytest.mark.parametrize("budget", [1, 5])
def test_a_budget_ends_what_the_model_thinks(thinkers: RunningNode, budget: int) -> None:
    asked = {
        "model": "endless",
        "messages": [{"role": "user", "content": "?"}],
        "max_tokens": 20,
        "temperature": 0,
        "thinking": {"type": "enabled", "budget_tokens": budget},
    }
    answer = thinkers.post("/v1/messages", asked).json()
    assert [block["type"] for block in answer["content"]] == ["thinking", "text"], answer
    assert answer["content"][0]["thinking"] == "hm" * budget
    assert answer["content"][1]["text"] == "a"
    assert answer["stop_reason"] == "end_turn"
