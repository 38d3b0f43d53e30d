"""How a command ends that could not do its work: a sentence on stderr, and the exit code of the table."""

from __future__ import annotations

from collections.abc import Sequence

import click

from llm_node import errors
from llm_node.cli.visible import visible
from llm_node.errors import Exit


class Failed(click.ClickException):
    """Ends the command with this sentence, and with this code."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(visible(message))  # it may quote what somebody else wrote
        self.exit_code = exit_code  # type: ignore[misc]  # which click has for the class


def of(fault: errors.Failure, advice: Sequence[str] = ()) -> Failed:
    """The failure for an error of the table. `advice`: lines behind its message."""
    row = errors.TABLE.get(fault.code, errors.TABLE["internal"])
    return Failed("\n".join([f"{fault.code}: {fault.message}", *advice]), row.exit)
