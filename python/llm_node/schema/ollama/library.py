"""`/api/show` and `/api/pull`: the requests."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import model_validator

from llm_node.schema.wire import ForModel, Lenient


class Named(ForModel, Lenient):
    """A request about one model, which older clients call `name`."""

    @model_validator(mode="before")
    @classmethod
    def _older_name(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "name" not in data:
            return data
        rest = {key: value for key, value in data.items() if key != "name"}
        return {"model": data["name"], **rest}


class ShowRequest(Named):
    """The body."""

    harmless: ClassVar[frozenset[str]] = frozenset({"verbose"})
    hint: ClassVar[frozenset[str]] = frozenset({"system", "template", "options"})


class PullRequest(Named):
    """The body."""

    harmless: ClassVar[frozenset[str]] = frozenset({"insecure", "username", "password"})

    stream: bool = True
