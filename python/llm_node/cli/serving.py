"""A node that serves until a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Callable, Coroutine

import click

from llm_node import advice, keys
from llm_node.api import page
from llm_node.cli import failure, greeting, options, own_node, remote, startup
from llm_node.errors import Exit
from llm_node.node import Node, NodeError, end_with_parent, keep_memory_private
from llm_node.server import descriptors, layout
from llm_node.server.address import SocketAddress, is_loopback, resolve, url
from llm_node.server.app import make_app, make_runner
from llm_node.server.listener import Listener, most_connections
from llm_node.server.record import NodeRecord
from llm_node.server.record import read as read_record
from llm_node.server.reload import Reload, name_strangers
from llm_node.server.tls import Tls, TlsError
from llm_node.settings import LEVELS, LOG_FORMAT, Settings, SettingsError, service_variables
from llm_node.version import __version__

log = logging.getLogger(__name__)

LEAVING_SECONDS = 3.0
"""How long requests are still taken by a socket of somebody else's. Load balancers look every second."""

ONE_SIGNAL_SECONDS = 0.2
"""Signals that follow each other within so many seconds are one: `timeout` and some supervisors send theirs
to the process and to its group."""


def serve(*given: dict[str, options.Given]) -> None:
    """Serve until a signal comes: SIGTERM or SIGINT. Of the settings, which SIGHUP has read again, the last
    `given` wins.

    Ends with 0 once answers under way have ended, and with 128 and the signal's number where a second signal
    hurried it; with 1 where the node cannot start, and with 7 where a defect of its own ended it.
    """
    settings = options.settings(*given)
    logging.basicConfig(stream=sys.stderr, level=LEVELS[settings.log_level], format=LOG_FORMAT)
    # What no line shows is not looked up for each; see "Optimization" in the logging HOWTO of Python.
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    if skipped := service_variables():
        log.info("not settings, but where a Kubernetes Service is: %s", ", ".join(skipped))
    if settings.exit_with_parent:
        try:
            end_with_parent()
        except OSError as error:
            raise click.ClickException(f"--exit-with-parent: {error.strerror or error}") from None
    # Workers run as the same user, and what the node holds (keys, prompts) is not an engine's.
    keep_memory_private()
    try:
        hurried_by = asyncio.run(_serve(settings, functools.partial(options.read, *given)))
    except NodeError as fault:
        raise failure.of(fault, advice.on(fault, sys.argv[1:])) from None
    if hurried_by is not None:
        sys.stderr.flush()
        os._exit(128 + hurried_by)  # threads that still wait for a load would be waited for


def check(settings: Settings) -> None:
    """Ends the command where a node of these settings would not start, as far as that is known beforehand."""
    startup.check(settings)
    try:
        settings.node_config()
        if settings.api_key_file is not None:
            keys.Keys.read(settings.api_key_file)
        _tls(settings)
    except (SettingsError, keys.KeysError, TlsError) as error:
        raise click.ClickException(str(error)) from None
    if settings.listen_fd is None:
        asyncio.run(_addresses(settings))


async def _serve(settings: Settings, read: Callable[[], Settings]) -> int | None:
    """Gives the signal that hurried it, if one did. `read`: where the settings came from."""
    signals = _Signals()
    inherited = _inherited(settings)
    addresses = [] if inherited is not None else await _addresses(settings)
    node = own_node.make(settings, needs_device=True)
    own_key = keys.fresh()
    try:
        warm = [name for name, model in settings.models.items() if model.warm]
        app = make_app(node, settings, own_key=own_key, warm=warm)
        tls = _tls(settings)
    except (keys.KeysError, TlsError) as error:
        raise click.ClickException(str(error)) from None
    runner = make_runner(app)
    await runner.setup()
    listener = Listener(
        runner,
        settings,
        most_connections=most_connections(settings.max_connections, descriptors.raise_limit()),
        tls=tls,
    )
    try:
        if inherited is not None:
            listener.take(inherited)
            reached = url(inherited.getsockname()[0], listener.port, has_tls=tls is not None)
        else:
            try:
                listener.open(addresses)
            except OSError as error:
                raise _cannot_listen(settings, error) from None
            reached = url(settings.host, listener.port, has_tls=tls is not None)

        def record() -> NodeRecord:
            fingerprint = None if tls is None else tls.fingerprint
            return NodeRecord(node.id, reached, os.getpid(), own_key, fingerprint, before)

        before = await remote.last_that_runs(settings)
        with record().kept_in(settings.home):
            layout.note(settings.home)
            reload = Reload(app, settings, own_key, read, tls)
            reloading = asyncio.create_task(
                _read_again(signals, reload, lambda: record().write(settings.home))
            )
            await _greet_until(node, signals.first, _greet(node, settings, reached, before))
            reloading.cancel()
            log.info("going down: answers under way have %g s", settings.drain_timeout)
            if inherited is not None:
                await _hand_over(node, listener, signals)
            # On its own address it goes on listening, so that new requests get a typed refusal instead of a
            # closed door.
            await _drain(node, signals)
        if before is not None and read_record(settings.home) is None and await remote.answers(before):
            before.write(settings.home)  # commands find that one again
    finally:
        await listener.close()
        await runner.cleanup()
    return signals.hurried_by


