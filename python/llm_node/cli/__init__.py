"""The command `llm-node`. stdout is data, stderr is talk."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script. Ends the process with one of `errors.Exit`."""
    import click

    from llm_node.cli.command import command
    from llm_node.errors import Exit

    try:
        sys.exit(command.main(prog_name="llm-node", standalone_mode=False))
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
