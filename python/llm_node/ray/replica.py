"""What a replica of Ray Serve does: it owns one node, and says whether that lives.

The node is a process of its own (`child.py`). Where HAProxy leads requests, it listens on the port that Serve
chose, and no token passes Python. Everywhere else requests come through `relay.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket

from llm_node.ray import private
from llm_node.ray.child import Child
from llm_node.ray.relay import Relay

log = logging.getLogger("ray.serve")

BACKLOG = 1024
HEALTH_SECONDS = 20.0
"""Serve waits 30 s for a replica's word (`health_check_timeout_s`)."""


class Replica:
    """The class of the deployment."""

    def __init__(self, config: str) -> None:
        """`config`: the node's settings file."""
        self._node = Child(config, _leave)
        self._obstacle = private.bring_own_server(self._start_server)

    def __serve_build_asgi_app__(self) -> Relay:
        return Relay(self._node)

    async def check_health(self) -> None:
        """Serve asks first when all else has been started: where nobody wanted a server by then, the node
        listens for the relay alone."""
        if not self._node.has_begun:
            reason = self._obstacle or "RAY_SERVE_ENABLE_HA_PROXY is not set"
            log.warning("requests pass through Python, which is slower: %s", reason)
            await self._node.start(socket.create_server(("127.0.0.1", 0), backlog=BACKLOG))
        # Not whether it is ready: a node that goes down, or whose model stands still, is not to be replaced.
        await self._node.ask("/healthz", HEALTH_SECONDS)

    async def _start_server(self, host: str, port: int) -> tuple[asyncio.Task[None], private.Server]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        await self._node.start(socket.create_server((host, port), family=family, backlog=BACKLOG))
        return asyncio.create_task(self._node.ended()), _Server(self._node)


class _Server:
    """The node, as Serve knows a server."""

    def __init__(self, node: Child) -> None:
        self._node = node

    @property
    def should_exit(self) -> bool:
        """Only ever set."""
        return False

    @should_exit.setter
    def should_exit(self, value: bool) -> None:
        if value:
            self._node.stop()


def _leave(code: int) -> None:
    """A replica is nothing without its node. One that is gone is replaced at once, and holds no GPU."""
    log.error("llm-node has ended with %d, and its replica ends as well", code)
    logging.shutdown()
    os._exit(1)
