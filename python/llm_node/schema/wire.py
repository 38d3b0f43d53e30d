"""What every request body has in common.

Strict types; `null` means "not given" for any optional field. Each field that a client may send stands in one
of four lists of its class: the fields themselves, which are honoured; `harmless`, which cannot change the
answer; `hint`, which asks for something that this node does otherwise, and the answer is still a right one;
`refused`, which would change the answer. What nobody knows is refused or ignored, as `unknown` says. What is
ignored is told by name. A validator raises `invalid`, `unsupported` or `feature`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

INVALID = "invalid_request"
UNSUPPORTED = "unsupported_parameter"
FEATURE = "unsupported_feature"

NOTHING: tuple[Any, ...] = (None, [], {}, "", False)
"""What asks for nothing, in whatever field it stands."""

Unknown = Literal["refuse", "ignore"]
"""What becomes of fields that nobody knows."""


class Ignored:
    """Collects what was ignored of a body while it is validated."""

    def __init__(self, unknown: Unknown | None = None) -> None:
        """`unknown`: one rule for the fields of all classes; None: each has its own."""
        self.unknown = unknown
        self.names: list[str] = []
        """After `settle`: dotted paths without the numbers of list items, each once."""
        self._found: dict[int, list[str]] = {}

    def add(self, inside: Mapping[str, Any], field: str) -> None:
        """A field of an object that is part of the body."""
        self._found.setdefault(id(inside), []).append(field)

    def settle(self, body: Any) -> None:
        """Find the places in the body, which is the one that was validated."""
        names: dict[str, None] = {}
        waiting = [("", body)] if self._found else []
        while waiting:
            path, value = waiting.pop()
            if isinstance(value, list):
                waiting.extend((path, item) for item in reversed(value))
            elif isinstance(value, dict):
                within = f"{path}." if path else ""
                names.update(dict.fromkeys(f"{within}{name}" for name in self._found.get(id(value), ())))
                waiting.extend((f"{within}{name}", item) for name, item in reversed(value.items()))
        self.names = list(names)


class Wire(BaseModel):
    """A request body, or an object inside one."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        defer_build=True,  # of a command that serves a few requests most shapes are never used
    )

    harmless: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken and dropped: they do not change the answer."""

    hint: ClassVar[frozenset[str]] = frozenset()
    """Fields that are taken, dropped and told: the answer is right without them."""

    refused: ClassVar[Mapping[str, Any]] = {}
    """Fields that would change the answer, each with a value that asks for nothing, beside those that never
    do. May be fields of the class too, where some of their values are honoured."""

    unknown: ClassVar[Unknown] = "refuse"

    @model_validator(mode="before")
    @classmethod
    def _sort_out(cls, data: Any, info: ValidationInfo) -> Any:
        # Most objects have nothing to sort out, and a client sends hundreds of them with its tools.
        if not isinstance(data, dict) or (cls._plain().issuperset(data) and None not in data.values()):
            return data
        ignored = info.context if isinstance(info.context, Ignored) else Ignored()
        return {key: value for key, value in data.items() if cls._counts(data, key, value, ignored)}

    @classmethod
    def _counts(cls, data: dict[str, Any], key: str, value: Any, ignored: Ignored) -> bool:
        """Does the field go on to its validator?"""
        if value is None or key in cls.harmless:
            return False
        if key in cls.hint:
            if value not in NOTHING:
                ignored.add(data, key)
            return False
        if key in cls.refused:
            idle = cls.refused[key]
            turns_off = idle is True and value is False
            if value == idle or (value in NOTHING and not turns_off):
                return False
            if not cls._has(key):
                raise unsupported(f"{key} is not supported", key)
        elif (ignored.unknown or cls.unknown) == "ignore" and not cls._has(key):
            ignored.add(data, key)
            return False
        return True

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """What the lists say of a field belongs to the description of the class."""
        reference = handler(core_schema)
        schema = handler.resolve_ref_schema(reference)
        required = schema.get("required", ())
        properties = schema.get("properties", {})
        for name in properties.keys() - set(required):
            properties[name] = {"anyOf": [properties[name], {"type": "null"}]}
        said = {**dict.fromkeys(cls.harmless, "Changes nothing."), **dict.fromkeys(cls.hint, "Is ignored.")}
        for name in sorted(said.keys() - properties.keys()):
            properties[name] = {"description": said[name]}
        schema["properties"] = properties
        schema["additionalProperties"] = cls.unknown == "ignore"
        return reference

    @classmethod
    @functools.cache
    def _plain(cls) -> frozenset[str]:
        """The fields that go on to their validators whatever they hold."""
        names = {name for field, info in cls.model_fields.items() for name in (field, info.alias) if name}
        return frozenset(names - cls.harmless - cls.hint - cls.refused.keys())

    @classmethod
    def _has(cls, key: str) -> bool:
        return key in cls.model_fields or any(field.alias == key for field in cls.model_fields.values())


class Lenient(Wire):
    """As the clients expect it that send new fields every month."""

    unknown: ClassVar[Unknown] = "ignore"


class Foreign(Lenient):
    """Something of a kind that is not known here. Its other fields mean nothing, and are not even named."""

    type: str

    @classmethod
    def _counts(cls, data: Mapping[str, Any], key: str, value: Any, ignored: Ignored) -> bool:
        return key in cls.model_fields


def by_type(what: str, known: Mapping[str, str]) -> Discriminator:
    """Tells the members of a union apart: their tags, by `type`. What has another one is "foreign"."""

    def tag(value: Any) -> str | None:
        found = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return known.get(found, "foreign") if isinstance(found, str) else None

    return Discriminator(tag, what, "Input should be an object with a string 'type'")


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
