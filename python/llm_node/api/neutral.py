"""A request in neutral words, as every dialect fills it: the mirror of `rust/core/src/request.rs`, where each
field is explained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from llm_node.api.conversation import Conversation, Format, neutral_format
from llm_node.node import NodeError, arguments

FORBIDDEN = -1e30
"""A bias that means: never this token. JSON has no infinity."""

SEED_RANGE = 1 << 64


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a token is picked. The defaults leave the model's own distribution alone."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int | None = None
    bias: Sequence[tuple[int, float]] = ()
    """Token and what is added to its logit; `FORBIDDEN` forbids it."""

    def neutral(self) -> dict[str, Any]:
        """`Sampling` of `rust/core/src/request.rs`."""
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,
            "top_p": arguments.above_zero(self.top_p) or arguments.LEAST,  # 0: the best one alone
            "min_p": self.min_p,
            "repeat_penalty": arguments.above_zero(self.repeat_penalty),
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "seed": None if self.seed is None else self.seed % SEED_RANGE,
            "bias": list(self.bias),
        }


Prompt = Conversation | dict[str, Any]
"""A conversation; `{"text": …}`; the same as `{"literal": …}`, in which the texts of special tokens are only
letters; `{"tokens": […]}`; or `{"infill": …}`, a gap between two texts."""


def check_count(count: int, limit: int) -> None:
    """What is more than may ever wait would be told to come again later, for ever. Raises `NodeError`."""
    if count > limit:
        raise NodeError(
            "invalid_request",
            f"{count} answers are asked for (prompts, times n), and at most {limit} may wait for a model: "
            "send fewer at once, or start the node with a higher --queue-limit",
            "prompt",
        )


@dataclass(frozen=True, slots=True)
class Request:
    """One answer wanted from one model."""

    prompt: Prompt
    source: int
    """Whose it is; see `source.py`."""
    max_tokens: int | None = None
    """A ceiling: the answer is cut to what the context leaves."""
    sampling: Sampling = field(default_factory=Sampling)
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives wanted beside each token; None: no log-probabilities."""
    format: Format = "text"

    def neutral(self) -> dict[str, Any]:
        """`Request` of `rust/core/src/request.rs`."""
        prompt = self.prompt
        return {
            "prompt": {"chat": prompt.neutral()} if isinstance(prompt, Conversation) else prompt,
            "max_tokens": self.max_tokens,
            "sampling": self.sampling.neutral(),
            "stop": list(self.stop),
            "ignore_eos": self.ignore_eos,
            "logprobs": self.logprobs,
            "format": neutral_format(self.format),
            "source": self.source,
        }

    def several(self, answers: int) -> list[dict[str, Any]]:
        """So many answers to one prompt: each has a seed of its own."""
        first, seed = self.neutral(), self.sampling.seed
        if seed is None:
            return [first] * answers
        return [
            {**first, "sampling": replace(self.sampling, seed=seed + index).neutral()}
            for index in range(answers)
        ]
