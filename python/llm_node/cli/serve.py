"""`llm-node` without a verb: serve until a signal comes."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click

from llm_node import demo
from llm_node.cli import options
from llm_node.node import Node, NodeError, __version__, keep_memory_private
from llm_node.server import descriptors
from llm_node.server.address import SocketAddress, is_loopback, resolve, url
from llm_node.server.app import make_app, make_runner
from llm_node.server.listener import Listener, most_connections
from llm_node.settings import LEVELS, Settings, service_variables

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DEMO_QUESTION = "What is an engine?"


def serve(settings: Settings) -> None:
    """Serve until a signal comes: SIGTERM, SIGINT, or SIGHUP.

    Ends with 0 once answers under way have ended, and with 128 and the signal's number where a second signal
    hurried it; with 1 where the node cannot start.
    """
    logging.basicConfig(stream=sys.stderr, level=LEVELS[settings.log_level], format=LOG_FORMAT)
    if skipped := service_variables():
        log.info("not settings, but where a Kubernetes Service is: %s", ", ".join(skipped))
    # Workers run as the same user, and what the node holds (keys, prompts) is not an engine's.
    keep_memory_private()
    try:
        hurried_by = asyncio.run(_serve(settings))
    except NodeError as fault:
        raise click.ClickException(f"{fault.code}: {fault.message}") from None
    if hurried_by is not None:
        sys.stderr.flush()
        os._exit(128 + hurried_by)  # threads that still wait for a load would be waited for


async def _serve(settings: Settings) -> int | None:
    """Gives the signal that hurried it, if one did."""
    signals = _Signals()
    addresses = await _addresses(settings)
    node = options.node(settings, needs_device=True)
    runner = make_runner(make_app(node, settings))
    await runner.setup()
    listener = Listener(
        runner,
        settings,
        most_connections=most_connections(settings.max_connections, descriptors.raise_limit()),
    )
    try:
        try:
            listener.open(addresses)
        except OSError as error:
            raise _cannot_listen(settings, error) from None
        greeting = asyncio.create_task(_greet(node, url(settings.host, listener.port)))
        await signals.first.wait()
        greeting.cancel()
        log.info("going down: answers under way have %g s", settings.drain_timeout)
        # Still listening, so that new requests get a typed refusal instead of a closed door.
        await _drain(node, signals)
    finally:
        await listener.close()
        await runner.cleanup()
    return signals.hurried_by


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
    if reached and not settings.allow_open:
        name = settings.host if settings.host in reached else f"{settings.host} ({', '.join(reached)})"
        raise click.ClickException(
            f"{name} is reached by other machines, and this node has no keys yet: whoever reaches it may "
            "use it and manage its models. Listen on 127.0.0.1, behind a proxy that asks for keys, or add "
            "--allow-open yes where all who reach it may use it."
        )
    return addresses


def _cannot_listen(settings: Settings, error: OSError) -> click.ClickException:
    # What the resolver says has a negative number, and words of its own.
    number = error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or str(error)
    return click.ClickException(f"cannot listen on {settings.host}:{settings.port}: {reason}")


class _Signals:
    """The first one drains, the second hurries, and a third one ends the process whatever it waits for."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()
        self.hurried_by: int | None = None
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", None)):
            if number is None:
                continue  # Windows
            if number not in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: who started it wants it to outlive the terminal
            ask = functools.partial(self._ask, int(number))
            if sys.platform == "win32":
                signal.signal(number, _from_any_thread(loop, ask))
            else:
                loop.add_signal_handler(number, ask)

    def _ask(self, number: int) -> None:
        if not self.first.is_set():
            self.first.set()
        elif not self.second.is_set():
            self.hurried_by = number
            self.second.set()
        else:
            os._exit(128 + number)  # workers end themselves when their node is gone


def _from_any_thread(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> Callable[..., None]:
    def handler(*_: object) -> None:
        loop.call_soon_threadsafe(ask)

    return handler


async def _greet(node: Node, url: str) -> None:
    """Say where the node listens, what it has, and what to type next."""
    _say(f"llm-node {__version__} listens on {url} (GPU backend: {node.gpu_backend})")
    try:
        engines, models = await node.engines(), await node.models()
    except NodeError as fault:
        log.warning("engines and models cannot be listed: %s", fault.message)
        return
    usable = [engine for engine in engines if engine["status"] == "loaded"]
    _say(f"engines: {_names(usable, 'id')}" + _rejected(len(engines) - len(usable)))
    _say(f"models:  {_names(models, 'model_id')}")
    if not models:
        return
    names = [str(model["model_id"]) for model in models]
    name = demo.NAME if demo.NAME in names else names[0]
    _say("")
    _say("Ask it something:")
    _say(f"  curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' \\")
    _say(f"""    -d '{{"model": "{name}", "stream": true, "temperature": 0,""")
    _say(f"""         "messages": [{{"role": "user", "content": "{DEMO_QUESTION}"}}]}}'""")
    _say("or from Python, with `pip install openai`:")
    _say("  from openai import OpenAI")
    _say(f'  client = OpenAI(base_url="{url}/v1", api_key="none")')
    _say(f'  messages = [{{"role": "user", "content": "{DEMO_QUESTION}"}}]')
    _say(f'  answer = client.chat.completions.create(model="{name}", messages=messages)')
    _say("  print(answer.choices[0].message.content)")
    _say("")


def _names(entries: list[dict[str, Any]], key: str) -> str:
    return ", ".join(str(entry[key]) for entry in entries) or "none"


def _rejected(count: int) -> str:
    return f" ({count} rejected: see `llm-node engines`)" if count else ""


def _say(line: str) -> None:
    click.echo(line, err=True)
