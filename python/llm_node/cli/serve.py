"""`llm-node serve`: the verb for what `llm-node` does without one."""

from __future__ import annotations

import click

from llm_node.cli import options


@click.command()
@options.settings_options
@click.pass_context
def serve(context: click.Context, /, **given: options.Given) -> None:
    """Serve until Ctrl-C, as without a command."""
    from llm_node.cli import serving

    serving.serve(context.obj, given)
