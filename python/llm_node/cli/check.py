"""`llm-node engine check`: does an engine keep what engine_api.h says?"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from llm_node import conformance
from llm_node.cli import table
from llm_node.conformance import Engine, Outcome

COULD_NOT_RUN = 2
"""The exit code where nothing could be said; 1: a must was broken."""
WIDTH = 110

Step = Callable[[str], None]
"""Told the name of each check when it has ended."""


@dataclass(frozen=True)
class Wanted:
    """What is asked of an engine."""

    model: Path | None = None
    """None: one that lies beside it."""
    names: Sequence[str] = ()
    """Of checks or groups of them; none: all."""
    options: Sequence[tuple[str, str]] = ()
    quick: bool = False
    deadline: float = conformance.DEADLINE_SECONDS


@click.command()
@click.argument("engine", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--model", type=click.Path(path_type=Path, exists=True), help="A model that it can load.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--quick", is_flag=True, help="Fewer repetitions: seconds instead of a minute.")
@click.option(
    "--soak",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MINUTES",
    help="Again and again for so long, each time with other calls, until something fails.",
)
@click.option("--write", is_flag=True, help="Say in the manifest which level the engine keeps.")
@click.option("--only", "names", multiple=True, metavar="NAME", help="This check, or this group of them.")
@click.option(
    "--engine-option",
    "options",
    multiple=True,
    metavar="KEY=VALUE",
    callback=lambda context, parameter, given: [_pair(text) for text in given],
    help="A setting that the engine is started with.",
)
@click.option(
    "--deadline",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS",
    default=conformance.DEADLINE_SECONDS,
    show_default=True,
    help="An engine whose call takes longer hangs. Waiting for a processor does not count.",
)
def check(
    engine: Path,
    model: Path | None,
    as_json: bool,
    quick: bool,
    soak: float | None,
    write: bool,
    names: Sequence[str],
    options: Sequence[tuple[str, str]],
    deadline: float,
) -> None:
    """Check the engine in the folder ENGINE against engine_api.h.

    ENGINE holds the engine's manifest, or one folder below it does. Without --model a model of its format in
    the folder `models` beside the engines is taken; without any, nothing is checked that needs one. Ends with
    0, with 1 where a "must" is broken, and with 2 where nothing could be said.
    """
    from llm_node.node import NodeError

    if write and names:
        raise click.UsageError("--write speaks of all checks, and --only asks a few of them")
    try:
        found = conformance.engine_at(engine)
        if write and model is None and found.model_beside() is None:
            raise click.UsageError("--write needs a model: most checks ask nothing without one")
        wanted = Wanted(model, names, options, quick, deadline)
        outcomes = _again_and_again(found, wanted, 60 * (soak or 0))
        level = conformance.claim(found, outcomes) if write else None
    except NodeError as fault:
        click.echo(f"Error: {fault.message}", err=True)
        sys.exit(COULD_NOT_RUN)
    if as_json:
        checks = [asdict(outcome) for outcome in outcomes]
        table.show_json({"engine": found.id, "version": found.version, "checks": checks})
    else:
        show(found, outcomes)
        if write:
            said = "says nothing" if level is None else f'says that every "{level}" is kept'
            click.echo(f"the manifest in {found.folder} {said}")
    if any(outcome.refuses for outcome in outcomes):
        sys.exit(1)


def _pair(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not key or not separator:
        raise click.BadParameter(f"{text!r} is not KEY=VALUE")
    return key, value


def _again_and_again(engine: Engine, wanted: Wanted, seconds: float) -> list[Outcome]:
    """The outcomes of the first round in which something failed, or of the last."""
    end = time.monotonic() + seconds
    rounds = 0
    while True:
        outcomes = run(engine, wanted, seed=rounds)
        rounds += 1
        if any(one.status == "failed" for one in outcomes) or time.monotonic() >= end:
            if rounds > 1:
                click.echo(f"round {rounds} was the last", err=True)
            return outcomes


def run(engine: Engine, wanted: Wanted, *, seed: int = 0) -> list[Outcome]:
    """All outcomes, with a bar on stderr meanwhile."""
    outcomes: list[Outcome] = []
    with _bar(len(conformance.checks())) as step:

        def heard(outcome: Outcome) -> None:
            outcomes.append(outcome)
            step(outcome.name)

        conformance.run(
            engine,
            wanted.model or engine.model_beside(),
            heard,
            names=wanted.names,
            options=wanted.options,
            quick=wanted.quick,
            seed=seed,
            deadline_seconds=wanted.deadline,
        )
    return outcomes


def show(engine: Engine, outcomes: Sequence[Outcome]) -> None:
    """The table of all, then what failed."""
    marks = {"passed": "ok", "failed": "FAILED", "skipped": "-"}
    rows = [["CHECK", "LEVEL", "RESULT", "SECONDS", "WHY IT WAS SKIPPED"]]
    for one in outcomes:
        why = one.seen if one.status == "skipped" else ""
        rows.append([one.name, one.level, marks[one.status], f"{one.seconds:7.2f}", why])
    table.show(rows)
    show_failed(engine, outcomes)


def show_failed(engine: Engine, outcomes: Sequence[Outcome]) -> None:
    """Three sentences on each check that failed, then one on all of them."""
    failed = [one for one in outcomes if one.status == "failed"]
    for one in failed:
        click.echo(f"\n{one.name} ({one.level})")
        _sentence("contract", f'engine_api.h, line {one.line}: "{one.contract}"')
        _sentence("seen", one.seen)
        _sentence("change", one.mend)
        if one.script:
            _sentence("calls", one.script[0])
            for call in one.script[1:]:
                _sentence("", call)
    musts = sum(one.refuses for one in failed)
    passed = sum(one.status == "passed" for one in outcomes)
    click.echo(
        f"\n{engine.id} {engine.version}: {passed} checks passed, {musts} musts and "
        f"{len(failed) - musts} shoulds failed, {len(outcomes) - passed - len(failed)} were skipped"
    )


def _sentence(name: str, text: str) -> None:
    click.echo(click.wrap_text(text, WIDTH, f"  {name:9}", " " * 11))


@contextmanager
def _bar(length: int) -> Iterator[Step]:
    """A bar on stderr, where somebody can see it."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    with click.progressbar(length=length, file=sys.stderr, item_show_func=lambda name: name) as bar:
        yield lambda name: bar.update(1, name)
