"""How a command ends that could not do its work: a sentence on stderr, and the exit code of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click

from llm_node import errors
from llm_node.cli import fitting
from llm_node.cli.visible import visible
from llm_node.errors import Exit
from llm_node.files import FULL


class Failed(click.ClickException):
    """Ends the command with this sentence, and with this code."""

    def __init__(self, message: str, exit_code: Exit = Exit.FAILED) -> None:
        super().__init__(visible(message))  # it may quote what somebody else wrote
        self.exit_code = exit_code  # type: ignore[misc]  # which click has for the class


NOT_HERE = "`llm-node list` shows the models that are here, and `llm-node search WORDS` finds others"

KEY = "a command sends the key of --api-key, or of the variable LLM_NODE_API_KEY"


def of_file(file: Path, error: OSError) -> Failed:
    """The failure to write a file."""
    code = Exit.NO_ROOM if error.errno in FULL else Exit.FAILED
    return Failed(f"{file} cannot be written: {error.strerror}", code)


def of(fault: errors.Failure, advice: Sequence[str] = ()) -> Failed:
    """The failure for an error of the table. `advice`: lines behind its message."""
    row = errors.TABLE.get(fault.code, errors.TABLE["internal"])
    if fault.code == "model_not_found" and fault.message.endswith("not found"):  # and nothing like it is here
        advice = [*advice, NOT_HERE]
    elif fault.code == "invalid_api_key":
        advice = [*advice, KEY]
    elif offers := (fault.details or {}).get("would_fit"):
        advice = [*advice, f"It would fit {fitting.said(cast('Sequence[Mapping[str, Any]]', offers))}"]
    return Failed("\n".join([f"{fault.code}: {fault.message}", *advice]), row.exit)
