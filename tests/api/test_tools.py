"""Tools and reasoning with the official client, against a model that says what is written here.

A test named for a row shows one behaviour that breaks elsewhere, by its number in the table of those. Tests
of the other APIs have these names too.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from support.models import CONTROL, talker
from support.node import RunningNode, running_node
from support.scripted import CALL, INPUT, SCRIPTS, TOKENS, scripted_node

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
NOW: Any = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
ONE_NUMBER: Any = {
    "type": "object",
    "properties": {"n": {"enum": [7]}},
    "required": ["n"],
    "additionalProperties": False,
}
PICKS: Any = [
    {"type": "function", "function": {"name": name, "parameters": ONE_NUMBER}} for name in ("pick", "drop")
]
"""Tools with little to write, for a model that writes nothing by itself."""


@pytest.fixture(scope="module")
def node(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNode]:
    """A node with a model that says the scripts."""
    with scripted_node(engines, tmp_path_factory.mktemp("tools")) as running:
        yield running


@pytest.fixture(scope="module")
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(script: str, **more: Any) -> Any:
    messages = [{"role": "user", "content": script}]
    return {
        "model": "says",
        "messages": messages,
        "tools": TOOLS,
        "temperature": 0,
        "stop": ["<|end|>"],
        **more,
    }


def chunks_of(client: openai.OpenAI, **fields: Any) -> list[Any]:
    return [chunk.choices[0] for chunk in client.chat.completions.create(**fields, stream=True)]


def deltas_of(choices: list[Any]) -> list[Any]:
    return [call for choice in choices for call in choice.delta.tool_calls or []]


def test_row_01_parallel_calls_have_numbers_and_names_of_their_own(client: openai.OpenAI) -> None:
    choices = chunks_of(client, **ask("several"))
    calls = deltas_of(choices)
    begun = [call for call in calls if call.id]
    assert [(call.index, call.type, call.function.name) for call in begun] == [
        (0, "function", "get_weather"),
        (1, "function", "now"),
    ]
    assert len({call.id for call in begun}) == 2
    assert all(call.function.name is None and call.type is None for call in calls if not call.id)
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["tool_calls"]
    assert "".join(choice.delta.content or "" for choice in choices) == "Let me see."
    with client.chat.completions.stream(**ask("several")) as stream:
        whole = stream.get_final_completion().choices[0].message
    assert [json.loads(call.function.arguments) for call in whole.tool_calls or []] == [{"city": "Ulm"}, {}]


@pytest.mark.parametrize("stream", [False, True])
def test_row_02_no_arguments_are_an_empty_object(client: openai.OpenAI, stream: bool) -> None:
    if stream:
        inputs = [call.function.arguments for call in deltas_of(chunks_of(client, **ask("nothing")))]
        assert inputs == ["", "{}"]
        return
    (choice,) = client.chat.completions.create(**ask("nothing")).choices
    assert [call.function.arguments for call in choice.message.tool_calls or []] == ["{}"]


def test_row_03_a_delta_ends_in_no_escape(client: openai.OpenAI) -> None:
    inputs = [call.function.arguments for call in deltas_of(chunks_of(client, **ask("escape")))]
    assert json.loads("".join(inputs)) == {"city": "Köln \N{LLAMA}"}
    tokens = TOKENS["escape"]
    assert any(token.endswith(("\\", "\\u", "\\u0", "\\ud8", "\\u00", "\\ud")) for token in tokens), tokens
    for piece in inputs:
        tail = piece[piece.rfind("\\") :] if "\\" in piece[-6:] else ""
        assert not tail or len(tail) >= 6 or tail[1:2] not in ("", "u"), inputs


@pytest.mark.parametrize("stream", [False, True])
def test_row_04_a_cut_call_is_told_as_far_as_it_came(client: openai.OpenAI, stream: bool) -> None:
    seen = set()
    for most in range(1, len(TOKENS["one"])):
        if stream:
            choices = chunks_of(client, **ask("one", max_tokens=most))
            came = "".join(call.function.arguments for call in deltas_of(choices))
            reason = choices[-1].finish_reason
        else:
            (choice,) = client.chat.completions.create(**ask("one", max_tokens=most)).choices
            came = "".join(call.function.arguments for call in choice.message.tool_calls or [])
            reason = choice.finish_reason
        assert reason == "length"
        assert INPUT.startswith(came), came
        seen.add(came)
    assert len(seen) > 4
    # It comes back, and is no error.
    cut = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "K'},
    }
    messages: Any = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": None, "tool_calls": [cut]},
        {"role": "tool", "tool_call_id": "call_1", "content": "cut"},
    ]
    answer = client.chat.completions.create(**{**ask("one"), "messages": messages})
    assert answer.choices[0].message.content == "It rains."


def test_row_06_none_is_none_and_required_is_required(client: openai.OpenAI, node: RunningNode) -> None:
    (choice,) = client.chat.completions.create(**ask("one", tool_choice="none")).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")
    applied = node.post("/apply-template", {**prompt("one"), "tools": TOOLS, "tool_choice": "none"}).json()
    assert "get_weather" not in applied["prompt"]
    # It would say that it rains.
    forced = ask("finds", tools=PICKS, tool_choice="required", max_tokens=200)
    (choice,) = client.chat.completions.create(**forced).choices
    calls = choice.message.tool_calls or []
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert {call.function.name for call in calls} <= {"pick", "drop"}
    assert all(json.loads(call.function.arguments) == {"n": 7} for call in calls)
    streamed = deltas_of(chunks_of(client, **forced))
    assert (
        "".join(delta.function.arguments or "" for delta in streamed if delta.index == 0)
        == calls[0].function.arguments
    )


@pytest.mark.parametrize("name", ["pick", "drop"])
def test_row_05_a_named_tool_is_called_once_and_ends_with_stop(client: openai.OpenAI, name: str) -> None:
    named: Any = {"type": "function", "function": {"name": name}}
    forced = ask("finds", tools=PICKS, tool_choice=named, max_tokens=200)
    (choice,) = client.chat.completions.create(**forced).choices
    (call,) = choice.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == (name, {"n": 7})
    assert choice.finish_reason == "stop"
    allowed: Any = {
        "type": "allowed_tools",
        "allowed_tools": {"mode": "required", "tools": [named]},
    }
    (choice,) = client.chat.completions.create(**{**forced, "tool_choice": allowed}).choices
    calls = choice.message.tool_calls or []
    assert calls and {call.function.name for call in calls} == {name}


def test_row_07_what_cannot_be_enforced_of_a_tool_is_told_or_refused(
    client: openai.OpenAI, node: RunningNode
) -> None:
    odd: Any = {
        "type": "function",
        "function": {"name": "odd", "parameters": {**ONE_NUMBER, "not": {"required": ["x"]}}},
    }
    forced = ask("finds", tools=[odd], tool_choice="required", max_tokens=200)
    reply = node.post("/v1/chat/completions", forced)
    assert (reply.status, reply.headers["X-LLM-Node-Ignored"]) == (200, "tools.odd#/not")
    odd["function"]["strict"] = True
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**forced)
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")
    assert "'odd'" in caught.value.message and '"not" at #' in caught.value.message
    # So it is where the model may choose.
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**forced, "tool_choice": "auto"})
    assert (caught.value.code, caught.value.param) == ("unsupported_parameter", "tools")


def test_row_07_one_odd_tool_among_forty_costs_the_others_nothing(
    client: openai.OpenAI, node: RunningNode
) -> None:
    odd: Any = {"type": "array", "contains": {"$ref": "https://example.com/x"}, "uniqueItems": True}
    many: Any = [{"type": "function", "function": {"name": f"tool_{number}"}} for number in range(39)]
    many[20]["function"]["parameters"] = {"type": "object", "properties": {"all": odd}}
    fields = ask("wrong", tools=[*many, PICKS[0]], max_tokens=200)
    reply = node.post("/v1/chat/completions", fields)
    assert reply.status == 200, reply.body
    assert all(it.startswith("tools.tool_20#/") for it in reply.headers["X-LLM-Node-Ignored"].split(", "))
    (call,) = reply.json()["choices"][0]["message"]["tool_calls"]
    assert (call["function"]["name"], json.loads(call["function"]["arguments"])) == ("pick", {"n": 7})
    (choice,) = client.chat.completions.create(**{**fields, "tool_choice": "required"}).choices
    assert choice.message.tool_calls


@pytest.mark.parametrize("strict", [False, True])
def test_a_call_that_begins_by_itself_keeps_to_its_schema(client: openai.OpenAI, strict: bool) -> None:
    picks: Any = [{**it, "function": {**it["function"], "strict": strict}} for it in PICKS]
    fields = ask("wrong", tools=picks, max_tokens=200)
    (choice,) = client.chat.completions.create(**fields).choices
    (call,) = choice.message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("pick", {"n": 7})
    assert choice.finish_reason == "tool_calls"
    streamed = "".join(delta.function.arguments or "" for delta in deltas_of(chunks_of(client, **fields)))
    assert streamed == call.function.arguments


def test_the_form_of_a_custom_tool_is_enforced(client: openai.OpenAI) -> None:
    form = {"type": "grammar", "grammar": {"syntax": "regex", "definition": "[ab]{3}"}}
    note = {"type": "custom", "custom": {"name": "note", "format": form}}
    asked = ask("finds", tools=[note], tool_choice="required", max_tokens=400)
    (choice,) = client.chat.completions.create(**asked).choices
    (call,) = choice.message.tool_calls or []
    assert call.type == "custom" and re.fullmatch("[ab]{3}", call.custom.input)
    for wrong in ({"type": "grammar"}, {"type": "text", "grammar": form["grammar"]}):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(
                **{**asked, "tools": [{"type": "custom", "custom": {"name": "note", "format": wrong}}]}
            )
        assert caught.value.param == "tools.0.custom.format.grammar"


def prompt(content: str) -> Any:
    return {"model": "says", "messages": [{"role": "user", "content": content}]}


@pytest.mark.parametrize("stream", [False, True])
def test_row_11_reasoning_has_one_name_and_comes_back(
    client: openai.OpenAI, node: RunningNode, stream: bool
) -> None:
    fields = ask("thinks")
    if stream:
        choices = chunks_of(client, **fields)
        said = "".join(choice.delta.content or "" for choice in choices)
        thought = "".join(getattr(choice.delta, "reasoning_content", None) or "" for choice in choices)
    else:
        answer = client.chat.completions.create(**fields)
        message = answer.choices[0].message
        said, thought = message.content or "", message.model_extra["reasoning_content"]  # type: ignore[index]
        assert answer.usage is not None and answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.reasoning_tokens
    assert (thought, said) == ("first STOP", "then STOP more")
    for name in ("reasoning_content", "reasoning"):
        back = [{"role": "assistant", "content": "then", name: "first"}, {"role": "user", "content": "finds"}]
        applied = node.post("/apply-template", {"model": "says", "messages": back}).json()
        assert "<think>\nfirst\n</think>\n\nthen" in applied["prompt"]


def test_row_12_reasoning_that_the_prompt_has_opened(client: openai.OpenAI) -> None:
    kwargs = {"chat_template_kwargs": {"enable_thinking": True}}
    (choice,) = client.chat.completions.create(**ask("finds"), extra_body=kwargs).choices
    assert choice.message.content == ""
    assert choice.message.model_extra == {"reasoning_content": "It rains."}


def test_row_13_stop_strings_look_at_text_only(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**{**ask("thinks"), "stop": ["STOP"]}).choices
    assert (choice.message.content, choice.finish_reason) == ("then ", "stop")
    (choice,) = client.chat.completions.create(**{**ask("stops"), "stop": ["STOP"]}).choices
    assert choice.finish_reason == "tool_calls"
    assert [json.loads(call.function.arguments) for call in choice.message.tool_calls or []] == [
        {"city": "a STOP b"}
    ]


def test_row_14_content_is_null_only_beside_calls_and_may_come_back_so(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ask("one")).choices
    assert choice.message.content is None
    call = choice.message.tool_calls[0]  # type: ignore[index]
    assert call.id.startswith("call_") and len(call.id) == 29
    assert client.chat.completions.create(**ask("one", seed=1)).choices[0].message.tool_calls
    for content in (None, ""):
        messages: Any = [
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": content, "tool_calls": [call.to_dict()]},
            {"role": "tool", "tool_call_id": call.id, "content": "rain"},
        ]
        loop = client.chat.completions.create(**{**ask("one"), "messages": messages}).choices[0]
        assert (loop.message.content, loop.finish_reason) == ("It rains.", "stop")


@pytest.mark.parametrize("script", ["unknown", "broken"])
def test_row_15_what_is_no_call_is_text(client: openai.OpenAI, script: str) -> None:
    (choice,) = client.chat.completions.create(**ask(script)).choices
    assert (choice.message.content, choice.message.tool_calls) == (SCRIPTS[script], None)
    assert choice.finish_reason == "stop"
    streamed = chunks_of(client, **ask(script))
    assert "".join(it.delta.content or "" for it in streamed) == SCRIPTS[script]


def test_row_16_arguments_come_as_they_are_written(client: openai.OpenAI) -> None:
    inputs = [call.function.arguments for call in deltas_of(chunks_of(client, **ask("one")))]
    assert "".join(inputs) == INPUT
    assert len(inputs) > 5


@pytest.mark.parametrize("stream", [False, True])
def test_row_17_log_probabilities_are_those_of_the_text(client: openai.OpenAI, stream: bool) -> None:
    fields = ask("several", logprobs=True)
    if stream:
        choices = chunks_of(client, **fields)
        tokens = [it for choice in choices if choice.logprobs for it in choice.logprobs.content or []]
    else:
        (choice,) = client.chat.completions.create(**fields).choices
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
    assert bytes(byte for it in tokens for byte in it.bytes or []).decode().rstrip() == "Let me see."


STRICT_IDS = (
    "{% for tool in tools or [] %}{{ tool | tojson }}{% endfor %}"
    "{% for m in messages %}<|open|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('Nine letters') }}"
    '{% endif %}\n<call>{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}, '
    '"id": "{{ c.id }}"}</call>{% endfor %}'
    "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}<|end|>{% endfor %}"
)


def test_row_18_ids_of_others_do_not_break_a_template(engines: Path, tmp_path: Path) -> None:
    """Mistral's wants nine letters and digits."""
    (tmp_path / "models").mkdir()
    words = [("<|open|>", CONTROL), ("<|end|>", CONTROL)]
    talker(tmp_path / "models/strict.gguf", words, {}, STRICT_IDS)
    places = ["--engines-dir", str(engines), "--models-dir", str(tmp_path / "models"), "--gpu-backend", "cpu"]
    with running_node(tmp_path / "node", places) as node:
        for identity in ("call_0123456789abcdefABCDEF01", "toolu_01A09q90qw90lq917835lq9", "1", "AbCdEf123"):
            called = {"id": identity, "type": "function", "function": {"name": "now", "arguments": "{}"}}
            messages = [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [called]},
                {"role": "tool", "tool_call_id": identity, "content": "late"},
            ]
            reply = node.post("/apply-template", {"model": "strict", "messages": messages, "tools": TOOLS})
            assert reply.status == 200, reply.body
            shown = re.findall(r'"id": "(\w{9})".*late\((\w{9})\)', reply.json()["prompt"], re.DOTALL)
            assert len(shown) == 1 and shown[0][0] == shown[0][1], reply.body
            assert (shown[0][0] == identity) == (len(identity) == 9)


