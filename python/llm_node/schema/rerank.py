"""`POST /v1/rerank`, `/v2/rerank` and `/rerank`: the request, as the clients of Cohere and Jina send it, and
as those of text-embeddings-inference do, which say `texts`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, model_validator

from llm_node.schema.wire import ForModel, Lenient, invalid


class Document(Lenient):
    """A document with a text."""

    text: str


def _text(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


Documents = Annotated[list[Annotated[Document, BeforeValidator(_text)]], Field(min_length=1, fail_fast=True)]


class RerankRequest(ForModel):
    """The body."""

    harmless: ClassVar[frozenset[str]] = frozenset({"user"})
    hint: ClassVar[frozenset[str]] = frozenset(
        {"truncate", "truncation_direction", "max_tokens_per_doc", "max_chunks_per_doc", "priority"}
    )

    refused: ClassVar[Mapping[str, Any]] = {"raw_scores": None}

    query: str = Field(min_length=1)
    documents: Documents | None = None
    texts: Annotated[list[str], Field(min_length=1, fail_fast=True)] | None = None
    top_n: int | None = Field(default=None, ge=1, lt=2**31)
    return_documents: bool = False
    return_text: bool = False
    """The same in the form with `texts`."""

    @model_validator(mode="after")
    def _has_documents(self) -> RerankRequest:
        if (self.documents is None) == (self.texts is None):
            raise invalid("documents: there should be some, or texts", "documents")
        return self

    @property
    def candidates(self) -> list[str]:
        """What is to be ranked."""
        return list(self.texts or ()) or [document.text for document in self.documents or ()]
