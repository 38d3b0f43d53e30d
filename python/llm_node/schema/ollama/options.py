"""What a generation may be told, and how it is told in Ollama's words."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from llm_node.schema.sampling import StopList
from llm_node.schema.wire import ForModel, Lenient
from llm_node.settings_values import LONGEST_KEEP_ALIVE


class Options(Lenient):
    """`options`. The defaults are Ollama's own, since its clients leave out what they do not change."""

    harmless: ClassVar[frozenset[str]] = frozenset(
        {
            "numa",
            "num_thread",
            "num_batch",
            "num_gpu",
            "main_gpu",
            "low_vram",
            "f16_kv",
            "use_mmap",
            "use_mlock",
            "vocab_only",
            "logits_all",
            "mirostat_tau",
            "mirostat_eta",
        }
    )
    hint: ClassVar[frozenset[str]] = frozenset({"num_keep", "repeat_last_n", "penalize_newline"})
    refused: ClassVar[Mapping[str, Any]] = {"mirostat": 0, "tfs_z": 1, "typical_p": 1}

    temperature: float = Field(default=0.8, ge=0, le=2)
    top_k: int = Field(default=40, ge=-1, lt=2**31)
    top_p: float = Field(default=0.9, ge=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    seed: int = Field(default=-1, ge=-(2**63), lt=2**64)
    """Negative: another one each time."""
    num_ctx: int | None = None
    """The context that the model should be loaded with; nothing is loaded anew for it."""
    num_predict: int = Field(default=-1, ge=-(2**31), lt=2**31)
    """Most tokens of an answer; 0 or less: what the context leaves."""
    stop: StopList = Field(default_factory=list)
    repeat_penalty: float = Field(default=1.0, gt=0, le=10)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    frequency_penalty: float = Field(default=0.0, ge=-2, le=2)


_DURATION = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)((ns|us|µs|ms|s|m|h)(\d+(\.\d*)?|\.\d+)?)*")


def _duration(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("Input should be seconds, or a duration such as '5m'")
    if isinstance(value, str) and not _DURATION.fullmatch(value):
        raise ValueError("Input should be a duration such as '5m' or '0'")
    return value


KeepAlive = Annotated[str | int | float, BeforeValidator(_duration)]

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "": 1.0}


def seconds(keep_alive: str | int | float) -> float:
    """As the node takes it: at most `LONGEST_KEEP_ALIVE`, and -1 for ever, as all that is negative is."""
    if isinstance(keep_alive, str):
        parts = re.findall(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h|)", keep_alive)
        total = sum(float(number) * _UNITS[unit] for number, unit in parts)
        total = -total if keep_alive.startswith("-") else total
    else:
        total = float(keep_alive)
    return -1.0 if total < 0 else min(total, LONGEST_KEEP_ALIVE)


def is_zero(keep_alive: str | int | float | None) -> bool:
    """Does it say that the model is not to stay?"""
    return keep_alive is not None and seconds(keep_alive) == 0


Think = Literal["minimal", "low", "medium", "high", "max"]


class Generation(ForModel, Lenient):
    """What chats and plain generations share."""

    hint: ClassVar[frozenset[str]] = frozenset({"truncate", "shift"})

    stream: bool = True
    format: Literal["", "json"] | dict[str, Any] = ""
    """"json": any object; a JSON schema: what it allows."""
    options: Options = Options()
    think: bool | Think | None = None
    logprobs: bool = False
    top_logprobs: int = Field(default=0, ge=0, le=20)
    keep_alive: KeepAlive | None = None