def test_row_25_drafts_change_no_call_and_no_format(client: openai.OpenAI, node: RunningNode) -> None:
    kept = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": ONE_NUMBER}}
    asked = [
        ask("several", seed=1),
        ask("wrong", tools=PICKS, max_tokens=200, seed=1),
        ask("finds", tools=PICKS, tool_choice="required", max_tokens=200, seed=1),
        ask("finds", tools=PICKS, tool_choice="required", max_tokens=200, seed=3, temperature=1),
        ask("finds", tools=PICKS, response_format=kept, max_tokens=200, seed=1),
    ]
    seen, guessed = [], []
    for speculation in ("off", "lookup"):
        node.reload("says", speculation=speculation)
        answers = [client.chat.completions.create(**fields) for fields in asked]
        seen.append([answer.choices for answer in answers])
        details = [answer.usage.completion_tokens_details for answer in answers if answer.usage]
        guessed.append(sum(it.accepted_prediction_tokens or 0 for it in details if it))
    assert seen[0] == seen[1]
    assert guessed[0] == 0 < guessed[1]


def test_old_form(client: openai.OpenAI) -> None:
    fields = {key: value for key, value in ask("one").items() if key != "tools"}
    functions = [WEATHER["function"]]
    (choice,) = client.chat.completions.create(**fields, functions=functions).choices
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.arguments == INPUT
    deltas = [it.delta.function_call for it in chunks_of(client, **fields, functions=functions)]
    assert [it.name for it in deltas if it and it.name] == ["get_weather"]
    assert "".join(it.arguments or "" for it in deltas if it) == INPUT


