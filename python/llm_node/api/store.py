"""Answers that are kept, to be gone on from or asked for again. In memory: they are gone with the node."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_node.api.conversation import Message, dump

MOST_ANSWERS = 256
MOST_BYTES = 64 << 20
"""Of all that is kept, as JSON."""


@dataclass(frozen=True)
class Kept:
    """An answer, and what it was an answer to."""

    answer: Mapping[str, Any]
    """As it was sent."""
    asked: Sequence[Mapping[str, Any]]
    """What came with the request, each with an id."""
    messages: tuple[Message, ...]
    """The whole conversation, without instructions."""
    context: int
    """Bytes of the messages."""

    @property
    def size(self) -> int:
        """Bytes of all of it."""
        return self.context + len(dump(self.answer)) + len(dump(self.asked))


def size(messages: Sequence[Message]) -> int:
    """Bytes of messages."""
    return sum(len(dump(message.neutral())) for message in messages)


class Store:
    """The answers that were used last. `owner`: whose they are; nobody else sees them."""

    def __init__(self, most_answers: int = MOST_ANSWERS, most_bytes: int = MOST_BYTES) -> None:
        self._most_answers = most_answers
        self._most_bytes = most_bytes
        self._answers: OrderedDict[tuple[str, str], tuple[Kept, int]] = OrderedDict()
        self._bytes = 0

    def put(self, owner: str, name: str, kept: Kept) -> None:
        """Keep an answer. One that is too large for all the room is not kept."""
        self.drop(owner, name)
        size = kept.size
        if size > self._most_bytes:
            return
        self._answers[owner, name] = (kept, size)
        self._bytes += size
        while len(self._answers) > self._most_answers or self._bytes > self._most_bytes:
            _, (_, freed) = self._answers.popitem(last=False)
            self._bytes -= freed

    def get(self, owner: str, name: str) -> Kept | None:
        """An answer, if it is kept."""
        found = self._answers.get((owner, name))
        if found is None:
            return None
        self._answers.move_to_end((owner, name))
        return found[0]

    def drop(self, owner: str, name: str) -> bool:
        """Forget an answer. False: it was not kept."""
        found = self._answers.pop((owner, name), None)
        if found is None:
            return False
        self._bytes -= found[1]
        return True