async def _greet_until(node: Node, stop: asyncio.Event, greeting: Coroutine[None, None, None]) -> None:
    """Wait for the signal to end. What the greeting raises ends the node as well, and a defect of its own."""
    signalled, greeted = asyncio.create_task(stop.wait()), asyncio.create_task(greeting)
    defective = asyncio.create_task(node.ended_by_defect())
    try:
        await asyncio.wait({signalled, greeted, defective}, return_when=asyncio.FIRST_COMPLETED)
        if greeted.done() and not defective.done():
            greeted.result()
        await asyncio.wait({signalled, defective}, return_when=asyncio.FIRST_COMPLETED)
        if defective.done():
            raise failure.Failed(defective.result().message, Exit.DEFECT)
    finally:
        signalled.cancel()
        greeted.cancel()
        defective.cancel()


async def _read_again(signals: _Signals, reload: Reload, tell_commands: Callable[[], None]) -> None:
    """What SIGHUP asks for, for as long as the node serves. Commands know it by a certificate that may be
    another."""
    while True:
        await signals.read_again.wait()
        signals.read_again.clear()
        await reload.again()
        tell_commands()


def _tls(settings: Settings) -> Tls | None:
    """Raises `TlsError`."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_cert, settings.tls_key)


async def _hand_over(node: Node, listener: Listener, signals: _Signals) -> None:
    """Let who gave the socket see that requests are for another node, and then let nobody in any more."""
    node.leave()
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(signals.second.wait(), LEAVING_SECONDS)
    await listener.close()


async def _drain(node: Node, signals: _Signals) -> None:
    """Let answers under way end; or end them all, and the workers, once there is a second signal."""
    hurry = asyncio.create_task(signals.second.wait())
    closing = asyncio.create_task(node.close())
    await asyncio.wait({hurry, closing}, return_when=asyncio.FIRST_COMPLETED)
    if hurry.done():
        log.warning("going down at once")
        await node.close(0)
    hurry.cancel()
    await closing


async def _addresses(settings: Settings) -> list[tuple[int, SocketAddress]]:
    """What to listen on; refused where others would reach it and nobody said that they may."""
    try:
        addresses = await resolve(settings.host, settings.port)
    except OSError as error:
        raise _cannot_listen(settings, error) from None
    reached = [str(address[0]) for _, address in addresses if not is_loopback(address)]
    if reached and not _may_be_reached(settings):
        raise _is_open(
            settings.host if settings.host in reached else f"{settings.host} ({', '.join(reached)})"
        )
    return addresses


def _inherited(settings: Settings) -> socket.socket | None:
    """The socket of `--listen-fd`; refused like an address."""
    number = settings.listen_fd
    if number is None:
        return None
    try:
        inherited = socket.socket(fileno=number)
        is_fit = inherited.family in (socket.AF_INET, socket.AF_INET6) and inherited.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        )
    except OSError as error:
        raise click.ClickException(
            f"--listen-fd {number} is no socket that this process has: {error.strerror}"
        ) from None
    if not is_fit:
        raise click.ClickException(f"--listen-fd {number} is no TCP socket that listens")
    inherited.set_inheritable(False)
    address = inherited.getsockname()
    if not is_loopback(address) and not _may_be_reached(settings):
        raise _is_open(str(address[0]))
    return inherited


def _may_be_reached(settings: Settings) -> bool:
    return settings.allow_open or settings.api_key_file is not None


def _is_open(name: str) -> click.ClickException:
    return click.ClickException(
        f"{name} is reached by other machines, and this node has no keys: whoever reaches it may use it and "
        "manage its models. Make one with `llm-node key new NAME` and add --api-key-file, or listen on "
        "127.0.0.1, or add --allow-open yes where all who reach it may use it."
    )


def _cannot_listen(settings: Settings, error: OSError) -> click.ClickException:
    # What the resolver says has a negative number, and words of its own.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    way_out = (
        "another --port (0 takes a free one)" if number == errno.EADDRINUSE else "another --host or --port"
    )
    return click.ClickException(
        f"cannot listen on {settings.host}:{settings.port}: {reason}; choose {way_out}"
    )


class _Signals:
    """The first one drains, the second hurries, and a third one ends the process whatever it waits for.

    SIGHUP ends nothing, unless it says that the terminal has closed in which the node was started.
    """

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.read_again = asyncio.Event()
        self.hurried_by: int | None = None
        self._last = -ONE_SIGNAL_SECONDS
        self._loop = loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            ask = functools.partial(self._ask, int(number))
            if sys.platform == "win32":
                signal.signal(number, _from_any_thread(loop, ask))
            else:
                loop.add_signal_handler(number, ask)
        if sys.platform != "win32":
            # Whoever has it ignored, as nohup does, wants the node to outlive the terminal.
            ends_with_terminal = signal.getsignal(signal.SIGHUP) != signal.SIG_IGN and _has_terminal()
            loop.add_signal_handler(signal.SIGHUP, self._hang_up, ends_with_terminal)

    def _hang_up(self, ends_with_terminal: bool) -> None:
        if ends_with_terminal and not _has_terminal():
            self._ask(int(signal.SIGHUP))
        else:
            self.read_again.set()

    def _ask(self, number: int) -> None:
        before, self._last = self._last, self._loop.time()
        if self._last - before < ONE_SIGNAL_SECONDS:
            return
        if not self.first.is_set():
            self.first.set()
        elif not self.second.is_set():
            self.hurried_by = number
            self.second.set()
        else:
            os._exit(128 + number)  # workers end themselves when their node is gone


def _has_terminal() -> bool:
    """Whether there is a terminal that this process belongs to (POSIX.1-2024, 11.1.3)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _from_any_thread(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> Callable[..., None]:
    def handler(*_: object) -> None:
        loop.call_soon_threadsafe(ask)

    return handler


async def _greet(node: Node, settings: Settings, url: str, before: NodeRecord | None) -> None:
    """Say where the node listens, what it has, and what to type next. Raises where it can serve nothing.

    `before`: the node that runs here, and that commands found until now.
    """
    _say(f"llm-node {__version__} listens on {url} (GPU backend: {node.gpu_backend})")
    if before is not None:
        log.warning(
            "another node runs in this home, at %s: until this one ends, commands talk to it, and with "
            "--node %s to the other. A --home of its own keeps nodes apart",
            before.url,
            before.url,
        )
    try:
        engines, models, obstacles = await node.engines(), await node.models(), await node.obstacles()
        await name_strangers(node, settings)
    except NodeError as fault:
        log.warning("engines and models cannot be listed: %s", fault.message)
        return
    if reason := greeting.wrong_backend(engines, node.gpu_backend):
        raise click.ClickException(reason)
    folders = settings.engines_dir, settings.models_dir
    certificate = settings.tls_cert
    way = greeting.Way(
        url,
        home=None if settings.has_default("home") else settings.home.absolute(),
        has_keys=settings.api_key_file is not None,
        has_page=settings.web and page.is_built(),
        certificate=None if certificate is None else certificate.absolute(),
    )
    for line in greeting.lines(way, node.gpu_backend, engines, models, obstacles, *folders):
        _say(line)
    if settings.api_key_file is not None:
        file = settings.api_key_file.absolute()
        made = way.typed(f"key new NAME --api-key-file {shlex.quote(str(file))}")
        _say(f"Requests need a key of {file}, here in {greeting.KEY_VARIABLE}; `{made}` makes one.")


def _say(line: str) -> None:
    click.echo(line, err=True)
