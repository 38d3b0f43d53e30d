"""`llm-node config`: the settings file, and what the settings come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from llm_node.cli import failure, options, table
from llm_node.settings import BY_NAME, MODELS, RENAMED, Setting, Settings, SettingsError, near, renamed, said


@click.group()
def config() -> None:
    """The settings file: where it is, what is in it, and whether it is right."""


@config.command()
@options.file_options
@click.pass_context
def path(context: click.Context, /) -> None:
    """Print the path of the settings file, whether there is one or not."""
    click.echo(str(_file(context)))


@config.command()
@click.argument("key", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options.file_options
@click.pass_context
def get(context: click.Context, /, key: str | None, as_json: bool) -> None:
    """Print what KEY comes to, or all settings: command line, environment, file and defaults together."""
    settings = options.settings(_given(context))
    names = list(BY_NAME) if key is None else [] if key == MODELS else [_setting(key).name]
    values = {name: _shown(getattr(settings, name)) for name in names}
    of_models = {name: said(model) for name, model in settings.models.items()}
    if key in (None, MODELS):
        values[MODELS] = of_models
    if key is None and settings.api_key is not None:
        values["api_key"] = "(not shown)"  # lists are pasted into reports
    if as_json:
        table.show_json(values)
    elif names and key is not None:
        (value,) = values.values()
        click.echo(_plain(value))
    else:
        rows = [[name, _plain(values[name]).replace("\n", ", ")] for name in names]
        for model, own in of_models.items():
            rows += [[f'{MODELS}."{model}".{name}', _in_a_line(value)] for name, value in own.items()]
        table.show([["SETTING", "VALUE"], *rows])


@config.command("set")
@click.argument("key")
@click.argument("values", nargs=-1, required=True, metavar="VALUE...")
@options.file_options
@click.pass_context
def set_(context: click.Context, /, key: str, values: tuple[str, ...]) -> None:
    """Write a setting into the file. All else in it stays as it is, comments too."""
    file = _file(context)
    write(file, key, values)
    click.echo(f"{file}: {_setting(key).name} is {', '.join(values)}", err=True)


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@options.file_options
@click.pass_context
def check(context: click.Context, /, file: Path | None) -> None:
    """Read the settings as a node would, without starting one; of FILE instead of the usual one."""
    from llm_node.cli import serving

    given = _given(context)
    serving.check(options.settings(given if file is None else {**given, "config": str(file)}))
    read = file or _file(context)
    click.echo(f"{read}: {'fine' if read.exists() else 'not there, so the defaults hold'}", err=True)


def write(file: Path, key: str, values: tuple[str, ...]) -> None:
    """Write one setting into the settings file, which need not be there. Ends the command where the file
    would not be right with it."""
    from llm_node import settings_file

    setting = _setting(key)
    if not setting.in_file:
        raise click.UsageError(f"{setting.name} cannot be in the file; use {setting.flag}")
    if len(values) > 1 and not setting.many:
        raise click.UsageError(f"{setting.name} takes one value")
    try:
        value = list(values) if setting.many else _typed(setting, values[0])
        settings_file.write(file, setting.name, value)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None
    except OSError as error:
        raise failure.of_file(file, error) from None


def _given(context: click.Context) -> dict[str, options.Given]:
    """What stands before the verb."""
    given: dict[str, options.Given] = context.find_root().obj
    return given


def _file(context: click.Context) -> Path:
    """The settings file's path, which is known also where the file is wrong."""
    given = _given(context)
    named = {name: (value,) for name in ("home", "config") if isinstance(value := given.get(name), str)}
    try:
        return Settings.file(named)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


def _setting(key: str) -> Setting:
    """By its name in the file or by its flag."""
    name = key.removeprefix("--").replace("-", "_")
    if name in RENAMED:
        raise click.UsageError(renamed(name, key, lambda other: other))
    if name.partition(".")[0] == MODELS:
        raise click.UsageError(
            f'settings of one model stand in a table of the file, [{MODELS}."NAME"]: write it there; '
            f"`llm-node config path` says where the file is, `llm-node config get {MODELS}` what is in it"
        )
    if name not in BY_NAME:
        raise click.UsageError(f"unknown setting {key!r}{near(name, BY_NAME)}")
    return BY_NAME[name]


def _typed(setting: Setting, text: str) -> Any:
    """As TOML has it: a switch, a number, or else the text."""
    try:
        value = setting.parse(text)
    except ValueError as error:
        raise click.UsageError(f"{setting.name}: {error}, got {text!r}") from None
    is_plain = isinstance(value, bool) or (isinstance(value, int | float) and str(value) == text)
    return value if is_plain else text


def _shown(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return ["=".join(item) if isinstance(item, tuple) else str(item) for item in value]
    return value


def _in_a_line(value: Any) -> str:
    """Of a model's table, in which a value may be a table too."""
    return _plain(value).replace("\n", ", ")


def _plain(value: Any) -> str:
    """For people, and for a shell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        value = [f"{key}={item}" for key, item in value.items()]
    if isinstance(value, list):
        return "\n".join(value)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
