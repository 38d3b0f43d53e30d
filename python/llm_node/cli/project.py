"""`llm-node engine new` and `build`: from nothing to an engine that answers."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

import llm_node
from llm_node import conformance
from llm_node.cli import check, failure, options, renewal

if TYPE_CHECKING:
    from llm_node.settings import Settings

PACKAGE = Path(llm_node.__file__).parent
TEMPLATES = PACKAGE / "templates"
SUFFIXES = {"darwin": ".dylib", "win32": ".dll"}
PAUSE_SECONDS = 0.3
"""Between two looks at the sources, with `build --watch`."""
MADE = frozenset({"build", "target", "engines", ".git"})
"""Folders of a project that hold no source."""


@click.command()
@click.argument("name")
@click.option("--lang", type=click.Choice(["c", "cpp", "rust"]), default="c", show_default=True)
@click.option(
    "--level",
    type=click.Choice(["tier0", "batch"]),
    default="batch",
    show_default=True,
    help="tier0: five functions, one prompt at a time. batch: all that the node can do.",
)
def new(name: str, lang: str, level: str) -> None:
    """Make the folder NAME with a small engine called NAME: it answers, and passes every check, as it is."""
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        expected = "an engine's id is of small letters, digits, '.', '_' and '-'"
        raise click.BadParameter(expected, param_hint="NAME")
    target = Path(name)
    if target.exists():
        raise click.ClickException(f"{target} is there already")
    stem = "lib" + re.sub(r"[.-]", "_", name)
    suffix = SUFFIXES.get(sys.platform, ".so")
    words = {
        "@ID@": name,
        "@LIBRARY@": stem.removeprefix("lib"),
        "@STEM@": stem,
        "@SUFFIX@": suffix,
        "@BINARY@": stem + suffix,
        "@SDK@": (PACKAGE / "rust/sdk").as_posix(),
    }
    for part in ("every", lang, f"{lang}-{level}"):
        for source in sorted(path for path in (TEMPLATES / part).rglob("*") if path.is_file()):
            file = target / _filled(source.relative_to(TEMPLATES / part).as_posix(), words)
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_filled(source.read_text(encoding="utf-8"), words), encoding="utf-8")
            except OSError as error:
                shutil.rmtree(target, ignore_errors=True)
                raise failure.of_file(file, error) from None
    click.echo(f"{target}/ holds the engine {name}. Next: llm-node engine build {target}", err=True)


def _filled(text: str, words: dict[str, str]) -> str:
    for word, meaning in words.items():
        text = text.replace(word, meaning)
    return text


@click.command()
@click.argument("project", type=click.Path(path_type=Path, exists=True, file_okay=False), default=".")
@click.option(
    "--watch",
    is_flag=True,
    help="Build again after each change, check --quick, and let the node that runs take it. Until Ctrl-C.",
)
@click.pass_context
def build(context: click.Context, project: Path, watch: bool) -> None:
    """Compile the engine in the folder PROJECT, as `engine new` made it, and put it where a node looks.

    A Cargo.toml, a CMakeLists.txt or a Makefile says how. A node that runs takes the new library with the
    next load of a model: the old one is replaced in one go. With --watch it loads its models anew at once,
    where no "must" is broken.
    """
    if watch:
        _watch(project, options.settings(context.find_root().obj))
    elif not _build(project):
        sys.exit(1)


def _watch(project: Path, settings: Settings) -> NoReturn:
    import asyncio

    while True:
        before = _stamp(project)
        if _build(project) and _keeps_every_must(project):
            asyncio.run(renewal.renew(settings, conformance.engine_at(project)))
        _wait_for_change(project, before)


def _build(project: Path) -> bool:
    """Does it compile? What the compiler says goes to stderr."""
    from llm_node.node import NodeError

    try:
        engine = conformance.engine_at(project)
    except NodeError as fault:
        raise click.ClickException(fault.message) from None
    for command in _commands(project):
        try:
            if subprocess.run(command, cwd=project, check=False).returncode != 0:
                return False
        except FileNotFoundError:
            raise click.ClickException(f"{command[0]} is not installed, or not on the PATH") from None
    places = (project / "build", project / "target/release")
    made = next((place for place in places if (place / engine.binary).is_file()), None)
    if made is None:
        raise click.ClickException(f"nothing built {engine.binary}, which the manifest of {engine.id} names")
    # A compiler that wrote into the file itself would write into the memory of a worker that has mapped it.
    fresh = engine.folder / f"{engine.binary}.new"
    conformance.retract(engine)
    shutil.copy(made / engine.binary, fresh)
    fresh.replace(engine.folder / engine.binary)
    click.echo(f"{engine.folder / engine.binary}", err=True)
    return True


def _commands(project: Path) -> Iterator[Sequence[str]]:
    include = PACKAGE / "include"
    if (project / "Cargo.toml").is_file():
        yield ["cargo", "build", "--release", "--quiet"]
    elif (project / "CMakeLists.txt").is_file():
        yield ["cmake", "-S", ".", "-B", "build", "--log-level=WARNING", f"-DENGINE_HEADER={include}"]
        yield ["cmake", "--build", "build"]
    elif (project / "Makefile").is_file():
        yield ["make", "--no-print-directory", f"HEADER={include}"]
    else:
        raise click.ClickException(f"{project} has no Cargo.toml, CMakeLists.txt or Makefile")


def _keeps_every_must(project: Path) -> bool:
    """Checks, and shows what failed."""
    engine = conformance.engine_at(project)
    outcomes = check.run(engine, check.Wanted(quick=True))
    check.show_failed(engine, outcomes)
    return not any(outcome.refuses for outcome in outcomes)


def _wait_for_change(project: Path, before: list[tuple[str, float]]) -> None:
    """Until the sources are others than `before`, and stay so."""
    while (now := _stamp(project)) == before:
        time.sleep(PAUSE_SECONDS)
    while (later := _stamp(project)) != now:  # an editor may write several files
        now = later
        time.sleep(PAUSE_SECONDS)


def _stamp(project: Path) -> list[tuple[str, float]]:
    found = []
    for path in project.rglob("*"):
        if path.is_file() and not MADE & set(path.relative_to(project).parts):
            with contextlib.suppress(FileNotFoundError):  # what an editor had beside it for a moment
                found.append((str(path), path.stat().st_mtime))
    return sorted(found)
