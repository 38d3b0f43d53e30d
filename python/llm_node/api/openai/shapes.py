"""What both kinds of OpenAI's completions have in common: ids, sampling, usage, endings, logprobs."""

from __future__ import annotations

import secrets
import time
from typing import Any

from llm_node.api import timings
from llm_node.api.answers import Finish, Usage
from llm_node.api.conversation import Format, Grammar, Json, Schema
from llm_node.api.neutral import FORBIDDEN, Sampling
from llm_node.node import Event, NodeError
from llm_node.schema.sampling import Generation, GrammarFormat, ObjectFormat, ResponseFormat, SchemaFormat

CHAT_LOGPROBS = (
    '{"content":[<each>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>,"top_logprobs":['
    '<top>{"token":<token>,"logprob":<logprob>,"bytes":<bytes>}</top>]}</each>],"refusal":null}'
)
"""The shape of chat completions, as a pattern of `rust/node/src/pattern.rs`."""

PLAIN_LOGPROBS = (
    '{"tokens":[<each><name></each>],"token_logprobs":[<each><logprob></each>],"top_logprobs":['
    '<each>{<distinct><name>:<logprob></distinct>}</each>],"text_offset":[<each><offset></each>]}'
)
"""The shape of plain completions: parallel lists, with the offset of each token in the text."""

FINISH_REASONS: dict[Finish, str] = {
    "stop": "stop",
    "stop_string": "stop",
    "length": "length",
    "context": "length",
    "calls": "tool_calls",
}
"""`finish_reason`, by why an answer ended."""


def identity(prefix: str, kind: str, model: str) -> dict[str, Any]:
    """The fields that are the same in every chunk of an answer."""
    return {
        "id": f"{prefix}-{secrets.token_hex(16)}",
        "object": kind,
        "created": int(time.time()),
        "model": model,
    }


def took(found: Usage) -> dict[str, Any]:
    """What answers took: the usage, and how fast they came in the words of llama-server, for its clients."""
    return {"usage": usage(found), "timings": timings.of(found)}


def timed(ending: Event, has_usage: bool) -> dict[str, Any]:
    """How fast one answer came, for its last chunk, unless all of them have a chunk for it."""
    return {} if has_usage else {"timings": timings.of(Usage.of(ending))}


def usage(took: Usage) -> dict[str, Any]:
    """What answers took, as OpenAI writes it."""
    return {
        "prompt_tokens": took.prompt,
        "completion_tokens": took.completion,
        "total_tokens": took.prompt + took.completion,
        "prompt_tokens_details": {"cached_tokens": took.cached},
        "completion_tokens_details": {
            "reasoning_tokens": took.reasoning,
            "accepted_prediction_tokens": took.accepted,
            "rejected_prediction_tokens": took.drafted - took.accepted,
        },
    }


def sampling(body: Generation) -> Sampling:
    """How tokens are to be picked. Raises `NodeError`."""
    penalties = {body.repeat_penalty, body.repetition_penalty} - {None}
    if len(penalties) > 1:
        raise NodeError(
            "invalid_request", "repeat_penalty and repetition_penalty are one parameter", "repetition_penalty"
        )
    return Sampling(
        temperature=body.temperature,
        top_k=max(0, body.top_k),  # -1 is how vLLM's clients write "off"
        top_p=body.top_p,
        min_p=body.min_p,
        repeat_penalty=penalties.pop() or 1.0 if penalties else 1.0,
        frequency_penalty=body.frequency_penalty,
        presence_penalty=body.presence_penalty,
        seed=body.seed,
        bias=[(int(token), FORBIDDEN if bias <= -100 else bias) for token, bias in body.logit_bias.items()],
    )


def text_format(wanted: ResponseFormat) -> Format:
    """What the text of the answer must look like."""
    if isinstance(wanted, ObjectFormat):
        return "object"
    if isinstance(wanted, SchemaFormat):
        return Schema(Json.of(wanted.json_schema.wanted), strict=wanted.json_schema.strict)
    if isinstance(wanted, GrammarFormat):
        return Grammar(wanted.grammar.syntax, wanted.grammar.definition)
    return "text"
