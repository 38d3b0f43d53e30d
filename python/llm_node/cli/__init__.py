"""The command `llm-node`. stdout is data, stderr is talk."""

from __future__ import annotations

import sys
from collections.abc import Callable


def main(tell: Callable[[str], object] | None = None) -> None:
    """Entry point of the console script. Ends the process with one of `errors.Exit`.

    `tell` is given the sentence as well in which a command says why it failed.
    """
    import errno
    import os

    import click

    from llm_node.cli.command import command
    from llm_node.cli.failure import Failed
    from llm_node.errors import Exit

    def run() -> None:
        try:
            sys.exit(command.main(prog_name="llm-node", standalone_mode=False))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
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
