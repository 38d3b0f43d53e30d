"""`llm-node`: without a verb it serves.

A verb is brought in when it is asked for, and brings in what it needs when it runs. So the version, the help
and the completion of a word wait for nothing else.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

import click

from llm_node.cli import options
from llm_node.settings import near

VERBS: Mapping[str, str] = {
    "run": "run:run",
    "serve": "serve:serve",
    "engines": "engines:engines",
    "pull": "pull:pull",
    "search": "search:search",
    "list": "models:models",
    "show": "show:show",
    "cp": "cp:cp",
    "rm": "rm:rm",
    "ps": "ps:ps",
    "plan": "plan:plan",
    "stop": "stop:stop",
    "logs": "logs:logs",
    "doctor": "doctor:doctor",
    "config": "config:config",
    "key": "key:key",
    "engine": "engine:engine",
    "bench": "bench:bench",
    "ray": "ray:ray",
    "completion": "completion:completion",
}
"""In the order of the help: a verb, its module in this folder, and its command there."""

FORMER: Mapping[str, str] = {"models": "list"}
"""Names that still work, and are not shown."""


class Verbs(click.Group):
    """A group whose commands are brought in when they are asked for."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Their names, as the help shows them."""
        return list(VERBS)

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is meant, and what is left for it. One that is not there names those like it."""
        if not context.resilient_parsing and self.get_command(context, args[0]) is None:
            raise click.UsageError(f"there is no command {args[0]!r}{near(args[0], VERBS)}", context)
        return super().resolve_command(context, args)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """The command of that name."""
        home = VERBS.get(FORMER.get(name, name))
        if home is None:
            return None
        module, _, attribute = home.partition(":")
        return cast(click.Command, getattr(importlib.import_module(f"llm_node.cli.{module}"), attribute))


def _show_version(context: click.Context, parameter: click.Parameter, given: bool) -> None:
    if given and not context.resilient_parsing:
        from llm_node.version import ABI_VERSION, __version__

        click.echo(f"llm-node {__version__} (engine ABI {ABI_VERSION})")
        context.exit()


@click.group(cls=Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@options.settings_options
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version and exit.",
)
@click.pass_context
def command(context: click.Context, /, **given: options.Given) -> None:
    """Turn this machine into an LLM inference node: every engine behind one OpenAI-compatible API.

    Without a command it serves, until Ctrl-C. Options stand before or behind a command. Each can also be
    given in the environment or in the settings file; the command line wins, then the environment, then the
    file.
    """
    context.obj = given
    if context.invoked_subcommand is None:
        from llm_node.cli import serving

        serving.serve(given)
