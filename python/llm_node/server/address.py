"""What a host to listen on means: its addresses, and who reaches them."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

SocketAddress = tuple[Any, ...]
"""As `socket` has it: host, port, and two more for IPv6."""


async def resolve(host: str, port: int) -> list[tuple[int, SocketAddress]]:
    """Its addresses, each with its family. Raises `OSError`."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def is_loopback(address: SocketAddress) -> bool:
    """Does nobody but this machine reach it?"""
    parsed = ipaddress.ip_address(str(address[0]).partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback


def url(host: str, port: int, *, has_tls: bool = False) -> str:
    """Where a client on this machine finds what listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    place = f"[{reached}]:{port}" if ":" in reached else f"{reached}:{port}"
    return f"{'https' if has_tls else 'http'}://{place}"
