"""`llm-node engine ...`: engines that come as packages, and what those who write engines need."""

from __future__ import annotations

from pathlib import Path

import click

import llm_node
from llm_node.cli import check, engine_packages, project

HEADER = "include/engine_api.h"
SDK = "rust/sdk"


@click.group()
def engine() -> None:
    """Install engines, or write one."""


@engine.command()
def header() -> None:
    """Print the path of engine_api.h, the C header that every engine includes.

    For a compiler: cc -I"$(dirname "$(llm-node engine header)")" ...
    """
    _print_path(HEADER)


@engine.command()
def sdk() -> None:
    """Print the folder of the crate for engines in Rust.

    For a project: cargo add llm-node-sdk --path "$(llm-node engine sdk)"
    """
    _print_path(SDK)


engine.add_command(engine_packages.install)
engine.add_command(engine_packages.listing)
engine.add_command(engine_packages.remove)
engine.add_command(project.new)
engine.add_command(project.build)
engine.add_command(check.check)


def _print_path(name: str) -> None:
    path = Path(llm_node.__file__).parent / name
    if not path.exists():
        raise click.ClickException(f"{path} is missing: this installation is incomplete")
    click.echo(str(path))
