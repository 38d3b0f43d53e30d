"""`Node`: the supervisor of `rust/node` as asyncio sees it.

Owns the one wake-up per loop turn that spreads what has come to those it is for, and the rule that a
load goes on when its client leaves. Knows nothing of HTTP, and of no API family's words: requests are
those of `rust/core/src/request.rs`, and bytes for a connection pass through as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import json
import logging
import shlex
import socket
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError, to_json

from llm_node import _core, demo, devices, engine_packages, installation, worker
from llm_node._core import Event, Supervisor
from llm_node.node import arguments
from llm_node.node.client import (
    Client,
    Connection,
    Frames,
    Generation,
    NodeError,
    Receiver,
    may_pass,
    tokens_lacking,
    with_longest,
)
from llm_node.settings import Settings
from llm_node.settings_values import LATEST

log = logging.getLogger(__package__)

LACK_OF_MEMORY = ("oom_vram", "oom_ram")

Request = Mapping[str, Any]
"""A request in neutral words; JSON of `rust/core/src/request.rs`."""

START_SECONDS = 30.0
"""How long a worker process may take until it connects: Python starts, nothing else happens."""
PROBE_SECONDS = 10.0
"""How long an engine may take to show itself."""


ATTEMPTS = 3
"""Loads for one request: another model may need the room before it has come to its own."""

T = TypeVar("T")


class _Wakening(asyncio.BufferedProtocol):
    """The reading end of the supervisor's socket. However many bytes are in it, it is one wake-up."""

    def __init__(self, spread: Callable[[], None]) -> None:
        self._spread = spread
        self._buffer = bytearray(64)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._spread()


