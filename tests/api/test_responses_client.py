"""The official client's Responses API against real nodes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node
from support.scripted import CALL, INPUT, TOKENS, scripted_node

MODEL = "llm-node-demo"
GREEDY: Any = {"model": MODEL, "input": "What is an engine?", "max_output_tokens": 400, "temperature": 0}


@pytest.fixture
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def events_of(client: openai.OpenAI, fields: Any) -> list[Any]:
    """The events of a stream, whose numbers rise by one from the first to the last."""
    events = list(client.responses.create(**fields, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    return events


def comparable(response: Any) -> Any:
    """What two answers to the same request have in common: all but ids, times and what the cache did."""
    told = response if isinstance(response, dict) else response.to_dict()
    word = told["id"].removeprefix("resp_")
    text = json.dumps(told).replace(word, "WORD")
    for place, call in enumerate(dict.fromkeys(re.findall(r"call_[A-Za-z0-9]{24}", text))):
        text = text.replace(call, f"CALL{place}")
    same = json.loads(text)
    for field in ("created_at", "completed_at"):
        del same[field]
    if same["usage"] is not None:
        del same["usage"]["input_tokens_details"]["cached_tokens"]
    return same


# ---- answers -----------------------------------------------------------------------------------------


def test_response(client: openai.OpenAI) -> None:
    response = client.responses.create(**GREEDY, metadata={"a": "b"}, instructions="Be brief.")
    assert (response.object, response.model, response.status) == ("response", MODEL, "completed")
    (item,) = response.output
    assert item.type == "message" and item.role == "assistant" and item.status == "completed"
    (part,) = item.content
    assert part.type == "output_text" and part.annotations == [] and part.text == response.output_text
    assert response.output_text
    assert response.metadata == {"a": "b"} and response.instructions == "Be brief."
    assert response.error is None and response.incomplete_details is None
    usage = response.usage
    assert usage is not None and 0 < usage.output_tokens < 400
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert usage.input_tokens_details.cached_tokens < usage.input_tokens
    counted = client.responses.input_tokens.count(
        model=MODEL, input=GREEDY["input"], instructions="Be brief."
    )
    assert counted.input_tokens == usage.input_tokens


def test_the_stream_helper_ends_with_the_same_response(client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY)
    with client.responses.stream(**GREEDY) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert len(pieces) > 4, "the answer came in one piece"
    assert "".join(pieces) == whole.output_text == final.output_text
    last = events_of(client, GREEDY)[-1]
    assert comparable(last.response) == comparable(whole)


def test_events_come_in_order(client: openai.OpenAI) -> None:
    events = events_of(client, GREEDY)
    kinds = [event.type for event in events]
    deltas = kinds.count("response.output_text.delta")
    assert kinds == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        *["response.output_text.delta"] * deltas,
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[0].response.status == "in_progress" and events[0].response.output == []
    final = events[-1].response
    assert events[2].item.id == final.output[0].id == events[4].item_id
    assert events[-2].item.to_dict() == final.output[0].to_dict()
    assert events[-4].text == final.output_text


async def test_async(node: RunningNode, client: openai.OpenAI) -> None:
    whole = client.responses.create(**GREEDY)
    async with (
        openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as asynchronous,
        asynchronous.responses.stream(**GREEDY) as stream,
    ):
        assert (await stream.get_final_response()).output_text == whole.output_text


def test_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    short = {**GREEDY, "max_output_tokens": 3}
    whole = client.responses.create(**short)
    last = events_of(client, short)[-1]
    assert last.type == "response.incomplete" and comparable(last.response) == comparable(whole)
    assert whole.status == "incomplete" and whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"
    assert whole.usage is not None and whole.usage.output_tokens == 3
    assert [item.status for item in whole.output] == ["incomplete"]  # type: ignore[union-attr]
    long = client.responses.create(**{**GREEDY, "max_output_tokens": 32_000})
    assert long.status == "completed", "a large ceiling is no error"


def test_log_probabilities(client: openai.OpenAI) -> None:
    asked = {**GREEDY, "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = client.responses.create(**asked)
    (part,) = whole.output[0].content  # type: ignore[union-attr]
    tokens = part.logprobs
    assert b"".join(bytes(token.bytes) for token in tokens).decode() == part.text
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    events = events_of(client, asked)
    assert comparable(events[-1].response) == comparable(whole)
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    streamed = [token.token for event in deltas for token in event.logprobs]
    assert streamed == [token.token for token in tokens]
    (done,) = [event for event in events if event.type == "response.output_text.done"]
    assert [token.token for token in done.logprobs] == streamed


class Verdict(pydantic.BaseModel):
    ok: bool


def test_parse(client: openai.OpenAI) -> None:
    asked = {**GREEDY, "max_output_tokens": 160}
    parsed = client.responses.parse(**asked, text_format=Verdict)
    assert isinstance(parsed.output_parsed, Verdict)
    with client.responses.stream(**asked, text_format=Verdict) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed
    grammar: Any = {"format": {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[abc]{5}"}}}
    assert set(client.responses.create(**GREEDY, text=grammar).output_text) <= set("abc")
    hopeless: Any = {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}, "strict": True}}
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**GREEDY, text=hopeless)
    assert caught.value.param == "text.format"


# ---- what is kept ------------------------------------------------------------------------------------


def test_a_kept_answer_goes_on(client: openai.OpenAI) -> None:
    first = client.responses.create(**GREEDY, instructions="Be brief.")
    second = client.responses.create(**{**GREEDY, "input": "And a model?"}, previous_response_id=first.id)
    whole: Any = [
        {"role": "user", "content": GREEDY["input"]},
        first.output[0].to_dict(),
        {"role": "user", "content": "And a model?"},
    ]
    again = client.responses.create(**{**GREEDY, "input": whole})
    assert second.output_text == again.output_text
    assert second.usage and again.usage and second.usage.input_tokens == again.usage.input_tokens
    assert second.previous_response_id == first.id
    by_reference: Any = [whole[0], {"type": "item_reference", "id": first.output[0].id}, whole[2]]
    assert client.responses.create(**{**GREEDY, "input": by_reference}).output_text == again.output_text
    streamed = events_of(client, {**GREEDY, "input": "And?", "previous_response_id": second.id})[-1].response
    assert client.responses.retrieve(streamed.id).to_dict() == streamed.to_dict()


def test_kept_answers_can_be_seen_and_forgotten(node: RunningNode, client: openai.OpenAI) -> None:
    asked: Any = [{"role": "user", "content": str(number)} for number in range(5)]
    response = client.responses.create(**{**GREEDY, "input": asked})
    assert client.responses.retrieve(response.id).to_dict() == response.to_dict()
    listed = list(client.responses.input_items.list(response.id, limit=2, order="asc"))
    assert [item.content[0].text for item in listed] == ["0", "1", "2", "3", "4"]  # type: ignore[union-attr]
    newest = client.responses.input_items.list(response.id, limit=1)
    assert newest.data[0].content[0].text == "4"  # type: ignore[union-attr]
    for limit in ("0", "101", "000000001" + "0" * 5000):
        wrong = node.get(f"/v1/responses/{response.id}/input_items?limit={limit}", key="none")
        assert (wrong.status, wrong.json()["error"]["param"]) == (400, "limit")
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="other", max_retries=0) as other:
        with pytest.raises(openai.NotFoundError):
            other.responses.retrieve(response.id)
        with pytest.raises(openai.NotFoundError):
            other.responses.delete(response.id)
    client.responses.delete(response.id)
    for ask in (client.responses.retrieve, client.responses.delete, client.responses.input_items.list):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(response.id)
        assert caught.value.code == "not_found"
    for name in (response.id, client.responses.create(**GREEDY, store=False).id):
        with pytest.raises(openai.BadRequestError) as refused:
            client.responses.create(**GREEDY, previous_response_id=name)
        assert refused.value.code == "previous_response_not_found"
        assert refused.value.param == "previous_response_id"


# ---- errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_request", "temperature"),
        ({"max_output_tokens": 0}, openai.BadRequestError, "invalid_request", "max_output_tokens"),
        ({"input": []}, openai.BadRequestError, "invalid_request", "input"),
        ({"input": "engine " * 3000}, openai.BadRequestError, "context_length_exceeded", "input"),
        ({"background": True}, openai.BadRequestError, "unsupported_parameter", "background"),
        ({"conversation": "conv_1"}, openai.BadRequestError, "unsupported_parameter", "conversation"),
        ({"max_tool_calls": 1}, openai.BadRequestError, "unsupported_parameter", "max_tool_calls"),
        (
            {"input": [{"type": "item_reference", "id": "msg_1_0"}]},
            openai.BadRequestError,
            "invalid_request",
            "input.0.id",
        ),
        (
            {"input": [{"type": "computer_call", "id": "a"}]},
            openai.BadRequestError,
            "unsupported_feature",
            "input.0",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:"}]}]},
            openai.BadRequestError,
            "unsupported_feature",
            "input.0.content.0",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "call_1", "output": "x"}]},
            openai.BadRequestError,
            "invalid_request",
            "input.0.call_id",
        ),
        (
            {"tools": [{"type": "web_search"}], "tool_choice": "auto"},
            openai.BadRequestError,
            "unsupported_feature",
            "tools",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors(
    client: openai.OpenAI, fields: Any, kind: Any, code: str, param: str | None, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.responses.create(**{**GREEDY, **fields}, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_stream_that_fails_ends_with_the_next_number(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/bad.toy").write_bytes(b"TOY1")
    fake_engine(tmp_path / "engines", "bad", defines={"FAKE_NAN_AFTER": 5})
    places = ["--engines-dir", str(tmp_path / "engines"), "--models-dir", str(tmp_path / "models")]
    with (
        running_node(tmp_path / "node", [*places, "--gpu-backend", "cpu"]) as node,
        openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client,
    ):
        events = events_of(client, {"model": "bad", "input": "Hello", "temperature": 0})
        kinds = [event.type for event in events]
        assert kinds.count("response.output_text.delta") > 1 and kinds[-1] == "response.failed"
        failed = events[-1].response
        assert (failed.status, failed.error.code) == ("failed", "server_error")
        assert "batch.collect" in failed.error.message
        with pytest.raises(openai.NotFoundError):
            client.responses.retrieve(failed.id)


def test_what_is_ignored_is_named(client: openai.OpenAI) -> None:
    answer = client.responses.with_raw_response.create(
        **GREEDY,
        truncation="auto",
        include=["web_search_call.action.sources"],
        text={"verbosity": "low"},
        context_management=[{"type": "compaction"}],
        service_tier="auto",
        prompt_cache_key="k",
        extra_body={"some_new_field": 1, "client_metadata": {"a": 1}},
    )
    assert answer.parse().output_text
    named = set(answer.headers["x-llm-node-ignored"].split(", "))
    assert named == {"truncation", "include", "text.verbosity", "context_management", "some_new_field"}


# ---- thinking and calls ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripted(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """A client of a node whose model says the scripts of `support/scripted.py`."""
    with scripted_node(engines, tmp_path_factory.mktemp("scripted")) as node:
        with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
            yield client


PARAMETERS: Any = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": False}
NOW: Any = {"type": "function", "name": "now", "parameters": {}, "strict": False}
PATCH: Any = {
    "type": "custom",
    "name": "patch",
    "description": "Changes files.",
    "format": {"type": "grammar", "syntax": "lark", "definition": 'start: "*** Begin" /.+/'},
}
FILES: Any = {
    "type": "namespace",
    "name": "mcp__files",
    "description": "Tools in the mcp__files namespace.",
    "tools": [{"type": "function", "name": "read", "parameters": PARAMETERS, "strict": False}],
}
SHELL: Any = {"type": "local_shell"}


def says(script: str, **more: Any) -> Any:
    """A request that the scripted model answers so."""
    return {"model": "says", "input": script, "tools": [WEATHER, NOW], "temperature": 0, **more}


def both(client: openai.OpenAI, fields: Any) -> tuple[Any, list[Any]]:
    """The whole answer, which is the one at the end of a stream; and the stream's events."""
    whole, events = client.responses.create(**fields), events_of(client, fields)
    assert comparable(events[-1].response) == comparable(whole)
    done = [event.item.to_dict() for event in events if event.type == "response.output_item.done"]
    assert done == events[-1].response.to_dict()["output"]
    with client.responses.stream(**fields) as stream:
        stream.until_done()
    return whole, events


