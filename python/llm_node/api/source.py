"""Whose a request is, as far as turns in a model's queue go (`rust/core/src/schedule/admission.rs`)."""

from __future__ import annotations

import ipaddress

from aiohttp import web

from llm_node.schema.sampling import Generation

RANGE = 1 << 64


def of(request: web.Request, wanted: Generation) -> int:
    """A number that is the same for requests of one source.

    What the client says of itself counts most: `prompt_cache_key`, then `user`. Else it is where the
    connection comes from: the address, or on this machine, which everybody shares there, the connection.
    """
    for name in (wanted.prompt_cache_key, wanted.user):
        if isinstance(name, str) and name:
            return hash(name) % RANGE
    return hash(_peer(request)) % RANGE


def _peer(request: web.Request) -> object:
    transport = request.transport
    address = None if transport is None else transport.get_extra_info("peername")
    if isinstance(address, tuple) and not ipaddress.ip_address(address[0].partition("%")[0]).is_loopback:
        return address[0]
    return address or id(transport)
