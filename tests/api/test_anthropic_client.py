"""The official client of Anthropic's API against a real node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import pytest

from support.node import RunningNode
from support.scripted import CALL, INPUT, TOKENS, scripted_node

MODEL = "llm-node-demo"
QUESTION: Any = [{"role": "user", "content": "What is an engine?"}]
COLD: Any = {"temperature": 0}  # the client sends it no more; the API has it
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "max_tokens": 24, "extra_body": COLD}


@pytest.fixture
def client(node: RunningNode) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0) as client:
        yield client


def prompt_tokens(message: Any) -> int:
    return int(message.usage.input_tokens + message.usage.cache_read_input_tokens)


# ---- answers -----------------------------------------------------------------------------------------


def test_message(client: anthropic.Anthropic) -> None:
    message = client.messages.create(**GREEDY)
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert message.id.startswith("msg_")
    (block,) = message.content
    assert block.type == "text" and block.text
    assert message.stop_reason in ("end_turn", "max_tokens") and message.stop_sequence is None
    assert 0 < message.usage.output_tokens <= 24
    assert message.usage.cache_creation_input_tokens == 0


def test_the_stream_helper_ends_with_the_same_message(client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**GREEDY)
    with client.messages.stream(**GREEDY) as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert len(pieces) > 4, "the answer came in one piece"
    assert "".join(pieces) == whole.content[0].text == final.content[0].text
    assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
    assert final.usage.output_tokens == whole.usage.output_tokens
    assert prompt_tokens(final) == prompt_tokens(whole)


def test_events_come_in_order(client: anthropic.Anthropic) -> None:
    events = list(client.messages.create(**GREEDY, stream=True))
    kinds = [event.type for event in events]
    deltas = kinds.count("content_block_delta")
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * deltas,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    first: Any = events[0]
    assert (first.message.content, first.message.stop_reason) == ([], None)
    assert first.message.usage.output_tokens == 0 and prompt_tokens(first.message) > 0
    last: Any = events[-2]
    assert last.usage.output_tokens > 0 and last.delta.stop_reason


async def test_async(node: RunningNode, client: anthropic.Anthropic) -> None:
    whole = client.messages.create(**GREEDY)
    async with (
        anthropic.AsyncAnthropic(base_url=node.url, auth_token="none", max_retries=0) as asynchronous,
        asynchronous.messages.stream(**GREEDY) as stream,
    ):
        assert await stream.get_final_text() == whole.content[0].text


def test_why_an_answer_ends(client: anthropic.Anthropic) -> None:
    text = client.messages.create(**GREEDY).content[0].text
    word = text.split()[3]
    for answer in (
        client.messages.create(**GREEDY, stop_sequences=["never", word]),
        client.messages.stream(**GREEDY, stop_sequences=["never", word]),
    ):
        if not isinstance(answer, anthropic.types.Message):
            with answer as stream:
                answer = stream.get_final_message()
        assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", word)
        assert answer.content[0].text == text[: text.index(word)]
    short = client.messages.create(**{**GREEDY, "max_tokens": 2})
    assert (short.stop_reason, short.usage.output_tokens) == ("max_tokens", 2)
    long = client.messages.create(**{**GREEDY, "max_tokens": 20_000})
    assert long.stop_reason == "end_turn", "a large ceiling is no error"


def test_sampling(client: anthropic.Anthropic) -> None:
    greedy = client.messages.create(**GREEDY).content[0].text
    for field in ({"top_k": 1}, {"top_p": 0.001}):
        assert client.messages.create(**{**GREEDY, "extra_body": field}).content[0].text == greedy


def test_an_answer_that_was_begun_goes_on(client: anthropic.Anthropic) -> None:
    text = client.messages.create(**GREEDY).content[0].text
    words = text.split(" ")
    begun, rest = " ".join(words[:4]), " ".join(words[4:])
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    answer = client.messages.create(**{**GREEDY, "messages": messages})
    assert answer.content[0].text.strip().startswith(rest.strip())


def test_an_answer_keeps_to_its_schema(client: anthropic.Anthropic) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    asked = {**GREEDY, "max_tokens": 160}
    for place in (
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"output_format": {"type": "json_schema", "schema": schema}},
    ):
        answer = client.messages.create(**{**asked, "extra_body": {**COLD, **place}})
        assert json.loads(answer.content[0].text)["ok"] in (True, False)
    hopeless = {"format": {"type": "json_schema", "schema": {"not": {}}}}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**asked, output_config=hopeless)
    assert "not" in str(caught.value.api_message)


# ---- 5, row by row -----------------------------------------------------------------------------------


def test_row_19_system_in_the_middle_as_a_list_with_a_billing_header(client: anthropic.Anthropic) -> None:
    middle: Any = [*QUESTION, {"role": "system", "content": "Speak of engines."}, *QUESTION]
    assert client.messages.create(**{**GREEDY, "messages": middle}).content

    def system(billing: str) -> Any:
        header = f"x-anthropic-billing-header: cc_version=2.1; cch={billing};"
        return [
            {"type": "text", "text": header},
            {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}},
        ]

    def count(system: Any) -> int:
        return client.messages.count_tokens(model=MODEL, messages=QUESTION, system=system).input_tokens

    assert count(system("aaaaa")) == count(system("bbbbbbbbbbb")) == count("Be brief.")
    first = client.messages.create(**GREEDY, system=system("aaaaa"))
    second = client.messages.create(**GREEDY, system=system("bbbbbbbbbbb"))
    assert second.usage.cache_read_input_tokens > 0, "the prompt begins as the one before"
    assert prompt_tokens(first) == prompt_tokens(second)


def test_row_20_beta_fields_are_no_error(client: anthropic.Anthropic) -> None:
    new = {"some_new_field": {"a": 1}, "output_config": {"task_budget": {"type": "tokens"}}}
    answer = client.beta.messages.with_raw_response.create(
        **{**GREEDY, "extra_body": new},
        betas=["context-management-2025-06-27", "fine-grained-tool-streaming-2025-05-14"],
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        service_tier="auto",
        metadata={"user_id": "user_1_session_2"},
        speed="standard",
    )
    assert answer.parse().content
    named = answer.headers["x-llm-node-ignored"].split(", ")
    assert set(named) >= {"context_management", "speed", "some_new_field", "output_config.task_budget"}
    assert not {"service_tier", "metadata", "metadata.user_id", "betas"} & set(named)
    for field in ({"mcp_servers": [{"type": "url", "url": "http://a", "name": "a"}]}, {"container": "c"}):
        with pytest.raises(anthropic.BadRequestError) as caught:
            client.messages.create(**{**GREEDY, "extra_body": field})
        assert next(iter(field)) in str(caught.value.api_message)


def test_row_23_counts_are_exact_and_the_window_is_known(client: anthropic.Anthropic) -> None:
    """Literal special tokens too: what they are in a message is text."""
    conversation: Any = [
        {"role": "user", "content": "What is <|end|> and what is an engine?"},
        {"role": "assistant", "content": [{"type": "text", "text": "A library."}]},
        {"role": "user", "content": [{"type": "text", "text": "Thanks."}, {"type": "text", "text": "And?"}]},
    ]
    asked: Any = {"model": MODEL, "messages": conversation, "system": "Be brief."}
    counted = client.messages.count_tokens(**asked).input_tokens
    assert counted == prompt_tokens(client.messages.create(**asked, max_tokens=1))
    assert counted == client.beta.messages.count_tokens(**asked).input_tokens
    window = client.models.retrieve(MODEL).max_input_tokens
    assert window == 1024
    assert [model for model in client.models.list() if model.id == MODEL]

    long: Any = {"model": MODEL, "messages": [{"role": "user", "content": "engine " * 3000}], "max_tokens": 1}
    for ask in (
        lambda: client.messages.create(**long),
        lambda: client.messages.create(**long, stream=True),
    ):
        with pytest.raises(anthropic.BadRequestError) as caught:
            ask()
        words = re.match(r"prompt is too long: (\d+) tokens > (\d+) maximum", str(caught.value.api_message))
        assert words, caught.value.api_message
        assert int(words[1]) > int(words[2]) == window


def test_row_24_an_image_of_the_user_is_an_error(
    client: anthropic.Anthropic,
) -> None:
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**{**GREEDY, "messages": [{"role": "user", "content": [image]}]})
    assert caught.value.type == "invalid_request_error"
    assert "image is not supported" in str(caught.value.api_message)


def test_row_26_tools_for_a_model_that_has_none(client: anthropic.Anthropic) -> None:
    tool: Any = {"name": "f", "input_schema": {"type": "object"}}
    with pytest.raises(anthropic.BadRequestError) as caught:
        client.messages.create(**GREEDY, tools=[tool])
    assert "tools" in str(caught.value.api_message)


# ---- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "name"),
    [
        ({"model": "no-such-model"}, anthropic.NotFoundError, "not_found_error"),
        ({"extra_body": {"temperature": 3}}, anthropic.BadRequestError, "invalid_request_error"),
        ({"messages": []}, anthropic.BadRequestError, "invalid_request_error"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "invalid_request_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(client: anthropic.Anthropic, fields: Any, kind: Any, name: str, stream: bool) -> None:
    with pytest.raises(kind) as caught:
        client.messages.create(**{**GREEDY, **fields}, stream=stream)
    error = caught.value
    assert (error.type, error.body["type"]) == (name, "error")
    assert error.api_message and error.request_id == error.body["request_id"]


def test_errors_that_no_route_made(node: RunningNode) -> None:
    for answer in (
        node.post("/v1/messages", raw=b"{"),
        node.get("/v1/messages"),
        node.post("/v1/messages/batches", {}),
    ):
        assert answer.json()["type"] == "error", answer.body
        assert answer.json()["error"]["type"] in ("invalid_request_error", "not_found_error")
        assert answer.json()["request_id"] == answer.headers["request-id"]


# ---- thinking and calls ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripted(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[anthropic.Anthropic]:
    """A client of a node whose model says the scripts of `support/scripted.py`."""
    with scripted_node(engines, tmp_path_factory.mktemp("scripted")) as node:
        with anthropic.Anthropic(base_url=node.url, api_key="none", max_retries=0) as client:
            yield client


TOOLS: Any = [
    {"name": "get_weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
    {"name": "now", "description": "The time.", "input_schema": {"type": "object"}},
]


def says(script: str, **more: Any) -> Any:
    """A request that the scripted model answers so."""
    asked = {"model": "says", "max_tokens": 400, "tools": TOOLS, "extra_body": COLD}
    return {**asked, "messages": [{"role": "user", "content": script}], **more}


ONE = ("get_weather", json.loads(INPUT))


def shapes_of(message: Any) -> list[Any]:
    return [
        (block.name, block.input) if block.type == "tool_use" else (block.type, getattr(block, block.type))
        for block in message.content
    ]


def streamed(client: anthropic.Anthropic, fields: Any) -> tuple[Any, list[Any]]:
    """The message that the helper puts together, and the events that it was made of."""
    with client.messages.stream(**fields) as stream:
        message = stream.get_final_message()
    return message, list(client.messages.create(**fields, stream=True))


def test_calls(scripted: anthropic.Anthropic) -> None:
    whole = scripted.messages.create(**says("several"))
    wanted = [("text", "Let me see."), ("get_weather", {"city": "Ulm"}), ("now", {})]
    assert (shapes_of(whole), whole.stop_reason) == (wanted, "tool_use")
    ids = [block.id for block in whole.content if block.type == "tool_use"]
    assert len(set(ids)) == 2 and all(each.startswith("toolu_") for each in ids)
    final, events = streamed(scripted, says("several"))
    assert (shapes_of(final), final.stop_reason) == (wanted, "tool_use")
    begun = [event.content_block for event in events if event.type == "content_block_start"]
    assert [(block.name, block.input) for block in begun[1:]] == [("get_weather", {}), ("now", {})]


def test_row_02_a_call_without_arguments_has_an_empty_object(scripted: anthropic.Anthropic) -> None:
    """As a delta, too."""
    final, events = streamed(scripted, says("nothing"))
    assert shapes_of(final) == shapes_of(scripted.messages.create(**says("nothing"))) == [("now", {})]
    deltas = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
    assert "".join(deltas) == "{}"


def test_row_04_max_tokens_inside_of_a_call(scripted: anthropic.Anthropic) -> None:
    """A stream closes the block; of a whole answer it is no part. Such a history is taken back."""
    seen = set()
    for most in range(1, len(TOKENS["one"])):
        cut = says("one", max_tokens=most)
        whole = scripted.messages.create(**cut)
        assert whole.stop_reason == "max_tokens"
        (shape,) = shapes_of(whole) or [("text", "")]
        # What has come of the mark is no call.
        assert shape == ONE or (shape[0] == "text" and CALL.startswith(shape[1]))
        final, events = streamed(scripted, cut)
        assert final.stop_reason == "max_tokens"
        kinds = [event.type for event in events]
        assert kinds[-2:] == ["message_delta", "message_stop"]
        assert kinds.count("content_block_start") == kinds.count("content_block_stop") == len(final.content)
        if not final.content or final.content[0].type == "text":
            continue
        deltas = [event.delta.partial_json for event in events if event.type == "content_block_delta"]
        assert INPUT.startswith("".join(deltas))
        seen.add("".join(deltas))
        (call,) = final.content
        history: Any = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": [call.model_dump(include={"type", "id", "name", "input"})]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "cut"}]},
        ]
        assert shapes_of(scripted.messages.create(**says("", messages=history))) == [("text", "It rains.")]
    assert len(seen) > 4


def test_row_16_input_comes_as_it_is_made(scripted: anthropic.Anthropic) -> None:
    final, events = streamed(scripted, says("one"))
    deltas = [event for event in events if event.type == "content_block_delta"]
    assert len(deltas) > 4 and {event.delta.type for event in deltas} == {"input_json_delta"}
    assert shapes_of(final) == [("get_weather", json.loads(INPUT))]


def test_row_22_thoughts_are_blocks_of_their_own_with_any_signature(scripted: anthropic.Anthropic) -> None:
    asked = says("thinks", thinking={"type": "adaptive"})
    wanted = [("thinking", "It rains.")]  # its prompt ends in an opened thought
    whole = scripted.messages.create(**asked)
    assert shapes_of(whole) == wanted and whole.content[0].signature
    final, events = streamed(scripted, asked)
    assert shapes_of(final) == wanted and final.content[0].signature == whole.content[0].signature
    ends = ("content_block_start", "content_block_stop")
    places = [(event.type, event.index) for event in events if event.type in ends]
    assert places == [(kind, 0) for kind in ends]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert deltas == ["thinking_delta"] * (len(deltas) - 1) + ["signature_delta"]
    foreign = {"type": "thinking", "thinking": "hm", "signature": "of another server"}
    hidden = {"type": "redacted_thinking", "data": "x"}
    messages: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [foreign, hidden, {"type": "text", "text": "yes"}]},
        {"role": "user", "content": "finds"},
    ]
    assert shapes_of(scripted.messages.create(**says("", messages=messages))) == [("text", "It rains.")]


def test_thoughts_that_nobody_asked_for_are_counted_and_left_out(scripted: anthropic.Anthropic) -> None:
    whole = scripted.messages.create(**says("thinks"))
    final, events = streamed(scripted, says("thinks"))
    for message in (whole, final):
        assert shapes_of(message) == [("text", "then STOP more")]
        details = message.usage.output_tokens_details
        assert details and 0 < details.thinking_tokens < message.usage.output_tokens
    assert [event.index for event in events if event.type == "content_block_start"] == [0]


def test_row_24_an_image_in_a_result_is_omitted_and_named(scripted: anthropic.Anthropic) -> None:
    call = {"type": "tool_use", "id": "toolu_1", "name": "now", "input": {}}
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [image]}
    messages: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result]},
    ]
    answer = scripted.messages.with_raw_response.create(**says("", messages=messages))
    assert shapes_of(answer.parse()) == [("text", "It rains.")]
    assert answer.headers["x-llm-node-ignored"] == "messages.content.content.image"


def test_row_23_tools_and_thinking_are_counted(scripted: anthropic.Anthropic) -> None:
    messages: Any = [{"role": "user", "content": "finds"}]
    counts = []
    for more in ({}, {"tools": TOOLS}, {"tools": TOOLS, "thinking": {"type": "adaptive"}}):
        asked: Any = {"model": "says", "messages": messages, **more}
        counts.append(scripted.messages.count_tokens(**asked).input_tokens)
        assert counts[-1] == prompt_tokens(scripted.messages.create(**asked, max_tokens=1))
    assert counts[0] < counts[1] <= counts[2]


def test_hosted_tools_are_left_out_and_named(scripted: anthropic.Anthropic) -> None:
    search: Any = {"type": "web_search_20250305", "name": "web_search"}
    answer = scripted.messages.with_raw_response.create(**says("nothing", tools=[search, *TOOLS]))
    assert shapes_of(answer.parse()) == [("now", {})]
    assert answer.headers["x-llm-node-ignored"] == "tools.web_search_20250305"
    with pytest.raises(anthropic.BadRequestError):
        scripted.messages.create(**says("nothing", tools=[search]))