def test_calls(scripted: openai.OpenAI) -> None:
    whole, events = both(scripted, says("several"))
    text, weather, now = whole.output
    assert (text.type, text.content[0].text) == ("message", "Let me see.")
    assert (weather.type, weather.name, json.loads(weather.arguments)) == (
        "function_call",
        "get_weather",
        {"city": "Ulm"},
    )
    assert (now.name, now.arguments, now.status) == ("now", "{}", "completed")
    assert weather.call_id != now.call_id and weather.call_id.startswith("call_")
    added = [event for event in events if event.type == "response.output_item.added"]
    assert [event.output_index for event in added] == [0, 1, 2]
    assert [(event.item.arguments, event.item.status) for event in added[1:]] == [("", "in_progress")] * 2
    assert events[-1].response.status == whole.status == "completed"


def test_row_02_a_call_without_arguments_has_an_empty_object(scripted: openai.OpenAI) -> None:
    """As a delta, too."""
    whole, events = both(scripted, says("nothing"))
    assert [(item.name, item.arguments) for item in whole.output] == [("now", "{}")]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert deltas == ["{}"]
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert (done.name, done.arguments) == ("now", "{}")


def test_row_04_max_tokens_inside_of_a_call(scripted: openai.OpenAI) -> None:
    """The input as far as it came, and nobody says that it is done. Such a history is taken back."""
    seen = set()
    for most in range(1, len(TOKENS["one"])):
        whole, events = both(scripted, says("one", max_output_tokens=most))
        assert whole.status == "incomplete"
        done = [event for event in events if event.type == "response.function_call_arguments.done"]
        if whole.output_text or not whole.output:  # what has come of the mark is no call
            assert CALL.startswith(whole.output_text)
            continue
        (call,) = whole.output
        # Behind its last brace it is done, if the answer's end is not there yet.
        assert call.status == ("completed" if done else "incomplete")
        assert call.arguments == INPUT if done else INPUT.startswith(call.arguments)
        seen.add(call.arguments)
        history: Any = [
            {"role": "user", "content": "one"},
            call.to_dict(),
            {"type": "function_call_output", "call_id": call.call_id, "output": "cut"},
        ]
        assert scripted.responses.create(**says("", input=history)).output_text == "It rains."
    assert len(seen) > 4


