"""`/api/models/*`: the requests."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from llm_node.schema.wire import Wire
from llm_node.settings_values import LONGEST_KEEP_ALIVE, MOST_DEVICES, MOST_REPLICAS, MOST_TOKENS, printable

_Count = Annotated[int, Field(ge=1, le=MOST_DEVICES)]
_Name = Annotated[int, Field(ge=0, le=MOST_DEVICES)] | Annotated[str, Field(min_length=1, max_length=256)]
_Named = Annotated[list[_Name], Field(min_length=1, max_length=MOST_DEVICES)]


class LoadRequest(Wire):
    """Load a model. What is left out is the node's choice."""

    model_id: str = Field(min_length=1, max_length=512)
    format: str | None = Field(default=None, min_length=1, max_length=64)
    engine: str | None = Field(default=None, min_length=1, max_length=64)
    context_length: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    max_sequences: int | None = Field(default=None, ge=1, le=4096)
    cache_tokens: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """KV cache for all sequences together."""
    gpu_layers: int | None = Field(default=None, ge=-1, lt=2**31)
    """Layers on the devices; -1: all."""
    threads: int | None = Field(default=None, ge=0, le=4096)
    speculation: Literal["off", "lookup"] | None = None
    """Whether tokens are guessed ahead."""
    draft_model: str | None = Field(default=None, min_length=1, max_length=512)
    """A model that guesses them, by its name."""
    tool_syntax: str | None = Field(default=None, min_length=1, max_length=64)
    """How it writes calls of tools: the name of a family, or `off`."""
    chat_template: str | None = Field(default=None, min_length=1, max_length=1 << 20)
    """Its chat template in place of its own: the source, or the name of one that is built in."""
    pin: bool | None = None
    """Whether it stays although another model needs the room."""
    keep_alive: float | None = Field(default=None, ge=-1, le=LONGEST_KEEP_ALIVE)
    """Seconds that it stays without being asked anything; negative: for ever."""
    replicas: int | None = Field(default=None, ge=1, le=MOST_REPLICAS)
    """Workers, each on GPUs of its own."""
    devices: _Count | _Named | None = None
    """How many GPUs it lies on, or which: by number, or by their ids in `/api/system`."""
    options: dict[str, bool | int | float | str] | None = None
    """Settings for the engine."""


class UnloadRequest(Wire):
    """Unload a model."""

    model_id: str = Field(min_length=1, max_length=512)
    timeout_seconds: float = Field(default=30.0, ge=0, le=3600)
    """How long answers under way may go on."""


class PullRequest(Wire):
    """Fetch a model."""

    model: str = Field(min_length=1, max_length=2048)
    """`ORG/REPO`, `ORG/REPO:VERSION`, or a link."""
    sha256: str | None = Field(default=None, max_length=64)
    """Of the one file that is fetched by a link."""
    context_length: int | None = Field(default=None, ge=1, le=MOST_TOKENS)
    """Tokens that a version is chosen for."""
    dry_run: bool = False
    """Only say what would be fetched."""
    update: bool = False
    """Where it is here: fetch what its repository has by now."""
    stream: bool = True


class AliasRequest(Wire):
    """Give a model a further name."""

    model: str = Field(min_length=1, max_length=512)
    alias: Annotated[str, AfterValidator(printable)] = Field(
        min_length=1, max_length=512, pattern=r"^[^\s,=]+$"
    )


class RemoveRequest(Wire):
    """Delete a model."""

    model: str = Field(min_length=1, max_length=2048)
    force: bool = False
    """Also where it answers requests, which may then go on for 30 s."""