class Node:
    """One node: its engines, its models, and a worker process for each model that is loaded.

    Use it as `async with Node(...) as node`, or call `start` and `close`. All of it belongs to one
    event loop.
    """

    def __init__(self, settings: Settings | None = None, *, needs_device: bool = True) -> None:
        """
        settings: where none are given, the defaults; neither the environment nor a file is read.
        needs_device: False for one who only lists engines and models. Otherwise `start` raises
            `gpu_not_found` where "auto" finds no GPU.

        Raises `SettingsError` for a chat template whose file cannot be read.
        """
        self._settings = settings or Settings()
        self._config = self._settings.node_config()
        """The part of the core's configuration that is settings."""
        self._needs_device = needs_device
        self._backend: str | None = None

        self.id = uuid.uuid4().hex
        """Tells this node from all others."""
        self._core: Supervisor | None = None
        self._wakening: asyncio.BaseTransport | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_leaving = False
        self._defect: NodeError | None = None
        self._has_defect = asyncio.Event()
        self._listening: asyncio.Task[None] | None = None
        self._devices: list[devices.Device] = []
        self._clients: dict[int, Client] = {}
        self._numbers = itertools.count()
        self._loads: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._tickets: dict[int, asyncio.Future[str]] = {}

    # ---- life ------------------------------------------------------------------------------------

    @property
    def gpu_backend(self) -> str | None:
        """What "auto" came to; None before `start`, and where there is no GPU."""
        return self._backend

    @property
    def is_ready(self) -> bool:
        """Started, and not going down."""
        is_running = self._core is not None and self._closing is None and self._defect is None
        return is_running and not self._is_leaving

    def check_ready(self) -> None:
        """Raises `NodeError` where the node takes no requests: `shutting_down`, or `internal` where a defect
        has ended it."""
        if self._defect is not None and self._closing is None:
            raise self._defect
        if not self.is_ready:
            raise NodeError("shutting_down", "The node is going down")

    async def ended_by_defect(self) -> NodeError:
        """Wait until a defect of its own ends the node, which is for ever as a rule. All that was asked of it
        has failed by then, its workers are gone, and it can only be closed."""
        while self._defect is None:
            await self._has_defect.wait()
        return self._defect

    @property
    def standstill(self) -> str | None:
        """Why a model answers nothing although it is loaded, if there is one."""
        return None if self._core is None else self._core.standstill()

    @property
    def blind_seconds(self) -> int | None:
        """For how many seconds the GPUs have not answered, where they should have."""
        return None if self._core is None else self._core.blind_seconds()

    async def start(self) -> None:
        """Find the devices and start the supervisor, once. Raises `NodeError`: `gpu_not_found`, or
        `shutting_down` once it is closed."""
        self._check_open()
        if self._core is not None:
            raise NodeError("internal", "the node was started before")
        try:
            self._backend = await asyncio.to_thread(devices.resolve_backend, self._settings.gpu_backend)
            await asyncio.to_thread(devices.make_device_files, self._backend)
            self._devices = await asyncio.to_thread(devices.read, self._backend)
        except devices.NoGpuError as error:
            if self._needs_device:
                raise NodeError("gpu_not_found", str(error)) from None
        configuration = json.dumps(self._configuration())
        core = await asyncio.to_thread(Supervisor, configuration)
        if self._closing is not None:
            await asyncio.to_thread(core.shutdown, 0)
        self._check_open()
        self._core = core
        self._wakening, _ = await asyncio.get_running_loop().create_connection(
            lambda: _Wakening(self._spread), sock=socket.socket(fileno=self._core.wake_socket())
        )
        self._listening = asyncio.create_task(self._hear_of_defect(self._core))
        watching = (self._core, self._backend, self._settings.monitor_interval / 1000)
        # A daemon: a driver that never answers must not keep the node from ending.
        threading.Thread(target=_watch_devices, args=watching, name="devices", daemon=True).start()

    async def _hear_of_defect(self, core: Supervisor) -> None:
        try:
            await self._outcome(core.await_defect())
        except NodeError as fault:
            if self._closing is None:
                self._defect = fault
                self._has_defect.set()

    def leave(self) -> None:
        """Say that what comes next is for another node, and take what comes all the same, until `close`."""
        self._is_leaving = True

    async def close(self, drain_seconds: float | None = None) -> None:
        """Refuse what is new, let answers under way end for at most so long, end all workers.

        With 0 seconds this also ends at once a `close` that still waits.
        """
        seconds = self._settings.drain_timeout if drain_seconds is None else drain_seconds
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(seconds))
        elif seconds == 0 and self._core is not None:
            await asyncio.to_thread(self._core.shutdown, 0)
        await asyncio.shield(self._closing)

    async def _close(self, drain_seconds: float) -> None:
        core = self._core
        if core is not None:
            await asyncio.to_thread(core.shutdown, drain_seconds)
            self._spread()
        if self._wakening is not None:
            self._wakening.close()
        for client in list(self._clients.values()):
            client.end(NodeError("shutting_down", "The node is going down"))
        for future in self._tickets.values():
            if not future.done():
                future.set_exception(NodeError("shutting_down", "The node is going down"))

    async def __aenter__(self) -> Node:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close(0 if error else None)

    def _configuration(self) -> dict[str, Any]:
        """JSON of `rust/node/src/config.rs`."""
        return {
            **self._config,
            **self._surroundings(),
            "demo_model": self._demo_model(),
            "gpu_backend": self._backend,
            "devices": [_device(device) for device in self._devices],
            "start_timeout_seconds": START_SECONDS,
            "probe_timeout_seconds": PROBE_SECONDS,
            "worker_command": worker.command(_core.__file__),
        }

    def _demo_model(self) -> str | None:
        path = demo.path()
        return str(path) if self._settings.demo_model and path.is_file() else None

    def _check_open(self) -> None:
        if self._closing is not None:
            raise NodeError("shutting_down", "The node is closed for good: make another `Node`")

    def _running(self) -> Supervisor:
        if self._core is None:
            raise NodeError("internal", "the node was used before it was started")
        if self._closing is not None:
            raise NodeError("shutting_down", "The node is going down")
        if self._defect is not None:
            raise self._defect
        return self._core

    async def reconfigure(self, settings: Settings) -> None:
        """Take over what `Settings.reloaded` does. What is loaded stays as it is, but for how long it stays.

        Where it raises, nothing is changed: `SettingsError`, or `NodeError`.
        """
        core = self._running()
        config = await asyncio.to_thread(settings.node_config)
        taken = {field: config[field] for field in ("defaults", "models", "aliases")}
        text = json.dumps({**await asyncio.to_thread(self._configuration), **taken})
        await asyncio.to_thread(core.reconfigure, text)
        self._settings, self._config = settings, {**self._config, **taken}

    # ---- engines, models, devices ----------------------------------------------------------------

    async def engines(self, *, refresh: bool = False) -> list[dict[str, Any]]:
        """Every candidate with its verdict. Slow the first time: candidates are probed.

        `refresh`: looks at each anew, and for packages that were installed meanwhile.
        """
        core = self._running()
        if refresh:
            core.search_in(json.dumps(await asyncio.to_thread(self._surroundings)))
        engines: list[dict[str, Any]] = await self._outcome(core.engines(refresh))
        for error, place in ((it.get("error"), Path(it["path"])) for it in engines):
            if error and error["code"] == "abi_mismatch" and (package := engine_packages.of(place)):
                error["message"] += f"; {shlex.join(installation.here().update(package))}"
        return engines

    def _surroundings(self) -> dict[str, Any]:
        """Where engines are, and what they find beside them: JSON of
        `rust/node/src/registry/surroundings.rs`, and fields of the configuration."""
        has_packages = self._settings.engine_packages
        folders = engine_packages.folders() if has_packages else []
        libraries = engine_packages.libraries() if has_packages else []
        drivers = (device.driver for device in self._devices if device.driver is not None)
        named: list[str] = self._config["engines_dirs"]
        return {
            "engines_dirs": [*named, *map(str, folders)],
            "packaged": [dataclasses.asdict(each) for each in libraries],
            "cuda_driver": next(drivers, None),
        }

    async def models(self) -> list[dict[str, Any]]:
        """Every model found, with its state."""
        return [_model(row) for row in await self._outcome(self._running().models())]

    async def model(self, name: str) -> dict[str, Any]:
        """The model that is meant by a name, with its state. Raises `NodeError` (`model_not_found`)."""
        return _model(await self._outcome(self._running().model(name)))

    async def alias(self, alias: str, name: str) -> dict[str, Any]:
        """Give the model that is meant by `name` a further name, until the node ends; its row. Raises
        `NodeError` where that is a model's own name already."""
        row = _model(await self._outcome(self._running().alias(alias, name)))
        self._config["aliases"][alias] = row["model_id"]
        return row

    def is_alias(self, name: str) -> bool:
        """Is it a further name that somebody has given a model?"""
        aliases: dict[str, str] = self._config["aliases"]
        return name in aliases or name.removesuffix(LATEST) in aliases

    async def unlisted(self) -> list[dict[str, Any]]:
        """Files that somebody may take for models and that are not listed: `path`, `origin` and `why`."""
        found: list[dict[str, Any]] = await self._outcome(self._running().unlisted())
        return found

    async def chosen(self) -> str:
        """The model for a request that names none: the one that is loaded, else the default model. Raises
        `NodeError` where neither says which."""
        models = await self.models()
        loaded = [str(model["model_id"]) for model in models if model["status"] == "loaded"]
        if len(loaded) == 1:
            return loaded[0]
        if self._settings.default_model is not None:
            return self._settings.default_model
        names = ", ".join(f"'{model['model_id']}'" for model in models)
        state = "several models are loaded" if loaded else "no model is loaded"
        raise NodeError(
            "invalid_request",
            f"No model is named, and {state}: name one of {names or 'those in the models folder'}, or start "
            "the node with --default-model",
            "model",
        )

    async def obstacles(self) -> dict[str, tuple[str, str]]:
        """Code and message for each model that cannot be loaded, with the engines that there are. Slow the
        first time, as `engines` is."""
        found: dict[str, list[str]] = await self._outcome(self._running().obstacles())
        return {model: (code, message) for model, (code, message) in found.items()}

    async def plan(self, path: Path | str, *, context_length: int | None = None) -> dict[str, Any]:
        """What the model in a file would take, by its engine's own estimate: `engine`, and `memory`, the
        bytes on each device for one sequence. The file needs its header and its length, and no weights.
        `path`: absolute."""
        planned: dict[str, Any] = await self._outcome(self._running().plan(str(path), context_length))
        return planned

    async def plan_load(self, model_id: str, **options: Any) -> dict[str, Any]:
        """What `load` would come to: `verdict`, and what it takes beside what there is. Nothing is loaded."""
        request = _load_request(model_id, options)
        planned: dict[str, Any] = await self._outcome(self._running().plan_load(request))
        return {"model_id": model_id, **planned}

    async def load(self, model_id: str, **options: Any) -> dict[str, Any]:
        """Load a model, or join a load under way, and say what it came to.

        `options`: `format`, `engine`, `context_length`, `max_sequences`, `cache_tokens`, `gpu_layers`,
        `threads`, `speculation`, `draft_model` (a name), `tool_syntax`, `chat_template`, `pin`, `keep_alive`
        (seconds), `replicas` (workers, each on GPUs of its own), `devices` (how many GPUs, or a list of their
        numbers or ids), `options` (text to text, for the engine).
        A model that is loaded with a shorter context, or fewer sequences, has them made anew; one with
        another engine or option is loaded anew, and refused while it is being loaded
        (`model_loaded_differently`). The load goes on when the caller is cancelled.
        """
        return await self._load(_load_request(model_id, options))

    async def ensure_ready(self, model_id: str, *, requests: int = 1) -> dict[str, Any]:
        """Load a model with the node's defaults unless it is loaded. One load for all who ask, with so many
        requests.

        A caller that is cancelled stops waiting; the load goes on for the others.
        """
        core = self._running()
        task = self._loads.get(model_id)
        if task is None:
            task = asyncio.ensure_future(self._load_for_requests(model_id))
            self._loads[model_id] = task
            task.add_done_callback(_look_at)
            task.add_done_callback(lambda _: self._loads.pop(model_id, None))
        core.park(model_id, requests)
        try:
            return await asyncio.shield(task)
        finally:
            core.unpark(model_id, requests)

    async def _load_for_requests(self, model_id: str) -> dict[str, Any]:
        # Nobody takes its place before the request has come.
        request = json.dumps({"model_id": model_id, "for_request": True})
        try:
            return await self._load(request)
        except NodeError as fault:
            if fault.code != "shutting_down" or self._closing is not None:
                raise
        # Somebody unloaded it before it was loaded. Those who wait here did not: once more for them.
        return await self._load(request)

    async def _load(self, request: str) -> dict[str, Any]:
        """What a load came to. One that has no room is told what would have some."""
        core = self._running()
        try:
            loaded: dict[str, Any] = await self._outcome(core.load(request))
            return loaded
        except NodeError as fault:
            if fault.code not in LACK_OF_MEMORY:
                raise
            refused = fault
        try:
            planned = await self._outcome(core.plan_load(request))
        except NodeError:
            raise refused from None
        if planned["would_fit"] is None:
            raise refused
        more = {name: planned[name] for name in ("largest_context", "would_fit")}
        raise NodeError(refused.code, refused.message, refused.param, {**(refused.details or {}), **more})

    async def _has_room_for(self, model_id: str, tokens: int) -> bool:
        """Has it a context of so many tokens, or has it got one back?"""
        request = json.dumps({"model_id": model_id, "for_request": True, "tokens": tokens})
        try:
            loaded: dict[str, Any] = await self._outcome(self._running().load(request))
        except NodeError:
            return False
        has: int = loaded["facts"]["context_length"]
        return has >= tokens

    async def _with_longest(self, model_id: str, fault: NodeError) -> NodeError:
        """What is said of a request that was too long. Of a loaded model the node knows it by itself."""
        try:
            longest = (await self.plan_load(model_id))["largest_context"]
        except NodeError:
            return fault
        return fault if longest is None else with_longest(fault, longest)

    async def unload(self, model_id: str, *, timeout_seconds: float = 30.0) -> None:
        """Drain the model's worker for at most so long, end it, wait until it is gone."""
        await self._outcome(self._running().unload(model_id, timeout_seconds))

    async def system(self, *, fresh: bool = False) -> dict[str, Any]:
        """Devices with what is free now, the ledger, versions. GPUs that NVML does not know are not read
        while nothing is loaded: `fresh` has them read, and waits for that."""
        report: dict[str, Any] = await self._outcome(self._running().system(fresh))
        return report

    async def incidents(self) -> list[dict[str, Any]]:
        """What has gone wrong lately, oldest first: failed loads, refusals, crashes."""
        incidents: list[dict[str, Any]] = await self._outcome(self._running().incidents())
        return incidents

    async def meters(self) -> dict[str, dict[str, Any]]:
        """What all requests took so far, by model: endings, tokens, and histograms of times."""
        meters: dict[str, dict[str, Any]] = await self._outcome(self._running().meters())
        return meters

    async def _outcome(self, ticket: int) -> Any:
        """What comes of a ticket. Nothing but this coroutine waits for it."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # What comes is spread by the loop's own thread, so nothing can have come before this line.
        self._tickets[ticket] = future
        try:
            return json.loads(await future)
        finally:
            del self._tickets[ticket]

    # ---- generation ------------------------------------------------------------------------------

    async def ask(self, model_id: str, question: Any) -> Any:
        """Something that is not generation: `Question` of `rust/wire/src/message.rs` in, the value of
        its `Answer` out. Loads the model where it is not loaded."""
        core = self._running()
        text = arguments.as_json(question)

        is_again = False
        while True:
            ticket = await self._once_loaded(model_id, lambda: core.ask(model_id, text))
            try:
                (value,) = (await self._outcome(ticket)).values()
                return value
            except asyncio.CancelledError:
                core.forget(ticket)
                raise
            except NodeError as fault:
                # Its worker died before it had answered: once more, with the next one.
                if not may_pass(fault) or is_again:
                    raise
                is_again = True

    @contextlib.asynccontextmanager
    async def deliver(
        self,
        model_id: str,
        requests: Sequence[Request],
        receiver: Receiver,
        *,
        connection: Connection | None = None,
        frames: Sequence[Frames] | None = None,
        whole: bool = False,
    ) -> AsyncIterator[Client]:
        """Run one client's requests, and give what comes of them to `receiver`. Loads the model where it
        is not loaded.

        With `frames`, one for each request, what stands between `started` and the ending goes to
        `connection` as bytes instead, in order with the events. With `whole`, the last event has all of it as
        blocks. Leaving the block cancels what is unfinished; its sequences are free before the next step.
        """
        tasks: list[asyncio.Task[None]] = []

        async def submit_again(index: int, fault: NodeError) -> None:
            try:
                tokens = tokens_lacking(fault)
                if tokens is not None and not await self._has_room_for(model_id, tokens):
                    raise await self._with_longest(model_id, fault)
                await self._once_loaded(model_id, lambda: submit([index]))
                client.returned.remove(index)
            except Exception as error:
                client.end(error)

        client = Client(
            self._running(),
            next(self._numbers),
            receiver,
            connection,
            lambda index, fault: tasks.append(asyncio.create_task(submit_again(index, fault))),
        )
        submit = functools.partial(self._submit, client, model_id, requests, frames, whole)
        self._clients[client.number] = client
        try:
            await self._once_loaded(
                model_id,
                lambda: submit(range(len(requests))),
                lambda: not client.streams,
                requests=len(requests),
            )
            yield client
        finally:
            for task in tasks:
                task.cancel()
            del self._clients[client.number]
            if client.streams:
                client.disconnect()
            for stream in client.streams:
                client.cancel(stream)

    async def _once_loaded(
        self,
        model_id: str,
        act: Callable[[], T],
        may_repeat: Callable[[], bool] = lambda: True,
        *,
        requests: int = 1,
    ) -> T:
        """What `act` gives, which needs the model to be loaded, for so many requests. It may have to go
        before `act` is done."""
        for _ in range(ATTEMPTS):
            try:
                return act()
            except NodeError as fault:
                if not (_wants_load(fault) and may_repeat()):
                    raise
            await self.ensure_ready(model_id, requests=requests)
        return act()

    def _submit(
        self,
        client: Client,
        model_id: str,
        requests: Sequence[Request],
        frames: Sequence[Frames] | None,
        whole: bool,
        which: Iterable[int],
    ) -> None:
        core = self._running()
        for index in which:
            written = None if frames is None else frames[index]
            try:
                request = to_json(requests[index]).decode()
            except PydanticSerializationError:
                arguments.as_json(requests[index])  # which names the one that JSON cannot say
                raise
            stream = core.submit(model_id, request, client.number, written, whole)
            # What comes is spread by the loop's own thread, so nothing can come before this line.
            client.streams[stream] = index

    @contextlib.asynccontextmanager
    async def open(
        self, model_id: str, requests: Sequence[Request], *, whole: bool = False
    ) -> AsyncIterator[Generation]:
        """As `deliver`, for who wants to wait for the events."""
        generation = Generation()
        async with self.deliver(model_id, requests, generation, whole=whole):
            yield generation

    async def generate(self, model_id: str, request: Request) -> AsyncIterator[Event]:
        """The events of one request. Closing the iterator cancels it."""
        async with self.open(model_id, [request]) as generation:
            async for batch in generation:
                for _, event in batch:
                    yield event

    def _spread(self) -> None:
        """Something waits. Rust says so once, until it is drained."""
        if self._core is None:
            return
        clients = self._clients
        items, outcomes = self._core.drain()
        for ticket, outcome in outcomes:
            future = self._tickets.get(ticket)
            if future is None or future.done():
                continue  # whoever asked has left
            if isinstance(outcome, str):
                future.set_result(outcome)
            else:
                future.set_exception(outcome)
        for number, item in items:
            client = clients.get(number)
            if client is not None:
                client.take(item)
        for number in dict.fromkeys(number for number, _ in items):
            client = clients.get(number)
            if client is not None:
                client.catch_up()


def _load_request(model_id: str, options: Mapping[str, Any]) -> str:
    for name, value in options.items():
        arguments.option(name, value)
    return arguments.as_json({"model_id": model_id, **options})


def _watch_devices(core: Supervisor, backend: str | None, interval_seconds: float) -> None:
    """The body of a thread: read the devices whenever the core wants to know."""
    with devices.Reader(backend or "cpu") as reader:
        while core.next_reading(interval_seconds):
            try:
                core.update_devices(json.dumps([_device(device) for device in reader.read()]))
            except Exception:
                log.exception("the devices cannot be read; their last figures stand")


def _device(device: devices.Device) -> dict[str, Any]:
    """`Device` of `rust/fleet/src/event.rs`."""
    return {
        "index": device.index,
        "name": device.name,
        "bus_id": device.bus_id,
        "uuid": device.uuid,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
        "kind": device.kind,
        "processes": [{"pid": pid, "bytes": taken} for pid, taken in device.processes],
        "state": device.state,
        "look": None if device.look is None else dataclasses.asdict(device.look),
    }


def _model(row: dict[str, Any]) -> dict[str, Any]:
    """A model under the names that `load` and `unload` have for it."""
    named = {"model_id": row.pop("id"), "requests": row.pop("streams", 0)}
    return {**named, **row}


def _wants_load(fault: NodeError) -> bool:
    """Did the model only lack a ready worker?"""
    return fault.code == "model_loading"


def _look_at(task: asyncio.Task[Any]) -> None:
    """The outcome of a load that nobody waits for any more is not an unhandled error."""
    if not task.cancelled():
        task.exception()
