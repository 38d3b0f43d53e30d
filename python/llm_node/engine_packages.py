"""Engines that are installed as Python packages, such as `llm-node-engine-llama-cpu`.

Such a package has an entry point in the group `llm_node.engines`, whose value is the package's name, and a
folder `engines/<id>/<gpu_backend>/` inside. It is found by what is installed: no code of it runs. Libraries
that its engine needs come as packages that it depends on (`nvidia-cublas`), and are found alike.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

GROUP = "llm_node.engines"
_REQUIREMENT = re.compile(r"\s*([\w.-]+)\s*(?:\[[^\]]*\])?\s*([^;]*)")
_LIBRARY = re.compile(r"\.(so(\.\d+)*|dll|dylib)$")


@dataclass(frozen=True)
class Package:
    """A package with engines."""

    name: str
    """Of its distribution."""
    version: str
    engines: Sequence[str]
    """Of each `<id>/<gpu_backend>`."""


@dataclass(frozen=True)
class Libraries:
    """A distribution that some package of engines depends on."""

    name: str
    requirement: str
    """As that package says it: `nvidia-cublas>=13,<14`."""
    files: Sequence[str]
    """Its shared libraries, with their paths; none where it is not installed."""


def folders() -> list[Path]:
    """The folders of engines in the packages that are installed by now, sorted by the packages' names."""
    importlib.invalidate_caches()
    names = {entry.module.partition(".")[0] for entry in _entries()}
    return [folder for name in sorted(names) if (folder := _folder(name)) is not None]


def installed() -> list[Package]:
    """The packages with engines, sorted by name."""
    importlib.invalidate_caches()
    found = {}
    for entry in _entries():
        folder = _folder(entry.module.partition(".")[0])
        if entry.dist is None or folder is None:
            continue
        engines = [
            f"{place.parent.name}/{place.name}" for place in sorted(folder.glob("*/*")) if place.is_dir()
        ]
        found[entry.dist.name] = Package(entry.dist.name, entry.dist.version, engines)
    return [found[name] for name in sorted(found)]


def of(engine: Path) -> str | None:
    """The package that brought the engine in this folder; None: it lies elsewhere."""
    for entry in _entries():
        folder = _folder(entry.module.partition(".")[0])
        if entry.dist is not None and folder is not None and engine.is_relative_to(folder):
            return entry.dist.name
    return None


def libraries() -> list[Libraries]:
    """What the packages with engines depend on, whatever the layout of it is."""
    wanted: dict[str, str] = {}
    for entry in _entries():
        for line in (entry.dist.requires if entry.dist is not None else None) or ():
            if "extra ==" not in line and (match := _REQUIREMENT.match(line)):
                wanted.setdefault(match[1], f"{match[1]}{match[2].strip()}")
    return [Libraries(name, said, _shared(name)) for name, said in sorted(wanted.items())]


def _entries() -> Iterable[importlib.metadata.EntryPoint]:
    return importlib.metadata.entry_points(group=GROUP)


def _shared(distribution: str) -> list[str]:
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []
    return sorted(str(file.locate()) for file in files if _LIBRARY.search(file.name))


def _folder(package: str) -> Path | None:
    # Of a top-level name, this looks for the package and brings nothing in.
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError) as error:
        log.warning("the engine package %s is of no use: %s", package, error)
        return None
    places = [] if found is None else list(found.submodule_search_locations or [])
    for place in places:
        folder = Path(place) / "engines"
        if folder.is_dir():
            return folder
    log.warning("the engine package %s holds no folder of engines", package)
    return None
