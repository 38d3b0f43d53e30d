"""The command `llm-node`. stdout is data, stderr is talk."""

from __future__ import annotations

import sys
from collections.abc import Callable


def main(tell: Callable[[str], object] | None = None) -> None:
    """Entry point of the console script. Ends the process with one of `errors.Exit`.

    `tell` is given the sentence as well in which a command says why it failed.
    """
    import os

    import click

    from llm_node.cli.command import command
    from llm_node.cli.failure import Failed
    from llm_node.errors import Exit
    from llm_node.files import FULL

    def run() -> None:
        _open_what_is_closed()
        try:
            sys.exit(command.main(prog_name="llm-node", standalone_mode=False))
        except OSError as error:
            if error.errno not in FULL:
                raise
            # What standard output still holds would fail once more when Python ends.
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), 1)
            raise Failed(f"{error.filename or 'the output'}: {error.strerror}", Exit.NO_ROOM) from None

    try:
        run()
    except click.ClickException as error:
        error.show()
        if tell is not None:
            tell(error.format_message())
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(Exit.INTERRUPTED)
    except Exception as error:
        if tell is not None:
            tell(f"{type(error).__name__}: {error}")
        raise


def _open_what_is_closed() -> None:
    """A command runs on where its input or output was closed (`>&-`): no socket is to get that number."""
    import os

    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            if nowhere != number:
                os.close(nowhere)
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
