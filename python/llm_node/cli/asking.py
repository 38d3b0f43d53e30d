"""Questions that a command asks before it changes something: yes or no, of who sits at a terminal."""

from __future__ import annotations

import sys

import click


def someone_is_there() -> bool:
    """Is there a terminal for the question, and for its answer?"""
    return sys.stdin.isatty() and sys.stderr.isatty()


def check(*, yes: bool) -> None:
    """Ends the command where it is to ask, and nobody is there. `yes`: it need not ask."""
    if not yes and not someone_is_there():
        raise click.UsageError("nobody is here to be asked, so nothing was done; -y says yes")


def agreed(question: str, *, yes: bool, default: bool) -> bool:
    """Is the answer yes? Ends the command as `check` does. `default`: what Enter alone means."""
    check(yes=yes)
    return yes or click.confirm(question, default=default, err=True)
