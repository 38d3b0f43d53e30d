"""From Anthropic's words to a conversation: pure translation, without a node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llm_node.api.anthropic.conversation import conversation
from llm_node.api.body import parse
from llm_node.api.conversation import (
    Assistant,
    Call,
    Conversation,
    Json,
    Named,
    On,
    Result,
    System,
    Text,
    Tool,
    User,
)
from llm_node.node import NodeError
from llm_node.schema.anthropic.messages import MessagesRequest

SCHEMA = {"type": "object", "properties": {}}
WEATHER = {"name": "weather", "description": "Tells it.", "input_schema": SCHEMA}


def parsed(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}], **fields}
    return parse(json.dumps(body).encode(), MessagesRequest)


def translated(**fields: Any) -> Conversation:
    return conversation(parsed(**fields), set())


def messages(*messages: dict[str, Any], **fields: Any) -> list[Any]:
    return list(translated(messages=list(messages), **fields).messages)


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def text(text: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **more}


def fault(**fields: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        translated(**fields)
    return caught.value


def test_text_and_blocks_of_it() -> None:
    assert messages(user("hi")) == [User(parts=(Text("hi"),))]
    cached = text("a", cache_control={"type": "ephemeral"}, citations=None)
    assert messages(user(cached, text("b"))) == [User(parts=(Text("a"), Text("b")))]


def test_instructions() -> None:
    """Text, a list, one in the middle; and no billing header, which is another one in each request."""
    assert translated(system="be brief").messages[0] == System(text="be brief")
    blocks = [text("x-anthropic-billing-header: cc_version=1; cch=81b05;"), text("A"), text("B")]
    assert translated(system=blocks).messages[0] == System(text="A\n\nB")
    assert translated(system=blocks[:1]).messages == (User(parts=(Text("hi"),)),)
    middle = {"role": "system", "content": [text("from now on French")]}
    assert messages(user("hi"), middle, user("oui"))[1] == System(text="from now on French")


def test_a_call_and_what_came_of_it() -> None:
    call = {"type": "tool_use", "id": "toolu_7", "name": "weather", "input": {"b": 1, "a": "Kö"}}
    thought = {"type": "thinking", "thinking": "hm", "signature": "anybody's"}
    result = {"type": "tool_result", "tool_use_id": "toolu_7", "content": [text("12 °C")], "is_error": True}
    assert messages(
        user("how warm?"),
        {"role": "assistant", "content": [thought, text("I "), text("look."), call]},
        user(text("and?"), result),
    )[1:] == [
        Assistant(
            reasoning="hm",
            text="I look.",
            calls=(Call(id="7", name="weather", input=Json('{"b":1,"a":"Kö"}')),),
        ),
        Result(call="7", name="weather", parts=(Text("12 °C"),), failed=True),
        User(parts=(Text("and?"),)),
    ]


def test_a_result_may_be_text_or_nothing() -> None:
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
    for content, parts in ({"content": "ok"}, (Text("ok"),)), ({}, ()), ({"content": None}, ()):
        found = messages(call, user({"type": "tool_result", "tool_use_id": "a", **content}))
        assert found[1:] == [Result(call="a", name="f", parts=parts, failed=False)]


def test_a_call_that_was_cut_is_taken_back() -> None:
    call = {"type": "tool_use", "id": "a", "name": "f", "input": '{"x": 1, "y'}
    (found,) = messages({"role": "assistant", "content": [call]})
    assert found.calls[0].input == Text('{"x": 1, "y')


def test_a_result_of_no_call_is_refused() -> None:
    content = [{"type": "tool_result", "tool_use_id": "nowhere", "content": "x"}]
    error = fault(messages=[{"role": "user", "content": content}])
    assert (error.code, error.param) == ("invalid_request", "messages.0.content.0.tool_use_id")


def test_an_image_in_a_result_is_omitted_and_one_of_the_user_refused() -> None:
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": ""}}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [text("seen:"), image, pdf]}
    ignored: set[str] = set()
    found = conversation(parsed(messages=[call, user(result)]), ignored).messages[1]
    assert isinstance(found, Result)
    assert list(found.parts) == [
        Text("seen:"),
        Text("[image omitted: this model reads text]"),
        Text("[document omitted: this model reads text]"),
    ]
    assert ignored == {"messages.content.content.image", "messages.content.content.document"}
    for block in (image, pdf, {"type": "container_upload", "file_id": "f"}):
        error = fault(messages=[user(text("look"), block)])
        assert (error.code, error.param) == ("unsupported_feature", "messages.0.content.1")


def test_documents_of_text_and_search_results() -> None:
    source = {"type": "text", "media_type": "text/plain", "data": "D"}
    plain = {"type": "document", "title": "T", "source": source}
    blocks = {"type": "document", "source": {"type": "content", "content": "E"}}
    found = {"type": "search_result", "source": "http://a", "title": "A", "content": [text("F")]}
    (message,) = messages(user(plain, blocks, found))
    assert [part.text for part in message.parts] == ["T", "D", "E", "A", "http://a", "F"]


def test_what_hosted_tools_did_is_left_out_and_named() -> None:
    content = [
        {"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "s", "content": []},
        {"type": "redacted_thinking", "data": "x"},
        text("found"),
    ]
    ignored: set[str] = set()
    found = conversation(parsed(messages=[{"role": "assistant", "content": content}]), ignored).messages
    assert found == (Assistant(text="found"),)
    assert ignored == {"messages.content.server_tool_use", "messages.content.web_search_tool_result"}


def test_tools_and_choices() -> None:
    first = {**WEATHER, "cache_control": {"type": "ephemeral"}, "input_examples": []}
    tools = [first, {**WEATHER, "name": "b"}]
    found = translated(tools=tools)
    schema = Json('{"type":"object","properties":{}}')
    assert found.tools[0] == Tool(name="weather", description="Tells it.", input=schema, strict=False)
    assert (found.choice, found.parallel) == ("auto", True)
    for choice, wanted in (
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "b"}, Named("b")),
    ):
        found = translated(tools=tools, tool_choice={**choice, "disable_parallel_tool_use": True})
        assert (found.choice, found.parallel) == (wanted, False)
    assert fault(tools=tools, tool_choice={"type": "tool"}).param == "tool_choice.name"


def test_hosted_tools_are_left_out_and_named_unless_nothing_else_is_there() -> None:
    search = {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}
    ignored: set[str] = set()
    found = conversation(parsed(tools=[search, WEATHER]), ignored)
    assert [tool.name for tool in found.tools] == ["weather"]
    assert ignored == {"tools.web_search_20250305"}
    assert fault(tools=[search]).code == "unsupported_feature"
    forced = {"type": "tool", "name": "web_search"}
    assert fault(tools=[search, WEATHER], tool_choice=forced).code == "unsupported_feature"


def test_thinking() -> None:
    assert translated().thinking == translated(thinking={"type": "disabled"}).thinking == "off"
    enabled = {"type": "enabled", "budget_tokens": 2048, "display": "omitted"}
    assert translated(thinking=enabled).thinking == On(effort=None, budget=2048)
    adaptive = translated(thinking={"type": "adaptive"}, output_config={"effort": "xhigh"})
    assert adaptive.thinking == On(effort="max", budget=None)
    ignored: set[str] = set()
    conversation(parsed(output_config={"effort": "low"}), ignored)
    assert ignored == {"output_config.effort"}


def test_an_answer_that_was_begun_is_not_thought_about() -> None:
    begun = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "Well"}]
    assert translated(messages=begun).messages[-1] == Assistant(reasoning="", text="Well", calls=())
    assert fault(messages=begun, thinking={"type": "adaptive"}).param == "messages"
