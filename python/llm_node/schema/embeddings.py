"""`POST /v1/embeddings`: the request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from llm_node.schema.wire import Wire, unsupported


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and isinstance(value[0], int | list):
        raise unsupported("input as tokens is not supported; send text")
    if not isinstance(value, list):
        raise ValueError("Input should be a string or a list of strings")
    return value


class EmbeddingRequest(Wire):
    """The body."""

    harmless: ClassVar[frozenset[str]] = frozenset({"user"})

    model: str = Field(min_length=1, max_length=512)
    input: Annotated[
        list[Annotated[str, Field(min_length=1)]],
        BeforeValidator(_texts),
        Field(min_length=1, max_length=2048),
    ]
    encoding_format: Literal["float", "base64"] = "float"
