"""Writing the settings file: one thing changes, and all else in it stays as it is, comments too."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_node import files
from llm_node.settings import MODELS, Settings, SettingsError

if TYPE_CHECKING:
    from tomlkit import TOMLDocument

ALIASES, ALIAS = "aliases", "alias"
"""In a model's table, and of the whole file."""
_one_at_a_time = threading.Lock()
"""What is written is made of what stood there."""


def write(file: Path, name: str, value: Any) -> None:
    """One setting, by its name in the file, which need not be there. Raises `SettingsError` where the file
    would not be right, and `OSError` where it cannot be written."""

    def put(document: TOMLDocument) -> None:
        document[name] = value

    _change(file, put)


def add_alias(file: Path, model: str, alias: str) -> None:
    """A further name of a model, in its own table. Whatever had that name before has it no longer. Raises as
    `write` does."""
    import tomlkit

    def put(document: TOMLDocument) -> None:
        models: Any = document.setdefault(MODELS, tomlkit.table(is_super_table=True))
        for name, table in models.items():
            if name != model and alias in table.get(ALIASES, ()):
                table[ALIASES].remove(alias)
        others: Any = document.get(ALIAS)
        if isinstance(others, list):
            for pair in [it for it in others if str(it).partition("=")[0].strip() == alias]:
                others.remove(pair)
        own = models.setdefault(model, tomlkit.table())
        if alias not in own.get(ALIASES, ()):
            own[ALIASES] = [*own.get(ALIASES, ()), alias]

    _change(file, put)


def _change(file: Path, change: Callable[[TOMLDocument], None]) -> None:
    with _one_at_a_time:
        _write_changed(file, change)


def _write_changed(file: Path, change: Callable[[TOMLDocument], None]) -> None:
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        document = tomlkit.parse(files.read_text(file) if file.exists() else "")
        change(document)
        changed = tomlkit.dumps(document)
        if tomlkit.parse(changed).unwrap() != document.unwrap():
            # A table can come before settings of the whole file, which would be the table's then.
            raise ValueError("its tables leave no room for another; write the change into it by hand")
    except (ValueError, AttributeError, TOMLKitError) as error:
        raise SettingsError(f"{file} cannot be changed: {error}") from None
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    mode = stat.S_IMODE(file.stat().st_mode) if file.exists() else 0o600
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh.write_text(changed, encoding="utf-8")
        fresh.chmod(mode)
        Settings.load({"config": (str(fresh),)}, environment={})
        os.replace(fresh, file)
    except SettingsError as error:
        raise SettingsError(str(error).replace(str(fresh), str(file))) from None
    finally:
        fresh.unlink(missing_ok=True)
