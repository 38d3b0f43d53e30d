"""The two names of Ray Serve that it does not promise to keep, as 2.60 has them. Nothing else here uses any.

In HAProxy mode each replica starts a server on a port that the controller gave it, and HAProxy leads requests
there: `ray.serve._private.replica.start_asgi_http_server`. Which ports these are, the controller tells the
proxies alone: `get_target_groups(app_name=None, from_proxy_manager=False)`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import ray

CONTROLLER, NAMESPACE = "SERVE_CONTROLLER_ACTOR", "serve"
TARGETS_SECONDS = 30.0

HOME = "ray.serve._private.replica"
NAME = "start_asgi_http_server"
SIGNATURE = "(app, http_options, *, event_loop, enable_so_reuseport=False)"
"""Without types. It gives a task that ends with the server, and the server, whose `should_exit` is set to end
it. A port that is taken is a `RuntimeError` with the `OSError` as its cause: then there is another try."""


class Server(Protocol):
    """What a replica holds of it."""

    should_exit: bool


Start = Callable[[str, int], Awaitable[tuple["asyncio.Task[None]", Server]]]
"""Starts a server on this host and port. Raises `OSError`."""


def bring_own_server(start: Start) -> str | None:
    """Have the replica of this process start its server so. Where Ray knows it otherwise nothing is changed,
    and this gives the reason."""
    try:
        home = importlib.import_module(HOME)
        present = getattr(home, NAME)
    except (ImportError, AttributeError) as error:
        return str(error)
    if (found := _shape(present)) != SIGNATURE:
        return f"{HOME}.{NAME} is {found} in this version of Ray, and was {SIGNATURE}"

    async def start_asgi_http_server(
        app: Any, http_options: Any, *, event_loop: Any, enable_so_reuseport: bool = False
    ) -> tuple[asyncio.Task[None], Server]:
        try:
            return await start(http_options.host, http_options.port)
        except OSError as error:
            raise RuntimeError(f"cannot listen on {http_options.host}:{http_options.port}") from error

    setattr(home, NAME, start_asgi_http_server)
    return None


def target_groups() -> list[Any]:
    """What HAProxy is told: for each application where its replicas listen. Where there is no HAProxy,
    Serve's own proxies, as a group without an application. Raises `RayError`, `ValueError` where there is no
    Serve, and `TypeError` or `AttributeError` where Ray knows it otherwise."""
    controller = ray.get_actor(CONTROLLER, namespace=NAMESPACE)
    asked = controller.get_target_groups.remote(from_proxy_manager=True)
    found: list[Any] = ray.get(asked, timeout=TARGETS_SECONDS)
    return found


def _shape(function: Any) -> str:
    signature = inspect.signature(function)
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()]
    text = str(inspect.Signature(bare))
    return text if inspect.iscoroutinefunction(function) else f"not async, {text}"
