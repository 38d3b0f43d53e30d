"""A node whose core says that a defect has ended it. That `rust/node/src/supervise/drive.rs` says so where it
panics is tested there. Run as a program this is `llm-node ARGUMENTS`, and the defect comes with SIGUSR1."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

from llm_node import cli
from llm_node._core import Fault, Supervisor
from llm_node.node import node as node_module

WORDS = "a defect has ended this node"


class Defective:
    """The core itself, and one outcome more."""

    last: Defective

    def __init__(self, configuration: str) -> None:
        self._core = Supervisor(configuration)
        self._ticket: int | None = None
        self._has_defect = False
        Defective.last = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._core, name)

    def await_defect(self) -> int:
        self._ticket = self._core.await_defect()
        return self._ticket

    def break_down(self) -> None:
        """From now on it is ended by a defect. The core wakes whoever waits by an outcome of its own."""
        self._has_defect = True
        self._core.system()

    def drain(self) -> Any:
        items, outcomes = self._core.drain()
        if self._has_defect and self._ticket is not None:
            outcomes.append((self._ticket, Fault("internal", WORDS)))
        return items, outcomes


def _break_down(number: int, frame: FrameType | None) -> None:
    Defective.last.break_down()


if __name__ == "__main__":
    setattr(node_module, "Supervisor", Defective)  # noqa: B010  # which types forbid otherwise
    signal.signal(signal.SIGUSR1, _break_down)
    cli.main()
