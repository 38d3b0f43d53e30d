"""The command `llm-node`. stdout is data, stderr is talk."""

from __future__ import annotations


def main() -> None:
    """Entry point of the console script."""
    from llm_node.cli.command import command

    command(prog_name="llm-node")
