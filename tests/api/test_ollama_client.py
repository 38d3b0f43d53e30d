"""The official client of Ollama's API against a real node."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import ollama
import pytest

from support.engines import fake_engine
from support.node import RunningNode, running_node
from support.scripted import CALL, INPUT, TOKENS, scripted_node

MODEL = "llm-node-demo"
QUESTION: Any = [{"role": "user", "content": "What is an engine?"}]
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "options": {"temperature": 0, "num_predict": 24}}
PLAIN: Any = {"model": MODEL, "prompt": "What is an engine?", "options": GREEDY["options"]}


@pytest.fixture
def client(node: RunningNode) -> Iterator[ollama.Client]:
    with ollama.Client(node.url) as client:
        yield client


# ---- chat --------------------------------------------------------------------------------------------


def test_chat(client: ollama.Client) -> None:
    answer = client.chat(**GREEDY)
    assert (answer.model, answer.done, answer.message.role) == (MODEL, True, "assistant")
    assert answer.message.content and answer.created_at
    assert answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count and answer.eval_count and answer.eval_count <= 24
    took = (answer.total_duration, answer.load_duration, answer.prompt_eval_duration, answer.eval_duration)
    total, load, read, wrote = (part or 0 for part in took)
    assert total >= load + read + wrote > 0 and read > 0 and wrote > 0


def test_a_stream_says_the_same_and_is_the_default(client: ollama.Client, node: RunningNode) -> None:
    whole = client.chat(**GREEDY)
    *lines, last = client.chat(**GREEDY, stream=True)
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert len(lines) > 4, "the answer came in one piece"
    assert not any(line.done for line in lines)
    assert (last.done, last.done_reason, last.eval_count) == (True, whole.done_reason, whole.eval_count)
    reply = node.post("/api/chat", GREEDY)
    assert reply.headers["Content-Type"].startswith("application/x-ndjson")
    parsed = [json.loads(line) for line in reply.body.splitlines()]
    assert "".join(line["message"]["content"] for line in parsed) == whole.message.content


async def test_async(node: RunningNode, client: ollama.Client) -> None:
    whole = client.chat(**GREEDY)
    async with ollama.AsyncClient(node.url) as asynchronous:
        parts = [part.message.content async for part in await asynchronous.chat(**GREEDY, stream=True)]
    assert "".join(part or "" for part in parts) == whole.message.content


def test_options(client: ollama.Client) -> None:
    text = client.chat(**GREEDY).message.content or ""
    word = text.split()[3]
    stopped = client.chat(**{**GREEDY, "options": {"temperature": 0, "stop": [word]}})
    assert (stopped.message.content, stopped.done_reason) == (text[: text.index(word)], "stop")
    short = client.chat(**{**GREEDY, "options": {"temperature": 0, "num_predict": 2}})
    assert (short.done_reason, short.eval_count) == ("length", 2)
    drawn = {**GREEDY, "options": {"temperature": 1.5, "seed": 7, "num_predict": 12, "top_p": 1.0}}
    one, other = (client.chat(**drawn).message.content for _ in range(2))
    assert one == other != text
    likeliest = client.chat(**{**drawn, "options": {**drawn["options"], "top_k": 1}})
    assert text.startswith(likeliest.message.content or "-")


def test_logprobs(client: ollama.Client) -> None:
    whole = client.chat(**GREEDY, logprobs=True, top_logprobs=3)
    assert whole.logprobs
    for token in whole.logprobs:
        best = token.top_logprobs or []
        assert len(best) == 3 and token.logprob == best[0].logprob <= 0, "greedy takes the likeliest"
    lines = client.chat(**GREEDY, logprobs=True, top_logprobs=3, stream=True)
    streamed = [token for line in lines for token in line.logprobs or []]
    assert [token.token for token in streamed] == [token.token for token in whole.logprobs]
    assert math.isclose(streamed[0].logprob, whole.logprobs[0].logprob, abs_tol=1e-3)


def test_a_conversation_goes_on_with_the_answer_as_it_came(client: ollama.Client) -> None:
    answer = client.chat(**GREEDY)
    again = client.chat(**{**GREEDY, "messages": [*QUESTION, answer.message, *QUESTION]})
    assert again.prompt_eval_count > answer.prompt_eval_count


def test_an_answer_keeps_to_its_format(client: ollama.Client) -> None:
    schema: Any = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    asked = {**GREEDY, "options": {"temperature": 0, "num_predict": 160}}
    answer = client.chat(**asked, format=schema)
    assert json.loads(answer.message.content or "")["ok"] in (True, False)
    lines = client.generate(**{**PLAIN, "options": asked["options"]}, format=schema, stream=True)
    assert set(json.loads("".join(line.response or "" for line in lines))) == {"ok"}
    assert (client.chat(**GREEDY, format="json").message.content or "").lstrip().startswith("{")
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(**GREEDY, format={"not": {}})
    assert caught.value.status_code == 400


# ---- generate ------------------------------------------------------------------------------------------


def test_generate(client: ollama.Client) -> None:
    """A prompt is a conversation of one turn."""
    whole = client.generate(**PLAIN)
    chat = client.chat(**GREEDY)
    assert whole.response == chat.message.content
    assert (whole.done, whole.done_reason, whole.context) == (True, chat.done_reason, None)
    assert whole.prompt_eval_count == chat.prompt_eval_count
    *lines, last = client.generate(**PLAIN, stream=True)
    assert "".join(line.response or "" for line in lines) == whole.response
    assert last.done and last.eval_count == whole.eval_count
    system = client.generate(**PLAIN, system="Be brief.")
    assert system.prompt_eval_count > whole.prompt_eval_count


def test_a_raw_prompt_is_what_the_model_sees(client: ollama.Client, node: RunningNode) -> None:
    raw = client.generate(**{**PLAIN, "prompt": "<|user|>What is an engine?<|end|><|assistant|>"}, raw=True)
    assert raw.response == client.generate(**PLAIN).response
    tokens = node.post("/tokenize", {"model": MODEL, "text": "An engine"}).json()["count"]
    assert client.generate(**{**PLAIN, "prompt": "An engine"}, raw=True).prompt_eval_count == tokens


# ---- loading ---------------------------------------------------------------------------------------------


def loaded(client: ollama.Client) -> list[str | None]:
    return [model.model for model in client.ps().models]


def test_without_messages_or_prompt_the_model_is_loaded_or_unloaded(client: ollama.Client) -> None:
    for ask in (client.chat, client.generate):
        assert ask(MODEL, keep_alive=0).done_reason == "unload"
        assert f"{MODEL}:latest" not in loaded(client)
        assert ask(MODEL).done_reason == "load"
        assert f"{MODEL}:latest" in loaded(client)
        assert ask(MODEL, keep_alive="0s").done_reason == "unload"
    assert client.generate(MODEL, keep_alive=0).done_reason == "unload", "twice is once"
    answer = client.chat(**GREEDY)
    assert answer.done_reason != "load" and (answer.load_duration or 0) > 1_000_000, "the load was waited for"


def test_a_model_stays_for_as_long_as_it_is_said(client: ollama.Client) -> None:
    def wait_until(is_it: Callable[[list[datetime | None]], bool]) -> None:
        deadline = time.monotonic() + 60
        while not is_it([it.expires_at for it in client.ps().models if it.model == f"{MODEL}:latest"]):
            assert time.monotonic() < deadline, client.ps().models
            time.sleep(0.05)

    def is_in_two_hours(found: list[datetime | None]) -> bool:
        now = datetime.now(timezone.utc)
        return bool(found and found[0] and timedelta(minutes=110) < found[0] - now <= timedelta(hours=2))

    client.chat(**GREEDY, keep_alive="2h")
    wait_until(is_in_two_hours)
    client.chat(**GREEDY, keep_alive=-1)
    wait_until(lambda found: bool(found and found[0] and found[0].year == 9999))
    client.chat(**GREEDY, keep_alive=0)
    wait_until(lambda found: not found)


def test_models(client: ollama.Client, node: RunningNode) -> None:
    client.generate(MODEL)
    (listed,) = [model for model in client.list().models if model.model == f"{MODEL}:latest"]
    assert listed.digest and len(listed.digest) == 64 and listed.modified_at
    assert listed.size and listed.size > 1_000_000
    assert listed.details and (listed.details.format, listed.details.family) == ("gguf", "llama")
    (running,) = [model for model in client.ps().models if model.model == f"{MODEL}:latest"]
    assert running.digest == listed.digest and running.name == running.model
    assert (running.context_length, running.size_vram) == (1024, 0)
    assert running.expires_at is not None and running.expires_at.year == 9999
    shown = client.show(f"{MODEL}:latest")
    assert shown.details and shown.details.parameter_size and shown.details.parameter_size.endswith("M")
    assert shown.modelinfo and shown.modelinfo["llama.context_length"] == 1024
    assert node.request("HEAD", "/").status == 200
    assert node.get("/").body == b"Ollama is running"
    assert node.get("/api/version").json()["version"].count(".") == 2
    answer = client.chat(**{**GREEDY, "model": f"{MODEL}:latest"})
    assert answer.model == f"{MODEL}:latest", "the name that was sent"


def test_row_26_capabilities_are_what_was_found_out(client: ollama.Client) -> None:
    client.generate(MODEL)
    assert "completion" in (client.show(MODEL).capabilities or [])
    others = {"tools", "thinking", "vision", "insert", "embedding"}
    assert not others & set(client.show(MODEL).capabilities or [])
    client.generate(MODEL, keep_alive=0)
    assert client.show(MODEL).capabilities == ["completion"], "by its file"
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    with pytest.raises(ollama.ResponseError) as caught:
        client.chat(**GREEDY, tools=[tool])
    assert caught.value.status_code == 400 and "tools" in caught.value.error


def test_nothing_is_fetched_and_nothing_changed(client: ollama.Client, tmp_path: Path) -> None:
    assert client.pull(MODEL).status == "success"
    assert [part.status for part in client.pull(MODEL, stream=True)][-1] == "success"
    with pytest.raises(ollama.ResponseError, match="Nothing is fetched of Ollama's library"):
        client.pull("no-such-model")
    blob = tmp_path / "blob"
    blob.write_bytes(b"x")
    for ask in (
        lambda: client.create("a", from_=MODEL),
        lambda: client.push(MODEL),
        lambda: client.copy(MODEL, "b"),
        lambda: client.delete(MODEL),
        lambda: client.create_blob(blob),
    ):
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 400 and "--models-dir" in caught.value.error


# ---- embeddings --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Client]:
    folder = tmp_path_factory.mktemp("embedder")
    fake_engine(folder / "engines")
    (folder / "models").mkdir()
    (folder / "models/toy.toy").write_bytes(b"TOY1")
    folders = ["--engines-dir", str(folder / "engines"), "--models-dir", str(folder / "models")]
    with running_node(folder / "node", [*folders, "--gpu-backend", "cpu", "--demo-model", "no"]) as node:
        with ollama.Client(node.url) as client:
            yield client


def test_embeddings(embedder: ollama.Client) -> None:
    answer = embedder.embed("toy", ["a dog", "the node"])
    one, other = (list(vector) for vector in answer.embeddings)
    assert one != other and len(one) == len(other)
    assert math.isclose(math.hypot(*one), 1, abs_tol=1e-6)
    assert answer.prompt_eval_count and answer.total_duration
    assert list(embedder.embed("toy", "a dog").embeddings[0]) == one
    assert list(embedder.embeddings("toy", "a dog").embedding) == one
    (short,) = embedder.embed("toy", "a dog", dimensions=2).embeddings
    assert len(short) == 2 and math.isclose(short[0] / short[1], one[0] / one[1], rel_tol=1e-6)
    for nothing in ([], ""):
        assert embedder.embed("toy", nothing).embeddings == []
    for wrong in ({"input": "a dog", "dimensions": 10_000}, {"input": ["a dog", ""]}):
        with pytest.raises(ollama.ResponseError) as caught:
            embedder.embed("toy", **wrong)
        assert caught.value.status_code == 400


def test_embeddings_of_nothing_load_the_model(node: RunningNode, client: ollama.Client) -> None:
    client.generate(MODEL, keep_alive=0)
    answer = node.post("/api/embed", {"model": MODEL})
    assert (answer.status, answer.json()["embeddings"]) == (200, [])
    assert f"{MODEL}:latest" in loaded(client)


# ---- thinking and calls ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scripted(engines: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ollama.Client]:
    """A client of a node whose model says the scripts of `support/scripted.py`."""
    with scripted_node(engines, tmp_path_factory.mktemp("scripted")) as node:
        with ollama.Client(node.url) as client:
            yield client


def get_weather(city: str, days: int | None = None) -> str:
    """The weather.

    Args:
        city: where
        days: of how many
    """
    return f"{city}: {days}"


def now() -> str:
    """The time."""
    return "late"


def says(script: str, **more: Any) -> Any:
    """A request that the scripted model answers so."""
    options = {"temperature": 0, "num_predict": more.pop("most", 400)}
    messages = [{"role": "user", "content": script}]
    return {"model": "says", "messages": messages, "tools": [get_weather, now], "options": options, **more}


def calls_of(message: ollama.Message) -> list[Any]:
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


def test_calls(scripted: ollama.Client) -> None:
    """Each is one line, with an object; and the loop of every agent goes on with its result."""
    whole = scripted.chat(**says("several"))
    wanted = [("get_weather", {"city": "Ulm"}), ("now", {})]
    assert (whole.message.content, calls_of(whole.message), whole.done_reason) == (
        "Let me see.",
        wanted,
        "stop",
    )
    lines = list(scripted.chat(**says("several"), stream=True))
    assert [calls_of(line.message) for line in lines if line.message.tool_calls] == [
        [call] for call in wanted
    ]
    assert "".join(line.message.content or "" for line in lines) == "Let me see."
    result = {"role": "tool", "tool_name": "get_weather", "content": "rain"}
    later = {"role": "tool", "tool_name": "now", "content": "late"}
    history = [{"role": "user", "content": "several"}, whole.message, result, later]
    assert scripted.chat(**says("", messages=history)).message.content == "It rains."
    assert {"tools", "thinking"} <= set(scripted.show("says").capabilities or [])


def test_row_02_a_call_without_arguments_has_an_empty_object(scripted: ollama.Client) -> None:
    for answer in (scripted.chat(**says("nothing")), *scripted.chat(**says("nothing"), stream=True)):
        assert calls_of(answer.message) in ([("now", {})], [])
    assert calls_of(scripted.chat(**says("nothing")).message) == [("now", {})]


def test_row_04_num_predict_inside_of_a_call(scripted: ollama.Client) -> None:
    """Half of a call is none."""
    whole_call = [("get_weather", json.loads(INPUT))]
    for most in range(1, len(TOKENS["one"])):
        cut = says("one", most=most)
        whole = scripted.chat(**cut)
        lines = list(scripted.chat(**cut, stream=True))
        assert whole.done_reason == lines[-1].done_reason == "length"
        streamed = [call for line in lines for call in calls_of(line.message)]
        assert calls_of(whole.message) == streamed
        assert streamed in ([], whole_call)
        # What has come of the mark is no call.
        assert CALL.startswith(whole.message.content or "") and not (streamed and whole.message.content)


def test_thinking(scripted: ollama.Client) -> None:
    for think in (True, "low"):
        whole = scripted.chat(**says("thinks", think=think))  # its prompt ends in an opened thought
        assert (whole.message.thinking, whole.message.content) == ("It rains.", "")
    whole = scripted.chat(**says("thinks"))
    assert (whole.message.thinking, whole.message.content) == ("first STOP", "then STOP more")
    lines = list(scripted.chat(**says("thinks"), stream=True))
    assert "".join(line.message.thinking or "" for line in lines) == "first STOP"
    assert "".join(line.message.content or "" for line in lines) == "then STOP more"
    for answer in (
        [scripted.chat(**says("thinks", think=False))],
        list(scripted.chat(**says("thinks", think=False), stream=True)),
    ):
        assert not any(part.message.thinking for part in answer)
        assert "".join(part.message.content or "" for part in answer) == "then STOP more"
    generated = scripted.generate("says", "thinks", options={"temperature": 0})
    assert (generated.thinking, generated.response) == ("first STOP", "then STOP more")


# ---- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"model": "no-such-model"}, 404, "model 'no-such-model' not found"),
        ({"options": {"temperature": 3}}, 400, "options.temperature"),
        ({"options": {"mirostat": 2}}, 400, "mirostat is not supported"),
        ({"messages": [{"role": "user", "content": "engine " * 3000}]}, 400, "context"),
    ],
)
def test_errors(client: ollama.Client, fields: Any, status: int, words: str, stream: bool) -> None:
    with pytest.raises(ollama.ResponseError) as caught:
        list(client.chat(**{**GREEDY, **fields}, stream=stream))
    assert caught.value.status_code == status
    assert words in caught.value.error


def test_hints_and_unknown_fields_are_named(node: RunningNode) -> None:
    body = {
        **GREEDY,
        "stream": False,
        "truncate": True,
        "some_new_field": 1,
        "options": {
            "temperature": 0,
            "num_ctx": 4096,
            "num_thread": 4,
            "some_new_option": 1,
            "num_predict": 2,
        },
    }
    answer = node.post("/api/chat", body)
    assert answer.status == 200, answer.body
    named = set(answer.headers["X-LLM-Node-Ignored"].split(", "))
    assert named == {"truncate", "some_new_field", "options.num_ctx", "options.some_new_option"}
    for stream in (False, True):  # what the model has is no wish in vain
        body = {**GREEDY, "stream": stream, "options": {"num_ctx": 1024, "num_predict": 2}}
        assert "X-LLM-Node-Ignored" not in node.post("/api/chat", body).headers


@pytest.mark.parametrize("stream", [False, True])
def test_names_that_clients_made_up_are_plain_in_the_header_and_not_endless(
    node: RunningNode, stream: bool
) -> None:
    odd = {"a\r\nX-Evil: 1": 1, "ü \u2028": 1, **{f"some_new_field_{number}": 1 for number in range(300)}}
    body = {**GREEDY, "stream": stream, "options": {"num_predict": 2}, **odd}
    answer = node.post("/api/chat", body)
    assert answer.status == 200, answer.body
    named = answer.headers["X-LLM-Node-Ignored"]
    assert named.startswith("a??X-Evil??1, ") and "some_new_field_9, " in named
    assert len(named) == 1024 and named.endswith("...") and "X-Evil" not in answer.headers
