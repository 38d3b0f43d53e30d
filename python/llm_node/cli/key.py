"""`llm-node key`: keys for those who may use the node."""

from __future__ import annotations

import click

from llm_node.cli import options
from llm_node.cli.failure import Failed


@click.group()
def key() -> None:
    """Keys of the API, in the file of --api-key-file."""


@key.command()
@click.argument("name")
@click.option(
    "--scope",
    type=click.Choice(["inference", "admin"]),
    default="inference",
    show_default=True,
    help="What it is good for: asking models, or everything.",
)
@options.settings_options
@click.pass_context
def new(context: click.Context, /, name: str, scope: str, **given: options.Given) -> None:
    """Make a key for NAME and print it. The file keeps its hash alone, so this is the one time it is seen.

    The file is --api-key-file, else `keys` in --home. A node that runs takes new keys when it starts anew.
    """
    from llm_node import keys

    settings = options.settings(context.obj, given)
    path = settings.api_key_file or settings.home / "keys"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        secret = keys.add(path, name, keys.Scope(scope))
    except keys.KeysError as error:
        raise Failed(str(error)) from None
    except OSError as error:
        raise Failed(f"{error.filename or path}: {error.strerror}") from None
    click.echo(secret)
    if settings.api_key_file is None:
        click.echo(f"llm-node serve --api-key-file {path}", err=True)
