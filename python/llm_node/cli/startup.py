"""What is looked at before a node is made: folders and files that somebody named and that are not what they
take them for. A node without models waits for some; one that was pointed elsewhere would wait for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NoReturn

import click

from llm_node.node import engines_folder_meant
from llm_node.server import layout
from llm_node.settings import Settings


def check(settings: Settings) -> None:
    """Ends the command where a path is wrong, with what to do. Default folders need not be there."""
    if (number := layout.newer(settings.home)) is not None:
        raise click.UsageError(
            f"--home {settings.home}: a newer llm-node has laid it out (layout {number}, and this one knows "
            f"{layout.LAYOUT}); upgrade this one, or name another --home"
        )
    for folder in settings.engines_dir:
        if not _is_folder("--engines-dir", folder, settings.has_default("engines_dir")):
            continue
        meant = engines_folder_meant(str(folder))
        if meant is not None:
            _refuse("--engines-dir", folder, "there are no engines in it", f"name {meant}, which has some")
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key go together: name the certificate, and its key")
    _is_folder("--models-dir", settings.models_dir, settings.has_default("models_dir"))
    if settings.draft_model is not None:
        kind = _kind("--draft-model", settings.draft_model)
        if kind is None:
            what_to_do = "name the file of a smaller model with the same vocabulary, or leave the option out"
            _refuse("--draft-model", settings.draft_model, "no such file", what_to_do)


def _is_folder(flag: str, path: Path, may_be_missing: bool) -> bool:
    """Is it there? Where it is, it is a folder that can be read."""
    kind = _kind(flag, path)
    if kind is None:
        if not may_be_missing:
            _refuse(flag, path, "no such folder", "make it, or name another")
        return False
    if not stat.S_ISDIR(kind):
        _refuse(flag, path, "this is a file", f"name a folder, such as {path.absolute().parent}, where it is")
    try:
        with os.scandir(path):
            return True
    except OSError as error:
        _refuse(flag, path, f"cannot be read: {error.strerror}", _RIGHTS)


_RIGHTS = "give the user who runs the node the right to read it, or name another"


def _kind(flag: str, path: Path) -> int | None:
    """The mode of what is there; None: nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        _refuse(flag, path, f"cannot be looked at: {error.strerror}", _RIGHTS)


def _refuse(flag: str, path: Path, what: str, what_to_do: str) -> NoReturn:
    raise click.UsageError(f"{flag} {path}: {what}; {what_to_do}")
