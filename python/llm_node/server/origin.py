"""Which `Host` and which `Origin` a request may have.

A node on a loopback address is reached by every web page that its user opens. Two rules keep those out: a
name that public DNS may point at this machine is no name of the node's (DNS rebinding), and a page of another
origin sends nothing to it (cross-site requests) unless `--cors-origin` names that origin. Programs, which
send no `Origin`, are not concerned. Pure: knows headers alone.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection, Mapping

from llm_node.node import NodeError

OPEN_TO_ALL = frozenset({"/", "/healthz"})
"""Paths that pages of any origin may ask, or link to: they tell nothing and do nothing."""

EXPOSED = "X-Request-Id, Retry-After"
PREFLIGHT_SECONDS = "600"

_AUTHORITY = re.compile(r"(?:\[(?P<address>[^\[\]]*)\]|(?P<name>[^:\[\]@/]*))(?::\d{0,5})?")


class OriginRules:
    """The rules of one node."""

    def __init__(self, *, bound: str, hosts: Collection[str], origins: Collection[str]) -> None:
        """`bound`: what the node listens on. `hosts`, `origins`: those of `--allow-host`, `--cors-origin`."""
        self._hosts = frozenset({bound.lower().removesuffix("."), *hosts})
        self._origins = frozenset(origins)
        self._seen: str | None = None
        """The last host that was the node's own: clients say the same again and again."""

    def check(self, path: str, headers: Mapping[str, str]) -> None:
        """Raise `NodeError` where the request is not for this node, or not from where it may come."""
        self._check_host(headers.get("Host", ""))
        if path not in OPEN_TO_ALL:
            self._check_origin(headers)

    def cors(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """What an answer to this request says of origins."""
        if not self._origins:
            return {}
        origin = headers.get("Origin", "")
        if origin.lower() not in self._origins:
            return {"Vary": "Origin"}
        return {
            "Vary": "Origin",
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Expose-Headers": EXPOSED,
        }

    @staticmethod
    def preflight(method: str, headers: Mapping[str, str]) -> Mapping[str, str] | None:
        """What a browser wants to know before the request itself. None: this is no such question."""
        wanted = headers.get("Access-Control-Request-Method")
        if method != "OPTIONS" or wanted is None or "Origin" not in headers:
            return None
        # Both are sent back, and a client may send any bytes.
        if not (wanted + headers.get("Access-Control-Request-Headers", "")).isascii():
            return None
        allowed = {
            "Access-Control-Allow-Methods": wanted,
            "Access-Control-Max-Age": PREFLIGHT_SECONDS,
        }
        if "Access-Control-Request-Headers" in headers:
            allowed["Access-Control-Allow-Headers"] = headers["Access-Control-Request-Headers"]
        if headers.get("Access-Control-Request-Private-Network") == "true":
            allowed["Access-Control-Allow-Private-Network"] = "true"
        return allowed

    def _check_host(self, text: str) -> None:
        if text == self._seen or not text:  # without a host it is no browser that asks
            return
        if not self._is_own(text):
            raise NodeError(
                "host_not_allowed",
                f"This node does not answer to the host {text[:200]!r}; if it is yours, start the node with "
                "--allow-host and its name",
            )
        self._seen = text

    def _is_own(self, authority: str) -> bool:
        match = _AUTHORITY.fullmatch(authority)
        if match is None:
            return False
        if match["address"] is not None:
            return _is_address(match["address"], version=6)
        name = match["name"].lower().removesuffix(".")
        return (
            name == "localhost"
            or name.endswith((".localhost", ".local"))
            or name in self._hosts
            or _is_address(name, version=4)
        )

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        origin = headers.get("Origin")
        if origin is not None and origin.lower() in self._origins:
            return
        if origin is not None and not _is_same(origin, headers.get("Host", "")):
            raise _foreign(f"a page of {origin[:200]!r}")
        if headers.get("Sec-Fetch-Site", "").lower() == "cross-site":
            raise _foreign("a page of another site")


def _foreign(what: str) -> NodeError:
    return NodeError(
        "origin_not_allowed",
        f"This request was sent by {what}; if it may use the node, start the node with --cors-origin and its "
        "origin",
    )


def _is_address(text: str, *, version: int) -> bool:
    try:
        return ipaddress.ip_address(text.partition("%")[0]).version == version
    except ValueError:
        return False


def _is_same(origin: str, host: str) -> bool:
    """Is it the origin of what stands in `Host`? The schemes may differ: a proxy may do TLS for the node."""
    scheme, _, authority = origin.lower().partition("://")
    usual = {"http": ":80", "https": ":443"}.get(scheme)
    if usual is None or not authority:
        return False
    return authority.removesuffix(usual) == host.lower().removesuffix(usual)
