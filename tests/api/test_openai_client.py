"""The official client against a real node: chat and completions, streaming and not, sync and async."""

from __future__ import annotations

import json
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any

import openai
import pytest

from support.node import RunningNode

MODEL = "llm-node-demo"
QUESTION: Any = [{"role": "user", "content": "What is an engine?"}]
GREEDY: Any = {"model": MODEL, "messages": QUESTION, "temperature": 0, "max_tokens": 24}
PLAIN: Any = {"model": MODEL, "prompt": "An engine is", "temperature": 0, "max_tokens": 12}


@pytest.fixture
def client(node: RunningNode) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(node: RunningNode) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{node.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def text_of(chunks: list[Any]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)


# ---- chat ----------------------------------------------------------------------------------------


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert answer.usage.prompt_tokens > 0
    assert 0 < answer.usage.completion_tokens <= 24
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_chat_stream_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY)
    chunks = list(client.chat.completions.create(**GREEDY, stream=True))
    assert text_of(chunks) == whole.choices[0].message.content
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len(chunks) > 4, "the answer came in one piece"


def test_usage_of_a_stream(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = client.chat.completions.create(**GREEDY, stream=True, stream_options=options)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens > 0
    assert last.usage.prompt_tokens_details is not None
    assert last.usage.prompt_tokens_details.cached_tokens is not None
    assert last.usage.completion_tokens_details is not None
    assert last.usage.completion_tokens_details.accepted_prediction_tokens is not None
    assert all(chunk.usage is None for chunk in chunks)


async def test_async_chat(async_client: openai.AsyncOpenAI, client: openai.OpenAI) -> None:
    answer = await async_client.chat.completions.create(**GREEDY)
    stream = await async_client.chat.completions.create(**GREEDY, stream=True)
    chunks = [chunk async for chunk in stream]
    assert text_of(chunks) == answer.choices[0].message.content


def test_a_conversation_goes_on_with_the_answer_as_it_came(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY)
    messages = [*QUESTION, answer.choices[0].message, {"role": "user", "content": "And a manifest?"}]
    again = client.chat.completions.create(**{**GREEDY, "messages": messages})
    assert answer.usage is not None
    assert again.usage is not None
    assert again.usage.prompt_tokens > answer.usage.prompt_tokens


def test_content_as_parts_is_the_same_prompt(client: openai.OpenAI) -> None:
    parts: Any = [{"role": "user", "content": [{"type": "text", "text": QUESTION[0]["content"]}]}]
    one = client.chat.completions.create(**GREEDY)
    other = client.chat.completions.create(**{**GREEDY, "messages": parts})
    assert one.choices[0].message.content == other.choices[0].message.content


def test_several_answers(client: openai.OpenAI) -> None:
    body: Any = {**GREEDY, "temperature": 1.5, "n": 3, "seed": 7}
    first, again = (client.chat.completions.create(**body) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) > 1, "each answer has a seed of its own"
    assert texts == [choice.message.content for choice in again.choices]
    # Answer i of seed s is answer 0 of seed s + i.
    alone = client.chat.completions.create(**{**body, "n": 1, "seed": 8})
    assert alone.choices[0].message.content == texts[1]


def test_several_answers_in_one_stream(client: openai.OpenAI) -> None:
    body: Any = {**GREEDY, "temperature": 1.5, "n": 3, "seed": 7}
    whole = client.chat.completions.create(**body)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_chat_logprobs(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=3)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.content
    assert answer.usage is not None
    assert len(found.content) in (answer.usage.completion_tokens, answer.usage.completion_tokens - 1)
    for token in found.content:
        assert token.logprob <= 1e-6
        assert len(token.top_logprobs) == 3
        values = [each.logprob for each in token.top_logprobs]
        assert values == sorted(values, reverse=True)
        assert token.logprob == values[0], "greedy takes the likeliest"
        assert sum(math.exp(value) for value in values) <= 1.0001
        assert bytes(token.bytes or ()).decode(errors="replace") == token.token
    said = b"".join(bytes(token.bytes or ()) for token in found.content).decode()
    assert said.startswith(str(answer.choices[0].message.content).rstrip())


def test_logprobs_of_a_stream_are_those_of_the_whole(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=1)
    chunks = client.chat.completions.create(**GREEDY, logprobs=True, top_logprobs=1, stream=True)
    tokens = [
        token.token
        for chunk in chunks
        for choice in chunk.choices
        if choice.logprobs is not None
        for token in choice.logprobs.content or ()
    ]
    assert whole.choices[0].logprobs is not None
    assert tokens == [token.token for token in whole.choices[0].logprobs.content or ()]


def test_stop(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**GREEDY).choices[0].message.content
    assert whole is not None
    word = whole.split()[3]
    answer = client.chat.completions.create(**GREEDY, stop=[word, "never said"]).choices[0]
    assert answer.message.content == whole[: whole.index(word)]
    assert answer.finish_reason == "stop"
    chunks = list(client.chat.completions.create(**GREEDY, stop=word, stream=True))
    assert text_of(chunks) == whole[: whole.index(word)]


def test_max_tokens_by_both_names(client: openai.OpenAI) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        body: Any = {**GREEDY, "max_tokens": None, name: 3}
        answer = client.chat.completions.create(**body)
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 3
        assert answer.choices[0].finish_reason == "length"


def test_logit_bias_forbids_and_forces(client: openai.OpenAI, node: RunningNode) -> None:
    def tokens(text: str) -> list[int]:
        return list(node.post("/tokenize", {"model": MODEL, "text": text}).json()["tokens"])

    first = client.completions.create(**{**PLAIN, "max_tokens": 1}).choices[0].text
    token = tokens(PLAIN["prompt"] + first)[len(tokens(PLAIN["prompt"]))]
    other = client.completions.create(**{**PLAIN, "max_tokens": 1}, logit_bias={str(token): -100})
    forced = client.completions.create(**PLAIN, logit_bias={str(token): 100})
    assert other.choices[0].text != first
    assert forced.choices[0].text == first * 12


def test_further_sampling_parameters(client: openai.OpenAI) -> None:
    wanted = client.chat.completions.create(**GREEDY).choices[0].message.content
    body: Any = {**GREEDY, "temperature": 2.0}
    for further in ({"top_k": 1}, {"min_p": 1.0}):
        answer = client.chat.completions.create(**body, extra_body=further)
        assert answer.choices[0].message.content == wanted


def test_harmless_parameters(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        **GREEDY, user="somebody", metadata={"a": "b"}, store=False, parallel_tool_calls=False
    )
    assert answer.choices[0].message.content


# ---- completions ---------------------------------------------------------------------------------


def test_completion(client: openai.OpenAI) -> None:
    answer = client.completions.create(**PLAIN)
    assert answer.object == "text_completion"
    assert answer.choices[0].text
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 12
    chunks = list(client.completions.create(**PLAIN, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


async def test_async_completion(async_client: openai.AsyncOpenAI) -> None:
    answer = await async_client.completions.create(**PLAIN)
    chunks = [chunk async for chunk in await async_client.completions.create(**PLAIN, stream=True)]
    assert "".join(chunk.choices[0].text for chunk in chunks) == answer.choices[0].text


def test_several_prompts(client: openai.OpenAI) -> None:
    prompts = ["An engine is", "A manifest is", "The node"]
    together = client.completions.create(**{**PLAIN, "prompt": prompts})
    alone = [client.completions.create(**{**PLAIN, "prompt": prompt}) for prompt in prompts]
    assert [c.text for c in together.choices] == [answer.choices[0].text for answer in alone]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(a.usage.prompt_tokens for a in alone if a.usage)


def test_a_prompt_of_tokens(client: openai.OpenAI, node: RunningNode) -> None:
    tokens = node.post("/tokenize", {"model": MODEL, "text": PLAIN["prompt"]}).json()["tokens"]
    wanted = client.completions.create(**PLAIN).choices[0].text
    assert client.completions.create(**{**PLAIN, "prompt": tokens}).choices[0].text == wanted
    several = client.completions.create(**{**PLAIN, "prompt": [tokens, tokens]})
    assert [choice.text for choice in several.choices] == [wanted, wanted]


@pytest.mark.parametrize("stream", [False, True])
def test_echo(client: openai.OpenAI, stream: bool) -> None:
    wanted = PLAIN["prompt"] + client.completions.create(**PLAIN).choices[0].text
    if stream:
        text = "".join(c.choices[0].text for c in client.completions.create(**PLAIN, echo=True, stream=True))
    else:
        text = client.completions.create(**PLAIN, echo=True).choices[0].text
    assert text == wanted


def test_plain_logprobs(client: openai.OpenAI) -> None:
    answer = client.completions.create(**PLAIN, logprobs=2)
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.tokens
    assert found.token_logprobs
    assert len(found.tokens) == len(found.token_logprobs) == len(found.text_offset or ())
    assert all(len(top) == 2 for top in found.top_logprobs or ())
    for token, offset in zip(found.tokens, found.text_offset or (), strict=True):
        if offset + len(token) <= len(answer.choices[0].text):
            assert answer.choices[0].text[offset : offset + len(token)] == token


# ---- models, embeddings, errors --------------------------------------------------------------------


def test_models(client: openai.OpenAI) -> None:
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("llm-node-dem")
    assert caught.value.code == "model_not_found"
    assert MODEL in caught.value.message


def test_embeddings_of_a_model_that_makes_none(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=MODEL, input="a dog")
    assert caught.value.code == "unsupported_feature"
    assert "not made for embeddings" in caught.value.message
    assert "embed." not in caught.value.message, "no function of the engine is named"


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        ({"model": "no-such-model"}, openai.NotFoundError, "model_not_found", "model"),
        ({"temperature": 3}, openai.BadRequestError, "invalid_request", "temperature"),
        (
            {"tools": [{"type": "function", "function": {"name": "f"}}]},
            openai.BadRequestError,
            "unsupported_feature",
            "tools",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_typed_errors(
    client: openai.OpenAI, fields: Any, kind: type[openai.APIStatusError], code: str, param: str, stream: bool
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{**GREEDY, **fields}, stream=stream)
    assert (caught.value.code, caught.value.param) == (code, param)


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_longer_than_the_context_is_never_truncated(client: openai.OpenAI, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{**PLAIN, "prompt": "engine " * 50_000}, stream=stream)
    assert caught.value.code == "context_length_exceeded"
    assert len([word for word in caught.value.message.split() if word.strip(".,()").isdigit()]) >= 2


def test_a_stream_has_no_needless_spaces_and_is_json(node: RunningNode) -> None:
    reply = node.post("/v1/chat/completions", {**GREEDY, "stream": True})
    assert reply.headers["Content-Type"].startswith("text/event-stream")
    events = [event for event in reply.body.split(b"\n\n") if event and not event.startswith(b":")]
    assert events[-1] == b"data: [DONE]"
    for event in events[:-1]:
        assert json.loads(event.removeprefix(b"data: "))["object"] == "chat.completion.chunk"
