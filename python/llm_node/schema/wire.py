"""What every request body has in common.

Strict types; `null` means "not given" for any optional field; a field that nobody knows is refused,
because it might change the answer; those known to change nothing are dropped, and named in
`harmless`, or in `idle` where that is so of empty values alone. A validator raises `invalid`,
`unsupported` or `feature`.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

INVALID = "invalid_request"
UNSUPPORTED = "unsupported_parameter"
FEATURE = "unsupported_feature"


class Wire(BaseModel):
    """A request body, or an object inside one."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, protected_namespaces=())

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken and dropped: they do not change the answer."""

    idle: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken and dropped while they are empty: they ask for nothing."""

    @model_validator(mode="before")
    @classmethod
    def _drop_what_says_nothing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if not cls._says_nothing(key, value)}

    @classmethod
    def _says_nothing(cls, key: str, value: Any) -> bool:
        return value is None or key in cls.harmless or (key in cls.idle and value in ([], {}, ""))


class ForModel(Wire):
    """A request to one model."""

    model: str = Field(default="", max_length=512)
    """Its name; empty: the node chooses."""


def invalid(message: str, param: str | None = None) -> PydanticCustomError:
    """For a validator: the value is of no use. `param` where the validator sees several fields."""
    return _refusal(INVALID, message, param)


def unsupported(message: str, param: str | None = None) -> PydanticCustomError:
    """For a validator: the value is understood and cannot be honoured."""
    return _refusal(UNSUPPORTED, message, param)


def feature(message: str, param: str | None = None) -> PydanticCustomError:
    """For a validator: the value asks for something that the models served here lack."""
    return _refusal(FEATURE, message, param)


def _refusal(code: str, message: str, param: str | None) -> PydanticCustomError:
    return PydanticCustomError(code, "{message}", {"message": message, "param": param or ""})
