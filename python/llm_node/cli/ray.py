"""`llm-node ray`: for those who run nodes on Ray Serve."""

from __future__ import annotations

import importlib.util

import click

from llm_node.cli import table
from llm_node.cli.failure import Failed


@click.group()
def ray() -> None:
    """Nodes on Ray Serve."""


@ray.command()
def targets() -> None:
    """Print each node's own address, as a list for Prometheus (`file_sd`).

    To be run on a machine of the cluster, by the user whose Ray it is.
    """
    if importlib.util.find_spec("ray") is None:
        raise Failed("Ray is not installed: pip install 'llm-node[ray]'")
    from llm_node.ray import targets as found

    try:
        table.show_json(found.targets())
    except found.NoTargetsError as error:
        raise Failed(str(error)) from None
