"""`llm-node doctor`: what stands in the way of a node on this machine, and what to do about it."""

from __future__ import annotations

import dataclasses
import errno
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from llm_node.cli import greeting, options, table
from llm_node.cli.failure import Failed

if TYPE_CHECKING:
    from llm_node.node import Node
    from llm_node.settings import Settings

Rows = list[dict[str, Any]]
Obstacles = dict[str, tuple[str, str]]
"""Code and message, by the model that cannot be loaded."""
MANY_FILES = 1024
"""Each connection and each worker needs some."""
LIMITS = (
    ("RLIMIT_AS", "-v", "addresses, which the files of models take too"),
    ("RLIMIT_DATA", "-d", "memory for its data"),
)
"""Of a process: the limit, its flag of `ulimit`, and what it bounds."""
INSTALLED_BY = {
    "pip": "pip",
    "uv": "uv",
    "uv-tool": "uv, as a tool",
    "pipx": "pipx",
    "system": "the operating system or by hand",
}
NO_MODELS = (".", "datasets--", "spaces--")
"""Beginnings of what lies in caches beside models."""
SMALL_DISK = 2 << 30
"""Bytes, below which hardly a model can be fetched."""


class OfNode(NamedTuple):
    """What a node says of itself."""

    engines: Rows
    models: Rows
    obstacles: Obstacles
    backend: str | None
    devices: Rows


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str
    """`ok`, `warn`, or `fail`: no model could be loaded, or the hub that was asked for is of no use."""
    message: str
    nameless: str | None = None
    """The same for an issue, where the message says what is of the user's own."""


