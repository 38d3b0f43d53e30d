"""`llm-node` without a verb: serve until a signal comes."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import click
from aiohttp import web

from llm_node import demo
from llm_node.cli import options
from llm_node.node import Node, NodeError, __version__, keep_memory_private
from llm_node.server.app import make_app, make_runner
from llm_node.settings import LEVELS, Settings, service_variables

log = logging.getLogger(__name__)

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
DEMO_QUESTION = "What is an engine?"


def serve(settings: Settings) -> None:
    """Serve. Ends with 0 after SIGTERM or SIGINT, with 1 where the node cannot start."""
    logging.basicConfig(stream=sys.stderr, level=LEVELS[settings.log_level], format=LOG_FORMAT)
    if skipped := service_variables():
        log.info("not settings, but where a Kubernetes Service is: %s", ", ".join(skipped))
    # Workers run as the same user, and what the node holds (keys, prompts) is not an engine's.
    keep_memory_private()
    try:
        asyncio.run(_serve(settings))
    except NodeError as fault:
        raise click.ClickException(f"{fault.code}: {fault.message}") from None


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    _on_signals(stop)
    node = options.node(settings, needs_device=True)
    runner = make_runner(make_app(node, settings))
    await runner.setup()
    try:
        await _listen(runner, settings)
        greeting = asyncio.create_task(_greet(node, _address(runner, settings)))
        await stop.wait()
        greeting.cancel()
        log.info("going down: answers under way have %g s", settings.drain_timeout)
        # Still listening, so that new requests get a typed refusal instead of a closed door.
        await node.close()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, settings: Settings) -> None:
    try:
        await web.TCPSite(runner, settings.host, settings.port).start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"cannot listen on {settings.host}:{settings.port}: {reason}") from None


def _on_signals(stop: asyncio.Event) -> None:
    """The first signal drains, the second ends at once."""
    loop = asyncio.get_running_loop()

    def ask() -> None:
        if stop.is_set():
            os._exit(130)  # workers end themselves when their node is gone
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        if sys.platform == "win32":
            signal.signal(number, _from_any_thread(loop, ask))
        else:
            loop.add_signal_handler(number, ask)


def _from_any_thread(loop: asyncio.AbstractEventLoop, ask: Callable[[], None]) -> Callable[..., None]:
    def handler(*_: object) -> None:
        loop.call_soon_threadsafe(ask)

    return handler


def _address(runner: web.AppRunner, settings: Settings) -> str:
    """The URL, with the port that 0 came to."""
    port = next((address[1] for address in runner.addresses if isinstance(address, tuple)), settings.port)
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
