"""Does an engine keep what engine_api.h says? What `llm-node engine check` asks, for programs.

Each check runs in a process of its own, so that an engine that crashes is told of, not died of.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import llm_node
from llm_node import _core, engine_packages, worker

DEADLINE_SECONDS = 60.0
"""A check that makes no further call for so long hangs."""


@dataclass(frozen=True)
class Outcome:
    """What became of one check."""

    name: str
    level: str
    """ "must" or "should"."""
    status: str
    """ "passed", "failed" or "skipped"."""
    seconds: float
    contract: str
    """The sentences of engine_api.h that the check rests on, and `line`, where they begin."""
    line: int
    seen: str
    """What was seen of an engine that failed; else why it was skipped, or nothing."""
    mend: str
    script: Sequence[str]
    """The calls that lead there."""

    @property
    def refuses(self) -> bool:
        """Must an engine with it not be used?"""
        return self.status == "failed" and self.level == "must"


@dataclass(frozen=True)
class Engine:
    """An engine's folder, with what its manifest says."""

    folder: Path
    binary: str
    """The library's file name in that folder."""
    id: str
    version: str
    gpu_backend: str
    formats: Sequence[str]

    def model_beside(self) -> Path | None:
        """A model of its format in the folder `models` beside its engines folder, if there is one."""
        models = self.folder.parents[2] / "models"
        found = [path for path in sorted(models.glob("*")) if path.suffix.removeprefix(".") in self.formats]
        return found[0] if found else None


def engine_at(path: Path) -> Engine:
    """The engine in this folder, or the one below it. Raises `Fault`."""
    found = json.loads(_core.engine_at(str(path)))
    return Engine(
        folder=Path(found["folder"]),
        binary=Path(found["binary"]).name,
        id=found["id"],
        version=found["version"],
        gpu_backend=found["gpu_backend"],
        formats=tuple(found["formats"]),
    )


def checks() -> list[dict[str, Any]]:
    """Every check there is: name, level, what, contract, line, mend."""
    found: list[dict[str, Any]] = json.loads(_core.conformance_checks())
    return found


def items() -> list[dict[str, Any]]:
    """What the contract was designed to be asked: group, asks, and either checks or other, who asks it."""
    found: list[dict[str, Any]] = json.loads(_core.conformance_items())
    return found


def run(
    engine: Engine,
    model: Path | None,
    progress: Callable[[Outcome], None],
    *,
    names: Sequence[str] = (),
    options: Sequence[tuple[str, str]] = (),
    quick: bool = False,
    seed: int = 0,
    deadline_seconds: float = DEADLINE_SECONDS,
) -> None:
    """Run checks: those called so or of groups called so, or all. Another `seed` makes up other calls.
    `options`: what the engine is started with. Raises `Fault` for an unknown name."""
    plan = {
        "folder": str(engine.folder),
        "packaged": [asdict(each) for each in engine_packages.libraries()],
        "model": None if model is None else str(model.resolve()),
        "checks": list(names),
        "options": list(options),
        "quick": quick,
        "seed": seed,
        "deadline_seconds": deadline_seconds,
    }
    child = worker.command(_core.__file__, "run_check")
    _core.check_engine(json.dumps(plan), child, lambda text: progress(_outcome(json.loads(text))))


def claim(engine: Engine, outcomes: Sequence[Outcome]) -> str | None:
    """Write into the manifest what the engine may say of itself after these outcomes of all checks: the level
    that it keeps, which is given back. Where it breaks a must, what it said is taken out."""
    failed = {one.level for one in outcomes if one.status == "failed"}
    level = None if "must" in failed else "must" if failed else "should"
    if level is None:
        retract(engine)
    else:
        today = time.strftime("%Y-%m-%d", time.gmtime())
        said = {"version": llm_node.__version__, "date": today, "level": level}
        _core.engine_claims(engine.folder, json.dumps(said))
    return level


def retract(engine: Engine) -> None:
    """Take out what the manifest says of checks: the library is another one now."""
    _core.engine_claims(engine.folder, None)


def _outcome(told: dict[str, Any]) -> Outcome:
    return Outcome(
        name=told["name"],
        level=told["level"],
        status=told["status"],
        seconds=told["seconds"],
        contract=told["contract"],
        line=told["line"],
        seen=told["seen"],
        mend=told["mend"],
        script=tuple(told["script"]),
    )
