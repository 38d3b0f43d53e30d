"""`llm-node engine ...`: for those who write engines."""

from __future__ import annotations

from pathlib import Path

import click

import llm_node

HEADER = "include/engine_api.h"


@click.group()
def engine() -> None:
    """For those who write engines."""


@engine.command()
def header() -> None:
    """Print the path of engine_api.h, the contract: cc -I"$(dirname "$(llm-node engine header)")" ..."""
    path = Path(llm_node.__file__).parent / HEADER
    if not path.is_file():
        raise click.ClickException(f"{path} is missing: this installation is incomplete")
    click.echo(str(path))
