"""`llm-node engine install`, `list` and `remove`: engines that come as Python packages."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from llm_node.cli import asking, options, table

if TYPE_CHECKING:
    from llm_node.settings import Settings


@click.command()
@click.argument("what", required=False)
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def install(context: click.Context, what: str | None, yes: bool) -> None:
    """Install an engine: a NAME (cpu, cuda, or a package), a wheel, or the folder of a built engine.

    Without one it is what this machine needs. The command that does it depends on how llm-node itself was
    installed: it is shown, and runs once you agree. A folder is copied to where nodes look for engines.
    """
    from llm_node import installation

    settings = options.settings(context.obj)
    if what is not None and Path(what).is_dir():
        _copy(settings, Path(what), yes=yes)
        return
    if what is None:
        what = _needed()
        click.echo(f"This machine needs the engine for {what}.", err=True)
    here = installation.here()
    is_file = what.endswith(".whl") and Path(what).is_file()
    wanted = str(Path(what).absolute()) if is_file else installation.wanted(what)
    _run(here.add(wanted), may_run=here.may_change, yes=yes)
    _tell(settings)


@click.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def listing(as_json: bool) -> None:
    """List the engine packages that are installed. `llm-node engines` tells which engines work."""
    from llm_node import engine_packages

    found = engine_packages.installed()
    if as_json:
        table.show_json({"packages": [{"name": it.name, "version": it.version, "engines": list(it.engines)}
                                      for it in found]})  # fmt: skip
        return
    table.show(
        [["PACKAGE", "VERSION", "ENGINES"], *([it.name, it.version, ", ".join(it.engines)] for it in found)]
    )
    if not found:
        click.echo("No engine package. `llm-node engine install` brings what this machine needs.", err=True)


@click.command()
@click.argument("name")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def remove(name: str, yes: bool) -> None:
    """Remove an engine package, by its name or that of the extra that brought it (cpu, cuda)."""
    from llm_node import engine_packages, installation

    known = {it.name for it in engine_packages.installed()}
    meant = {name, *installation.names(installation.extras().get(name, []))} & known
    if not meant:
        named = ", ".join(sorted(known)) or "none"
        raise click.UsageError(f"{name!r} is no engine package that is installed; there is: {named}")
    here = installation.here()
    for package in sorted(meant):
        _run(here.remove(package), may_run=here.may_change, yes=yes)


def _needed() -> str:
    """The extra for the devices of this machine."""
    from llm_node import devices

    if sys.platform == "darwin":
        return "metal"
    return "cuda" if devices.cuda_gpus() else "cpu"


def _copy(settings: Settings, folder: Path, *, yes: bool) -> None:
    from llm_node import conformance
    from llm_node.node import NodeError

    try:
        engine = conformance.engine_at(folder)
    except NodeError as fault:
        raise click.UsageError(fault.message) from None
    place = settings.engines_dir[0] / engine.id / engine.gpu_backend
    if place.exists() and engine.folder.resolve() == place.resolve():
        raise click.UsageError(f"{folder} is where nodes look for engines already")
    _ask(
        f"Copy {engine.folder} to {place}{', in place of what is there' if place.exists() else ''}?", yes=yes
    )
    fresh = place.with_name(f".{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(engine.folder, fresh)
    # A library that a worker has mapped must not be written into.
    shutil.rmtree(place, ignore_errors=True)
    fresh.replace(place)
    _tell(settings)


def _tell(settings: Settings) -> None:
    """A node that runs looks for engines anew."""
    import asyncio

    from llm_node.cli import failure, remote

    async def look() -> str | None:
        async with remote.if_running(settings) as node:
            if node is None:
                return None
            await node.get("/api/engines", refresh="true")
            return node.url

    try:
        url = asyncio.run(look())
    except remote.RemoteError as error:
        raise failure.of(error) from None
    where = "" if url is None else f"; the node at {url} has looked for it"
    click.echo(f"`llm-node engines` shows whether it works{where}.", err=True)


def _run(command: Sequence[str], *, may_run: bool, yes: bool) -> None:
    """Show it, ask, run it. Ends the command where it fails."""
    from llm_node.cli import failure

    if not may_run:
        click.echo(shlex.join(command))
        raise failure.Failed(
            "this Python is looked after by the system, so nothing was installed: "
            "type the line above in an environment of your own"
        )
    click.echo(f"  {shlex.join(command)}", err=True)
    _ask("Run this?", yes=yes)
    try:
        code = subprocess.run(command, check=False).returncode
    except FileNotFoundError:
        raise failure.Failed(f"{command[0]} is not on the PATH") from None
    if code != 0:
        raise failure.Failed(f"the command has ended with {code}")


def _ask(question: str, *, yes: bool) -> None:
    """Ends the command unless the answer is yes."""
    if not asking.agreed(question, yes=yes, default=True):
        raise click.Abort
