"""From Ollama's words to a conversation: pure translation, without a node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_node.api.body import parse
from llm_node.api.conversation import (
    Assistant,
    Call,
    Conversation,
    Json,
    On,
    Result,
    System,
    Text,
    Tool,
    User,
)
from llm_node.api.ollama.conversation import of_chat, of_prompt
from llm_node.node import NodeError
from llm_node.schema.ollama.chat import ChatRequest, GenerateRequest
from llm_node.schema.ollama.options import is_zero, seconds


def parsed(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"model": "m", **fields}).encode(), ChatRequest)


def translated(*messages: dict[str, Any], **fields: Any) -> Conversation:
    return of_chat(parsed(messages=list(messages), **fields), set())


def fault(*messages: dict[str, Any], **fields: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        translated(*messages, **fields)
    return caught.value


def call(name: str, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}, **more}


def test_messages() -> None:
    found = translated(
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?", "thinking": "hm"},
    )
    assert list(found.messages) == [
        System(text="be brief"),
        User(parts=(Text("hi"),)),
        Assistant(reasoning="hm", text="yes?", calls=()),
    ]


def test_results_find_their_calls_by_id_by_tool_or_by_order() -> None:
    asked = {
        "role": "assistant",
        "tool_calls": [call("f", {"x": 1}), call("g", {}, id="call_9"), call("f", "cut")],
    }
    calls = (
        Call(id="0", name="f", input=Json('{"x":1}')),
        Call(id="9", name="g", input=Json("{}")),
        Call(id="2", name="f", input=Text("cut")),
    )
    ids = [("2", "f"), ("9", "g"), ("0", "f")]
    for told in (
        [{"tool_name": "f"}, {"tool_call_id": "call_9"}, {}],
        [{}, {"tool_name": "g", "tool_call_id": "call_9"}, {"tool_name": "f"}],
    ):
        results = [{"role": "tool", "content": "ok", **more} for more in told]
        found = list(translated(asked, *results).messages)
        assert found[0] == Assistant(reasoning="", text="", calls=calls)
        assert found[1:] == [
            Result(call=it, name=name, parts=(Text("ok"),), failed=False) for it, name in reversed(ids)
        ]
    assert fault({"role": "tool", "content": "ok"}).param == "messages.0"
    assert fault(asked, {"role": "tool", "content": "ok", "tool_call_id": "call_8"}).param == "messages.1"


def test_an_image_in_a_result_is_omitted_and_one_of_the_user_refused() -> None:
    asked = {"role": "assistant", "tool_calls": [call("f", {})]}
    ignored: set[str] = set()
    wanted = parsed(messages=[asked, {"role": "tool", "content": "seen", "images": ["AA=="]}])
    found = of_chat(wanted, ignored).messages[1]
    assert isinstance(found, Result)
    assert [part.text for part in found.parts] == ["seen", "[image omitted: this model reads text]"]
    assert ignored == {"messages.images"}
    error = fault({"role": "user", "content": "look", "images": ["AA=="]})
    assert (error.code, error.param) == ("unsupported_feature", "messages.0.images")


def test_tools() -> None:
    function = {"name": "f", "description": "d", "parameters": {"type": "object"}}
    found = translated(tools=[{"type": "function", "function": function}])
    assert list(found.tools) == [
        Tool(name="f", description="d", input=Json('{"type":"object"}'), strict=False)
    ]
    assert found.choice == "auto"


@pytest.mark.parametrize(
    ("think", "wanted"),
    [(None, "model"), (False, "off"), (True, On(effort=None, budget=None)), ("low", On("low", None))],
)
def test_thinking(think: Any, wanted: Any) -> None:
    assert translated(think=think).thinking == wanted


def test_a_prompt_is_a_conversation_of_one_turn() -> None:
    body = {"model": "m", "prompt": "hi", "system": "be brief"}
    found = of_prompt(parse(json.dumps(body).encode(), GenerateRequest))
    assert list(found.messages) == [System(text="be brief"), User(parts=(Text("hi"),))]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("options", {"mirostat": 2}),
        ("options", {"tfs_z": 0.5}),
        ("options", {"typical_p": 0.5}),
        ("template", "{{ .Prompt }}"),
        ("context", [1, 2]),
        ("images", ["AA=="]),
    ],
)
def test_what_would_change_the_answer_is_refused(field: str, value: Any) -> None:
    with pytest.raises(NodeError) as caught:
        parse(json.dumps({"model": "m", "prompt": "hi", field: value}).encode(), GenerateRequest)
    assert caught.value.code in ("unsupported_parameter", "unsupported_feature")
    assert str(caught.value.param).startswith(field)


def test_what_asks_for_nothing_is_taken() -> None:
    body = {
        "model": "m",
        "prompt": "hi",
        "options": {"mirostat": 0, "tfs_z": 1.0, "typical_p": 1, "mirostat_tau": 5.0},
        "template": "",
        "context": [],
        "suffix": "",
        "images": None,
    }
    assert parse(json.dumps(body).encode(), GenerateRequest).prompt == "hi"


@pytest.mark.parametrize(
    ("keep_alive", "wanted"),
    [(0, True), (0.0, True), ("0", True), ("0m0s", True), (-1, False), ("5m", False), (60, False)],
)
def test_what_says_that_a_model_is_not_to_stay(keep_alive: Any, wanted: bool) -> None:
    assert is_zero(parsed(keep_alive=keep_alive).keep_alive) is wanted


@pytest.mark.parametrize(
    ("keep_alive", "wanted"),
    [
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("250ms", 0.25),
        ("90", 90),
        (0.5, 0.5),
        (-3, -1),
        ("-1s", -1),
        ("9" * 20 + "h", 1e9),
    ],
)
def test_for_how_many_seconds_a_model_is_to_stay(keep_alive: Any, wanted: float) -> None:
    assert seconds(parsed(keep_alive=keep_alive).keep_alive) == wanted


@pytest.mark.parametrize("keep_alive", ["soon", True, [], ""])
def test_what_is_no_duration(keep_alive: Any) -> None:
    assert fault(keep_alive=keep_alive).param == "keep_alive"
