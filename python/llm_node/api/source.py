"""Whose a request is, as far as turns in a model's queue go (`rust/core/src/schedule/admission.rs`)."""

from __future__ import annotations

import functools
import ipaddress
from typing import Any

from aiohttp import web

from llm_node.api.context import KEY

RANGE = 1 << 64


def of(request: web.Request, *names: Any) -> int:
    """A number that is the same for requests of one source.

    A key counts most, since nobody can make one up; then what the client says of itself: the first of `names`
    that says anything. Else it is where the connection comes from: the address, or on this machine, which
    everybody shares there, the connection.
    """
    if KEY in request:
        return hash(request[KEY].hash) % RANGE
    for name in names:
        if isinstance(name, str) and name:
            return hash(name) % RANGE
    return hash(_peer(request)) % RANGE


def _peer(request: web.Request) -> object:
    transport = request.transport
    address = None if transport is None else transport.get_extra_info("peername")
    if isinstance(address, tuple) and not _is_loopback(address[0]):
        return address[0]
    return address or id(transport)


@functools.lru_cache
def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback
