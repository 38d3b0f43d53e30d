"""The arithmetic of the ratio method: the order of blocks, which pairs count, and the interval."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

FOREIGN_LIMIT = 0.05
"""What is measured while others take more of the machine than this is spoiled."""
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


@dataclass(frozen=True)
class Sample(Generic[T]):
    """What was measured once."""

    value: T
    foreign: float
    """The share of the machine that others took meanwhile, 0 to 1."""

    @property
    def spoiled(self) -> bool:
        return self.foreign > FOREIGN_LIMIT


@dataclass(frozen=True)
class Samples(Generic[T]):
    """What counts of all that was measured, in the order it was measured."""

    kept: list[Sample[T]]
    thrown_away: int
    """So many more were measured, during which others took too much of the machine."""

    @property
    def values(self) -> list[T]:
        return [sample.value for sample in self.kept]

    @property
    def spoiled(self) -> int:
        """How many count though others took too much, because the machine did not become quiet."""
        return sum(sample.spoiled for sample in self.kept)


def collect(wanted: int, measure: Callable[[int], Sample[T]], attempts: int | None = None) -> Samples[T]:
    """Measure until `wanted` samples are clean; `measure` is told how many there are already.

    Where the machine does not become quiet within `attempts` samples (three times as many as wanted), the
    least disturbed ones fill up, and stay marked as spoiled.
    """
    attempts = 3 * wanted if attempts is None else attempts
    samples: list[Sample[T]] = []
    while sum(not sample.spoiled for sample in samples) < wanted and len(samples) < attempts:
        samples.append(measure(len(samples)))
    best = sorted(range(len(samples)), key=lambda index: samples[index].foreign)[:wanted]
    kept = [samples[index] for index in sorted(best)]
    return Samples(kept, len(samples) - len(kept))


def in_turns(block: Callable[[str, int], Sample[T]]) -> Callable[[int], Sample[Pair[T]]]:
    """Pairs to collect, in ABBA order, of `block(side, index)`; a pair is as disturbed as its worse half."""
    order = abba()

    def pair(index: int) -> Sample[Pair[T]]:
        measured = {side: block(side, index) for side in next(order)}
        a, b = measured["A"], measured["B"]
        return Sample(Pair(a.value, b.value), max(a.foreign, b.foreign))

    return pair


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
