"""What would fit in place of a load that is refused, in words: `would_fit` of a refusal and of a plan."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def said(offers: Sequence[Mapping[str, Any]]) -> str:
    """`with context_length 768, or with context_length 1024 and cache_type_k = cache_type_v = "q8_0"`."""
    return ", or ".join(f"with {_words(offer)}" for offer in offers)


def engine_options(offer: Mapping[str, Any]) -> str:
    """`cache_type_k = cache_type_v = "q8_0"`: those of one value are said together."""
    by_value: dict[str, list[str]] = {}
    for name, value in offer.get("options", {}).items():
        by_value.setdefault(json.dumps(value), []).append(name)
    return " and ".join(" = ".join([*names, value]) for value, names in by_value.items())


def _words(offer: Mapping[str, Any]) -> str:
    numbers = [f"{name} {value}" for name, value in offer.items() if name != "options"]
    return " and ".join(filter(None, [*numbers, engine_options(offer)]))
