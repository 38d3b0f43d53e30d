"""The arithmetic of the ratio method: the order of blocks, which pairs count, and the interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

FOREIGN_LIMIT = 0.05
"""A block during which others took more of the machine than this is spoiled."""
RESAMPLES = 5000


def abba() -> Iterator[tuple[str, str]]:
    """The order within each pair: AB, BA, AB, BA ... so that a drift of the machine favours neither."""
    while True:
        yield "A", "B"
        yield "B", "A"


@dataclass(frozen=True)
class Pair(Generic[T]):
    """One block of each, measured one after the other."""

    a: T
    b: T
    foreign: float
    """The larger share of the machine that others took during one of the two, 0 to 1."""

    @property
    def spoiled(self) -> bool:
        return self.foreign > FOREIGN_LIMIT


def collect(
    wanted: int,
    block: Callable[[str, int], tuple[T, float]],
    after: Callable[[int], None] = lambda index: None,
    attempts: int | None = None,
) -> list[Pair[T]]:
    """Measure pairs until `wanted` of them are clean, in ABBA order.

    `block(side, index)` measures one block and tells what others took of the machine meanwhile; `after`
    is called after each pair. Where the machine does not become quiet within `attempts` pairs (three
    times as many as wanted), the least disturbed ones fill up, and stay marked as spoiled.
    """
    attempts = 3 * wanted if attempts is None else attempts
    pairs: list[Pair[T]] = []
    order = abba()
    while sum(not pair.spoiled for pair in pairs) < wanted and len(pairs) < attempts:
        index = len(pairs)
        measured = {side: block(side, index) for side in next(order)}
        (a, foreign_a), (b, foreign_b) = measured["A"], measured["B"]
        pairs.append(Pair(a, b, max(foreign_a, foreign_b)))
        after(index)
    return choose(pairs, wanted)


def choose(pairs: Sequence[Pair[T]], wanted: int) -> list[Pair[T]]:
    """The clean pairs, or else the least disturbed ones, in the order they were measured."""
    clean = [pair for pair in pairs if not pair.spoiled]
    if len(clean) >= wanted:
        return clean
    best = sorted(range(len(pairs)), key=lambda index: pairs[index].foreign)[:wanted]
    return [pairs[index] for index in sorted(best)]


def median(values: Sequence[float]) -> float:
    return float(statistics.median(values))


def bootstrap(values: Sequence[float], share: float = 0.95, seed: int = 1) -> tuple[float, float]:
    """The interval that holds that share of the medians of samples drawn from `values` with replacement."""
    if not values:
        raise ValueError("an interval needs values")
    chance = random.Random(seed)
    medians = sorted(median(chance.choices(values, k=len(values))) for _ in range(RESAMPLES))
    edge = (1 - share) / 2
    last = len(medians) - 1
    return medians[round(edge * last)], medians[round((1 - edge) * last)]
