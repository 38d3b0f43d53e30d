"""`llm-node cp`: a further name for a model."""

from __future__ import annotations

import click

from llm_node.cli import completion, config, options


@click.command()
@click.argument("model", shell_complete=completion.models)
@click.argument("name")
@options.settings_options
@click.pass_context
def cp(context: click.Context, /, model: str, name: str, **given: options.Given) -> None:
    """Give MODEL the further NAME, for clients that insist on one of theirs. No bytes are copied.

    It is written into the settings file as `alias`, and holds from the next start of a node.
    """
    from llm_node.cli import own_node
    from llm_node.settings import Settings

    settings = options.settings(context.obj, given)
    row = own_node.look_up(settings, lambda node: node.model(model))
    aliases = {**dict(settings.alias), name: str(row["model_id"])}
    file = Settings.file({"home": (str(settings.home),)})
    config.write(file, "alias", tuple(f"{alias}={meant}" for alias, meant in aliases.items()))
    click.echo(f"{file}: {name} is {row['model_id']}", err=True)