@pytest.mark.parametrize("summary", [None, "auto"], ids=["content", "summary"])
def test_row_12_thinking_is_no_text(scripted: openai.OpenAI, summary: Any) -> None:
    reasoning: Any = {"summary": summary}
    whole, events = both(scripted, says("thinks", reasoning=reasoning))
    thought, text = whole.output
    assert text.content[0].text == whole.output_text == "then STOP more"
    assert thought.type == "reasoning" and thought.encrypted_content is None
    parts = thought.summary if summary else thought.content
    assert [part.text for part in parts] == ["first STOP"]
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    kind = "response.reasoning_summary_text" if summary else "response.reasoning_text"
    deltas = [event.delta for event in events if event.type == f"{kind}.delta"]
    assert "".join(deltas) == "first STOP" and len(deltas) > 1
    # Where the prompt has opened the thought, too.
    opened = scripted.responses.create(**says("finds", reasoning={"effort": "high", **reasoning}))
    assert [item.type for item in opened.output] == ["reasoning"] and opened.output_text == ""


def test_thoughts_come_back_to_the_model(scripted: openai.OpenAI) -> None:
    """Carried by the client, which may show none of it."""
    include: Any = ["reasoning.encrypted_content"]
    whole, events = both(scripted, says("plans", include=include, store=False))
    thought, call = whole.output
    assert thought.encrypted_content.startswith("llmn1.")
    (added,) = [event for event in events if event.type == "response.output_item.added"][:1]
    assert added.item.encrypted_content is None

    def tokens(*items: Any) -> int:
        history = [{"role": "user", "content": "one"}, *items, {"role": "user", "content": "two"}]
        return scripted.responses.input_tokens.count(model="says", input=history).input_tokens

    said: Any = {"role": "assistant", "content": "yes"}
    carried: Any = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    plain: Any = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "I should look."}]}
    foreign: Any = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"}
    assert tokens(carried, said) == tokens(plain, said) > tokens(said) == tokens(foreign, said)
    assert call.name == "get_weather"


