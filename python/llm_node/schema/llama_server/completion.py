"""`POST /completion` and `POST /infill`: the requests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from llm_node.schema.sampling import MAX_ANSWERS, StopList
from llm_node.schema.wire import ForModel, Lenient, unsupported

MixedPrompt = str | list[int | str]
"""Text; or tokens, and texts among them."""

SAMPLERS = {"e": "penalties", "k": "top_k", "p": "top_p", "m": "min_p", "t": "temperature"}
"""What picks a token here, by the letter that llama-server has for it."""

OLDER_NAMES = {
    "max_tokens": "n_predict",
    "max_completion_tokens": "n_predict",
    "n": "n_cmpl",
    "logprobs": "n_probs",
}
"""What llama-server takes as well."""


def _prompts(value: Any) -> list[MixedPrompt]:
    """All prompts, in whichever of its forms it was sent."""
    if isinstance(value, list) and value and not any(isinstance(each, int) for each in value):
        return [_prompt(each) for each in value]
    return [_prompt(value)]


def _prompt(value: Any) -> MixedPrompt:
    if isinstance(value, dict):
        if value.get("multimodal_data"):
            raise ValueError("images and audio are not supported; models served here read text")
        value = value.get("prompt_string")
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("Input should be a string, a list of tokens and strings, or a list of either")
    for each in value:
        if isinstance(each, bool) or not isinstance(each, int | str):
            raise ValueError("Input should be a list of tokens and strings")
        if isinstance(each, int) and not 0 <= each < 2**31:
            raise ValueError(f"{each} is no token")
    return value


Prompts = Annotated[list[MixedPrompt], BeforeValidator(_prompts)]

Bias = tuple[int | str, float | None]
"""A token, or a text whose tokens are meant, and what is added; None: never."""


def _biases(value: Any) -> list[Bias]:
    pairs = list(value.items()) if isinstance(value, dict) else value
    if not isinstance(pairs, list):
        raise ValueError("Input should be a list of pairs, or an object")
    return [_bias(pair) for pair in pairs]


def _bias(pair: Any) -> Bias:
    match pair:
        case [int() | str() as token, False] if not isinstance(token, bool):
            return _token(token), None
        case [int() | str() as token, int() | float() as bias] if not isinstance(token, bool):
            if isinstance(bias, bool) or not -1e6 < bias < 1e6:
                raise ValueError(f"{bias} is no bias")
            return _token(token), float(bias)
    raise ValueError("each entry is a token, or a text, and a number or false")


def _token(name: int | str) -> int | str:
    found = (
        int(name) if isinstance(name, str) and name.isascii() and name.isdigit() and len(name) < 11 else name
    )
    if isinstance(found, int) and not 0 <= found < 2**31:
        raise ValueError(f"{found} is no token")
    return found


def _samplers(value: Any) -> frozenset[str]:
    """Those that are named, whatever their order."""
    if isinstance(value, str):
        return frozenset(SAMPLERS[letter] for letter in value if letter in SAMPLERS)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("Input should be a list of names, or a string of letters")
    return frozenset(value) & frozenset(SAMPLERS.values())


def _no_grammar(value: Any) -> str:
    if value != "":
        raise unsupported(
            "grammar: GBNF is not read here; json_schema is, and /v1/completions takes grammars"
        )
    return ""


class Sampling(Lenient):
    """How tokens are picked. The defaults are llama-server's own, since its clients leave out what they do
    not change."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "cache_prompt",
            "id_slot",
            "n_cache_reuse",
            "sse_ping_interval",
            "verbose",
            "backend_sampling",
            "dynatemp_exponent",
            "mirostat_tau",
            "mirostat_eta",
            "adaptive_decay",
            "xtc_threshold",
            "dry_base",
            "dry_allowed_length",
            "dry_penalty_last_n",
            "dry_sequence_breakers",
        }
    )
    hint: ClassVar[frozenset[str]] = frozenset(
        {
            "n_keep",
            "n_discard",
            "n_indent",
            "t_max_prompt_ms",
            "t_max_predict_ms",
            "return_progress",
            "timings_per_token",
            "repeat_last_n",
            "penalize_nl",
        }
    )
    refused: ClassVar[Mapping[str, Any]] = {
        "typical_p": 1,
        "tfs_z": 1,
        "top_n_sigma": -1,
        "dynatemp_range": 0,
        "mirostat": 0,
        "adaptive_target": -1,
        "xtc_probability": 0,
        "dry_multiplier": 0,
        "min_keep": 0,
        "lora": None,
        "image_data": None,
        "post_sampling_probs": None,
    }

    temperature: float = Field(default=0.8, ge=-100, le=100)
    """Below 0: as 0."""
    top_k: int = Field(default=40, ge=-1, lt=2**31)
    top_p: float = Field(default=0.95, ge=0, le=1)
    min_p: float = Field(default=0.05, ge=0, le=1)
    repeat_penalty: float = Field(default=1.0, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)
    seed: int = Field(default=-1, ge=-(2**63), lt=2**64)
    """-1, or all bits of 32: another one each time."""
    samplers: Annotated[frozenset[str], BeforeValidator(_samplers)] = frozenset(SAMPLERS.values())
    """What is not among them is off."""
    logit_bias: Annotated[list[Bias], BeforeValidator(_biases)] = Field(default_factory=list)
    grammar: Annotated[str, BeforeValidator(_no_grammar)] = ""


class Generation(ForModel, Sampling):
    """What completions and infills share."""

    stream: bool = False
    n_predict: int = Field(default=-1, ge=-(2**31), lt=2**31)
    """Most tokens of an answer; below 0: what the context leaves."""
    n_cmpl: int = Field(default=1, ge=1, le=MAX_ANSWERS)
    n_probs: int = Field(default=0, ge=0, le=128)
    stop: StopList = Field(default_factory=list)
    ignore_eos: bool = False
    json_schema: dict[str, Any] | bool | None = None
    return_tokens: bool = False
    response_fields: list[str] = Field(default_factory=list)
    """Of an answer these alone; one inside of another as `timings/prompt_n`."""

    @model_validator(mode="before")
    @classmethod
    def _other_names(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not OLDER_NAMES.keys() & data.keys():
            return data
        others = {OLDER_NAMES[key]: value for key, value in data.items() if key in OLDER_NAMES}
        return {**others, **{key: value for key, value in data.items() if key not in OLDER_NAMES}}


class CompletionRequest(Generation):
    """The body."""

    prompt: Prompts


class Extra(Lenient):
    """A further text."""

    filename: str = "tmp"
    text: str


class InfillRequest(Generation):
    """The body."""

    input_prefix: str
    input_suffix: str
    input_extra: list[Extra] = Field(default_factory=list)
    """Further texts, the least important one first."""
    prompt: str = ""
    """The line with the cursor, as far as it goes: more of the prefix."""
