"""The supervisor without HTTP, with real worker processes and toy engines that misbehave on demand."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from llm_node import _core, worker
from llm_node._core import Event, Fault, Supervisor
from llm_node.settings import Settings
from support.engines import fake_engine
from support.node import alive, children_of

CLIENT = 7
SECONDS = 60.0
"""Longest that anything here may take. Nothing is expected to; it only ends a test that hangs."""


class House:
    """One supervisor over a folder of its own, and what its tests ask of it. Any thread may wait for its
    tickets; one takes what has come for all."""

    def __init__(self, root: Path, **settings: Any) -> None:
        self.engines, self.models = root / "engines", root / "models"
        self.models.mkdir(parents=True, exist_ok=True)
        usual = Settings(home=root, engines_dir=(self.engines,), models_dir=self.models, caches=())
        configuration = {
            **usual.node_config(),
            "home": None,
            "packaged": [],
            "devices": [],
            "gpu_backend": "cpu",
            "worker_command": worker.command(_core.__file__),
            "probe_timeout_seconds": 20,
            "load_timeout_seconds": 60,
            "start_timeout_seconds": 60,
            "queue_limit": 64,
            **settings,
        }
        self.core = Supervisor(json.dumps(configuration))
        self._wakening = socket.socket(fileno=self.core.wake_socket())
        self._changed = threading.Condition()
        self._events: dict[int, list[Event]] = {}
        self._outcomes: dict[int, str | Fault] = {}
        self._taker = threading.Thread(target=self._take, daemon=True)
        self._taker.start()

    def _take(self) -> None:
        while self._wakening.recv(64):
            items, outcomes = self.core.drain()
            with self._changed:
                for client, event in items:
                    assert client == CLIENT
                    assert isinstance(event, Event)
                    self._events.setdefault(event.stream, []).append(event)
                self._outcomes.update(outcomes)
                self._changed.notify_all()

    def _wait(self, done: Callable[[], bool], seconds: float) -> None:
        with self._changed:
            assert self._changed.wait_for(done, seconds), f"nothing came: {self._events} {self._outcomes}"

    def outcome(self, ticket: int, seconds: float = SECONDS) -> Any:
        """What comes of a ticket; raises where that is an error."""
        self._wait(lambda: ticket in self._outcomes, seconds)
        outcome = self._outcomes[ticket]
        if isinstance(outcome, Fault):
            raise outcome
        return json.loads(outcome)

    def add(self, name: str, *, size: int = 4, **defines: Any) -> str:
        """A model NAME that only the fake engine of that name reads."""
        fake_engine(self.engines, name, defines=defines, manifest={"formats": [name]})
        (self.models / f"{name}.{name}").write_bytes(b"TOY1".ljust(size, b"\0"))
        return name

    def begin_load(self, model_id: str, **more: Any) -> int:
        return self.core.load(json.dumps({"model_id": model_id, **more}))

    def load(self, model_id: str, **more: Any) -> dict[str, Any]:
        loaded: dict[str, Any] = self.outcome(self.begin_load(model_id, **more))
        return loaded

    def unload(self, model_id: str, seconds: float) -> None:
        self.outcome(self.core.unload(model_id, seconds))

    def fault(self, call: Callable[[], Any]) -> Fault:
        with pytest.raises(Fault) as caught:
            call()
        return caught.value

    def submit(self, model_id: str, *, max_tokens: int = 8, text: str = "Hello") -> int:
        request = {"prompt": {"text": text}, "max_tokens": max_tokens, "ignore_eos": True}
        return self.core.submit(model_id, json.dumps(request), CLIENT)

    def ask(self, model_id: str, **question: Any) -> int:
        return self.core.ask(model_id, json.dumps(question))

    def events(self, streams: set[int], seconds: float = SECONDS) -> dict[int, list[Event]]:
        """All events of these streams, until each has ended."""

        def have_ended() -> bool:
            told = [self._events.get(stream) for stream in streams]
            return all(events and events[-1].kind in ("finished", "failed") for events in told)

        self._wait(have_ended, seconds)
        return {stream: self._events[stream] for stream in streams}

    def fault_of(self, stream: int) -> Fault:
        """The error that a stream ends with."""
        fault = self.events({stream})[stream][-1].fault
        assert fault is not None
        return fault

    def wait_for_token(self, stream: int) -> None:
        def has_one() -> bool:
            return any(event.kind == "piece" for event in self._events.get(stream, []))

        self._wait(has_one, SECONDS)

    def engine_rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.outcome(self.core.engines())
        return rows

    def state(self, model_id: str) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.outcome(self.core.models())
        (row,) = [row for row in rows if row["id"] == model_id]
        return row

    def wait_for_state(self, model_id: str, is_it: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + SECONDS
        while not is_it(state := self.state(model_id)):
            assert time.monotonic() < deadline, state
            time.sleep(0.05)
        return state

    def wait_for_load(self, model_id: str) -> None:
        """Until a load of it is in the engine."""
        self.wait_for_state(model_id, lambda state: "load" in (state.get("stage") or ""))

    def shutdown(self) -> None:
        self.core.shutdown(0)
        self._wakening.shutdown(socket.SHUT_RDWR)
        self._taker.join()
        self._wakening.close()

    def reserved(self) -> int:
        devices = self.outcome(self.core.system())["devices"]
        return sum(device["reserved_bytes"] for device in devices)


@contextmanager
def house_in(root: Path, **settings: Any) -> Iterator[House]:
    """A house that leaves no worker behind."""
    house = House(root, **settings)
    try:
        yield house
    finally:
        house.shutdown()
        assert_childless()


def assert_childless() -> None:
    left = [pid for pid in children_of(os.getpid()) if alive(pid) and b"llm_node/worker.py" in command(pid)]
    assert not left


def command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
