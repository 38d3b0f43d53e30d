"""From items to a conversation, and from blocks to items: pure translation, without a node."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest

from llm_node.api.body import parse
from llm_node.api.conversation import (
    Among,
    Assistant,
    Call,
    Conversation,
    Grammar,
    Json,
    Named,
    On,
    Result,
    Schema,
    System,
    Text,
    TextInput,
    Tool,
    User,
)
from llm_node.api.responses.conversation import CARRIED, conversation, messages
from llm_node.api.responses.shapes import text_format
from llm_node.api.responses.tools import LOCAL_SHELL, Offered, Told, known_as
from llm_node.node import NodeError
from llm_node.schema.responses.request import ResponsesRequest
from llm_node.schema.wire import Ignored

SCHEMA = {"type": "object", "properties": {}}
WEATHER = {"type": "function", "name": "weather", "description": "Tells it.", "parameters": SCHEMA}


def parsed(**fields: Any) -> ResponsesRequest:
    return parse(json.dumps({"model": "m", "input": "hi", **fields}).encode(), ResponsesRequest)


def translated(ignored: set[str] | None = None, **fields: Any) -> Conversation:
    wanted, ignored = parsed(**fields), set() if ignored is None else ignored
    offered = Offered(wanted, ignored)
    said = messages(wanted.input, (), lambda name: None, ignored)
    return conversation(wanted, said, offered, ignored)


def said(*items: dict[str, Any], ignored: set[str] | None = None) -> list[Any]:
    return list(translated(ignored, input=list(items)).messages)


def fault(**fields: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        translated(**fields)
    return caught.value


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(call_id: str, name: str = "weather", arguments: str = "{}", **more: Any) -> dict[str, Any]:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments, **more}


def output(call_id: str, output: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": call_id, "output": output}


def test_messages_of_all_roles_and_forms() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert said(
        {"role": "developer", "content": "be brief"},
        {"type": "message", "role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "output_text", "text": "c", "annotations": []}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        user("d"),
    ) == [
        System("be brief"),
        User((Text("a"), Text("b"))),
        Assistant(text="c\n\nno"),
        User((Text("d"),)),
    ]
    assert translated(instructions="I").messages == (System("I"), User((Text("hi"),)))


def test_what_stands_side_by_side_of_an_answer_is_one_message() -> None:
    thought = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]}
    text = {"type": "message", "role": "assistant", "status": "completed", "content": "I look."}
    assert said(
        user("how warm?"),
        thought,
        text,
        called("call_7", arguments='{"b": 1, "a": "Kö"}'),
        called("8"),
        output("call_7", "12 °C"),
        output("8", [{"type": "input_text", "text": "x"}]),
        thought,
        {"role": "assistant", "content": "Warm."},
    )[1:] == [
        Assistant(
            "hm",
            "I look.",
            (Call("7", "weather", Json('{"b": 1, "a": "Kö"}')), Call("8", "weather", Json("{}"))),
        ),
        Result("7", "weather", (Text("12 °C"),)),
        Result("8", "weather", (Text("x"),)),
        Assistant("hm", "Warm."),
    ]


def test_thoughts_wherever_they_are_written() -> None:
    ours = CARRIED + b64encode("Größe".encode()).decode()
    content = [{"type": "reasoning_text", "text": "full"}]
    summary = [{"type": "summary_text", "text": "short"}]
    for item, text in (
        ({"encrypted_content": ours, "content": content, "summary": summary}, "Größe"),
        ({"encrypted_content": "gAAA", "content": content, "summary": summary}, "full"),
        ({"encrypted_content": CARRIED + "no base64!", "summary": summary}, "short"),
        ({"summary": summary}, "short"),
        ({"summary": []}, ""),
    ):
        found = said({"type": "reasoning", **item}, {"role": "assistant", "content": "x"}, user("y"))
        assert found[0] == Assistant(text, "x"), item
    ignored: set[str] = set()
    foreign = {"type": "reasoning", "summary": [], "encrypted_content": "gAAA"}
    assert said(foreign, user("y"), ignored=ignored) == [User((Text("y"),))]
    assert ignored == {"input.encrypted_content"}


def test_calls_of_all_kinds_and_what_came_of_them() -> None:
    custom = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": "*** x"}
    shell = {"type": "local_shell_call", "id": "lsh_1", "call_id": "call_s", "action": {"command": ["ls"]}}
    assert said(
        user("go"),
        custom,
        shell,
        called("n", "read", namespace="mcp__files"),
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
        {"type": "local_shell_call_output", "id": "lsh_1", "output": "a.txt"},
        output("n", "text"),
    )[1:] == [
        Assistant(
            calls=(
                Call("c", "patch", Text("*** x")),
                Call("s", LOCAL_SHELL, Json('{"command":["ls"]}')),
                Call("n", "mcp__files__read", Json("{}")),
            )
        ),
        Result("c", "patch", (Text("done"),)),
        Result("lsh_1", LOCAL_SHELL, (Text("a.txt"),)),
        Result("n", "mcp__files__read", (Text("text"),)),
    ]


def test_what_cannot_be_said_and_what_is_left_out() -> None:
    ignored: set[str] = set()
    search = {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"query": "q"}}
    image = {"type": "input_image", "image_url": "data:"}
    found = said(user("a"), search, called("c"), output("c", [image]), ignored=ignored)
    assert found[-1] == Result("c", "weather", (Text("[image omitted: this model reads text]"),))
    assert ignored == {"input.web_search_call", "input.output.input_image"}
    for kind in ("computer_call", "compaction", "apply_patch_call_output"):
        assert fault(input=[{"type": kind, "id": "x"}]).code == "unsupported_feature"
    assert fault(input=[{"role": "user", "content": [image]}]).param == "input.0.content.0"
    assert fault(input=[output("gone", "x")]).param == "input.0.call_id"
    assert fault(input=[{"id": "msg_1"}]).param == "input.0.id"
    assert fault(input=[]).param == "input"


def test_tools() -> None:
    ignored: set[str] = set()
    grammar = {"type": "grammar", "syntax": "lark", "definition": "start: /a/"}
    files = {
        "type": "namespace",
        "name": "mcp__files",
        "description": "Files.",
        "tools": [{"type": "function", "name": "read", "parameters": SCHEMA, "strict": True}],
    }
    wanted = parsed(
        tools=[
            {**WEATHER, "strict": None, "parameters": None},
            {"type": "custom", "name": "note"},
            {"type": "custom", "name": "patch", "description": "Changes.", "format": grammar},
            files,
            {"type": "local_shell"},
            {"type": "web_search", "filters": {}},
            {"type": "mcp", "server_label": "x"},
        ]
    )
    offered = Offered(wanted, ignored)
    weather, note, patch, read, shell = offered.tools
    assert weather == Tool("weather", Json.of(SCHEMA), "Tells it.")
    assert note == Tool("note", TextInput())
    assert patch.description == "Changes.\n\nThe input must match this grammar (lark):\nstart: /a/"
    assert read == Tool("mcp__files__read", Json.of(SCHEMA), strict=True)
    assert shell.name == LOCAL_SHELL
    assert patch.input == TextInput(Grammar("lark", "start: /a/"))
    assert ignored == {"tools.web_search", "tools.mcp"}
    assert offered.of("mcp__files__read") == Told("function_call", "read", "mcp__files")
    assert offered.of("patch") == Told("custom_tool_call", "patch")
    assert [tool["type"] for tool in offered.shown] == [
        "function",
        "custom",
        "custom",
        "namespace",
        "local_shell",
    ]
    assert fault(tools=[{"type": "web_search"}, {"type": "mcp"}]).code == "unsupported_feature"


def test_long_names_of_tools_in_namespaces_stay_apart() -> None:
    names = {known_as("mcp__" + "a" * 50, "tool_" + "b" * 50 + end) for end in "xyz"}
    assert len(names) == 3 and {len(name) for name in names} == {64}
    assert known_as("a" * 31, "b" * 31) == "a" * 31 + "__" + "b" * 31
    assert known_as(None, "c" * 99) == "c" * 99


def test_choices() -> None:
    files = {"type": "namespace", "name": "ns", "tools": [{**WEATHER, "name": "read"}]}
    tools = [WEATHER, files, {"type": "local_shell"}, {"type": "web_search"}]

    def choice(choice: Any) -> Any:
        return translated(tools=tools, tool_choice=choice).choice

    for word in ("none", "auto", "required"):
        assert choice(word) == word
    assert choice({"type": "function", "name": "weather"}) == Named("weather")
    for named in ({"name": "read", "namespace": "ns"}, {"name": "read"}, {"name": "ns__read"}):
        assert choice({"type": "function", **named}) == Named("ns__read")
    assert choice({"type": "local_shell"}) == Named(LOCAL_SHELL)
    some = [{"type": "function", "name": "weather"}, {"type": "web_search"}]
    assert choice({"type": "allowed_tools", "mode": "required", "tools": some}) == Among(("weather",), True)
    for hosted in ({"type": "web_search"}, {"type": "allowed_tools", "mode": "auto", "tools": some[1:]}):
        assert fault(tools=tools, tool_choice=hosted).param == "tool_choice"
    assert fault(tool_choice="required").param == "tool_choice"
    assert translated(tool_choice="none").choice == "auto", "there are none"
    assert fault(tools=tools, tool_choice={"type": "function"}).param == "tool_choice.name"


def test_thinking_and_format() -> None:
    assert translated().thinking == "model"
    assert translated(reasoning=None).thinking == "model"
    assert translated(reasoning={"effort": "none"}).thinking == "off"
    assert translated(reasoning={"effort": "low", "summary": "auto"}).thinking == On("low")
    assert translated(reasoning={"effort": "xhigh"}).thinking == On("max")
    assert parsed(reasoning={"generate_summary": "concise"}).reasoning.as_summary
    assert not parsed(reasoning={"summary": "none"}).reasoning.as_summary
    assert text_format(parsed().text) == "text"
    assert text_format(parsed(text={"format": {"type": "json_object"}}).text) == "object"
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    assert text_format(parsed(text={"format": schema}).text) == Schema(Json('{"type":"object"}'), True)
    regex = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "a+"}}
    assert text_format(parsed(text={"format": regex}).text) == Grammar("regex", "a+")


def test_unknown_fields_are_named_wherever_they_are() -> None:
    item = {**user("a"), "internal": {"x": 1}}
    body = {"model": "m", "input": [item], "new": 1, "tools": [{**WEATHER, "colour": "red"}]}
    ignored = Ignored()
    parse(json.dumps(body).encode(), ResponsesRequest, ignored)
    assert ignored.names == ["new", "input.internal", "tools.colour"]
