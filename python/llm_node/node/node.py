"""`Node`: the supervisor of `rust/node` as asyncio sees it.

Owns the one wake-up per loop turn that spreads what has come to those it is for, and the rule that a
load goes on when its client leaves. Knows nothing of HTTP, and of no API family's words: requests are
those of `rust/core/src/request.rs`, and bytes for a connection pass through as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from llm_node import _core, devices, engine_packages, worker
from llm_node._core import Event, Supervisor
from llm_node.node.client import Client, Connection, Frames, Generation, NodeError, Receiver

log = logging.getLogger(__package__)

Request = Mapping[str, Any]
"""A request in neutral words; JSON of `rust/core/src/request.rs`."""

START_SECONDS = 30.0
"""How long a worker process may take until it connects: Python starts, nothing else happens."""


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

    def __init__(
        self,
        *,
        engines_dirs: Sequence[Path | str],
        engine_packages: bool = False,
        models_dir: Path | str,
        caches: Sequence[tuple[str, Path | str]] = (),
        demo_model: Path | str | None = None,
        default_model: str | None = None,
        aliases: Mapping[str, str] | None = None,
        chat_templates: Mapping[str, str] | None = None,
        gpu_backend: str = "auto",
        vram_limit: int | None = None,
        context_length: int | None = None,
        max_sequences: int | None = None,
        cache_tokens: int | None = None,
        threads: int = 0,
        queue_limit: int = 512,
        target_step_ms: int = 150,
        prefix_cache: bool = True,
        step_timeout: int = 600,
        speculation: str = "lookup",
        draft_model: Path | str | None = None,
        tool_syntax: Mapping[str, str] | None = None,
        engine_options: Mapping[str, str] | None = None,
        engine_env: Sequence[str] = (),
        load_timeout: float = 600.0,
        drain_timeout: float = 8.0,
        monitor_interval: float = 1.0,
        log_level: str = "info",
        needs_device: bool = True,
    ) -> None:
        """
        engines_dirs: folders of `<id>/<gpu_backend>/manifest.json`; the first engine of an id wins.
        engine_packages: look behind these in the Python packages that hold engines.
        models_dir: folder of the models. caches: other programs' folders, each with the program's name:
            "hub", "llama-cpp", "lm-studio" or "ollama". demo_model: a file that is offered beside them.
        default_model: see `chosen`. aliases: further names of models, and what each means.
        chat_templates: by the model, the source of its template in place of its own, or the name of one that
            is built in.
        gpu_backend: "auto", "cuda", "metal", "vulkan" or "cpu". With "auto" `start` raises
            `gpu_not_found` where there is no GPU.
        vram_limit: bytes on each device. Timeouts and intervals: seconds.
        speculation: "off" or "lookup". draft_model: a file that guesses instead, unless it is "off".
        tool_syntax: model or "*" to how it writes calls, where a load says nothing.
        engine_env: names of environment variables that engines see beside the usual ones.
        needs_device: False for one who only lists engines and models.
        """
        self._wanted_backend = gpu_backend
        self._backend: str | None = None
        self._named_engines_dirs = [str(Path(path).absolute()) for path in engines_dirs]
        self._engine_packages = engine_packages
        self._models_dir = str(Path(models_dir).absolute())
        self._caches = [(origin, str(Path(path).absolute())) for origin, path in caches]
        self._demo_model = None if demo_model is None else str(Path(demo_model).absolute())
        self._default_model = default_model
        self._aliases = dict(aliases or {})
        self._chat_templates = dict(chat_templates or {})
        self._vram_limit = vram_limit
        self._context_length = context_length
        self._max_sequences = max_sequences
        self._cache_tokens = cache_tokens
        self._threads = threads
        self._queue_limit = queue_limit
        self._target_step_ms = target_step_ms
        self._prefix_cache = prefix_cache
        self._step_timeout = step_timeout
        self._speculation = speculation
        self._draft_model = None if draft_model is None else str(Path(draft_model).absolute())
        self._tool_syntax = dict(tool_syntax or {})
        self._engine_options = dict(engine_options or {})
        self._engine_env = list(engine_env)
        self._load_timeout = load_timeout
        self._drain_timeout = drain_timeout
        self._monitor_interval = monitor_interval
        self._log_level = log_level
        self._needs_device = needs_device

        self.id = uuid.uuid4().hex
        """Tells this node from all others."""
        self._core: Supervisor | None = None
        self._wakening: asyncio.BaseTransport | None = None
        self._closing: asyncio.Task[None] | None = None
        self._monitor: asyncio.Task[None] | None = None
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
        return self._core is not None and self._closing is None

    @property
    def standstill(self) -> str | None:
        """Why a model answers nothing although it is loaded, if there is one."""
        return None if self._core is None else self._core.standstill()

    async def start(self) -> None:
        """Find the devices and start the supervisor. Raises `NodeError` (`gpu_not_found`)."""
        try:
            self._backend = await asyncio.to_thread(devices.resolve_backend, self._wanted_backend)
            await asyncio.to_thread(devices.make_device_files, self._backend)
            self._devices = await asyncio.to_thread(devices.read, self._backend)
        except devices.NoGpuError as error:
            if self._needs_device:
                raise NodeError("gpu_not_found", str(error)) from None
        configuration = json.dumps(self._configuration())
        self._core = await asyncio.to_thread(Supervisor, configuration)
        self._wakening, _ = await asyncio.get_running_loop().create_connection(
            lambda: _Wakening(self._spread), sock=socket.socket(fileno=self._core.wake_socket())
        )
        self._monitor = asyncio.create_task(self._watch_devices())

    async def close(self, drain_seconds: float | None = None) -> None:
        """Refuse what is new, let answers under way end for at most so long, end all workers.

        With 0 seconds this also ends at once a `close` that still waits.
        """
        seconds = self._drain_timeout if drain_seconds is None else drain_seconds
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(seconds))
        elif seconds == 0 and self._core is not None:
            await asyncio.to_thread(self._core.shutdown, 0)
        await asyncio.shield(self._closing)

    async def _close(self, drain_seconds: float) -> None:
        core = self._core
        if self._monitor is not None:
            self._monitor.cancel()
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
            "engines_dirs": self._engines_dirs(),
            "models_dir": self._models_dir,
            "caches": [{"origin": origin, "path": path} for origin, path in self._caches],
            "demo_model": self._demo_model,
            "aliases": self._aliases,
            "chat_templates": self._chat_templates,
            "gpu_backend": self._backend,
            "devices": [_device(device) for device in self._devices],
            "vram_limit_bytes": self._vram_limit,
            "context_length": self._context_length,
            "max_sequences": self._max_sequences,
            "cache_tokens": self._cache_tokens,
            "tool_syntax": self._tool_syntax,
            "engine_options": self._engine_options,
            "engine_env": self._engine_env,
            "threads": self._threads,
            "queue_limit": self._queue_limit,
            "target_step_ms": self._target_step_ms,
            "keep_prefixes": self._prefix_cache,
            "step_timeout_seconds": self._step_timeout,
            "speculation": self._speculation,
            "draft_model": self._draft_model,
            "load_timeout_seconds": self._load_timeout,
            "start_timeout_seconds": START_SECONDS,
            "worker_command": worker.command(_core.__file__),
            "log_level": self._log_level,
        }

    def _running(self) -> Supervisor:
        if self._core is None:
            raise NodeError("internal", "the node was used before it was started")
        if self._closing is not None:
            raise NodeError("shutting_down", "The node is going down")
        return self._core

    # ---- engines, models, devices ----------------------------------------------------------------

    async def engines(self, *, refresh: bool = False) -> list[dict[str, Any]]:
        """Every candidate with its verdict. Slow the first time: candidates are probed.

        `refresh`: looks at each anew, and for packages that were installed meanwhile.
        """
        core = self._running()
        if refresh:
            core.search_in(await asyncio.to_thread(self._engines_dirs))
        engines: list[dict[str, Any]] = await self._outcome(core.engines(refresh))
        return engines

    def _engines_dirs(self) -> list[str]:
        packaged = engine_packages.folders() if self._engine_packages else []
        return [*self._named_engines_dirs, *map(str, packaged)]

    async def models(self) -> list[dict[str, Any]]:
        """Every model found, with its state."""
        return [_model(row) for row in await self._outcome(self._running().models())]

    async def model(self, name: str) -> dict[str, Any]:
        """The model that is meant by a name, with its state. Raises `NodeError` (`model_not_found`)."""
        return _model(await self._outcome(self._running().model(name)))

    async def chosen(self) -> str:
        """The model for a request that names none: the one that is loaded, else the default model. Raises
        `NodeError` where neither says which."""
        models = await self.models()
        loaded = [str(model["model_id"]) for model in models if model["status"] == "loaded"]
        if len(loaded) == 1:
            return loaded[0]
        if self._default_model is not None:
            return self._default_model
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

    async def load(self, model_id: str, **options: Any) -> dict[str, Any]:
        """Load a model, or join a load under way, and say what it came to.

        `options`: `format`, `engine`, `context_length`, `max_sequences`, `cache_tokens`, `gpu_layers`,
        `threads`, `speculation`, `draft_model` (a name), `tool_syntax`, `chat_template`, `options` (text to
        text, for the engine). A model that is loaded with others is not loaded anew
        (`model_loaded_differently`). The load goes on when the caller is cancelled.
        """
        request = json.dumps({"model_id": model_id, **options})
        loaded: dict[str, Any] = await self._outcome(self._running().load(request))
        return loaded

    async def ensure_ready(self, model_id: str) -> dict[str, Any]:
        """Load a model with the node's defaults unless it is loaded. One load for all who ask.

        A caller that is cancelled stops waiting; the load goes on for the others.
        """
        task = self._loads.get(model_id)
        if task is None:
            task = asyncio.ensure_future(self._load_for_requests(model_id))
            self._loads[model_id] = task
            task.add_done_callback(_look_at)
            task.add_done_callback(lambda _: self._loads.pop(model_id, None))
        return await asyncio.shield(task)

    async def _load_for_requests(self, model_id: str) -> dict[str, Any]:
        try:
            return await self.load(model_id)
        except NodeError as fault:
            if fault.code != "shutting_down" or self._closing is not None:
                raise
        # Somebody unloaded it before it was loaded. Those who wait here did not: once more for them.
        return await self.load(model_id)

    async def unload(self, model_id: str, *, timeout_seconds: float = 30.0) -> None:
        """Drain the model's worker for at most so long, end it, wait until it is gone."""
        await self._outcome(self._running().unload(model_id, timeout_seconds))

    async def system(self) -> dict[str, Any]:
        """Devices with what is free now, the ledger, versions."""
        report: dict[str, Any] = await self._outcome(self._running().system())
        return report

    async def _outcome(self, ticket: int) -> Any:
        """What comes of a ticket. Nothing but this coroutine waits for it."""
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        # What comes is spread by the loop's own thread, so nothing can have come before this line.
        self._tickets[ticket] = future
        try:
            return json.loads(await future)
        finally:
            del self._tickets[ticket]

    async def _watch_devices(self) -> None:
        while self._backend is not None:
            await asyncio.sleep(self._monitor_interval)
            try:
                found = await asyncio.to_thread(devices.read, self._backend)
                text = json.dumps([_device(device) for device in found])
                await asyncio.to_thread(self._running().update_devices, text)
            except Exception:
                log.exception("the devices cannot be read; their last figures stand")

    # ---- generation ------------------------------------------------------------------------------

    async def ask(self, model_id: str, question: Any) -> Any:
        """Something that is not generation: `Question` of `rust/wire/src/message.rs` in, the value of
        its `Answer` out. Loads the model where it is not loaded."""
        core = self._running()
        text = json.dumps(question)
        try:
            ticket = core.ask(model_id, text)
        except NodeError as fault:
            if not _wants_load(fault):
                raise
            await self.ensure_ready(model_id)
            ticket = core.ask(model_id, text)
        try:
            (value,) = (await self._outcome(ticket)).values()
        except asyncio.CancelledError:
            core.forget(ticket)
            raise
        return value

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
        client = Client(self._running(), next(self._numbers), receiver, connection)
        self._clients[client.number] = client
        try:
            try:
                self._submit(client, model_id, requests, frames, whole)
            except NodeError as fault:
                if client.streams or not _wants_load(fault):
                    raise
                await self.ensure_ready(model_id)
                self._submit(client, model_id, requests, frames, whole)
            yield client
        finally:
            del self._clients[client.number]
            if client.streams:
                client.disconnect()
            for stream in client.streams:
                client.cancel(stream)

    def _submit(
        self,
        client: Client,
        model_id: str,
        requests: Sequence[Request],
        frames: Sequence[Frames] | None,
        whole: bool,
    ) -> None:
        core = self._running()
        for index, request in enumerate(requests):
            written = None if frames is None else frames[index]
            stream = core.submit(model_id, json.dumps(request), client.number, written, whole)
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


def _device(device: devices.Device) -> dict[str, Any]:
    """`Device` of `rust/node/src/config.rs`."""
    return {
        "index": device.index,
        "name": device.name,
        "bus_id": device.bus_id,
        "total_bytes": device.total_bytes,
        "free_bytes": device.free_bytes,
        "kind": "host" if device.is_host else "gpu",
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
