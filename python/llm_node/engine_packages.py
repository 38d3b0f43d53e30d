"""Engines that are installed as Python packages, such as `llm-node-engine-llama-cpu`.

Such a package has an entry point in the group `llm_node.engines`, whose value is the package's name, and a
folder `engines/<id>/<gpu_backend>/` inside. It is found by what is installed: no code of it runs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from pathlib import Path

log = logging.getLogger(__name__)

GROUP = "llm_node.engines"


def folders() -> list[Path]:
    """The folders of engines in the packages that are installed by now, sorted by the packages' names."""
    importlib.invalidate_caches()
    names = {entry.module.partition(".")[0] for entry in importlib.metadata.entry_points(group=GROUP)}
    return [folder for name in sorted(names) if (folder := _folder(name)) is not None]


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