def test_one_call_where_several_are_not_wanted(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**ask("several", parallel_tool_calls=False)).choices
    assert [call.function.name for call in choice.message.tool_calls or []] == ["get_weather"]
    assert choice.finish_reason == "tool_calls"


def test_a_model_without_tools_says_so(client: openai.OpenAI, node: RunningNode) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ask("one"), "model": "plain"})
    assert (caught.value.code, caught.value.param) == ("unsupported_feature", "tools")
    models = {model["model_id"]: model for model in node.get("/api/models").json()["models"]}
    assert models["says"]["facts"]["chat"] == {"tools": True, "thinking": True, "syntax": "derived"}
    assert not models["plain"]["facts"]["chat"]["tools"]


def test_the_setting_chooses_how_one_model_writes_calls(client: openai.OpenAI, node: RunningNode) -> None:
    assert client.chat.completions.create(**ask("one")).choices[0].message.tool_calls
    for model in ("mute", "plain"):
        assert node.post("/api/models/load", {"model_id": model}).status == 200
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**ask("one"), "model": "mute"})
    assert caught.value.param == "tools"
    command = str(Path(sys.executable).with_name("llm-node"))
    listed = subprocess.run([command, "list", "--node", node.url], capture_output=True, text=True, check=True)
    tools = {line.split()[0]: line.split()[6] for line in listed.stdout.splitlines()[1:]}
    assert (tools["says"], tools["mute"], tools["plain"]) == ("derived", "none", "none")


def test_a_named_syntax_of_a_load(client: openai.OpenAI, node: RunningNode) -> None:
    assert node.post("/api/models/unload", {"model_id": "says"}).status == 200
    refused = node.post("/api/models/load", {"model_id": "says", "tool_syntax": "martian"})
    assert refused.status == 400 and refused.json()["error"]["param"] == "tool_syntax"
    assert node.post("/api/models/load", {"model_id": "says", "tool_syntax": "off"}).status == 200
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(**ask("one"))
    assert node.post("/api/models/unload", {"model_id": "says"}).status == 200
    assert node.post("/api/models/load", {"model_id": "says", "tool_syntax": "hermes"}).status == 200
    assert client.chat.completions.create(**ask("one")).choices[0].message.tool_calls
