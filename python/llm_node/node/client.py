"""Where what a client's requests bring goes to: to a connection as bytes, to a receiver as events, or into a
`Generation` that can be waited for. Decides nothing of when; that is `node.py`'s.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from llm_node._core import Event, Fault, Supervisor

NodeError = Fault
"""The one exception for anything a client or an engine did wrong: `code`, `message`, `param`, `details`."""

Template = tuple[list[tuple[bytes, str]], bytes]
"""Bytes, each with the name of the hole behind it; and the bytes behind the last hole."""

PartTemplates = tuple[Template | None, Template | None, Template | None, Template | None]
"""Where a block begins, for each piece, where it ends, and where it is cut off."""

Frames = tuple[
    PartTemplates | None,
    PartTemplates | None,
    PartTemplates | None,
    list[PartTemplates],
    dict[str, tuple[int, str]],
    str | None,
    bool,
    bool,
    int,
]
"""Of text, of reasoning, of calls' inputs; further ones of inputs, and the tools whose calls are written by
these, each with which one and the name that is told; the pattern of log-probabilities
(`rust/node/src/pattern.rs`); whether HTTP's chunked coding goes around what is written at once; whether the
blocks are wanted once more at the end; and the first number."""


class Receiver(Protocol):
    """Takes what happens to one client's requests, in the loop's own turn: nothing in it may wait."""

    def event(self, index: int, event: Event) -> None:
        """Something happened to request number `index`. Raising ends all of them."""

    def end(self, error: Exception | None, number: int = 0) -> None:
        """The last call: each request has had its ending, or one of them has failed. `number`: behind those
        of all frames that were written of the one that has."""


class Connection(Protocol):
    """Takes the text of one client's requests as bytes that are ready to be sent."""

    def pass_on(self, data: bytes) -> None:
        """Send it behind what was sent before."""

    def overflow(self) -> None:
        """More waits for it than may: its text is dropped from here on."""

    def socket(self) -> int | None:
        """The number of its socket, if all that was passed on is with the kernel: the next text may then be
        written there past the connection. None while something waits, or where bytes go another way."""


def tokens_lacking(fault: NodeError) -> int | None:
    """How many tokens a request needs that was too long for its model's context. The model may have given up
    a part of that for others. None: that is not what is wrong."""
    prompt = (fault.details or {}).get("prompt_tokens")
    return prompt + 1 if fault.code == "context_length_exceeded" and isinstance(prompt, int) else None


def with_longest(fault: NodeError, longest: int) -> NodeError:
    """The fault of a request that was too long for its model's context, with the longest one that the model
    could be loaded with here."""
    details = fault.details or {}
    has, needs = details.get("context_length"), tokens_lacking(fault)
    if not isinstance(has, int) or needs is None:
        return fault
    # It is loaded with that.
    longest = max(longest, has)
    advice = ""
    if needs <= longest:
        advice = (
            f" Load the model with a larger context_length: there is room here for up to {longest} tokens."
        )
    elif has < longest:
        advice = f" No context_length beyond {longest} tokens is possible here."
    more = {**details, "largest_context": longest}
    return NodeError(fault.code, fault.message + advice, fault.param, more)


def may_pass(fault: NodeError) -> bool:
    """May a request be served that has failed so, and of which nothing else has come, where it is run again?
    Not where its engine has died of it alone."""
    if fault.code == "engine_crashed":
        return "crashes" not in (fault.details or {})
    return tokens_lacking(fault) is not None


class Client:
    """One client's requests under way, and where what they bring goes to."""

    def __init__(
        self,
        core: Supervisor,
        number: int,
        receiver: Receiver,
        connection: Connection | None,
        run_again: Callable[[int, NodeError], None],
    ) -> None:
        """`run_again`: takes the request of an index, which has failed so, out of `returned` into `streams`,
        or ends the client."""
        self._core = core
        self.number = number
        self.streams: dict[int, int] = {}
        """Stream to index of its request, of those that have not ended."""
        self._run_again = run_again
        self.returned: set[int] = set()
        """Requests that no worker has: nothing came of them but a fault that may pass."""
        self._tried: set[int] = set()
        """Those that are not run again: something came of them, or they have been run again."""
        self._receiver = receiver
        self._connection = connection
        self.has_ended = False

    def hold(self, unsent: int) -> int:
        """So many bytes wait in its connection's buffer, or will in a moment: collect its text, and count it
        with them. Gives how often text was written past the connection."""
        return self._core.hold(self.number, unsent)

    def release(self) -> None:
        """Its connection has sent everything: what was collected comes as one piece, and the next ones
        as they happen, past the connection where it has a socket."""
        if self._connection is not None and not self.has_ended:
            self._core.release(self.number, self._connection.socket())

    def catch_up(self) -> None:
        """All that came for it is passed on. If it is sent as well, the next text need not come this way."""
        if self._connection is not None and self._connection.socket() is not None:
            self.release()

    def disconnect(self) -> None:
        """Nothing more is written past its connection."""
        self._core.disconnect(self.number)

    def cancel(self, stream: int) -> None:
        """Nobody waits for this stream any more."""
        self._core.cancel(stream)

    def take(self, item: bytes | Event | None) -> None:
        """Called by the node for whatever comes."""
        try:
            if self.has_ended:
                return
            if isinstance(item, Event):
                self._event(item)
            elif self._connection is None:
                return  # nobody asked for bytes
            elif item is None:
                self._connection.overflow()
            else:
                self._connection.pass_on(item)
        except Exception as error:  # one client's defect is no other client's
            self.end(error)

    def _event(self, event: Event) -> None:
        if event.kind in ("finished", "failed"):
            index = self.streams.pop(event.stream)
        else:
            index = self.streams[event.stream]
            self._tried.add(index)
        if event.kind == "failed":
            fault = event.fault or NodeError("internal", "a request failed without a reason")
            if not may_pass(fault) or index in self._tried:
                self.end(fault, event.number)
                return
            self._tried.add(index)
            self.returned.add(index)
            self._run_again(index, fault)
            return
        self._receiver.event(index, event)
        if not self.streams and not self.returned:
            self.end(None)

    def end(self, error: Exception | None, number: int = 0) -> None:
        """Nothing more goes to the client. `number`: see `Receiver.end`."""
        if not self.has_ended:
            self.has_ended = True
            self._receiver.end(error, number)


class Generation:
    """One client's answers, for who wants to wait for them: the events of its requests, in order.

    Iterating gives lists of `(index of the request, event)`: everything that has happened since the
    last one, so that a slow reader gets fewer and larger lists. A request that fails ends all of them
    with its error. Made by `Node.open`.
    """

    def __init__(self) -> None:
        self._events: deque[tuple[int, Event]] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    def event(self, index: int, event: Event) -> None:
        """See `Receiver`."""
        self._events.append((index, event))
        self._wake()

    def end(self, error: Exception | None, number: int = 0) -> None:
        """See `Receiver`."""
        self._ended = True
        self._error = error
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[tuple[int, Event]]:
        while not self._events:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        batch = list(self._events)
        self._events.clear()
        return batch
