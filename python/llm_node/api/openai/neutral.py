"""From OpenAI's parameters to the neutral request of `rust/core/src/request.rs`."""

from __future__ import annotations

from typing import Any

from llm_node.node import NodeError
from llm_node.schema.sampling import Generation

FORBIDDEN = -1e30
"""What a bias of -100 means: never this token. JSON has no infinity."""

SEED_RANGE = 1 << 64


def request(
    body: Generation,
    prompt: dict[str, Any],
    *,
    source: int,
    answer: int,
    max_tokens: int | None,
    logprobs: int | None,
) -> dict[str, Any]:
    """One request. `answer`: which of the `n` it is; each has a seed of its own. `source`: see `source.py`.

    `logprobs`: alternatives wanted beside each token; None: no log-probabilities.
    """
    return {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "sampling": _sampling(body, answer),
        "stop": body.stop,
        "ignore_eos": body.ignore_eos,
        "logprobs": logprobs,
        "source": source,
    }


def _sampling(body: Generation, answer: int) -> dict[str, Any]:
    penalties = {body.repeat_penalty, body.repetition_penalty} - {None}
    if len(penalties) > 1:
        raise NodeError(
            "invalid_request", "repeat_penalty and repetition_penalty are one parameter", "repetition_penalty"
        )
    return {
        "temperature": body.temperature,
        "top_k": max(0, body.top_k),  # -1 is how vLLM's clients write "off"
        "top_p": body.top_p,
        "min_p": body.min_p,
        "repeat_penalty": penalties.pop() if penalties else 1.0,
        "frequency_penalty": body.frequency_penalty,
        "presence_penalty": body.presence_penalty,
        "seed": None if body.seed is None else (body.seed + answer) % SEED_RANGE,
        "bias": [
            [int(token), FORBIDDEN if bias <= -100 else bias] for token, bias in body.logit_bias.items()
        ],
    }
