"""The settings as options of a command: made from `settings.py`, so that none is written twice."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from llm_node.settings import (
    ALL,
    BY_NAME,
    RENAMED,
    Settings,
    SettingsError,
    SettingsFileError,
    flag_of,
    renamed,
)

Given = str | tuple[str, ...] | None
"""What click hands over for one setting."""

Command = TypeVar("Command", bound=Callable[..., Any])


def settings_options(function: Command) -> Command:
    """Add an option for each setting, and one for each former name, which says how it is called now."""
    for name in RENAMED:
        function = click.option(flag_of(name), name, hidden=True, expose_value=False, callback=_refuse)(
            function
        )
    for setting in reversed(ALL):
        function = click.option(
            setting.flag,
            setting.name,
            metavar=setting.metavar,
            multiple=setting.many,
            help=f"{setting.help} [{setting.environment}; default: {setting.shown_default}]",
        )(function)
    return function


def file_options(function: Command) -> Command:
    """Add those that say where the settings file is, for what is done to it alone."""
    for name in ("config", "home"):
        setting = BY_NAME[name]
        function = click.option(
            setting.flag, name, metavar=setting.metavar, help=setting.help, expose_value=False, callback=_heed
        )(function)
    return function


def _heed(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    """As if it stood before the command."""
    if value is not None and not context.resilient_parsing:
        context.find_root().obj[parameter.name] = value


def _refuse(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None and parameter.name is not None:
        raise click.UsageError(renamed(parameter.name, flag_of(parameter.name), flag_of))


def settings(*given: dict[str, Given]) -> Settings:
    """The settings, of which the last `given` wins. A wrong one ends the command with its reason."""
    try:
        return read(*given)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


def read(*given: dict[str, Given]) -> Settings:
    """The same for who goes on where they are wrong: raises `SettingsError`."""
    return Settings.load(_texts(given))


def with_or_without_file(*given: dict[str, Given]) -> tuple[Settings, str | None]:
    """The settings for a command that can do without the file. Where that is wrong it is left out, and the
    fault is given as well. All else that is wrong ends the command."""
    try:
        return read(*given), None
    except SettingsFileError as error:
        return Settings.load(_texts(given), reads_file=False), str(error)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


def of_who_asks(*given: dict[str, Given]) -> Settings:
    """The same for who asks the node that runs, whose settings are its own. A fault of the file is said."""
    settings, fault = with_or_without_file(*given)
    if fault is not None:
        click.echo(f"Warning: {fault}. The settings file is left out.", err=True)
    return settings


def _texts(given: Iterable[dict[str, Given]]) -> dict[str, tuple[str, ...]]:
    texts: dict[str, tuple[str, ...]] = {}
    for each in given:
        for name, value in each.items():
            if value:
                texts[name] = (value,) if isinstance(value, str) else value
    return texts


OF_COMMANDS = frozenset({"home", "config", "node", "log_level"})
"""Settings that mean something to a command that talks to a node which runs already."""


def of_a_node(*given: dict[str, Given]) -> list[str]:
    """The flags on the command line that a node which runs already does not heed."""
    named = {name for each in given for name, value in each.items() if value}
    return [setting.flag for setting in ALL if setting.name in named - OF_COMMANDS]
