"""What a row of the benchmark is, and what it found: figures, their limits, and notes beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from benches import stats
from benches.ratio import Arena, Block, Comparison

RATIO = "\u00d7"


class Unavailable(Exception):
    """This machine, or this tree, cannot measure the row; the reason is the message."""


@dataclass(frozen=True)
class Measured:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float
    unit: str

    @classmethod
    def of(cls, values: Sequence[float], unit: str) -> Measured:
        return cls(stats.median(values), *stats.bootstrap(values), unit)

    @classmethod
    def exact(cls, value: float, unit: str) -> Measured:
        return cls(value, value, value, unit)


@dataclass(frozen=True)
class Goal:
    """A limit of one of the row's figures."""

    figure: str
    limit: float
    at_least: bool = True

    def met(self, figures: dict[str, Measured]) -> bool:
        value = figures[self.figure].value
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass
class Outcome:
    """What a row found. The first figure is the row's own."""

    figures: dict[str, Measured]
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    must: tuple[Goal, ...]
    aim: tuple[Goal, ...]
    measure: Callable[[Arena], Outcome]


def faster(must: float, aim: float) -> dict[str, tuple[Goal, ...]]:
    return {"must": (Goal("ratio", must),), "aim": (Goal("ratio", aim),)}


def at_most(figure: str, must: float, aim: float) -> dict[str, tuple[Goal, ...]]:
    return {"must": (Goal(figure, must, False),), "aim": (Goal(figure, aim, False),)}


## what all comparisons say ##########################################################################


def throughput(block: Block) -> float:
    return block.main.tokens_per_second


def milliseconds(name: str, which: str) -> Callable[[Block], float]:
    return lambda block: block.main.milliseconds(name, which)


def told(comparison: Comparison, metric: Callable[[Block], float], unit: str) -> Outcome:
    """The ratio first, then both servers' own figures."""
    ratios = comparison.ratios(metric)
    figures = {
        "ratio": Measured.of(ratios, RATIO),
        "llm-node": Measured.of(comparison.of_node(metric), unit),
        comparison.other: Measured.of(comparison.of_other(metric), unit),
    }
    if comparison.load.route == "completions":  # else the load generator has words counted meanwhile
        for name, values in (
            ("llm-node CPU", comparison.of_node(lambda block: block.cpu_per_token)),
            ("llm-node front CPU", comparison.of_node(lambda block: block.front_per_token)),
            (f"{comparison.other} CPU", comparison.of_other(lambda block: block.cpu_per_token)),
        ):
            figures[name] = Measured.of(values, "µs/token")
    if comparison.ceiling is not None:
        for name, values in (
            ("of the ceiling", comparison.of_node(throughput)),
            (f"{comparison.other}, of the ceiling", comparison.of_other(throughput)),
        ):
            figures[name] = Measured.of([value / comparison.ceiling for value in values], "")
    return Outcome(figures, standing(comparison), {**facts_of(comparison), "ratios": ratios})


def disturbed(samples: stats.Samples[Any], what: str = "pairs") -> list[str]:
    """What other load did to a row, in words."""
    notes = []
    if samples.thrown_away:
        notes.append(f"{samples.thrown_away} more {what} were thrown away because of other load")
    if samples.spoiled:
        notes.append(f"{samples.spoiled} of {len(samples.kept)} {what} were disturbed by other load")
    return notes


def foreign_load(samples: stats.Samples[Any]) -> dict[str, Any]:
    """The same in figures: the share of the machine, for each sample that counts."""
    return {
        "foreign load": [sample.foreign for sample in samples.kept],
        "thrown away": samples.thrown_away,
    }


def standing(comparison: Comparison) -> list[str]:
    """What has to be said beside the figures."""
    notes = [f"llama-server: {comparison.flavour}"] if comparison.flavour else []
    notes += disturbed(comparison.samples)
    if comparison.setup.model.note:
        notes.append(comparison.setup.model.note)
    return notes


def facts_of(comparison: Comparison) -> dict[str, Any]:
    facts = {
        "model": comparison.setup.model.name,
        "threads": comparison.setup.threads,
        "slots": comparison.setup.slots,
        "context": comparison.setup.context,
        "load": vars(comparison.load),
        "ceiling, tokens/s": comparison.ceiling,
        **foreign_load(comparison.samples),
    }
    if comparison.flavour:
        facts["llama-server"] = str(comparison.flavour)
        facts["trials of llama-server"] = comparison.trials
    return facts