def test_a_loop_with_tools(scripted: openai.OpenAI) -> None:
    tools = [WEATHER, NOW]
    history: Any = [{"role": "user", "content": "plans"}]
    answer = scripted.responses.create(**says("", input=history, tools=tools))
    while calls := [item for item in answer.output if item.type == "function_call"]:
        history += [item.to_dict() for item in answer.output]
        history += [
            {"type": "function_call_output", "call_id": call.call_id, "output": "rain"} for call in calls
        ]
        answer = scripted.responses.create(**says("", input=history, tools=tools))
    assert answer.output_text == "It rains."
    # The same, with what is kept.
    first = scripted.responses.create(**says("plans"))
    outputs: Any = [
        {"type": "function_call_output", "call_id": item.call_id, "output": "rain"}
        for item in first.output
        if item.type == "function_call"
    ]
    last = scripted.responses.create(**says("", input=outputs, previous_response_id=first.id))
    assert last.output_text == "It rains." and last.usage and answer.usage
    assert last.usage.input_tokens == answer.usage.input_tokens


def test_custom_tools_and_functions_in_one_answer(scripted: openai.OpenAI) -> None:
    whole, events = both(scripted, says("patches", tools=[PATCH, NOW]))
    patch, now = whole.output
    assert (patch.type, patch.name, patch.input) == ("custom_tool_call", "patch", '*** Begin "a"\n+b')
    assert (now.type, now.name, now.arguments) == ("function_call", "now", '{"zone": 1}')
    deltas = [event.delta for event in events if event.type == "response.custom_tool_call_input.delta"]
    assert "".join(deltas) == patch.input and len(deltas) > 1
    history: Any = [
        {"role": "user", "content": "patches"},
        *(item.to_dict() for item in whole.output),
        {"type": "custom_tool_call_output", "call_id": patch.call_id, "output": "done"},
        {
            "type": "function_call_output",
            "call_id": now.call_id,
            "output": [{"type": "input_text", "text": "x"}],
        },
    ]
    assert scripted.responses.create(**says("", input=history)).output_text == "It rains."


