"""`llm-node`: without a verb it serves."""

from __future__ import annotations

import click

from llm_node.cli import bench, engine, engines, models, options, serve
from llm_node.node import ABI_VERSION, __version__


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@options.settings_options
@click.version_option(__version__, message=f"llm-node %(version)s (engine ABI {ABI_VERSION})")
@click.pass_context
def command(context: click.Context, /, **given: options.Given) -> None:
    """Turn this machine into an LLM inference node: every engine behind one OpenAI-compatible API.

    Without a command it serves, until Ctrl-C. Options stand before or behind a command. Each can also be
    given in the environment or in the settings file; the command line wins, then the environment, then the
    file.
    """
    context.obj = given
    if context.invoked_subcommand is None:
        serve.serve(options.settings(given))


command.add_command(engines.engines)
command.add_command(models.models)
command.add_command(engine.engine)
command.add_command(bench.bench)
