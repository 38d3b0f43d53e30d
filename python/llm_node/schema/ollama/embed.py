"""`POST /api/embed` and its older form `POST /api/embeddings`: the requests."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field

from llm_node.schema.ollama.options import KeepAlive, Options
from llm_node.schema.wire import ForModel, Lenient


def _as_list(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if value else []
    return value


class EmbedRequest(ForModel, Lenient):
    """The body."""

    hint: ClassVar[frozenset[str]] = frozenset({"truncate"})

    input: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
    ] = Field(default_factory=list)
    """Text, or a list of texts. Without any the model is loaded and there are no vectors, as in Ollama."""
    dimensions: int | None = Field(default=None, ge=1, lt=2**31)
    """So many numbers of each vector, from its beginning."""
    options: Options = Options()
    keep_alive: KeepAlive | None = None


class EmbeddingsRequest(ForModel, Lenient):
    """The body of the older form."""

    prompt: str = Field(min_length=1)
    options: Options = Options()
    keep_alive: KeepAlive | None = None