def test_row_24_an_image_in_a_result_is_omitted_and_named(scripted: openai.OpenAI) -> None:
    call: Any = {"type": "function_call", "call_id": "c", "name": "now", "arguments": "{}"}
    image: Any = {"type": "input_image", "image_url": "data:image/png;base64,AA=="}
    history: Any = [
        {"role": "user", "content": "one"},
        call,
        {"type": "function_call_output", "call_id": "c", "output": [image]},
    ]
    answer = scripted.responses.with_raw_response.create(**says("", input=history))
    assert answer.parse().output_text == "It rains."
    assert answer.headers["x-llm-node-ignored"] == "input.output.input_image"


def test_choices(scripted: openai.OpenAI) -> None:
    hosted: Any = {"type": "web_search"}
    for choice in ({"type": "web_search"}, {"type": "mcp", "server_label": "x", "name": "y"}):
        with pytest.raises(openai.BadRequestError) as caught:
            scripted.responses.create(**says("one", tools=[WEATHER, hosted], tool_choice=choice))
        assert (caught.value.code, caught.value.param) == ("unsupported_feature", "tool_choice")
    with pytest.raises(openai.BadRequestError) as caught:
        scripted.responses.create(**says("one", tool_choice={"type": "function", "name": "launch"}))
    assert caught.value.param == "tool_choice"
    none = scripted.responses.create(**says("one", tool_choice="none"))
    assert [item.type for item in none.output] == ["message"]
    allowed: Any = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]}
    assert scripted.responses.create(**says("nothing", tool_choice=allowed)).output[0].type == "function_call"
    assert scripted.responses.create(**says("one", tool_choice=allowed)).output[0].type == "message"
    one: Any = {"parallel_tool_calls": False}
    assert [item.type for item in scripted.responses.create(**says("several", **one)).output] == [
        "message",
        "function_call",
    ]


