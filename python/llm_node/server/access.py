"""Which key a request needs, and whether it is meant for this node. Pure: knows its head alone."""

from __future__ import annotations

from collections.abc import Mapping

from llm_node.keys import Key, Keys, Scope
from llm_node.node import NodeError

OPEN = frozenset({"/", "/healthz", "/readyz", "/health", "/-/healthz", "/-/routes", "/openapi.json"})
"""They tell nothing that is anybody's."""
OPEN_BELOW = ("/web/",)

OF_ADMINS = frozenset(
    {"/metrics", "/slots", "/api/system", "/api/logs", "/api/incidents", "/api/engines", "/api/pull"}
)
OF_ADMINS_BELOW = ("/api/models/",)
"""Loading, unloading, fetching and deleting. `/api/models` itself is a list of names."""


def needed(method: str, path: str) -> Scope | None:
    """The scope that a request needs; None: no key at all."""
    if method == "OPTIONS" or path in OPEN or path.startswith(OPEN_BELOW):
        return None
    is_admins = path in OF_ADMINS or path.startswith(OF_ADMINS_BELOW)
    return Scope.ADMIN if is_admins else Scope.INFERENCE


def check(keys: Keys, method: str, path: str, headers: Mapping[str, str]) -> Key | None:
    """The key of a request that may pass. Raises `NodeError`."""
    scope = needed(method, path)
    if scope is None:
        return None
    secret = _given(headers)
    key = None if secret is None else keys.find(secret)
    if key is None:
        what = "needs a key" if secret is None else "does not know this key"
        raise NodeError("invalid_api_key", f"This node {what}: send one as `Authorization: Bearer KEY`")
    if scope is Scope.ADMIN and key.scope is not Scope.ADMIN:
        raise NodeError("insufficient_scope", f"The key {key.name} is for inference; {path} needs an admin's")
    return key


def check_is_meant(method: str, path: str, headers: Mapping[str, str], own_port: int) -> None:
    """Of one node among several. Raises `NodeError` where a request that tells of this one, or changes it,
    may as well have come to another: a load balancer hands on the `Host` that it was asked by."""
    if needed(method, path) is not Scope.ADMIN:
        return
    _, _, port = headers.get("Host", "").rpartition(":")
    if port != str(own_port):
        raise NodeError(
            "host_not_allowed",
            f"{path} is about one node, and a load balancer is in front of several: ask each at its own "
            f"address, which here ends in :{own_port}",
        )


def _given(headers: Mapping[str, str]) -> str | None:
    kind, _, value = headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("X-Api-Key") or None  # Anthropic's clients
