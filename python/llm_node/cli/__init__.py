"""The command `llm-node`. stdout is data, stderr is talk."""

from __future__ import annotations

import sys
from collections.abc import Callable


def main(tell: Callable[[str], object] | None = None) -> None:
    """Entry point of the console script. Ends the process with one of `errors.Exit`.

    `tell` is given the sentence as well in which a command says why it failed.
    """
    import click

    from llm_node.cli.command import command
    from llm_node.errors import Exit

    try:
        sys.exit(command.main(prog_name="llm-node", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        if tell is not None:
            tell(error.format_message())
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
