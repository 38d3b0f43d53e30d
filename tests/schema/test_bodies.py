"""Bodies as clients send them: what is understood, what is refused, and under which name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from llm_node.api.body import parse
from llm_node.api.conversation import (
    Among,
    Assistant,
    Call,
    Json,
    Named,
    Result,
    System,
    Text,
    TextInput,
    Tool,
)
from llm_node.api.openai import conversation
from llm_node.node import NodeError
from llm_node.schema.admin import LoadRequest
from llm_node.schema.chat import ChatCompletionRequest
from llm_node.schema.completions import CompletionRequest
from llm_node.schema.embeddings import EmbeddingRequest
from llm_node.schema.messages import REASONING, Message
from llm_node.schema.sampling import ADDED_BY_ROUTERS
from llm_node.schema.wire import Ignored, Wire

unhurried = hypothesis_settings(deadline=None)


SHAPES: tuple[type[Wire], ...] = (ChatCompletionRequest, CompletionRequest, EmbeddingRequest, LoadRequest)


def chat(**fields: Any) -> ChatCompletionRequest:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(json.dumps(body).encode(), ChatCompletionRequest)


def completion(**fields: Any) -> CompletionRequest:
    return parse(json.dumps({"model": "m", "prompt": "hi", **fields}).encode(), CompletionRequest)


def test_the_least_there_is() -> None:
    found = chat()
    assert (found.n, found.temperature, found.max_tokens, found.stop) == (1, 1.0, None, [])


@pytest.mark.parametrize("field", sorted(ChatCompletionRequest.model_fields))
def test_null_means_not_given(field: str) -> None:
    if field == "messages":
        with pytest.raises(NodeError) as caught:
            chat(**{field: None})
        assert caught.value.param == field
    elif field == "model":
        assert chat(model=None) == chat(model="")
    else:
        assert chat(**{field: None}) == chat()


@pytest.mark.parametrize("field", sorted(ChatCompletionRequest.harmless))
def test_what_changes_nothing_is_dropped(field: str) -> None:
    assert chat(**{field: {"anything": [1]}}) == chat()


def test_content_as_text_or_parts() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    (message,) = chat(messages=[{"role": "user", "content": parts}]).messages
    assert (message.role, message.content) == ("user", "one\ntwo")


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    answer = {
        "role": "assistant",
        "content": "Hello",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    wanted = chat(messages=[{"role": "developer", "content": "Be kind."}, answer])
    assert conversation.of(wanted).messages == (System("Be kind."), Assistant(text="Hello"))


NOTHING: list[Any] = [None, [], {}, ""]


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("field", sorted(ChatCompletionRequest.refused))
def test_what_asks_for_nothing_is_dropped(field: str, nothing: Any) -> None:
    assert chat(**{field: nothing}) == chat()
    if field in ChatCompletionRequest.model_fields:
        return  # some of its values are honoured
    with pytest.raises(NodeError, match=field) as caught:
        chat(**{field: ["something"]})
    assert caught.value.code == "unsupported_parameter"


# As vllm-router 0.1.17 sends what it was asked with the messages alone.
ROUTED = {
    "stream": False,
    "logprobs": False,
    "no_stop_trim": False,
    "ignore_eos": False,
    "continue_final_message": False,
    "skip_special_tokens": True,
    "separate_reasoning": True,
    "stream_reasoning": True,
    "return_hidden_states": False,
    "include_reasoning": True,
}


def test_what_routers_add_says_what_is_done_anyway() -> None:
    assert chat(**ROUTED) == chat()
    added = ("stream", "no_stop_trim", "ignore_eos", "skip_special_tokens", "return_hidden_states")
    assert completion(**{name: ROUTED[name] for name in added}, echo=False) == completion()


@pytest.mark.parametrize("field", [name for name in ROUTED if name in ADDED_BY_ROUTERS])
def test_what_routers_add_is_refused_with_another_value(field: str) -> None:
    with pytest.raises(NodeError) as caught:
        chat(**{field: not ROUTED[field]})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", field)


def test_hints_are_dropped_and_told() -> None:
    body = {
        "model": "m",
        "verbosity": "low",
        "prediction": None,
        "messages": [
            {"role": "user", "content": "a", "cache_control": {"type": "ephemeral"}},
            {"role": "user", "content": "b", "cache_control": {}},
            {"role": "user", "content": "c", "cache_control": {"type": "ephemeral"}},
        ],
    }
    ignored = Ignored()
    found = parse(json.dumps(body).encode(), ChatCompletionRequest, ignored)
    assert ignored.names == ["verbosity", "messages.cache_control"]
    plain = [{key: message[key] for key in ("role", "content")} for message in body["messages"]]  # type: ignore[index]
    assert found == chat(messages=plain)


class Inner(Wire):
    known: int = 0


class Lenient(Wire):
    unknown = "ignore"
    refused: ClassVar[Mapping[str, Any]] = {"mode": 1, "known": 7}

    known: int = 0
    inner: Inner = Inner()


class Outer(Wire):
    unknown = "ignore"
    many: list[Lenient] = []  # noqa: RUF012


def test_unknown_fields_are_refused_or_ignored_by_class_unless_one_rule_is_for_all() -> None:
    def names(body: Any, rule: Any = None, shape: type[Wire] = Outer) -> list[str]:
        ignored = Ignored(rule)
        parse(json.dumps(body).encode(), shape, ignored)
        return ignored.names

    assert names({"x": 1, "many": [{"y.z": 1, "known": 2}, {"y.z": 2}]}) == ["x", "many.y.z"]
    assert names({"many": [{"inner": {"z": 1}}]}, "ignore") == ["many.inner.z"]
    for body, rule, param in [
        ({"many": [{"inner": {"z": 1}}]}, None, "many.0.inner.z"),
        ({"x": 1}, "refuse", "x"),
        ({"many": [{"mode": 2}]}, "ignore", "many.0.mode"),
    ]:
        with pytest.raises(NodeError) as caught:
            names(body, rule)
        assert (caught.value.code, caught.value.param) == ("unsupported_parameter", param)
    # A refused field with a value that asks for nothing is none.
    assert names({"many": [{"mode": 1}, {"mode": 0}, {"known": 7}]}) == []


@pytest.mark.parametrize("nothing", NOTHING)
@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
@pytest.mark.parametrize("field", sorted(Message.refused))
def test_what_asks_for_nothing_is_dropped_from_messages(role: str, field: str, nothing: Any) -> None:
    plain = {"role": role, "content": "hi"}
    assert chat(messages=[{**plain, field: nothing}]) == chat(messages=[plain])


@pytest.mark.parametrize("field", REASONING)
def test_reasoning_is_taken_under_each_of_its_names(field: str) -> None:
    wanted = chat(messages=[{"role": "assistant", "content": "4", field: "two and two"}])
    assert conversation.of(wanted).messages == (Assistant("two and two", "4"),)


INPUTS: list[tuple[Any, list[str | list[int]]]] = [
    ("hi", ["hi"]),
    (["a", "b"], ["a", "b"]),
    ([1, 2], [[1, 2]]),
    ([[1, 2], [3]], [[1, 2], [3]]),
]


@pytest.mark.parametrize(("value", "wanted"), INPUTS)
def test_inputs_of_embeddings(value: Any, wanted: list[str | list[int]]) -> None:
    assert parse(json.dumps({"model": "m", "input": value}).encode(), EmbeddingRequest).inputs == wanted


@pytest.mark.parametrize(
    ("value", "param"),
    [
        ([], "input"),
        ("", "input"),
        (5, "input"),
        ([1, -1], "input.1"),
        ([[1], []], "input.1"),
        ([[1.5]], "input.0.0"),
    ],
)
def test_refused_inputs_of_embeddings(value: Any, param: str) -> None:
    with pytest.raises(NodeError) as caught:
        parse(json.dumps({"model": "m", "input": value}).encode(), EmbeddingRequest)
    assert (caught.value.code, caught.value.param) == ("invalid_request", param)


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("hi", ["hi"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", [1]], ["a", [1]]),
    ],
)
def test_prompts(prompt: Any, wanted: Any) -> None:
    assert completion(prompt=prompt).prompts == wanted


@pytest.mark.parametrize("stop", ["x", ["x"]])
def test_stop_as_text_or_list(stop: Any) -> None:
    assert chat(stop=stop).stop == ["x"]


OFFERED: Any = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"b": {}, "a": {}}}},
}
CALLED: Any = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"b": 1, "a": 2}'},
}

REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"temperature": "hot"}, "invalid_request", "temperature"),
    ({"temperature": 2.5}, "invalid_request", "temperature"),
    ({"temperature": True}, "invalid_request", "temperature"),
    ({"top_p": -0.1}, "invalid_request", "top_p"),
    ({"n": 0}, "invalid_request", "n"),
    ({"n": 1.5}, "invalid_request", "n"),
    ({"n": "1"}, "invalid_request", "n"),
    ({"max_tokens": 0}, "invalid_request", "max_tokens"),
    ({"max_completion_tokens": -5}, "invalid_request", "max_completion_tokens"),
    ({"seed": 1.5}, "invalid_request", "seed"),
    ({"seed": 2**64}, "invalid_request", "seed"),
    ({"stop": 5}, "invalid_request", "stop"),
    ({"stop": [1]}, "invalid_request", "stop.0"),
    ({"stop": [""]}, "invalid_request", "stop.0"),
    ({"stream": "yes"}, "invalid_request", "stream"),
    ({"stream_options": {"include_usage": "yes"}}, "invalid_request", "stream_options.include_usage"),
    ({"stream_options": {"other": 1}}, "unsupported_parameter", "stream_options.other"),
    ({"logit_bias": {"a": 1}}, "invalid_request", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "invalid_request", "logit_bias.1"),
    ({"top_logprobs": 3}, "invalid_request", "top_logprobs"),
    ({"top_logprobs": 21, "logprobs": True}, "invalid_request", "top_logprobs"),
    ({"messages": []}, "invalid_request", "messages"),
    ({"messages": "hi"}, "invalid_request", "messages"),
    ({"messages": ["hi"]}, "invalid_request", "messages.0"),
    ({"messages": [{"content": "hi"}]}, "invalid_request", "messages.0.role"),
    ({"messages": [{"role": "king", "content": "hi"}]}, "invalid_request", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, "invalid_request", "messages.0.content"),
    ({"messages": [{"role": "user", "content": 5}]}, "invalid_request", "messages.0.content"),
    ({"messages": [{"role": "user", "content": ["x"]}]}, "invalid_request", "messages.0.content"),
    ({"messages": [{"role": "user", "content": "x", "zip": 1}]}, "unsupported_parameter", "messages.0.zip"),
    (
        {"messages": [{"role": "assistant", "content": "x", "reasoning_content": 5}]},
        "invalid_request",
        "messages.0.reasoning_content",
    ),
    ({"messages": [{"role": "tool", "content": "x"}]}, "invalid_request", "messages.0.tool_call_id"),
    ({"messages": [{"role": "function", "content": "x"}]}, "invalid_request", "messages.0.name"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "invalid_request",
        "messages.0.tool_calls.0.function",
    ),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": [CALLED]}]},
        "invalid_request",
        "messages.0.tool_calls",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "unsupported_feature",
        "messages.0.content",
    ),
    ({"tools": [{"type": "function"}]}, "invalid_request", "tools.0.function"),
    ({"tools": [{"type": "web_search"}]}, "invalid_request", "tools.0.type"),
    ({"tools": [{"type": "function", "function": {"name": ""}}]}, "invalid_request", "tools.0.function.name"),
    ({"tools": [OFFERED], "functions": [OFFERED["function"]]}, "invalid_request", "functions"),
    ({"reasoning_effort": "much"}, "invalid_request", "reasoning_effort"),
    ({"response_format": {"type": "xml"}}, "invalid_request", "response_format"),
    ({"response_format": {"type": "json_schema"}}, "invalid_request", "response_format.json_schema"),
    ({"response_format": "json"}, "invalid_request", "response_format"),
    ({"modalities": ["audio"]}, "unsupported_parameter", "modalities"),
    ({"tempreature": 0}, "unsupported_parameter", "tempreature"),
]


def test_tools_are_put_in_neutral_words() -> None:
    custom = {"type": "custom", "custom": {"name": "g", "description": "text"}}
    wanted = chat(tools=[OFFERED, custom], parallel_tool_calls=False, reasoning_effort="none")
    said = conversation.of(wanted)
    assert said.tools == (
        Tool("f", Json('{"type":"object","properties":{"b":{},"a":{}}}')),
        Tool("g", TextInput(), "text"),
    )
    assert (said.choice, said.parallel, said.thinking) == ("auto", False, "off")
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
    for choice, neutral in [
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "function": {"name": "f"}}, Named("f")),
        ({"type": "custom", "custom": {"name": "g"}}, Named("g")),
        ({"type": "allowed_tools", "allowed_tools": allowed}, Among(("f",))),
    ]:
        assert conversation.of(chat(tools=[OFFERED, custom], tool_choice=choice)).choice == neutral
    old = conversation.of(chat(functions=[OFFERED["function"]], function_call={"name": "f"}))
    assert (old.tools[0].name, old.choice, old.parallel) == ("f", Named("f"), False)


def test_calls_and_results_are_put_in_neutral_words() -> None:
    said = conversation.of(
        chat(
            messages=[
                {"role": "assistant", "content": None, "tool_calls": [CALLED, {**CALLED, "id": "x"}]},
                {"role": "tool", "tool_call_id": "call_1", "content": [{"type": "text", "text": "ok"}]},
                {"role": "assistant", "function_call": {"name": "g", "arguments": '{"cut": '}},
                {"role": "function", "name": "g", "content": "old"},
            ]
        )
    )
    input_ = Json('{"b": 1, "a": 2}')
    assert said.messages == (
        Assistant(calls=(Call("1", "f", input_), Call("x", "f", input_))),
        Result("1", "f", (Text("ok"),)),
        Assistant(calls=(Call("g", "g", Text('{"cut": ')),)),
        Result("g", "g", (Text("old"),)),
    )
    with pytest.raises(NodeError) as caught:
        conversation.of(chat(messages=[{"role": "tool", "tool_call_id": "call_2", "content": "?"}]))
    assert (caught.value.code, caught.value.param) == ("invalid_request", "messages.0.tool_call_id")


@pytest.mark.parametrize(("fields", "code", "param"), REFUSED)
def test_refused_in_chat(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(NodeError) as caught:
        chat(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert caught.value.message


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"prompt": ""}, "invalid_request", "prompt"),
        ({"prompt": []}, "invalid_request", "prompt"),
        ({"prompt": 5}, "invalid_request", "prompt"),
        ({"prompt": [1, -5]}, "invalid_request", "prompt.1"),
        ({"prompt": ["a", ""]}, "invalid_request", "prompt.1"),
        ({"prompt": ["a", True]}, "invalid_request", "prompt.1"),
        ({"best_of": 3}, "unsupported_parameter", "best_of"),
        ({"prompt": [1], "suffix": "x"}, "unsupported_parameter", "suffix"),
        ({"echo": True, "logprobs": 1}, "unsupported_parameter", "echo"),
        ({"logprobs": True}, "invalid_request", "logprobs"),
    ],
)
def test_refused_in_completions(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(NodeError) as caught:
        completion(**fields)
    assert caught.value.code == code
    assert caught.value.param == param


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": "\\ud800"}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"model": "m"} trailing',
    ],
)
def test_not_json(data: bytes) -> None:
    with pytest.raises(NodeError) as caught:
        parse(data, ChatCompletionRequest)
    assert caught.value.code == "invalid_json"


@unhurried
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    for shape in SHAPES:
        with pytest.raises(NodeError) as caught:
            parse(data, shape)
        assert caught.value.code in ("invalid_json", "invalid_request", "unsupported_parameter")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@unhurried
@given(field=st.sampled_from(sorted(ChatCompletionRequest.model_fields)), value=JSON)
def test_any_value_of_any_field_is_read_or_refused_by_name(field: str, value: Any) -> None:
    try:
        chat(**{field: value})
    except NodeError as fault:
        assert fault.code in ("invalid_request", "unsupported_parameter", "unsupported_feature")
        assert str(fault.param).split(".")[0] in (field, "top_logprobs")
        assert fault.message