# What Codex sends at each turn, but for the length of its texts.
CODEX: Any = {
    "model": "says",
    "instructions": "You are a coding agent.",
    "tools": [
        {"type": "function", "name": "get_weather", "strict": False, "parameters": PARAMETERS},
        {"type": "custom", "name": "patch", "description": "FREEFORM.", "format": PATCH["format"]},
        {"type": "web_search", "external_web_access": True},
        {"type": "image_generation", "output_format": "png"},
        {"type": "tool_search", "execution": "client", "description": "d", "parameters": {}},
        FILES,
        SHELL,
        {"type": "function", "name": "now", "strict": False, "parameters": {"type": "object"}},
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": False,
    "reasoning": {"effort": None, "summary": "auto"},
    "store": False,
    "stream": True,
    "include": ["reasoning.encrypted_content"],
    "prompt_cache_key": "0199",
    "text": {"verbosity": "low"},
    "temperature": 0,
}


def codex_items(client: openai.OpenAI, *history: Any) -> list[Any]:
    """The items that Codex takes from a stream: those that are done. It reads lines of `event:`."""
    asked = {**CODEX, "input": list(history), "extra_body": {"client_metadata": {"x-codex-window-id": "1"}}}
    with client.responses.with_streaming_response.create(**asked) as answer:
        text = "".join(answer.iter_text())
    frames = [frame.split("\n", 1) for frame in text.split("\n\n") if frame]
    assert all(event.startswith("event: ") and data.startswith("data: ") for event, data in frames)
    kinds = [event.removeprefix("event: ") for event, _ in frames]
    contents = [json.loads(data.removeprefix("data: ")) for _, data in frames]
    assert kinds == [content["type"] for content in contents]
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
    assert {"input_tokens", "output_tokens", "total_tokens"} <= contents[-1]["response"]["usage"].keys()
    named = answer.headers["x-llm-node-ignored"].split(", ")
    assert {"tools.web_search", "tools.image_generation", "tools.tool_search"} <= set(named)
    assert "tools.patch#/properties/input" in named, "the grammar is not enforced"
    return [content["item"] for content in contents if content["type"] == "response.output_item.done"]


def test_row_21_codex(scripted: openai.OpenAI) -> None:
    """Hosted, custom and namespace tools, a shell, outputs as lists, nothing kept."""

    def user(text: str) -> Any:
        return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}

    environment: Any = {
        "type": "message",
        "role": "developer",
        "content": [{"type": "input_text", "text": "<permissions>"}],
    }
    thought, call = codex_items(scripted, environment, user("plans"))
    assert [part["text"] for part in thought["summary"]] == ["I should look."]
    assert (call["type"], call["name"], call["arguments"]) == (
        "function_call",
        "get_weather",
        '{"city": "Bonn"}',
    )
    # Items come back without ids, and what the model thought as it is carried.
    back = [
        {
            "type": "reasoning",
            "summary": thought["summary"],
            "encrypted_content": thought["encrypted_content"],
        },
        {key: call[key] for key in ("type", "name", "arguments", "call_id")},
    ]
    output: Any = {"type": "function_call_output", "call_id": call["call_id"]}
    listed = {**output, "output": [{"type": "input_text", "text": "rain"}]}
    (said,) = codex_items(scripted, environment, user("plans"), *back, listed)
    assert said["content"][0]["text"] == "It rains."

    (patch,) = codex_items(scripted, user("patches"))
    assert (patch["type"], patch["name"], patch["input"]) == (
        "custom_tool_call",
        "patch",
        '*** Begin "a"\n+b',
    )
    (read,) = codex_items(scripted, user("reads"))
    assert (read["type"], read["namespace"], read["name"]) == ("function_call", "mcp__files", "read")
    read_back: Any = {key: read[key] for key in ("type", "namespace", "name", "arguments", "call_id")}
    result: Any = {"type": "function_call_output", "call_id": read["call_id"], "output": "text"}
    (said,) = codex_items(scripted, user("reads"), read_back, result)
    assert said["content"][0]["text"] == "It rains."
    (shell,) = codex_items(scripted, user("runs"))
    assert (shell["type"], shell["status"]) == ("local_shell_call", "completed")
    assert shell["action"] == {"type": "exec", "command": ["ls", "-l"], "timeout_ms": 9}
    ran: Any = {"type": "function_call_output", "call_id": shell["call_id"], "output": "a"}
    (said,) = codex_items(scripted, user("runs"), shell, ran)
    assert said["content"][0]["text"] == "It rains."


def test_chats_have_custom_tools_and_functions_in_one_stream(scripted: openai.OpenAI) -> None:
    tools: Any = [
        {"type": "custom", "custom": {"name": "patch"}},
        {"type": "function", "function": {"name": "now"}},
    ]
    asked: Any = {"model": "says", "messages": [{"role": "user", "content": "patches"}], "temperature": 0}
    chunks = list(scripted.chat.completions.create(**asked, tools=tools, stream=True))
    deltas = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []]
    begun = [(call.index, call.type) for call in deltas if call.id]
    assert begun == [(0, "custom"), (1, "function")]
    inputs = [
        (call.model_extra or {}).get("custom", {}).get("input", "") for call in deltas if not call.index
    ]
    assert "".join(inputs) == '*** Begin "a"\n+b'
    arguments = [call.function.arguments or "" for call in deltas if call.index and call.function]
    assert "".join(arguments) == '{"zone": 1}'