@click.command()
@click.option("--online", is_flag=True, help="Also ask the Hugging Face hub, and whether it takes the token.")
@click.option("--report", is_flag=True, help="Print a text for an issue, without names of models or users.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.settings_options
@click.pass_context
def doctor(
    context: click.Context, /, online: bool, report: bool, as_json: bool, **given: options.Given
) -> None:
    """Look for what stands in the way of a node here: settings, devices, memory, engines, models, disk.

    Of a node that runs, its engines and its models are looked at; without one those of the folders are, and
    none is started. Ends with 1 where something has to be done.
    """
    import asyncio

    if report and as_json:
        raise click.UsageError("--report is a text: it does not go with --json")
    settings, wrong_file = options.with_or_without_file(context.obj, given)
    seen = []
    if wrong_file is not None:
        words = "the settings file is left out here"
        seen.append(Finding("fail", f"{words}: {wrong_file}", f"{words}: something in it is wrong"))
    try:
        found = asyncio.run(_of_running(settings, options.of_a_node(context.obj, given)))
    except Failed as error:
        found = None
        reason = _in_one_line(error.message)
        seen.append(Finding("fail", f"{reason}; this machine is looked at in its place"))
    if found is None:
        seen += [*_settings(settings), *_devices(settings), *_memory(), *_engines_and_models(settings)]
    else:
        url, running = found
        of_node = dataclasses.replace(settings, gpu_backend=running.backend or settings.gpu_backend)
        seen.append(Finding("ok", f"a node runs at {url}: its engines and models are looked at"))
        seen += [*_devices(of_node), *_memory(), *_judged(running)]
    rest = [*_packages(settings), *_caches(settings), *_disk(settings), *_files()]
    if online:
        rest.append(asyncio.run(_hub(settings)))
    findings = list(dict.fromkeys([*seen, *rest]))
    if as_json:
        shown = [{"level": finding.level, "message": finding.message} for finding in findings]
        table.show_json({"findings": shown})
    elif report:
        from llm_node.cli import report as reporting

        click.echo(reporting.text(settings, findings))
    else:
        for finding in findings:
            click.echo(f"{finding.level:<5} {finding.message}")
    context.exit(int(any(finding.level == "fail" for finding in findings)))


def _settings(settings: Settings) -> Iterator[Finding]:
    """What a node would not start with."""
    from llm_node.cli import serving

    try:
        serving.check(settings)
    except click.ClickException as error:
        yield Finding("fail", error.message)


def _devices(settings: Settings) -> Iterator[Finding]:
    from llm_node import devices

    gpus = devices.nvidia_gpus()
    try:
        backend = devices.resolve_backend(settings.gpu_backend)
    except devices.NoGpuError as error:
        yield Finding("fail", str(error))
        return
    for gpu in gpus:
        driver = f"driver {gpu.driver}, {devices.about_driver(gpu.gpu)}"
        yield _gpu(dataclasses.asdict(gpu), driver)
    if backend == "cpu" and gpus:
        yield Finding("warn", "models run on the CPU though there is a GPU: choose --gpu-backend cuda for it")
    else:
        yield Finding("ok", f"models run on {backend}")


def _gpu(row: Mapping[str, Any], more: str) -> Finding:
    """One that is there, with what is to be said of it beside its memory."""
    memory = f"{table.size(row['total_bytes'])}, {table.size(row['free_bytes'])} free"
    if row["kind"] == "unified":
        memory = "its memory is the host's"
    return Finding("ok", f"GPU {row['index']} {row['name']}: {memory}; {more}")


def _memory() -> Iterator[Finding]:
    from llm_node import devices

    host = devices.host()
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    ours, free = table.size(host.total_bytes), table.size(host.free_bytes)
    if host.total_bytes < machine - machine // 100:
        yield Finding(
            "warn",
            f"this container may use {ours} of the machine's {table.size(machine)}, {free} free: raise its "
            "limit of memory if models need more",
        )
    else:
        yield Finding("ok", f"memory: {ours}, {free} free")
    for name, flag, what in LIMITS:
        if (limit := _limit(name)) is not None and limit < host.total_bytes:
            words = f"a process may have {table.size(limit)} of {what}"
            yield Finding("warn", f"{words}: raise it (ulimit {flag} unlimited)")


def _limit(name: str) -> int | None:
    """Of the processes that are started here, in bytes; None: there is none."""
    try:
        import resource
    except ImportError:  # Windows has no such limits
        return None
    soft, _ = resource.getrlimit(getattr(resource, name))
    return None if soft == resource.RLIM_INFINITY else soft


def _engines_and_models(settings: Settings) -> Iterator[Finding]:
    from llm_node.cli import own_node

    try:
        own = own_node.look_up(settings, _all)
    except click.ClickException as error:
        yield Finding("fail", error.message)
        return
    yield from _judged(own)


def _judged(node: OfNode) -> Iterator[Finding]:
    engines, models, obstacles, backend, rows = node
    yield from _told_gpus(backend, rows)
    for engine in engines:
        name = f"engine {engine['id']} for {engine['gpu_backend']}"
        if engine["status"] == "loaded":
            yield Finding("ok", f"{name}: version {engine['version']}")
        else:
            level = "fail" if engine["gpu_backend"] == backend else "warn"
            yield Finding(level, f"{name}: {_in_one_line(engine['error']['message'])}")
    if not engines:
        yield Finding("fail", greeting.NO_ENGINE)
    elif backend is not None and (reason := greeting.wrong_backend(engines, backend)):
        yield Finding("fail", reason)
    for model, (code, message) in obstacles.items():
        yield Finding("warn", f"model {model}: {_in_one_line(message)}", f"a model: {code}")
    count = len(models) - len(obstacles)
    if count:
        models_can = "model can" if count == 1 else "models can"
        yield Finding("ok", f"{count} {models_can} be loaded: see `llm-node list`")
    elif not models:
        yield Finding("warn", "no model can be loaded: `llm-node pull ORG/REPO` fetches one")
    else:
        yield Finding("warn", "no model can be loaded: what is wrong with each stands above")


async def _of_running(settings: Settings, unheeded: Sequence[str]) -> tuple[str, OfNode] | None:
    """The URL of the node that runs, and what it says; None: none runs."""
    from llm_node.cli import failure, remote

    try:
        async with remote.if_running(settings, unheeded) as node:
            if node is None:
                return None
            engines = (await node.get("/api/engines"))["engines"]
            models = (await node.get("/api/models"))["models"]
            system = await node.get("/api/system")
            errors = ((model["model_id"], model.get("error")) for model in models)
            obstacles = {name: (error["code"], error["message"]) for name, error in errors if error}
            return node.url, OfNode(engines, models, obstacles, system["gpu_backend"], system["devices"])
    except remote.RemoteError as error:
        raise failure.of(error) from None


async def _all(node: Node) -> OfNode:
    engines, models, obstacles = await node.engines(), await node.models(), await node.obstacles()
    system = await node.system(fresh=True)
    return OfNode(engines, models, obstacles, node.gpu_backend, system["devices"])


def _told_gpus(backend: str | None, rows: Rows) -> Iterator[Finding]:
    """Those of which an engine tells, because NVML does not know them."""
    from llm_node import devices

    if backend in (None, "cpu") or devices.nvidia_gpus():
        return
    gpus = [row for row in rows if row["kind"] != "host"]
    for gpu in gpus:
        yield _gpu(gpu, "an engine tells of it")
    if not gpus:
        words = f"no engine tells of a GPU for {backend}, so models count on the host's memory"
        yield Finding("warn", f"{words}: see whether the GPU's driver is installed")


def _packages(settings: Settings) -> Iterator[Finding]:
    """How llm-node was installed, and the packages of engines beside it."""
    from llm_node import engine_packages, installation

    here = installation.here()
    yield Finding("ok", f"installed by {INSTALLED_BY[here.kind]}, for {here.python}")
    if not settings.engine_packages:
        return
    for package in engine_packages.installed():
        yield Finding("ok", f"package {package.name} {package.version}: {', '.join(package.engines)}")
    for libraries in engine_packages.libraries():
        if not libraries.files:
            words = f"{libraries.requirement} is not installed, and a package of engines asks for it"
            yield Finding("warn", f"{words}: {shlex.join(here.add(libraries.requirement))}")


def _caches(settings: Settings) -> Iterator[Finding]:
    """The folders of other programs that are there. What cannot be read in them is passed over otherwise."""
    for program, folder in settings.cache_folders():
        unread = _unread(folder)
        if not unread:
            if folder.is_dir():
                yield Finding("ok", f"models of {program} are looked for in {folder}")
            continue
        (place, reason), *more = unread
        also = f", nor is what lies in {len(more)} more places" if more else ""
        words = f"models of {program} in {place} are not seen: {reason}{also}"
        yield Finding(
            "warn",
            f"{words}; let this user read there, or --caches without {program} leaves it alone",
            f"models of {program} in {len(unread)} places are not seen: {reason}",
        )


def _unread(cache: Path) -> list[tuple[str, str]]:
    """Folders and files of a cache that cannot be read, each with the reason."""
    found: list[tuple[str, str]] = []

    def refused(error: OSError) -> None:
        if not isinstance(error, (FileNotFoundError, NotADirectoryError)):
            found.append((str(error.filename), error.strerror or str(error)))

    for place, folders, names in os.walk(cache, onerror=refused):
        folders[:] = sorted(it for it in folders if not it.startswith(NO_MODELS))
        paths = (os.path.join(place, name) for name in sorted(names) if not name.startswith(NO_MODELS))
        # Whether a link leads to something is seen where that lies.
        closed = (path for path in paths if not os.path.islink(path) and not os.access(path, os.R_OK))
        found += [(path, os.strerror(errno.EACCES)) for path in closed]
    return found


async def _hub(settings: Settings) -> Finding:
    """Does the hub answer here, and does it take the token?"""
    from llm_node.node import NodeError
    from llm_node.pull.hub import Hub

    if settings.offline:
        return Finding("warn", "the hub is not asked, and nothing is fetched: --offline yes")
    try:
        async with Hub() as hub:
            account = await hub.account()
    except NodeError as fault:
        return Finding("fail", f"the hub is of no use here: {_in_one_line(fault.message)}")
    answers = f"the hub answers at {account.hub}"
    match account.token:
        case "refused":
            what_to_do = "set another HF_TOKEN, or run `hf auth login`"
            return Finding("fail", f"{answers}, and does not know the token: {what_to_do}")
        case "valid":
            return Finding("ok", f"{answers}, and takes the token")
        case "none":
            return Finding("ok", f"{answers}; without a token, which models with terms of their own need")


def _disk(settings: Settings) -> Iterator[Finding]:
    folder = settings.models_dir.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < SMALL_DISK:
        words = "`llm-node rm MODEL` gives some back, or name another folder with --models-dir"
        yield Finding("warn", f"{table.size(free)} are left for models in {settings.models_dir}: {words}")
    else:
        yield Finding("ok", f"{table.size(free)} are left for models in {settings.models_dir}")


def _files() -> Iterator[Finding]:
    from llm_node.server.descriptors import raise_limit

    limit = raise_limit()
    if limit < MANY_FILES:
        yield Finding("warn", f"only {limit} files and connections may be open at once: raise it (ulimit -n)")
    else:
        yield Finding("ok", f"{limit} files may be open at once")


def _in_one_line(text: str) -> str:
    return " ".join(text.split())
